"""Every public name, so that an addition or a loss is a visible difference here."""

from __future__ import annotations

import importlib
import re
import types

import pytest

PUBLIC = {
    "sitout": [
        "Audit",
        "Change",
        "Finding",
        "MaskClock",
        "MaskKey",
        "MaxNorm",
        "Site",
        "Sites",
        "Study",
        "StudyError",
        "__version__",
        "audit",
        "audit_training",
        "backends",
        "disabled",
        "functional",
        "insert",
        "masks",
        "mc",
        "nn",
        "parallel",
        "replace",
        "schedules",
        "set_rate",
        "sites",
        "study",
        "thin",
    ],
    "sitout.backends": [
        "ACTIVATIONS",
        "LEAST_SAMPLES",
        "Activation",
        "Address",
        "Explanation",
        "Kept",
        "activate_and_drop",
        "add_rows",
        "count_samples",
        "draw",
        "draw_samples",
        "drop",
        "drop_and_add",
        "drop_directly",
        "explain",
        "is_direct",
        "keep",
        "keep_mask",
        "kept_samples",
        "kept_units",
        "least_rate",
        "linear",
        "pays",
        "reference",
        "select",
        "some_of",
        "spread",
        "take",
        "use",
    ],
    "sitout.backends.cpu": [
        "add_rows",
        "core",
        "count_word",
        "drop",
        "first",
        "fuse",
        "is_memory",
        "is_plain",
        "keep_cols",
        "keep_mask",
        "serves",
        "spread",
        "spread_add_",
        "take",
    ],
    "sitout.backends.reference": [
        "drop",
    ],
    "sitout.clock": [
        "MaskClock",
    ],
    "sitout.data": [
        "DataError",
        "DataSet",
        "Preprocess",
        "Split",
        "Splits",
        "load",
        "make_splits",
        "read_rows",
    ],
    "sitout.functional": [
        "activation_dropout",
        "alpha_dropout",
        "drop_path",
        "drop_path_add",
        "drop_residual",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "dropout_add",
        "dropout_add_layer_norm",
        "dropout_add_rms_norm",
        "feature_alpha_dropout",
        "gaussian_dropout",
        "keep_units",
        "thinned_batch_norm",
        "thinned_conv",
        "thinned_dropout",
        "thinned_linear",
    ],
    "sitout.mc": ["Comparison", "Prediction", "compare", "predict"],
    "sitout.masks": [
        "SPEC_VERSION",
        "MaskKey",
        "draw_key",
        "effective_rate",
        "keep_mask",
        "kept_samples",
        "kept_units",
        "normals",
        "rate_data",
    ],
    "sitout.parallel": [
        "block",
        "rows",
    ],
    "sitout.nn": [
        "ActivationDropout",
        "AlphaDropout",
        "DropPath",
        "DropPathAdd",
        "DropResidual",
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "DropoutAdd",
        "DropoutAddLayerNorm",
        "DropoutAddRMSNorm",
        "FeatureAlphaDropout",
        "GaussianDropout",
        "ResidualDropPath",
        "ThinnedBatchNorm1d",
        "ThinnedBatchNorm2d",
        "ThinnedBatchNorm3d",
        "ThinnedConv1d",
        "ThinnedConv2d",
        "ThinnedConv3d",
        "ThinnedDropout",
        "ThinnedLinear",
        "ThinnedMLP",
    ],
}
# What draws for several functions, the site that asks for one, and a network made of layers.
WITHOUT_A_TWIN = {"keep_units", "ResidualDropPath", "ThinnedMLP"}


@pytest.fixture(params=PUBLIC)
def public(request):
    return request.param, importlib.import_module(request.param)


def test_the_public_names_are_those_listed_here(public):
    name, module = public
    assert module.__all__ == PUBLIC[name]


def by_case(name):
    """Sort as ruff does (RUF022): constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_public_names_are_sorted_and_unique(public):
    _, module = public
    assert module.__all__ == sorted(set(module.__all__), key=by_case)


def test_every_public_name_is_there(public):
    _, module = public
    assert all(hasattr(module, name) for name in module.__all__)


def test_nothing_else_looks_public(public):
    """A helper starts with an underscore; modules and what is imported for use may stay."""
    name, module = public
    own = {
        attribute
        for attribute, value in vars(module).items()
        if getattr(value, "__module__", None) == name and not attribute.startswith("_")
    }
    assert own <= set(module.__all__) | {"Word"}


@pytest.mark.parametrize("name", ["sitout.functional", "sitout.nn"])
def test_a_package_of_operations_holds_nothing_but_them(name):
    module = importlib.import_module(name)
    public = {
        attribute
        for attribute, value in vars(module).items()
        if not attribute.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(module.__all__)


def test_every_layer_has_a_function_of_the_same_stem():
    """``DropPath`` and ``drop_path``; ``ThinnedConv2d`` and ``thinned_conv``, of any dims."""
    functions = set(PUBLIC["sitout.functional"]) - WITHOUT_A_TWIN
    layers = set(PUBLIC["sitout.nn"]) - WITHOUT_A_TWIN
    stems = {re.sub(r"(?<=^Thinned)(\w+?)[123]d$", r"\1", name).lower() for name in layers}
    assert stems == {name.replace("_", "") for name in functions}
