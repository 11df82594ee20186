"""The callback for Lightning, in its own trainer: exact steps, norms, modes and resumed runs."""

from __future__ import annotations

import logging
import math

import pytest
import torch

import zoo  # noqa: F401  (before Lightning, which imports torchvision)
from sitout import nn, schedules

lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

from sitout.integrations.lightning import DropoutCallback  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(lightning.LightningModule):
    """Notes the rates of every training batch, and the norms after it."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), nn.Dropout(0.25), torch.nn.Linear(8, 1)
        )
        self.seen, self.fail_at = [], fail_at

    def training_step(self, batch, index):
        self.seen.append((self.global_step, self.body[1].p, self.body[2].p))
        loss = self.body(batch[0]).sub(100).square().mean()
        if self.fail_at == self.global_step:
            raise ZeroDivisionError
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def loader(n=12):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(n, 4)), 2)


def fit(net, *callbacks, ckpt_path=None, data=None, **options):
    options = {"max_steps": 6, "max_epochs": 50} | options
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **({"enable_checkpointing": False} | options),
    )  # fmt: skip
    trainer.fit(net, loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer


def hooks(model):
    return [hook for module in model.modules() for hook in module._forward_pre_hooks]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_rate_of_each_batch_is_that_of_its_optimizer_step(accumulate):
    net, schedule = Net(), schedules.linear(0.5, 0.0)
    callback = DropoutCallback(schedule)
    trainer = fit(net, callback, accumulate_grad_batches=accumulate)
    assert trainer.global_step == 6
    assert [step for step, *_ in net.seen] == sorted(step for step, *_ in net.seen)
    assert {step for step, *_ in net.seen} == {*range(6)}
    for step, torch_p, ours in net.seen:
        assert torch_p == schedule(step, 6)
        assert ours == pytest.approx(schedule(step, 6), abs=2.0**-17)
    assert callback.scheduler.last_step == 6
    assert callback.scheduler.total == 6
    assert net.body[1].p == 0.0


def test_the_steps_of_a_run_are_counted_as_the_trainer_does():
    """3 epochs of 6 batches, in steps of 4 batches: 2 steps an epoch, the second of 2 batches."""
    net, callback = Net(), DropoutCallback(schedules.linear(0.5, 0.0))
    trainer = fit(net, callback, max_steps=-1, max_epochs=3, accumulate_grad_batches=4)
    assert callback.scheduler.total == trainer.global_step == 6
    assert net.body[1].p == 0.0
    assert [p for _, p, _ in net.seen[:6]] == [0.5] * 4 + [schedules.linear(0.5, 0.0)(1, 6)] * 2


def test_total_overrides_what_the_trainer_says():
    net = Net()
    fit(net, DropoutCallback(schedules.linear(0.5, 0.0), total=12))
    assert net.body[1].p == 0.25


@pytest.mark.parametrize("endless", [True, False])
def test_a_run_without_an_end_asks_for_total(endless):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(torch.ones(6, 1, 4))

    options = {"max_steps": -1, "max_epochs": -1 if endless else 2}
    data = loader() if endless else torch.utils.data.DataLoader(Stream())
    line = r"^`total` of DropoutCallback must be given .* Got (inf|-1)\. Pass total=, "
    with pytest.raises(ValueError, match=line):
        fit(Net(), DropoutCallback(schedules.linear(0.5, 0.0)), data=data, **options)


def test_without_a_schedule_no_total_is_asked_for_and_no_rate_changes():
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 2

    net, callback = Net(), DropoutCallback()
    fit(net, callback, Stop(), max_steps=-1, max_epochs=-1)
    assert callback.scheduler is None
    assert {(p, q) for _, p, q in net.seen} == {(0.5, 0.25)}
    assert net.body[2].rate_data is None


def test_relative_and_where_reach_the_scheduler():
    net = Net()
    fit(net, DropoutCallback(schedules.linear(1.0, 0.0), where="body.1", relative=True))
    assert [p for _, p, _ in net.seen] == [0.5 * (1 - step / 6) for step in range(6)]
    assert {q for *_, q in net.seen} == {0.25}


def test_two_callbacks_drive_two_parts():
    net = Net()
    early = DropoutCallback(schedules.linear(0.5, 0.0), where="body.1")
    late = DropoutCallback(schedules.late(0.5, start=0.5), where="body.2")
    fit(net, early, late)
    assert [p for _, p, _ in net.seen] == [0.5 * (1 - step / 6) for step in range(6)]
    assert [q for *_, q in net.seen] == [0.0] * 3 + [0.5] * 3


@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_norms_hold_after_each_step_of_the_optimizer(limit):
    norms = []

    class Look(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step:
                norms.append(pl_module.body[0].weight.norm(dim=1).max().item())

    net = Net()
    fit(net, DropoutCallback(max_norm=limit), Look(), accumulate_grad_batches=2)
    norms.append(net.body[0].weight.norm(dim=1).max().item())
    assert len(norms) > 6
    assert (max(norms) <= 0.5 + 1e-6) == (limit is not None)


def test_a_part_that_was_left_in_evaluation_mode_is_refused_in_the_first_batch():
    """Lightning keeps it so since 2.2."""
    net = Net()
    net.body.eval()
    line = r"Got 'body\.1\.p', 'body\.2\.p' in evaluation mode\. .*model\.train\(\)"
    with pytest.raises(RuntimeError, match=line):
        fit(net, DropoutCallback())
    assert len(net.seen) == 1
    assert hooks(net) == []
    assert net.body.training is False


def test_a_part_in_evaluation_mode_that_where_leaves_out_or_no_guard_sees_is_no_fault():
    for options in ({"guard": False}, {"where": "body.2"}):
        net = Net()
        net.body[1].eval()
        fit(net, DropoutCallback(**options))
        assert len(net.seen) == 6


@pytest.mark.parametrize("schedule", [schedules.ramp(0.5), schedules.late(0.5)])
def test_a_schedule_that_begins_at_0_is_guarded_all_the_same(schedule):
    net = Net()
    net.eval()
    with pytest.raises(RuntimeError, match=r"Got 'body\.1\.p', 'body\.2\.p' in evaluation mode"):
        fit(net, DropoutCallback(schedule))


def test_a_right_model_leaves_no_hook_after_the_first_batch():
    counts = []

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            counts.append(len(hooks(pl_module)))

    net = Net()
    fit(net, DropoutCallback(), Look())
    assert counts == [0] * 6
    assert hooks(net) == []


def test_an_exception_in_the_first_batch_leaves_no_hook():
    net = Net(fail_at=0)
    with pytest.raises(ZeroDivisionError):
        fit(net, DropoutCallback())
    assert hooks(net) == []


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("at", [2, 3])
def test_a_run_resumed_from_a_checkpoint_has_the_rates_of_one_that_never_stopped(
    tmp_path, relative, at
):
    def callback():
        return DropoutCallback(schedules.cosine(0.75, 0.25), relative=relative)

    whole, stopped, resumed = Net(), Net(), Net()
    fit(whole, callback(), accumulate_grad_batches=2)
    save = lightning.callbacks.ModelCheckpoint(tmp_path, "run", every_n_train_steps=at)
    stopped.fail_at = at + 1
    with pytest.raises(ZeroDivisionError):
        fit(stopped, callback(), save, enable_checkpointing=True, accumulate_grad_batches=2)
    again = callback()
    fit(resumed, again, ckpt_path=tmp_path / "run.ckpt", accumulate_grad_batches=2)
    assert resumed.seen == [seen for seen in whole.seen if seen[0] >= at]
    assert len(resumed.seen) >= 2 * (6 - at) - 1
    again.scheduler.undo()
    assert (resumed.body[1].p, resumed.body[2].p) == (0.5, 0.25)


def test_a_checkpoint_of_a_run_of_another_length_is_refused(tmp_path):
    save = lightning.callbacks.ModelCheckpoint(tmp_path, "run", every_n_train_steps=2)
    callback = DropoutCallback(schedules.linear(0.5, 0.0))
    fit(Net(), callback, save, enable_checkpointing=True, max_steps=2)
    line = r"^The state of RateScheduler must be one with total = 6\. Got 2\. Pass total= as it was"
    with pytest.raises(ValueError, match=line):
        fit(Net(), DropoutCallback(schedules.linear(0.5, 0.0)), ckpt_path=tmp_path / "run.ckpt")
    net = Net()
    fit(net, DropoutCallback(schedules.linear(0.5, 0.0), total=2), ckpt_path=tmp_path / "run.ckpt")
    assert [p for _, p, _ in net.seen] == [0.0] * 4


def test_a_callback_that_comes_with_the_resumed_run_begins_at_its_step(tmp_path):
    save = lightning.callbacks.ModelCheckpoint(tmp_path, "run", every_n_train_steps=2)
    fit(Net(), save, enable_checkpointing=True, max_steps=2)
    net = Net()
    fit(net, DropoutCallback(schedules.linear(0.5, 0.0)), ckpt_path=tmp_path / "run.ckpt")
    assert [p for _, p, _ in net.seen] == [0.5 * (1 - step / 6) for step in range(2, 6)]


def test_a_second_fit_begins_with_the_rates_from_before_the_first():
    net = Net()
    callback = DropoutCallback(schedules.linear(1.0, 0.0), relative=True)
    fit(net, callback)
    first, net.seen = net.seen, []
    assert net.body[1].p == 0.0
    fit(net.train(), callback)
    assert net.seen == first


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"schedule": 0.1}, r"^`schedule` of DropoutCallback must be one of .* Got 0\.1\.$"),
        ({"where": 3}, r"^`where` of DropoutCallback must be a glob"),
        ({"max_norm": 0.0}, r"^`max_norm` of DropoutCallback must be .* above 0\. Got 0\.0\.$"),
        ({"max_norm": math.nan}, r"^`max_norm` of DropoutCallback must be .* Got nan\.$"),
        ({"guard": 1}, r"^`guard` of DropoutCallback must be True or False\. Got 1\.$"),
        ({"total": 0}, r"^`total` of DropoutCallback must be 1 or more\. Got 0\.$"),
        ({"relative": None}, r"^`relative` of DropoutCallback must be True or False\."),
    ],
)
def test_a_bad_argument_is_refused_at_construction(options, line):
    with pytest.raises((TypeError, ValueError), match=line):
        DropoutCallback(**options)


def test_callbacks_with_another_where_have_another_key_in_a_checkpoint():
    wheres = [None, "a.*", ["a.*", "b.*"], torch.nn.Dropout, Net.training_step]
    keys = [DropoutCallback(where=where).state_key for where in wheres]
    assert len({*keys}) == len(wheres)
    assert not any("0x" in key for key in keys)


class Averaged(Net):
    """Has buffers on both sides of its dropout."""

    def __init__(self):
        super().__init__()
        self.body.insert(1, torch.nn.BatchNorm1d(8))
        self.body.append(torch.nn.BatchNorm1d(1))

    def training_step(self, batch, index):
        return self.body(batch[0]).sub(100).square().mean()


def test_an_average_of_weights_that_is_made_after_the_callback_trains():
    net = Averaged()
    averaging = lightning.callbacks.EMAWeightAveraging(use_buffers=True)
    fit(net, DropoutCallback(schedules.linear(0.5, 0.0)), averaging)
    assert net.body[3].rate_data is not None
