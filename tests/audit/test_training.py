"""The audit of training steps, and rates that do not hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sitout


class LyingDropout(nn.Dropout):
    """Drops another share than it says."""

    def __init__(self, p, real):
        super().__init__(p)
        self.real = real

    def forward(self, x):
        return nn.functional.dropout(x, self.real, self.training)


def model_of(dropout):
    return nn.Sequential(nn.Linear(16, 256), dropout, nn.Linear(256, 1))


def stepper(model, before=lambda: None, batch=16):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step():
        before()
        optimizer.zero_grad()
        model(torch.randn(batch, 16)).square().mean().backward()
        optimizer.step()

    return step


def watch(model, step, steps=3):
    torch.manual_seed(0)
    found = sitout.audit_training(model, step, steps=steps)
    return {(one.rule, one.severity, one.site) for one in found.findings}


def test_a_right_model_gives_no_finding_and_trains():
    model = model_of(nn.Dropout(0.5))
    before = model[0].weight.detach().clone()
    assert watch(model, stepper(model)) == set()
    assert not torch.equal(model[0].weight, before)


def test_a_submodule_that_was_left_in_evaluation_is_found():
    model = model_of(nn.Dropout(0.5))
    model[1].eval()
    assert watch(model, stepper(model)) == {("A5", "error", "1")}


def test_a_layer_without_a_rate_may_be_in_evaluation():
    model = model_of(nn.Dropout(0.0)).eval()
    assert watch(model, stepper(model)) == set()


def test_attention_that_was_left_in_evaluation_is_found():
    model = nn.Sequential(
        nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32), nn.Linear(16, 1)
    )
    model[1].self_attn.eval()
    assert watch(model, stepper(model)) == {("A5", "error", "1.self_attn")}


def test_a_rate_that_does_not_hold_is_found_over_all_steps():
    model = model_of(LyingDropout(0.5, 0.3))
    assert watch(model, stepper(model)) == {("A23", "error", "1")}


def test_the_seed_inside_of_a_step_repeats_the_masks():
    model = model_of(nn.Dropout(0.5))
    step = stepper(model, before=lambda: torch.manual_seed(3))
    assert watch(model, step) == {("A28", "error", "1")}


def test_one_step_has_no_mask_to_compare_with():
    model = model_of(nn.Dropout(0.5))
    step = stepper(model, before=lambda: torch.manual_seed(3))
    assert watch(model, step, steps=1) == set()


@pytest.mark.parametrize("own", [False, True])
def test_a_rate_that_changes_under_compile_is_found_unless_it_is_data(own):
    layer = sitout.nn.Dropout(0.1).schedulable_() if own else nn.Dropout(0.1)
    model = torch.compile(model_of(layer), backend="eager")

    def lower():
        layer.p = layer.p / 2

    expected = set() if own else {("A17", "warning", "1")}
    assert watch(model, stepper(model, before=lower)) == expected


def test_other_models_in_the_step_do_not_matter():
    model, teacher = model_of(nn.Dropout(0.5)), model_of(nn.Dropout(0.5)).eval()
    step = stepper(model, before=lambda: teacher(torch.randn(4, 16)))
    assert watch(model, step) == set()


def test_a_step_that_does_not_run_the_model_is_an_error():
    with pytest.raises(ValueError, match="must be a step that runs the model"):
        sitout.audit_training(model_of(nn.Dropout(0.5)), lambda: None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((None,), TypeError), ((lambda: None, 0), ValueError), ((lambda: None, True), TypeError)],
)
def test_wrong_arguments_are_refused(arguments, error):
    step, *steps = arguments
    with pytest.raises(error, match="audit_training"):
        sitout.audit_training(nn.Dropout(0.5), step, **({"steps": steps[0]} if steps else {}))


def test_an_exception_in_a_step_leaves_nothing_behind():
    model = model_of(nn.Dropout(0.5))

    def step():
        model(torch.randn(2, 16))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sitout.audit_training(model, step)
    assert not model._forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_rate_that_does_not_hold_is_found_in_one_audit():
    torch.manual_seed(0)
    x = torch.randn(64, 64)
    assert [one.rule for one in sitout.audit(LyingDropout(0.5, 0.3), x)] == ["A23"]
    assert not sitout.audit(LyingDropout(0.5, 0.5), x)


LIBRARY = torch.library.Library("sitout_test_attention", "DEF")
LIBRARY.define("flash(Tensor q, float dropout_p) -> Tensor")
LIBRARY.define("ignores(Tensor q, float dropout_p) -> Tensor")
torch.library.impl(
    "sitout_test_attention::flash", "CPU", lambda q, p: q * (torch.rand_like(q) > p), lib=LIBRARY
)
torch.library.impl("sitout_test_attention::ignores", "CPU", lambda q, p: q * 1.0, lib=LIBRARY)


@pytest.mark.parametrize(("kernel", "rules"), [("flash", []), ("ignores", ["A23"])])
def test_a_fused_kernel_that_ignores_its_rate_is_found(kernel, rules):
    class Attention(nn.Module):
        def forward(self, q):
            op = getattr(torch.ops.sitout_test_attention, kernel)
            return op(q, 0.25 if self.training else 0.0)

    assert [one.rule for one in sitout.audit(Attention(), torch.randn(4, 64))] == rules


def test_watching_does_not_change_what_a_random_decision_does():
    class LayerDrop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.ran = nn.Linear(16, 16), 0

        def forward(self, x):
            if torch.rand([]) < 0.25:
                return x
            self.ran += 1
            return self.layer(x)

    model = LayerDrop()
    torch.manual_seed(0)
    sitout.audit_training(model, lambda: model(torch.randn(2, 16)), steps=40)
    assert 0 < model.ran < 40
