"""Every public name, so that an addition or a loss is a visible difference here."""

from __future__ import annotations

import importlib
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
        "nn",
        "parallel",
        "replace",
        "schedules",
        "set_rate",
        "sites",
        "study",
    ],
    "sitout.backends": [
        "ACTIVATIONS",
        "Activation",
        "Address",
        "Explanation",
        "activate_and_drop",
        "drop",
        "drop_and_add",
        "drop_directly",
        "explain",
        "is_direct",
        "keep_mask",
        "kept_samples",
        "kept_units",
        "reference",
        "select",
        "use",
    ],
    "sitout.backends.cpu": [
        "core",
        "count_word",
        "drop",
        "first",
        "fuse",
        "is_memory",
        "is_plain",
        "keep_mask",
        "serves",
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
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "dropout_add",
        "feature_alpha_dropout",
        "gaussian_dropout",
    ],
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
        "Dropout",
        "Dropout1d",
        "Dropout2d",
        "Dropout3d",
        "DropoutAdd",
        "FeatureAlphaDropout",
        "GaussianDropout",
    ],
}


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
    """``DropPath`` and ``drop_path``, ``Dropout2d`` and ``dropout2d``."""
    stems = {name.replace("_", "") for name in PUBLIC["sitout.functional"]}
    assert {name.lower() for name in PUBLIC["sitout.nn"]} == stems
