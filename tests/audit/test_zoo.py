"""The audit of models that others wrote: no false error."""

from __future__ import annotations

import pytest
import torch

import sitout
import zoo

# Random decisions about layers break a graph, and drop-path layers in blocks without a skip never
# run: both are true, and worth no more than a note. dropout_edge does not scale what it keeps.
NOTES = {
    "timm-efficientnet-drop": {("A5", "note")},
    "hf-bart-layerdrop": {("A16", "note")},
    "hf-wav2vec2": {("A16", "note")},
    "hf-wav2vec2-augment": {("A16", "note")},
    "hf-wav2vec2-drop": {("A16", "note")},
}


@pytest.mark.parametrize("name", zoo.MODELS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_a_model_of_a_released_package_gives_no_false_finding(name):
    if not zoo.has(zoo.package(name)):
        pytest.skip(f"{zoo.package(name)} is not installed")
    model, args, kwargs = zoo.build(name)
    torch.manual_seed(0)
    found = sitout.audit(model, *args, **kwargs)
    assert {(one.rule, one.severity) for one in found.findings} == NOTES.get(name, set())
