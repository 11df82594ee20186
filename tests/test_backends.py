"""Who serves a tensor, and how a user forces it."""

from __future__ import annotations

import pytest
import torch

import sitout
from battery import OF_SUBSETS
from sitout.backends import _choice, cpu, explain, reference, select, use

X = torch.ones(3)


@pytest.fixture(autouse=True)
def _free(monkeypatch):
    """Start with nothing forced, with a second backend to tell from the first, and end so."""
    monkeypatch.delenv("SITOUT_BACKEND", raising=False)
    monkeypatch.setitem(_choice._BACKENDS, "other", type(reference)("other"))
    use(None)
    yield
    use(None)


def test_the_core_serves_what_lies_in_the_memory_of_the_cpu():
    for x in (X, X.double(), torch.ones(0), torch.nn.Parameter(X), X.bfloat16().expand(2, 3).t()):
        backend, why = explain(x)
        assert backend == "cpu"
        assert why == f"the compiled core serves it, with {cpu.core().target()}"
        assert select(x) is cpu


class Subclass(torch.Tensor):
    """A tensor that could do anything."""


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones((), device="meta"), "it is not in the memory of the CPU"),
        (torch.ones(3).as_subclass(Subclass), "its type is Subclass"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "its values are not in its memory"),
        (torch.ones([1] * 17), "it is torch.float32 with 17 dims"),
        (torch.ones(3, dtype=torch.float8_e5m2), "it is torch.float8_e5m2"),
    ],
)
def test_the_reference_serves_the_rest_and_says_why(x, reason):
    backend, why = explain(x)
    assert backend == "reference"
    assert why.startswith(f"no compiled kernel serves this tensor: {reason}")
    assert select(x) is reference
    with (
        use("cpu"),
        pytest.raises(ValueError, match=r"^The backend 'cpu', forced by .*cannot serve"),
    ):
        explain(x)


def test_what_explain_names_is_what_select_gives():
    with use("other"):
        assert select(X) is _choice._BACKENDS[explain(X).backend]
        assert select(X) is not reference


def test_a_context_holds_within_its_block_and_restores_what_was_before():
    assert explain(X).backend == "cpu"
    with use("other"):
        assert explain(X) == ("other", "forced by sitout.backends.use('other')")
        with use("reference"):
            assert explain(X) == ("reference", "forced by sitout.backends.use('reference')")
        assert explain(X).backend == "other"
    assert "forced" not in explain(X).why


def test_a_context_restores_after_an_error():
    with pytest.raises(KeyError), use("other"):
        raise KeyError
    assert "forced" not in explain(X).why


def test_a_statement_holds_until_none_lifts_it():
    use("other")
    use("other")
    assert explain(X).backend == "other"
    use(None)
    assert "forced" not in explain(X).why


def test_none_lifts_the_force_for_a_block():
    use("other")
    with use(None):
        assert "forced" not in explain(X).why
    assert explain(X).backend == "other"


def test_a_statement_within_a_context_ends_with_it():
    with use("reference"):
        use("other")
        assert explain(X).backend == "other"
    assert "forced" not in explain(X).why


def test_a_context_around_a_statement_leaves_it_as_it_was():
    use("other")
    with use("reference"):
        pass
    assert explain(X).backend == "other"


def test_an_unknown_name_lists_the_known_and_the_nearest_and_forces_nothing():
    with pytest.raises(ValueError, match=r"^the backend given to use\(\)") as error:
        use("referense")
    assert str(error.value) == (
        "the backend given to use() must be one of reference, cpu, triton, other. Got 'referense'. "
        "Did you mean 'reference'?"
    )
    assert "forced" not in explain(X).why


def test_the_environment_forces_a_whole_process(monkeypatch):
    monkeypatch.setattr(_choice, "_ENVIRONMENT", "other")
    assert explain(X) == ("other", "forced by the environment variable SITOUT_BACKEND")


def test_an_empty_environment_variable_forces_nothing(monkeypatch):
    monkeypatch.setattr(_choice, "_ENVIRONMENT", "")
    assert "forced" not in explain(X).why


def test_use_goes_before_the_environment(monkeypatch):
    monkeypatch.setattr(_choice, "_ENVIRONMENT", "other")
    with use("reference"):
        assert explain(X) == ("reference", "forced by sitout.backends.use('reference')")
    assert explain(X).backend == "other"


def test_an_unknown_name_in_the_environment_lists_the_known(monkeypatch):
    monkeypatch.setattr(_choice, "_ENVIRONMENT", "cuda")
    with pytest.raises(
        ValueError, match=r"SITOUT_BACKEND must be one of reference, cpu, triton, other\. Got"
    ):
        explain(X)


def test_every_function_asks_for_its_backend(monkeypatch):
    """A backend that answers with a mark is seen in every result."""

    def mark(x, *_, **__):
        return torch.full_like(x, 7.0)

    monkeypatch.setattr(_choice._BACKENDS["other"], "drop", mark, raising=False)
    shapes = {"dropout2d": (2, 3, 4, 4), "dropout3d": (2, 3, 4, 4, 4)}
    for name in {*sitout.functional.__all__} - {*OF_SUBSETS}:
        x = torch.ones(shapes.get(name, (2, 3, 4)))
        more = {"activation_dropout": ["relu"], "dropout_add": [0 * x], "drop_path_add": [0 * x]}
        options = {"residual": 0 * x, "prenorm": True} if name.endswith("_norm") else {}
        with use("other"):
            y = getattr(sitout.functional, name)(x, *more.get(name, ()), p=0.5, **options)
        assert ((y[1] if options else y) == 7.0).all(), name
