"""The scan: for each rule the smallest file with the mistake, and its repaired twin."""

from __future__ import annotations

import textwrap

import pytest

from sitout._audit import scan

HEAD = """
import functools
import random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from flash_attn import flash_attn_func
from xformers import ops as xops
"""


@pytest.fixture
def told(tmp_path):
    """Return what a scan has against a file: rule, severity and the text of the line."""

    def run(text, head=HEAD):
        file = tmp_path / "net.py"
        file.write_text(head + textwrap.dedent(text))
        lines = file.read_text().splitlines()
        found = []
        for one in scan([file]):
            name, line = one.site.rsplit(":", 1)
            assert (name, one.source) == (file.as_posix(), one.site)
            found.append((one.rule, one.severity, lines[int(line) - 1].strip()))
        return found

    return run


def module(body, name="Net", init="self.p = 0.5"):
    """Return a module whose forward has a body."""
    body = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    return (
        f"class {name}(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        {init}\n    def forward(self, x, q=None, k=None, v=None):\n{body}\n"
    )


ALWAYS_ON = [
    ("F.dropout(x)", "F.dropout(x, training=self.training)"),
    ("F.dropout(x, self.p)", "F.dropout(x, self.p, self.training)"),
    ("F.dropout(x, p=self.p, inplace=True)", "F.dropout(x, p=self.p if self.training else 0.0)"),
    ("F.dropout(x, training=True)", "F.dropout(x, training=self.training)"),
    ("F.dropout2d(x, 0.1, True)", "F.dropout2d(x, 0.1, self.training)"),
    ("F.alpha_dropout(x, training=True)", "F.alpha_dropout(x)"),
    ("torch.dropout(x, 0.5, True)", "torch.dropout(x, 0.5, self.training)"),
    ("torch.nn.functional.dropout(x)", "torch.nn.functional.dropout(x, p=0.0)"),
    ("nn.Dropout(0.5)(x)", "nn.Dropout(0.5).train(self.training)(x)"),
    ("nn.functional.dropout(x, 0.5)", "nn.functional.dropout(x, 0.5) if self.training else x"),
]


@pytest.mark.parametrize(("wrong", "right"), ALWAYS_ON)
def test_a_drop_that_is_always_on_is_an_error_and_its_twin_is_clean(told, wrong, right):
    assert told(module(f"return {wrong}")) == [("A1", "error", f"return {wrong}")]
    assert told(module(f"return {right}")) == []


GATED = [
    "if self.training:\n    x = F.dropout(x)\nreturn x",
    "if self.training and self.p > 0:\n    x = F.dropout(x, self.p)\nreturn x",
    "if not self.training or self.p == 0:\n    return x\nreturn F.dropout(x, self.p)",
    "if not self.training:\n    return x\nelse:\n    return F.dropout(x, self.p)",
    "on = self.training and self.p > 0\nif on:\n    x = F.dropout(x)\nreturn x",
    "return self.training and F.dropout(x)",
    "assert self.training\nreturn F.dropout(x)",
    "rate = self.p if self.training else 0.0\nreturn F.dropout(x, rate)",
    "given = {}\nreturn F.dropout(x, **given)",
]


@pytest.mark.parametrize("body", GATED)
def test_a_drop_behind_the_mode_is_clean(told, body):
    assert told(module(body)) == []


UNGATED = [
    "if self.training and x.is_cuda:\n    return x\nreturn F.dropout(x)",
    "if self.training and x.is_cuda:\n    return x\nelse:\n    return F.dropout(x)",
    "if not self.training and x.is_cuda:\n    return x\nreturn F.dropout(x)",
    "if self.p > 0:\n    return F.dropout(x)\nreturn x",
]


@pytest.mark.parametrize("body", UNGATED)
def test_a_branch_that_evaluation_can_take_too_is_no_gate(told, body):
    assert told(module(body)) == [("A1", "error", "return F.dropout(x)")]


IMPORTS = [
    ("import torch.nn.functional as F", "F.dropout"),
    ("import torch.nn.functional", "torch.nn.functional.dropout"),
    ("import torch", "torch.nn.functional.dropout"),
    ("import torch as t", "t.nn.functional.dropout"),
    ("import torch.nn as tnn", "tnn.functional.dropout"),
    ("from torch.nn import functional", "functional.dropout"),
    ("from torch.nn.functional import dropout as drop", "drop"),
    ("from torch.nn import functional\ndrop = functional.dropout", "drop"),
    ("import sitout", "sitout.functional.dropout"),
    ("from torchvision.ops import drop_block2d", "drop_block2d"),
    ("from torch_geometric.utils import dropout_edge", "dropout_edge"),
]


@pytest.mark.parametrize(("line", "name"), IMPORTS)
def test_every_way_to_import_a_drop_is_seen(told, line, name):
    found = told(module(f"return {name}(x, 0.5)"), head=f"from torch import nn\n{line}\n")
    assert found == [("A1", "error", f"return {name}(x, 0.5)")]


@pytest.mark.parametrize(
    "text",
    [
        "def dropout(x):\n    return x\n" + module("return dropout(x)"),
        module("dropout = self.p\nreturn dropout(x)"),
        module("return self.dropout(x)"),
        "from .functional import dropout\n" + module("return dropout(x)"),
    ],
)
def test_a_function_of_the_same_name_is_another_function(told, text):
    assert told(text) == []


BASES = {
    "class Base(nn.Module): pass\nclass Net(Base):": True,
    "class Net(pl.LightningModule):": True,
    "class Net(nn.Linear):": True,
    "class Net(BertPreTrainedModel):": True,
    "class Net(Mixin):\n    def __init__(self):\n        super().__init__()": True,
    "class Net:": False,
    "class Net(torch.autograd.Function):": False,
}


@pytest.mark.parametrize("base", BASES)
def test_in_a_module_it_is_an_error_and_elsewhere_a_warning(told, base):
    text = f"{base}\n    def forward(self, x):\n        return F.dropout(x)\n"
    assert told(text) == [("A1", "error" if BASES[base] else "warning", "return F.dropout(x)")]


def test_a_function_that_only_modules_call_belongs_to_them(told):
    helper = "def noisy(x):\n    return F.dropout(x)\n"
    assert told(helper) == [("A1", "warning", "return F.dropout(x)")]
    used = helper + module("return noisy(x)")
    assert told(used) == [("A1", "error", "return F.dropout(x)")]
    assert told(used + "y = noisy(torch.ones(3))\n") == [("A1", "warning", "return F.dropout(x)")]


def test_a_helper_whose_callers_ask_the_mode_is_clean(told):
    helper = "def noisy(x, p):\n    return F.dropout(x, p)\n"
    wrong = helper + module("return noisy(x, self.p)")
    assert told(wrong) == [("A1", "error", "return F.dropout(x, p)")]
    assert told(helper + module("return noisy(x, self.p if self.training else 0)")) == []
    assert told(helper + module("return noisy(x, self.p) if self.training else x")) == []


def test_a_method_that_names_training_or_runs_only_in_it_is_clean(told):
    def methods(name, call):
        other = f"    def {name}(self, x):\n        return F.dropout(x)\n"
        return f"class Net(nn.Module):\n{other}    def forward(self, x):\n        return {call}\n"

    assert told(methods("noise", "self.noise(x)")) == [("A1", "error", "return F.dropout(x)")]
    assert told(methods("noise", "self.noise(x) if self.training else x")) == []
    assert told(methods("training_step", "x")) == []


def test_tests_may_drop_as_they_like(told):
    assert told("def test_it():\n    assert F.dropout(torch.ones(3)).sum() >= 0\n") == []


@pytest.mark.parametrize("name", ["MCNet", "MonteCarloNet", "BayesNet", "AlwaysDropout", "NetMC"])
def test_true_in_a_class_that_says_so_is_a_note(told, name):
    line = "return F.dropout(x, training=True)"
    assert told(module(line, name=name)) == [("A1", "note", line)]


def test_true_beside_a_comment_that_says_so_is_a_note(told):
    line = "return F.dropout(x, training=True)"
    assert told(module(f"# also in eval mode: samples\n{line}")) == [("A1", "note", line)]
    assert told(module(f"# the drop\n{line}")) == [("A1", "error", line)]


def test_a_layer_made_in_the_forward_is_found_under_its_name_too(told):
    made = "drop = nn.Dropout(self.p)"
    assert told(module(f"{made}\nreturn drop(x)")) == [("A1", "error", made)]
    assert told(module(f"{made}\ndrop.train(self.training)\nreturn drop(x)")) == []
    assert told(module(f"{made}\nreturn drop")) == []
    assert told(module("return self.drop(x)", init="self.drop = nn.Dropout(0.5)")) == []


SDPA = "return F.scaled_dot_product_attention(q, k, v, dropout_p={})"
ATTENTION = [
    SDPA,
    "return F.scaled_dot_product_attention(q, k, v, None, {})",
    "return flash_attn_func(q, k, v, {})",
    "return flash_attn_func(q, k, v, dropout_p={})",
    "return xops.memory_efficient_attention(q, k, v, p={})",
]


@pytest.mark.parametrize("call", ATTENTION)
def test_attention_with_the_bare_rate_is_an_error_and_its_twin_is_clean(told, call):
    wrong = call.format("self.p")
    assert told(module(wrong)) == [("A2", "error", wrong)]
    assert told(module(call.format("self.p if self.training else 0.0"))) == []
    assert told(module(call.format("0.0"))) == []


@pytest.mark.parametrize(
    ("body", "severity"),
    [
        (SDPA.format("0.1"), "error"),
        (SDPA.format("self.p if self.p > 0.1 else 0.0"), "error"),
        (f"p = self.p\n{SDPA.format('p')}", "error"),
        (f"p = 0.0\nif x is None:\n    p = self.p\n{SDPA.format('p')}", "error"),
        (SDPA.format("self.elsewhere"), "warning"),
        (SDPA.format("x.p"), "warning"),
    ],
)
def test_a_rate_that_does_not_ask_the_mode_is_found_through_names(told, body, severity):
    assert told(module(body)) == [("A2", severity, body.splitlines()[-1])]


@pytest.mark.parametrize(
    "body",
    [
        SDPA.format("self.training * self.p"),
        f"p = self.p if self.training else 0.0\n{SDPA.format('p')}",
        f"p = 0.0\nif self.training:\n    p = self.p\n{SDPA.format('p')}",
        f"p = self.p\nif not self.training:\n    p = 0.0\n{SDPA.format('p')}",
        f"p = 0\n{SDPA.format('p')}",
        f"if self.training:\n    {SDPA.format('self.p')}",
        f"if not self.training:\n    return x\n{SDPA.format('self.p')}",
        SDPA.format("x"),  # the caller's duty
        SDPA.format("rate_of(x)"),
        "return F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "return self.scaled_dot_product_attention(q, k, v, dropout_p=self.p)",
    ],
)
def test_a_rate_that_asks_the_mode_is_clean(told, body):
    assert told(module(body)) == []


@pytest.mark.parametrize(
    "method",
    [
        "@property\n    def rate(self):\n        return self.p if self.training else 0.0",
        "def train(self, mode=True):\n        self.rate = 0.5 if mode else 0.0",
        "def set(self):\n        self.rate = self.p if self.training else 0.0",
    ],
)
def test_an_attribute_that_follows_the_mode_is_clean(told, method):
    text = module(SDPA.format("self.rate"))
    assert told(text + f"    {method}\n") == []
    assert told(text + "    def other(self):\n        self.rate = 0.5\n") == [
        ("A2", "error", SDPA.format("self.rate"))
    ]


def test_a_checkpoint_without_the_rng_is_a_warning_and_its_twin_is_clean(told):
    wrong = "return checkpoint(self.f, x, use_reentrant=False, preserve_rng_state=False)"
    assert told(module(wrong)) == [("A15", "warning", wrong)]
    assert told(module("return checkpoint(self.f, x, use_reentrant=False)")) == []
    assert told(module(wrong.replace("False)", "True)"))) == []
    assert told(module(wrong.replace("preserve", "context_fn=self.c, preserve"))) == []


def test_a_checkpoint_under_another_name_is_seen(told):
    partial = "run = functools.partial(checkpoint, preserve_rng_state=False)"
    assert told(partial) == [("A15", "warning", partial)]
    line = "ckpt.checkpoint_sequential([], 2, x, preserve_rng_state=False)"
    found = told(line, head="import torch.utils.checkpoint as ckpt\n")
    assert found == [("A15", "warning", line)]


@pytest.mark.parametrize("draw", ["random.random()", "random.uniform(0, 1)", "np.random.rand()"])
def test_python_randomness_that_decides_in_a_forward_is_a_note(told, draw):
    wrong = f"return x if {draw} < self.p else -x"
    assert told(module(wrong)) == [("A16", "note", wrong)]
    named = f"u = {draw}\nif self.training and u < self.p:\n    return x\nreturn -x"
    assert told(module(named)) == [("A16", "note", f"u = {draw}")]
    assert told(module("return x if torch.rand(()) < self.p else -x")) == []
    assert told(module(f"return x * {draw}")) == []
    assert told(f"def split(p):\n    return {draw} < p\n") == []


def test_python_randomness_is_found_in_the_methods_of_the_forward_alone(told):
    skip = "    def skip(self):\n        return random.random() < self.p\n"
    assert told(module("return x if self.skip() else -x") + skip) == [
        ("A16", "note", "return random.random() < self.p")
    ]
    assert told(module("return x") + skip) == []


FLOORS = [
    "mask = torch.floor(keep + torch.rand(x.shape, dtype=x.dtype))",
    "mask = (torch.rand_like(x) + keep).floor_()",
    "mask = (1 - self.p + torch.rand(x.shape, dtype=x.dtype)).floor()",
    "m = keep + torch.rand(x.shape, dtype=x.dtype)\nmask = m.floor_()",
    "m = keep\nm += torch.rand(x.shape, dtype=x.dtype)\nmask = torch.floor(m)",
]


@pytest.mark.parametrize("body", FLOORS)
def test_flooring_a_keep_rate_and_narrow_noise_is_a_note(told, body):
    text = "keep = 1 - self.p\n{}\nreturn x * mask"
    line = body.splitlines()[-1]
    assert told(module(text.format(body))) == [("A26", "note", line)]
    wide = body.replace("dtype=x.dtype", "dtype=torch.float32").replace(
        "rand_like(x)", "rand_like(x, dtype=torch.float32)"
    )
    assert told(module(text.format(wide))) == []


def test_stochastic_rounding_is_no_dropout(told):
    assert told(module("return torch.floor(x + torch.rand_like(x))")) == []


@pytest.mark.parametrize(
    ("comment", "silent"),
    [
        ("# sitout: ignore", True),
        ("# sitout: ignore[A1]", True),
        ("# sitout: ignore[A2, A1]", True),
        ("#sitout:ignore[A1]  # Monte Carlo", True),
        ("# sitout: ignore[A2]", False),
        ("# sitout: ignore[A15]", False),
        ("# ignore", False),
    ],
)
def test_a_comment_at_any_line_of_the_call_keeps_the_scan_silent(told, comment, silent):
    for text in (
        f"return F.dropout(x)  {comment}",
        f"return F.dropout(\n    x,  {comment}\n    self.p,\n)",
        f"return F.dropout(\n    x,\n)  {comment}",
    ):
        assert (told(module(text)) == []) == silent
    assert told(module(f"x = x + 1  {comment}\nreturn F.dropout(x)")) != []


@pytest.mark.parametrize(
    "broken",
    [b"print 'two'\n", b"def f(:\n", b"x = '\xff\xfe'\n", b"\x00", b"x = " + b"(" * 3000],
    ids=["python 2", "syntax", "encoding", "null", "depth"],
)
def test_a_file_that_is_no_python_is_a_note_and_the_scan_goes_on(tmp_path, broken):
    (tmp_path / "a.py").write_bytes(broken)
    (tmp_path / "b.py").write_text(HEAD + module("return F.dropout(x)"))
    audit = scan([tmp_path])
    assert [(one.rule, one.severity) for one in audit] == [("A1", "error"), ("A0", "note")]
    assert audit.notes[0].site.startswith(f"{(tmp_path / 'a.py').as_posix()}:")


def test_a_file_that_is_called_no_python_is_a_note(tmp_path):
    (tmp_path / "net.ipynb").write_text('{"cells": []}')
    assert [one.rule for one in scan([tmp_path / "net.ipynb"])] == ["A0"]
    assert not scan([tmp_path])


def test_an_odd_encoding_and_a_byte_order_mark_are_python(tmp_path):
    text = HEAD + module("return F.dropout(x)  # é")
    (tmp_path / "a.py").write_bytes(b"# coding: latin-1\n" + text.encode("latin-1"))
    (tmp_path / "b.py").write_text(text, encoding="utf-8-sig")
    assert [one.rule for one in scan([tmp_path])] == ["A1", "A1"]


def test_escapes_that_python_dislikes_are_no_matter_of_the_scan(tmp_path):
    (tmp_path / "a.py").write_text("drop = '\\d'\n")
    assert not scan([tmp_path])


def test_a_folder_is_searched_without_what_is_not_the_users(tmp_path):
    text = HEAD + module("return F.dropout(x)")
    for folder in ("net", ".hidden", "__pycache__", "build", "venv/site-packages/pkg"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.py").write_text(text)
    (tmp_path / "net" / "a.txt").write_text(text)
    (inner,) = scan([tmp_path])
    assert inner.site.startswith((tmp_path / "net" / "a.py").as_posix())
    assert len(scan([tmp_path / "venv" / "site-packages"])) == 1
    assert len(scan([tmp_path / "build" / "a.py"])) == 1


def test_a_file_that_is_named_twice_is_scanned_once(tmp_path):
    (tmp_path / "a.py").write_text(HEAD + module("return F.dropout(x)"))
    assert len(scan([tmp_path, tmp_path / "a.py"])) == 1


def test_an_empty_folder_and_an_empty_file_are_clean(tmp_path):
    assert not scan([tmp_path])
    (tmp_path / "a.py").touch()
    assert not scan([tmp_path])


def test_nothing_is_run(tmp_path):
    (tmp_path / "a.py").write_text("import torch\nraise SystemExit('dropout')\n")
    assert not scan([tmp_path])


def test_a_missing_path_is_an_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        scan([tmp_path / "nowhere.py"])
