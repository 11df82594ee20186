"""The callback for transformers, in its own trainer: exact steps, norms, modes and resumed runs."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch

import zoo  # noqa: F401  (before transformers, which imports torchvision)
from sitout import nn, schedules

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from sitout.integrations.huggingface import DropoutCallback  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore:.*'pin_memory' argument is set as true but no")]


def bert(**options):
    """Return a tiny BERT with random weights, the same ones each time."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=4, hidden_dropout_prob=0.5,
        attention_probs_dropout_prob=0.25, problem_type="single_label_classification", **options,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


class Look(transformers.TrainerCallback):
    """Notes what holds at each optimizer step: the rates before it, hooks and norms after it."""

    def __init__(self):
        self.seen, self.norms, self.hooks = [], [], []

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.seen.append((state.global_step, rates(model)))

    def on_step_end(self, args, state, control, *, model, **kwargs):
        self.norms.append(model.classifier.weight.norm(dim=1).max().item())
        self.hooks.append(len(hooks(model)))


def rates(model):
    layers = (m for m in model.modules() if isinstance(m, torch.nn.Dropout))
    return [layer.p for layer in layers]


def hooks(model):
    return [
        hook
        for module in model.modules()
        for kind in (module._forward_pre_hooks, module._forward_hooks)
        for hook in kind
    ]


def trainer(path, model, *callbacks, made=transformers.Trainer, n=12, **options):
    row = {"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(1)}
    options = {"max_steps": 6, "save_strategy": "no", "learning_rate": 0.1} | options
    args = transformers.TrainingArguments(
        output_dir=str(path), report_to=[], use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=2, logging_strategy="no", **options,
    )  # fmt: skip
    return made(model=model, args=args, train_dataset=[row] * n, callbacks=list(callbacks))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_rates_of_each_step_are_those_of_the_schedule(tmp_path, accumulate):
    model, look, schedule = bert(), Look(), schedules.linear(0.5, 0.0)
    callback = DropoutCallback(schedule)
    run = trainer(tmp_path, model, callback, look, gradient_accumulation_steps=accumulate)
    run.train()
    assert [step for step, _ in look.seen] == [*range(6)]
    for step, found in look.seen:
        assert len(found) == 8
        assert found == [schedule(step, 6)] * 8
    assert (callback.scheduler.last_step, callback.scheduler.total) == (6, 6)
    assert rates(model) == [0.0] * 8


def test_every_micro_batch_of_a_step_has_its_rates(tmp_path):
    seen = []

    class Noting(transformers.Trainer):
        def training_step(self, model, *args, **kwargs):
            seen.append((self.state.global_step, rates(model)[0]))
            return super().training_step(model, *args, **kwargs)

    callback, options = DropoutCallback(schedules.linear(0.5, 0.0)), {"max_steps": 4}
    trainer(
        tmp_path, bert(), callback, made=Noting, gradient_accumulation_steps=3, **options
    ).train()
    assert seen == [(step, 0.5 * (1 - step / 4)) for step in range(4) for _ in range(3)]


def test_the_steps_of_a_run_are_counted_as_the_trainer_does(tmp_path):
    """3 epochs of 6 batches, in steps of 4 batches: 2 steps an epoch, the second of 2 batches."""
    callback, model = DropoutCallback(schedules.linear(0.5, 0.0)), bert()
    run = trainer(
        tmp_path, model, callback, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=4
    )
    run.train()
    assert callback.scheduler.total == run.state.global_step == 6
    assert rates(model) == [0.0] * 8


def test_total_overrides_what_the_trainer_says(tmp_path):
    model = bert()
    trainer(tmp_path, model, DropoutCallback(schedules.linear(0.5, 0.0), total=12)).train()
    assert rates(model) == [0.25] * 8


def test_relative_and_where_reach_the_scheduler(tmp_path):
    look, model = Look(), bert()
    schedule = schedules.linear(1.0, 0.0)
    callback = DropoutCallback(schedule, where="*.self.dropout", relative=True)
    trainer(tmp_path, model, callback, look).train()
    names = ["bert.encoder.layer.0.attention.self.dropout.p"]
    names += ["bert.encoder.layer.1.attention.self.dropout.p"]
    assert [*callback.scheduler.rates()] == names
    for step, found in look.seen:
        quarter = 0.25 * (1 - step / 6)
        assert found == [0.5, quarter, 0.5, 0.5, quarter, 0.5, 0.5, 0.5]


def test_without_a_schedule_no_rate_changes(tmp_path):
    look, callback = Look(), DropoutCallback()
    trainer(tmp_path, bert(), callback, look).train()
    assert callback.scheduler is None
    assert {tuple(found) for _, found in look.seen} == {tuple(rates(bert()))}


@pytest.mark.parametrize("limit", [None, 0.01])
def test_the_norms_hold_after_each_step_of_the_optimizer(tmp_path, limit):
    look, after = Look(), Look()
    callback = DropoutCallback(max_norm=limit)
    run = trainer(tmp_path, bert(), look, callback, after, gradient_accumulation_steps=2)
    run.train()
    assert len(after.norms) == 6
    assert min(look.norms) > 0.011
    assert (max(after.norms) <= 0.01 + 1e-6) == (limit is not None)


class Frozen(transformers.BertForSequenceClassification):
    """Keeps its encoder in evaluation mode, whatever the trainer says."""

    def train(self, mode=True):
        super().train(mode)
        self.bert.encoder.eval()
        return self


def test_a_part_that_stays_in_evaluation_mode_is_refused_in_the_first_step(tmp_path):
    model, look = bert(), Look()
    model.__class__ = Frozen
    line = (
        r"Got 'bert\.encoder\.layer\.0\.attention\.self\.dropout\.p', .* and 3 more in evaluation"
    )
    with pytest.raises(RuntimeError, match=line):
        trainer(tmp_path, model, DropoutCallback(), look).train()
    assert len(look.seen) == 1
    assert hooks(model) == []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_refused_where_its_parameters_do_not_learn_but_only_there(tmp_path, accumulate):
    model = bert()
    model.__class__ = Frozen
    model.bert.encoder.requires_grad_(False)
    options = {"gradient_accumulation_steps": accumulate}
    trainer(tmp_path, model, DropoutCallback(), **options).train()
    model.bert.encoder.layer[1].output.LayerNorm.requires_grad_(True)
    line = r"Got 'bert\.encoder\.layer\.1\.output\.dropout\.p' in evaluation"
    with pytest.raises(RuntimeError, match=line):
        trainer(tmp_path, model, DropoutCallback(), **options).train()


def test_where_and_guard_leave_it_alone(tmp_path):
    for options in ({"guard": False}, {"where": "dropout"}, {"where": "*.embeddings.*"}):
        model = bert()
        model.__class__ = Frozen
        trainer(tmp_path, model, DropoutCallback(**options)).train()


def test_a_right_model_leaves_no_hook_after_the_first_step(tmp_path):
    look, model = Look(), bert()
    trainer(tmp_path, model, look, DropoutCallback()).train()
    assert look.hooks == [0] * 6


def test_an_exception_in_the_first_forward_leaves_no_hook(tmp_path):
    model, seen = bert(), []

    def fail(*_):
        seen.append(len(hooks(model)))
        raise ZeroDivisionError

    model.bert.pooler.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, model, DropoutCallback()).train()
    assert seen[0] > 1
    assert len(hooks(model)) == 1


@pytest.mark.parametrize("relative", [False, True])
def test_a_run_resumed_from_a_checkpoint_has_the_rates_of_one_that_never_stopped(
    tmp_path, relative
):
    def callback():
        return DropoutCallback(schedules.cosine(0.75, 0.25), relative=relative)

    whole, resumed = Look(), Look()
    options = {"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    trainer(tmp_path, bert(), callback(), whole, **options).train()
    run = trainer(tmp_path, bert(), callback(), resumed, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.seen == whole.seen[2:]
    assert len(resumed.seen) == 4


def test_a_second_train_begins_with_the_rates_from_before_the_first(tmp_path):
    model, look = bert(), Look()
    callback = DropoutCallback(schedules.linear(1.0, 0.0), relative=True)
    run = trainer(tmp_path, model, callback, look)
    run.train()
    first = copy.deepcopy(look.seen)
    assert rates(model) == [0.0] * 8
    run.train()
    assert look.seen == first * 2


def test_compiled_training_warns_of_rates_that_compile_anew(tmp_path):
    """The trainer compiles the model and shows the plain one to its callbacks."""
    options = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 2}
    callback = DropoutCallback(schedules.linear(0.5, 0.0), where="dropout")
    line = r"^RateScheduler changes the rate of 'dropout\.p' in compiled code\."
    with pytest.warns(UserWarning, match=line):
        trainer(tmp_path, bert(), callback, **options).train()


def test_compiled_training_with_layers_of_sitout_compiles_once_and_is_guarded(tmp_path):
    torch._dynamo.reset()
    model = bert()
    for name, layer in [*model.named_modules()]:
        if isinstance(layer, torch.nn.Dropout) and not name.endswith("self.dropout"):
            model.set_submodule(name, nn.Dropout(layer.p))
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    callback = DropoutCallback(schedules.linear(0.5, 0.0), where=nn.Dropout)
    with torch._dynamo.config.patch(error_on_recompile=True):
        trainer(tmp_path, model, callback, **options).train()
    assert callback.scheduler.rate == 0.0
    model.__class__ = Frozen
    with pytest.raises(RuntimeError, match=r" in evaluation mode\."):
        trainer(tmp_path, model, DropoutCallback(), **options).train()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"schedule": 0.1}, r"^`schedule` of DropoutCallback must be one of .* Got 0\.1\.$"),
        ({"where": 3}, r"^`where` of DropoutCallback must be a glob"),
        ({"max_norm": -1}, r"^`max_norm` of DropoutCallback must be .* above 0\. Got -1\.$"),
        ({"guard": 1}, r"^`guard` of DropoutCallback must be True or False\. Got 1\.$"),
        ({"total": 1.5}, r"^`total` of DropoutCallback must be an int\. Got 1\.5\.$"),
        ({"relative": None}, r"^`relative` of DropoutCallback must be True or False\."),
    ],
)
def test_a_bad_argument_is_refused_at_construction(options, line):
    with pytest.raises((TypeError, ValueError), match=line):
        DropoutCallback(**options)


def test_a_where_without_a_rate_is_refused_when_training_begins(tmp_path):
    callback = DropoutCallback(schedules.ramp(0.1), where="decoder.*")
    with pytest.raises(ValueError, match=r"^`where` of RateScheduler must be that of a drop rate"):
        trainer(tmp_path, bert(), callback).train()


@pytest.mark.parametrize(("step", "relative"), [(5, True), (0, True), (5, False)])
def test_a_relative_rate_in_a_config_is_warned_of_where_a_run_goes_on(step, relative):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(layerdrop=0.1)

        def forward(self, x):
            return x if torch.rand([]) < self.config.layerdrop else 2 * x

    callback = DropoutCallback(schedules.linear(1.0, 0.5), relative=relative)
    state = SimpleNamespace(max_steps=10, global_step=step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback.on_train_begin(SimpleNamespace(torch_compile=False), state, None, model=Model())
    told = [one for one in caught if "'config.layerdrop'" in str(one.message)]
    assert bool(told) == (step > 0 and relative)
