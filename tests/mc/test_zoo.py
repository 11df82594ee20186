"""mc.predict on other people's models: the samples of a plain loop of theirs."""

from __future__ import annotations

import pytest
import torch

import sitout
import zoo
from sitout.mc import _predict
from sitout.mc._tape import UntraceableError

SILENT = {"timm-vit", "timm-convnext", "timm-efficientnet", "timm-mixer", "hf-llama", "hf-vit"}
"""Those whose rates are all 0."""
LOOPED = {
    *("hf-bart-layerdrop", "hf-wav2vec2-drop", "hf-wav2vec2-augment", "hf-wav2vec2"),
    "timm-vit-drop",
}
"""Those whose code takes branches on random numbers of its own, so that they run as a whole."""
GRAPHS = {name for name in zoo.MODELS if name.startswith("pyg")}
NAMES = [name for name in zoo.MODELS if zoo.has(zoo.package(name)) and name not in GRAPHS]


def output(out):
    """Return the tensor that counts."""
    if isinstance(out, torch.Tensor):
        return out
    return out[0] if isinstance(out, tuple) else next(iter(out.values()))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:(?!sitout)")
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_zoo_gives_the_samples_of_a_plain_loop(name, monkeypatch):
    model, inputs, kwargs = zoo.build(name)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    options = {"samples": 3, "return_samples": True, "select": output, "kwargs": kwargs}
    if name in SILENT:
        with pytest.raises(ValueError, match=r"of mc\.predict"):
            sitout.mc.predict(model, *inputs, **options)
        return
    ours = sitout.mc.predict(model, *inputs, **options)
    assert ours.samples.std(0).max() > 0.0
    assert ("no plan" in ours.explain()) == (name in LOOPED), ours.explain()

    def no(*_):
        raise UntraceableError("a test says so")

    monkeypatch.setattr(_predict, "make", no)
    _predict._plans.clear()
    theirs = sitout.mc.predict(model, *inputs, **options)
    _predict._plans.clear()
    assert torch.allclose(ours.samples, theirs.samples, atol=1e-3)
    for module in model.modules():
        assert not module.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
