"""Each way of dropping is found once, for what it is; what only draws is not."""

from __future__ import annotations

import contextlib
import copy
import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import sitout
from battery import OF_SUBSETS
from sites import small
from sites.small import HEADS, IMAGE, VOLUME, WIDE, Made, P, near, only, positive, sites

# Layers: (class, input, kind, shared dims)

LAYERS = [
    (nn.Dropout, WIDE, "dropout", ()),
    (nn.Dropout1d, WIDE, "dropout1d", (2,)),
    (nn.Dropout2d, IMAGE, "dropout2d", (2, 3)),
    (nn.Dropout3d, VOLUME, "dropout3d", (2, 3, 4)),
    (nn.AlphaDropout, WIDE, "alpha", ()),
    (nn.FeatureAlphaDropout, IMAGE, "feature_alpha", (2, 3)),
    (sitout.nn.Dropout, WIDE, "dropout", ()),
    (sitout.nn.Dropout1d, WIDE, "dropout1d", (2,)),
    (sitout.nn.Dropout2d, IMAGE, "dropout2d", (2, 3)),
    (sitout.nn.Dropout3d, VOLUME, "dropout3d", (2, 3, 4)),
    (sitout.nn.AlphaDropout, WIDE, "alpha", ()),
    (sitout.nn.FeatureAlphaDropout, IMAGE, "feature_alpha", (2, 3)),
    (sitout.nn.DropPath, (512, 3, 2), "drop_path", (1, 2)),
]
every_layer = pytest.mark.parametrize(
    ("made", "shape", "kind", "shared"), LAYERS, ids=lambda one: getattr(one, "__module__", None)
)


def assert_is(site, kind, shape, shared, via="module", *, p=P, evaluation=False):
    assert (site.via, site.kind, site.p) == (via, kind, pytest.approx(p)), site
    assert (site.shape, site.shared_dims) == (shape, shared), site
    assert site.calls == 1, site
    assert (site.active_in_train, site.active_in_eval) == (True, evaluation), site


@every_layer
@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_is_a_site(made, shape, kind, shared, inplace):
    site = only(nn.Sequential(nn.Identity(), made(P, inplace=inplace)), positive(shape))
    assert_is(site, kind, shape, shared)
    assert (site.name, site.type, site.rate_at) == ("1", made.__name__, "1.p")
    assert site.source is None  # torch's Sequential calls it
    assert near(site)


@every_layer
def test_a_layer_may_be_the_root(made, shape, kind, shared):
    site = only(made(P), positive(shape))
    assert (site.name, site.rate_at, site.kind) == ("", "p", kind)


@every_layer
def test_a_rate_of_zero_is_listed_and_off(made, shape, kind, shared):
    site = only(made(0.0), positive(shape))
    assert (site.p, site.kind, site.shape, site.calls) == (0.0, kind, shape, 1)
    assert not site.active_in_train
    assert site.measured is None


@every_layer
def test_a_rate_of_one_drops_all(made, shape, kind, shared):
    site = only(made(1.0), positive(shape))
    assert (site.p, site.kind) == (1.0, kind)
    assert (site.active_in_train, site.active_in_eval) == (True, False)
    if kind not in ("alpha", "feature_alpha") or site.measured is not None:
        assert site.measured.rate == 1.0


@pytest.mark.parametrize("made", [one for one, *_ in LAYERS if one.__module__.startswith("sitout")])
def test_a_schedulable_layer_is_the_same_site(made):
    shape = next(shape for one, shape, *_ in LAYERS if one is made)
    layer, x = made(P), positive(shape)
    fixed = only(layer, x)
    scheduled = sites(copy.deepcopy(layer).schedulable_(), x)
    assert list(scheduled) == [fixed]
    assert scheduled.changed == []


def test_layers_of_two_inputs_and_with_an_activation():
    x = torch.randn(WIDE)
    added = only(sitout.nn.DropoutAdd(P), x, x)
    assert_is(added, "dropout", WIDE, ())
    for normalized in (sitout.nn.DropoutAddLayerNorm, sitout.nn.DropoutAddRMSNorm):
        assert_is(only(normalized(16, P), x, x), "dropout", WIDE, ())
    path = only(sitout.nn.DropPathAdd(P), x, x)
    assert_is(path, "drop_path", WIDE, (1, 2))
    # Half of its results are zero in evaluation, which is no dropout.
    active = only(sitout.nn.ActivationDropout("relu", P), x)
    assert_is(active, "dropout", WIDE, ())
    assert near(active)


def test_gaussian_layers_multiply_and_are_on():
    site = only(sitout.nn.GaussianDropout(P), positive())
    assert (site.kind, site.p, site.active_in_train) == ("gaussian", P, True)
    assert (site.measured, site.active_in_eval) == (None, False)

    class GaussianDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = 0.3

        def forward(self, x):
            return x * (1 + self.p * torch.randn_like(x)) if self.training else x

    site = only(nn.Sequential(GaussianDropout()), positive())
    assert (site.kind, site.p, site.rate_at) == ("gaussian", 0.3, "0.p")
    assert (site.active_in_train, site.active_in_eval) == (True, False)


# Calls

CALLS = {
    "dropout": (F.dropout, WIDE, "dropout", ()),
    "dropout1d": (F.dropout1d, WIDE, "dropout1d", (2,)),
    "dropout2d": (F.dropout2d, IMAGE, "dropout2d", (2, 3)),
    "dropout3d": (F.dropout3d, VOLUME, "dropout3d", (2, 3, 4)),
    "alpha_dropout": (F.alpha_dropout, WIDE, "alpha", ()),
    "feature_alpha_dropout": (F.feature_alpha_dropout, IMAGE, "feature_alpha", (2, 3)),
    "torch.dropout": (torch.dropout, WIDE, "dropout", ()),
    "torch.dropout_": (lambda x, *a: torch.dropout_(x * 1, *a), WIDE, "dropout", ()),
    "native_dropout": (lambda *a: torch.native_dropout(*a)[0], WIDE, "dropout", ()),
    "feature_dropout": (torch.feature_dropout, IMAGE, "dropout2d", (2, 3)),
    "torch.alpha_dropout": (torch.alpha_dropout, WIDE, "alpha", ()),
}
OWN = {
    "dropout": (WIDE, "dropout", ()),
    "dropout1d": (WIDE, "dropout1d", (2,)),
    "dropout2d": (IMAGE, "dropout2d", (2, 3)),
    "dropout3d": (VOLUME, "dropout3d", (2, 3, 4)),
    "alpha_dropout": (WIDE, "alpha", ()),
    "feature_alpha_dropout": (IMAGE, "feature_alpha", (2, 3)),
    "drop_path": ((512, 3), "drop_path", (1,)),
    "drop_path_add": ((512, 3), "drop_path", (1,)),
    "dropout_add": (WIDE, "dropout", ()),
    "dropout_add_layer_norm": (WIDE, "dropout", ()),
    "dropout_add_rms_norm": (WIDE, "dropout", ()),
    "activation_dropout": (WIDE, "dropout", ()),
    "gaussian_dropout": (WIDE, "gaussian", None),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("gated", [True, False])
def test_a_call_of_torch_is_a_site(name, gated):
    function, shape, kind, shared = CALLS[name]
    model = Made(lambda self, x: function(x, self.p, self.training if gated else True))
    site = only(model, positive(shape))
    assert_is(site, kind, shape, shared, "call", evaluation=not gated)
    assert site.name == ""
    assert site.source.rpartition(":")[0] in (__file__, small.__file__)
    assert near(site)


@pytest.mark.parametrize("name", OWN)
def test_a_call_of_this_package_is_a_site(name):
    shape, kind, shared = OWN[name]
    function = getattr(sitout.functional, name)
    between = {"activation_dropout": ["relu"], "dropout_add": [None], "drop_path_add": [None]}
    weight, bias = torch.ones(shape[-1]), torch.zeros(shape[-1])
    between |= {"dropout_add_layer_norm": [None, weight, bias]}
    between |= {"dropout_add_rms_norm": [None, weight]}

    def forward(self, x):
        more = [x if one is None else one for one in between.get(name, [])]
        return function(x, *more, self.p, self.training)

    site = only(Made(forward), positive(shape))
    assert_is(site, kind, shape, shared, "call")
    assert kind == "gaussian" or near(site)


def test_every_function_of_this_package_is_tried_above():
    assert sorted([*OWN, *OF_SUBSETS]) == sitout.functional.__all__


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = self.hidden_dropout = P
        self.rate = 0.125
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        x = F.dropout(x * self.weight, self.hidden_dropout, self.training)
        x = F.dropout(x, p=self.dropout, training=self.training)
        x = F.dropout(x, 0.25, training=self.training)
        x = F.dropout(
            x,
            training=self.training,
            p=self.dropout,
        )
        for _ in range(3):
            x = F.dropout(x, self.rate, self.training)
        return x


def test_of_equal_rates_the_one_is_named_that_the_line_reads():
    found = sites(Calls(), positive())
    assert [site.rate_at for site in found[:4]] == ["hidden_dropout", "dropout", None, "dropout"]
    assert [site.calls for site in found] == [1, 1, 1, 1, 3]
    lines = [int(site.source.rpartition(":")[2]) for site in found]
    assert np.diff(lines)[:2].tolist() == [1, 1]
    assert all(site.source.startswith(__file__) for site in found)


@pytest.mark.parametrize("gated", [True, False])
def test_a_fused_attention_is_a_site(gated):
    def forward(self, x):
        p = self.p if self.training or not gated else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)

    site = only(Made(forward), torch.randn(HEADS))
    assert_is(site, "attention", (4, 2, 16, 16), (), "call", evaluation=not gated)
    assert near(site)


def test_the_shape_of_an_attention_that_drops_nothing_is_that_of_its_scores():
    model = Made(lambda self, x: F.scaled_dot_product_attention(x, x[:, :, :5], x[:, :, :5]))
    site = only(model, torch.randn(HEADS))
    assert (site.shape, site.p, site.active_in_train) == ((4, 2, 16, 5), 0.0, False)


@torch.library.custom_op("sitout_test::flash", mutates_args=())
def flash(x: torch.Tensor, dropout_p: float) -> torch.Tensor:
    return x.clone() if dropout_p == 0.0 else F.dropout(x, dropout_p)


@flash.register_fake
def _(x, dropout_p):
    return torch.empty_like(x)


flash.register_autograd(lambda ctx, grad: (grad, None))


def test_a_kernel_that_takes_a_dropout_rate_is_a_site():
    gated = Made(lambda self, x: flash(x, self.p if self.training else 0.0))
    site = only(gated, positive())
    assert (site.via, site.kind, site.p, site.calls) == ("call", "attention", P, 1)
    assert (site.active_in_train, site.active_in_eval) == (True, False)
    assert site.measured is None  # nobody sees its mask
    always = only(Made(lambda self, x: flash(x, self.p)), positive())
    assert (always.active_in_train, always.active_in_eval) == (True, True)


# Attributes


class Attends(nn.Module):
    def __init__(self, p, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, dropout=p, **options)

    def forward(self, x):
        return self.attn(x, x, x)[0]


def test_the_float_of_an_attention_is_a_site():
    site = only(Attends(P, batch_first=True), positive())
    assert_is(site, "attention", (128, 32, 32), (), "attribute")
    assert (site.name, site.type, site.rate_at) == ("attn", "MultiheadAttention", "attn.dropout")
    assert site.source.startswith(__file__)
    assert "fast path" in site.note
    assert near(site)
    off = only(Attends(0.0), positive())
    assert (off.p, off.active_in_train, off.rate_at) == (0.0, False, "attn.dropout")


def test_an_attention_of_a_tensor_to_itself_stays_one():
    """One object as query, key and value takes torch's fast path; three copies would not."""
    x = positive((4, 5, 16))
    attn = nn.MultiheadAttention(16, 2, dropout=P, batch_first=True)
    assert "fast path" in only(attn, x, x, x).note
    assert "fast path" not in only(attn, x, x.clone(), x.clone()).note


@pytest.mark.parametrize("made", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_float_of_a_recurrent_layer_is_a_site(made):
    x = positive((64, 8, 16))
    site = only(made(16, 8, 3, dropout=P, batch_first=True), x)
    assert_is(site, "rnn", (8, 64, 8), (), "attribute")
    assert site.rate_at == "dropout"
    assert near(site)
    single = only(made(16, 8), x)
    assert (single.p, single.active_in_train) == (0.0, False)
    packed = pack_padded_sequence(x, torch.full((8,), 60))
    site = only(made(16, 8, 2, dropout=P), packed)
    shape = (60, 8, 8) if made is nn.LSTM else (60 * 8, 8)  # as torch computes them
    assert_is(site, "rnn", shape, (), "attribute")
    assert near(site)


# Masks by hand: each is applied in training only.


def rand(self, x, *shape):
    return torch.rand(shape or x.shape)


def helper_mask(self, x):
    self.mask = torch.rand_like(x) > self.p
    return self.mask


def floor_(self, x):
    mask = 1 - self.p + torch.rand(x.shape[0], 1, 1)
    return x.div(1 - self.p) * mask.floor_()


def put(self, x):
    x = x.clone()
    x[torch.rand_like(x) < self.p] = 0
    return x


def filled(self, x):
    mask = torch.ones_like(x)
    mask[torch.rand_like(x) < self.p] = 0
    return x * mask / (1 - self.p)


def rescaled(self, x):
    mask = (torch.rand_like(x) > self.p).float()
    x = x * mask
    return x * (mask.numel() / mask.sum())


def asked_first(self, x):
    mask = torch.rand_like(x) < self.p
    return x.masked_fill(mask, 0.0) if mask.any() else x


def in_slices(self, x):
    mask = torch.rand_like(x) > self.p
    return torch.stack([x[i] * mask[i] for i in range(len(x))])


def scores(self, x):
    return x @ x.transpose(1, 2) / 4


def drop_key(self, x):
    a = scores(self, x).masked_fill(torch.rand(64, 32, 32) < self.p, -torch.inf)
    return a.softmax(-1) @ x


def drop_key_by_adding(self, x):
    a = scores(self, x) + (torch.rand(64, 32, 32) < self.p) * -1e9
    return a.softmax(-1) @ x


def torchvision_depth(self, x):
    from torchvision.ops import stochastic_depth

    return stochastic_depth(x, self.p, "row")


def timm_path(self, x):
    from timm.layers.drop import drop_path

    return drop_path(x, self.p, True)


MASKS = {  # (forward, kind, shape, shared dims)
    "bernoulli_": lambda s, x: x * x.new_empty(x.shape).bernoulli_(1 - s.p).div_(1 - s.p),
    "bernoulli of a full tensor": lambda s, x: x * torch.bernoulli(torch.full_like(x, 1 - s.p)),
    "a distribution": lambda s, x: x * torch.distributions.Bernoulli(1 - s.p).sample(x.shape),
    "rand > p": lambda s, x: x * (torch.rand_like(x) > s.p).float(),
    "p < rand": lambda s, x: x * (torch.tensor(s.p) < torch.rand_like(x)),
    "p - rand < 0": lambda s, x: x * (s.p - torch.rand_like(x) < 0),
    "rand scaled": lambda s, x: x * (torch.rand_like(x) * 2 - 1 > 2 * s.p - 1),
    "1 - mask": lambda s, x: x * (1 - (torch.rand_like(x) < s.p).float()),
    "not mask": lambda s, x: x * ~(torch.rand_like(x) < s.p),
    "mask == 0": lambda s, x: x * ((torch.rand_like(x) < s.p).long() == 0),
    "mul_": lambda s, x: x.clone().mul_(torch.rand_like(x) > s.p),
    "masked_fill": lambda s, x: x.masked_fill(torch.rand_like(x) < s.p, 0.0),
    "where(mask, 0, x)": lambda s, x: torch.where(torch.rand_like(x) < s.p, 0.0, x),
    "where(mask, x, 0)": lambda s, x: torch.where(torch.rand_like(x) > s.p, x, 0.0),
    "where(mask, zeros, x)": lambda s, x: torch.where(
        torch.rand_like(x) < s.p, torch.zeros_like(x), x
    ),
    "where(mask, 1, 0)": lambda s, x: x * torch.where(torch.rand_like(x) > s.p, 1.0, 0.0),
    "ones.masked_fill": lambda s, x: (
        x * torch.ones_like(x).masked_fill(torch.rand_like(x) < s.p, 0)
    ),
    "x[mask] = 0": put,
    "ones[mask] = 0": filled,
    "floor(keep + rand)": lambda s, x: x * torch.floor(1 - s.p + torch.rand_like(x)),
    "in a helper": lambda s, x: x * helper_mask(s, x),
    "scaled by what is kept": rescaled,
    "after any()": asked_first,
}
SHAPED = {
    "noise per channel": (lambda s, x: x * (torch.rand(64, 1, 16) > s.p), ("mask", WIDE, (1,))),
    "one mask for the batch": (lambda s, x: x * (torch.rand(32, 16) > s.p), ("mask", WIDE, (0,))),
    "expanded": (lambda s, x: x * (torch.rand(64, 32, 1) > s.p).expand(WIDE), ("mask", WIDE, (2,))),
    "drop path": (floor_, ("drop_path", WIDE, (1, 2))),
    "drop path of timm": (timm_path, ("drop_path", WIDE, (1, 2))),
    "stochastic depth of torchvision": (torchvision_depth, ("drop_path", WIDE, (1, 2))),
    "drop connect": (
        lambda s, x: F.linear(x, torch.ones(8, 16) * (torch.rand(8, 16) > s.p)),
        None,
    ),
    "drop key": (drop_key, ("mask", (64, 32, 32), ())),
    "drop key by adding": (drop_key_by_adding, ("mask", (64, 32, 32), ())),
    "boolean index": (lambda s, x: x[:, torch.rand(32) > s.p].sum(1), ("subset", WIDE, (0, 2))),
    "masked_select": (lambda s, x: x.masked_select(torch.rand_like(x) > s.p), ("subset", WIDE, ())),
    "in slices": (in_slices, ("mask", WIDE[1:], ())),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_by_hand_is_a_site(name):
    function = MASKS[name]
    site = only(Made(lambda self, x: function(self, x) if self.training else x), positive())
    assert_is(site, "mask", WIDE, (), "mask")
    assert site.source.rpartition(":")[0] in (__file__, small.__file__)
    assert site.measured.bits == 64 * 32 * 16
    assert near(site)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_stays_on_is_seen_in_evaluation(name):
    function = MASKS[name]
    assert only(Made(lambda self, x: function(self, x)), positive()).active_in_eval


@pytest.mark.parametrize("name", [name for name in SHAPED if name != "drop connect"])
def test_a_mask_tells_what_shares_a_bit(name):
    function, (kind, shape, shared) = SHAPED[name]
    for package in ("timm", "torchvision"):
        if package in name:
            pytest.importorskip(package)
    assert_is(only(Made(function), positive()), kind, shape, shared, "mask", evaluation=True)


class DropConnect(nn.Linear):
    def forward(self, x):
        mask = torch.rand_like(self.weight) > P
        return F.linear(x, self.weight * mask if self.training else self.weight)


def test_drop_connect_drops_from_the_weight():
    site = only(nn.Sequential(DropConnect(16, 40)), positive())
    assert_is(site, "mask", (40, 16), (), "mask")
    assert (site.name, site.type) == ("0", "DropConnect")
    assert near(site)


@pytest.mark.parametrize(
    ("function", "measured"),
    [
        (lambda s, x: x * (torch.randn_like(x) > -0.6745), P),  # a quarter of a normal
        (lambda s, x: x * torch.randint(0, 4, x.shape).gt(0), P),
        (lambda s, x: x * (torch.rand_like(x).log() > -1.386294), P),  # the logarithm of it
        (lambda s, x: x * torch.rand(64, 32).argsort(1).argsort(1).ge(8).unsqueeze(2), P),
        (lambda s, x: x * torch.ones(64, 32, 1).scatter_(1, cut(8), 0.0), P),
        (lambda s, x: x * torch.cat([torch.ones(64, 16), bits(s, 16)], 1)[..., None], P / 2),
        (lambda s, x: x * (torch.rand_like(x) > torch.rand(())), None),
    ],
)
def test_a_mask_whose_rate_no_op_tells_is_measured_all_the_same(function, measured):
    site = only(Made(function), positive())
    assert (site.kind, site.p, site.active_in_train) == ("mask", None, True)
    assert measured is None or near(site, measured)


def cut(k):
    return torch.rand(64, 32).topk(k, 1).indices.unsqueeze(-1)


def bits(self, n):
    return (torch.rand(64, n) > self.p).float()


def test_a_slice_of_a_mask_counts_for_as_many_bits_as_it_has():
    site = only(Made(in_slices), positive())
    assert (site.measured.bits, site.calls) == (512, 1)


def test_random_bits_and_a_coin_have_a_half():
    assert only(Made(lambda self, x: x * torch.randint(0, 2, x.shape)), positive()).p == 0.5


def test_a_mask_that_spares_some_units_is_measured_below_its_rate():
    def forward(self, x):
        keep = (torch.rand(64, 32) > self.p) | (torch.arange(32) < 16)
        return x * keep.unsqueeze(-1)

    site = only(Made(forward), positive())
    assert (site.p, site.shared_dims) == (P, (2,))
    assert near(site, P / 2)


def test_a_mask_that_is_kept_is_seen_when_evaluation_uses_it():
    def forward(self, x):
        if self.training:
            self.mask = torch.rand_like(x) > self.p
        return x * self.mask

    model = Made(forward)
    found = sites(model, positive())
    assert [(site.active_in_train, site.active_in_eval) for site in found] == [(True, True)]
    assert found.changed == ["mask"]
    assert not hasattr(model, "mask")


class Locked(nn.Module):
    """Drops by the mask that it has kept since it was made."""

    def __init__(self):
        super().__init__()
        self.p, self.mask = P, torch.rand(WIDE) > P

    def forward(self, x):
        return x * self.mask


def test_a_layer_that_draws_nothing_and_drops_is_seen():
    model = nn.Sequential(type("LockedDropout", (Locked,), {})())
    site = only(model, positive())
    assert (site.name, site.kind, site.p) == ("0", "dropout", P)
    assert (site.active_in_train, site.active_in_eval) == (True, True)
    assert near(site)


# Decisions


def skips(self, x, decide):
    return x if decide() else x + 1


DECISIONS = {
    "rand < p": lambda s: torch.rand([]) < s.p,
    "rand < keep": lambda s: not torch.rand(1) < 1 - s.p,
    "bernoulli": lambda s: bool(torch.bernoulli(torch.tensor(s.p))),
    "list": lambda s: (torch.rand(3) < s.p).tolist()[0],
    "array": lambda s: (torch.rand(3) < s.p).numpy()[0],
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_random_decision_is_a_site(name):
    decide = DECISIONS[name]
    site = only(Made(lambda s, x: skips(s, x, lambda: s.training and decide(s))), positive())
    assert (site.via, site.kind, site.calls) == ("mask", "layer_drop", 1)
    assert site.p == pytest.approx(P)
    assert (site.shape, site.measured, site.shared_dims) == (None, None, None)
    assert (site.active_in_train, site.active_in_eval) == (True, False)


def test_a_decision_by_a_number_that_python_compares_has_no_rate():
    site = only(Made(lambda s, x: skips(s, x, lambda: torch.rand(1).item() < s.p)), positive())
    assert (site.kind, site.p, site.active_in_eval) == ("layer_drop", None, True)


class LayerDrop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)) for _ in range(20)
        )
        self.layerdrop = 0.4

    def forward(self, x):
        for layer in self.layers:
            if not self.training or torch.rand([]) >= self.layerdrop:
                x = layer(x)
        return x


def test_every_layer_runs_that_layer_drop_may_leave_out():
    found = sites(LayerDrop(), positive())
    drop, *layers = found
    assert (drop.kind, drop.calls, drop.rate_at) == ("layer_drop", 20, "layerdrop")
    assert drop.p == pytest.approx(0.4)
    assert [site.name for site in layers] == [f"layers.{i}.1" for i in range(20)]
    assert all(site.calls == 1 for site in layers)


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (lambda s, x: x if random.random() < s.p else x + 1, "random"),
        (lambda s, x: x * torch.from_numpy(np.random.rand(*x.shape) > s.p), "numpy.random"),
    ],
)
def test_random_numbers_from_outside_are_a_site(function, module):
    site = only(Made(lambda s, x: function(s, x) if s.training else x), positive())
    assert (site.via, site.kind, site.p) == ("mask", "outside", None)
    assert (site.active_in_train, site.active_in_eval) == (True, False)
    assert f" {module}," in site.note


SUBSETS = {
    "gather": lambda s, x: x.gather(1, kept(s, x).unsqueeze(-1).expand(-1, -1, 16)).sum(1),
    "randperm": lambda s, x: x[:, torch.randperm(32)[:24]].sum(1),
    "index_select": lambda s, x: x.index_select(1, torch.randperm(32)[:24]).sum(1),
    "nonzero": lambda s, x: x[:, (torch.rand(32) > s.p).nonzero().squeeze(1)].sum(1),
}


def kept(self, x):
    return torch.argsort(torch.rand(x.shape[:2]), 1)[:, :24]


@pytest.mark.parametrize("name", SUBSETS)
def test_a_random_choice_of_indices_is_a_subset(name):
    site = only(Made(SUBSETS[name]), positive())
    assert (site.via, site.kind, site.p, site.shape) == ("mask", "subset", P, WIDE)
    assert (site.measured, site.shared_dims, site.calls) == (None, None, 1)


# What drops nothing


def gumbel_by_hand(self, x):
    noise = -torch.log(-torch.log(torch.rand_like(x)))
    return (x + noise).softmax(-1)


def mixup(self, x):
    share = torch.rand(64, 1, 1)
    return share * x + (1 - share) * x[torch.randperm(64)]


def fresh(init):
    return lambda self, x: F.linear(x, init(torch.empty(4, 16)))


NOTHING = {
    "noise": (lambda s, x: x + torch.randn_like(x), WIDE),
    "noise that is scaled": (lambda s, x: x + 0.1 * x.std() * torch.randn_like(x), WIDE),
    "a variational sample": (lambda s, x: x + torch.exp(0.5 * x) * torch.randn_like(x), WIDE),
    "gumbel_softmax": (lambda s, x: F.gumbel_softmax(x, hard=True), WIDE),
    "gumbel by hand": (gumbel_by_hand, WIDE),
    "multinomial": (lambda s, x: x[..., 0].softmax(-1).multinomial(3).float(), WIDE),
    "rrelu": (lambda s, x: F.rrelu(x - 1, training=True), WIDE),
    "a shuffle": (lambda s, x: x[torch.randperm(64)], WIDE),
    "a shuffle of channels": (lambda s, x: x[:, :, torch.randperm(16)], WIDE),
    "uniform weights": (fresh(nn.init.kaiming_uniform_), WIDE),
    "truncated weights": (fresh(nn.init.trunc_normal_), WIDE),
    "orthogonal weights": (fresh(nn.init.orthogonal_), WIDE),
    "a random input": (lambda s, x: x * torch.rand_like(x), WIDE),
    "mixup": (mixup, WIDE),
    "stochastic rounding": (lambda s, x: torch.floor(x + torch.rand_like(x)), WIDE),
    "random signs": (lambda s, x: x * ((torch.rand_like(x) > 0.5) * 2 - 1), WIDE),
    "random factors of two": (lambda s, x: x * (1 + (torch.rand_like(x) > 0.5)), WIDE),
    "a random time": (lambda s, x: x * torch.randint(1, 9, (64, 1, 1)), WIDE),
    "random pooling": (lambda s, x: F.fractional_max_pool2d(x, 2, output_ratio=(0.5, 0.5)), IMAGE),
    "a mean of noise": (lambda s, x: x * torch.rand_like(x).mean(), WIDE),
    "bits that nothing meets": (lambda s, x: ((torch.rand_like(x) > 0.5) | True).float(), WIDE),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_only_draws_is_no_site(name):
    function, shape = NOTHING[name]
    found = sites(Made(function), positive(shape))
    assert list(found) == [], f"\n{found}"
    assert str(found) == "No site: nothing in this model drops anything."


# Where a site stands


def test_a_layer_made_in_the_forward_is_a_site():
    site = only(Made(lambda self, x: nn.Dropout(self.p)(x)), positive())
    assert (site.name, site.type, site.p) == ("<Dropout>", "Dropout", P)
    assert (site.rate_at, site.active_in_eval) == (None, True)  # a new layer is in training


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.ModuleDict({"drop": nn.Dropout(P)})
        self.other = nn.Sequential(nn.Linear(16, 16), self.one["drop"])
        self.alias = self.one

    def forward(self, x):
        return {"x": (self.other(self.one["drop"](x)), [x])}


def test_a_shared_layer_has_the_name_under_which_it_ran():
    found = sites(Pair(), positive())
    assert [(site.name, site.calls) for site in found] == [("one.drop", 1), ("other.1", 1)]


def test_a_layer_that_nothing_runs_comes_last():
    model = Made(lambda self, x: x)
    model.spare, model.off = nn.Dropout(0.5), nn.Dropout(0.0)
    site = only(model, positive())
    assert (site.name, site.p, site.calls, site.note) == ("spare", 0.5, 0, "did not run")
    assert not site.active_in_train
    assert site.shape is None


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_hides_nothing(reentrant):
    block = nn.Sequential(nn.Linear(16, 16), nn.Dropout(P))

    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=reentrant)

    x = positive().requires_grad_()
    site = only(Checked(), x)
    assert_is(site, "dropout", WIDE, ())
    assert site.name == "block.1"
    assert x.grad is None


def wrapped(wrap, model):
    if wrap == "compile":
        return torch.compile(model, backend="eager")
    if wrap == "compile in place":
        model.compile(backend="eager")
        return model
    if wrap == "DataParallel":
        return nn.DataParallel(model)
    if wrap == "a compiled part":
        model[1] = torch.compile(model[1], backend="eager")
        return model
    return torch.compile(nn.DataParallel(model), backend="eager")


@pytest.mark.parametrize(
    "wrap", ["compile", "compile in place", "DataParallel", "a compiled part", "both"]
)
def test_a_wrapper_is_left_aside(wrap):
    def net():
        return nn.Sequential(nn.Linear(16, 16), nn.Sequential(nn.ReLU(), nn.Dropout(P)))

    plain, x = sites(net(), positive()), positive()
    model = wrapped(wrap, net())
    found = sites(model, x)
    assert [(site.name, site.rate_at, site.shape, site.kind) for site in found] == [
        (site.name, site.rate_at, site.shape, site.kind) for site in plain
    ]
    assert found[0].name == "1.1"


def test_a_compiled_function_in_the_forward_hides_nothing():
    @torch.compile(backend="eager")
    def block(x):
        return F.dropout(torch.relu(x), P)

    site = only(Made(lambda self, x: block(x)), positive())
    assert_is(site, "dropout", WIDE, (), "call", evaluation=True)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(P)
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return self.drop(self.linear(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_part_hides_nothing():
    site = only(nn.Sequential(torch.jit.script(Scripted())), positive())
    assert (site.p, site.shape, site.active_in_train) == (pytest.approx(P), WIDE, True)
    assert (site.active_in_eval, site.name[:1]) == (False, "0")
    assert near(site)


class Late(nn.Module):
    """A layer for torch's encoder that is none of torch's, and drops in evaluation."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.self_attn = nn.MultiheadAttention(16, 2, batch_first=True)  # the encoder asks for it

    def forward(self, x, **options):
        return F.dropout(self.linear(x), 0.25)


def test_a_call_under_torchs_encoder_is_a_call_in_evaluation_too():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, batch_first=True), 1, enable_nested_tensor=False
    )
    encoder.layers[0] = Late()
    site = only(encoder, positive())
    assert_is(site, "dropout", WIDE, (), "call", evaluation=True)


def test_user_classes_are_known_by_their_names():
    class DropBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop_prob = P

        def forward(self, x):
            if not self.training:
                return x
            seeds = torch.rand(x.shape[0], 1, *x.shape[2:]) < self.drop_prob / 9
            holes = F.max_pool2d(seeds.float(), 3, 1, 1)
            return x * (1 - holes) * (holes.numel() / (1 - holes).sum())

    site = only(nn.Sequential(DropBlock()), positive(IMAGE))
    assert (site.kind, site.p, site.rate_at) == ("drop_block", P, "0.drop_prob")
    assert site.shared_dims == (1,)
    assert (site.active_in_train, site.active_in_eval) == (True, False)
    assert site.measured.bits == 32 * 36


def test_drop_block_functions_are_masks():
    pytest.importorskip("torchvision")
    from torchvision.ops import drop_block2d

    model = Made(lambda self, x: drop_block2d(x, self.p, 3, training=self.training))
    site = only(model, positive(IMAGE))
    assert (site.kind, site.via, site.shape) == ("mask", "mask", IMAGE)
    assert (site.active_in_train, site.active_in_eval) == (True, False)


# How it is told


def test_a_rate_is_measured_of_a_hundred_bits_or_more():
    assert only(nn.Dropout(0.5), positive((1, 99))).measured is None
    seen = only(nn.Dropout(0.5), positive((1, 100))).measured
    assert seen.bits == 100
    assert 0 < seen.low < seen.rate < seen.high < 1
    # Wilson's interval of 10 in 100, from the formula of 1927 in a textbook.
    exact = sitout._sites.Measured.of(10, 100)
    assert (exact.low, exact.high) == (pytest.approx(0.05522914), pytest.approx(0.17436566))


def test_json_holds_every_field():
    found = sites(Made(lambda s, x: F.dropout(x, s.p, s.training)), positive())
    read = json.loads(found.to_json())
    assert read["changed"] == []
    (site,) = read["sites"]
    assert set(site) == set(sitout.Site.__dataclass_fields__)
    assert site["measured"] == vars(found[0].measured)
    assert (site["shape"], site["shared_dims"], site["p"]) == (list(WIDE), [], P)
    assert (site["kind"], site["active_in_train"], site["note"]) == ("dropout", True, "")


def test_the_table_has_a_line_for_each_site():
    model = Attends(0.125)
    model.spare = nn.Dropout(0.5)
    torch.manual_seed(0)
    lines = str(sitout.sites(model, torch.randn(4, 3, 16))).splitlines()
    head = ["site", "kind", "p", "measured", "shape", "shared", "calls", "train", "eval"]
    assert lines[0].split() == [*head, "source", "note"]
    assert lines[1].split()[:4] == ["attn", "attention", "0.125", "6x4x4"]
    assert lines[1].split()[4:7] == ["1", "on", "off"]
    assert " ".join(lines[2].split()) == "spare dropout 0.5 0 off off did not run"
    assert len(lines) == 3
    assert lines[0].index("train") == lines[1].index(" on ") + 1


def test_the_table_shouts_what_is_on_in_evaluation():
    found = sites(Made(lambda s, x: F.dropout(x, 0.5)), positive())
    assert str(found).splitlines()[1].split()[-3:-1] == ["on", "ON"]
    assert str(found).splitlines()[1].startswith("(root)  dropout (call)  0.5")


# Forwards of an unusual kind


class Force(nn.Module):
    """The gradient of an energy: it meets every mask a second time, on the way back."""

    def __init__(self, by_hand):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.0 if by_hand else P))
        self.by_hand = by_hand

    def forward(self, x):
        with torch.enable_grad():
            y = self.energy(x.requires_grad_())
            if self.by_hand and self.training:
                y = y * (torch.rand_like(y) > P)
            y = y.square().sum()
            return torch.autograd.grad(y, x, create_graph=self.training)[0]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_gradient_inside_of_the_forward_makes_no_site(by_hand):
    found = [site for site in sites(Force(by_hand), positive()) if site.p]
    assert [(site.via, site.name, site.calls) for site in found] == [
        ("mask", "", 1) if by_hand else ("module", "energy.1", 1)
    ]
    assert near(found[0])


@pytest.mark.parametrize("randomness", ["different", "same"])
def test_a_transform_of_torch_func_hides_nothing(randomness):
    def forward(self, x):
        return torch.vmap(lambda row: F.dropout(row, P), randomness=randomness)(x)

    site = only(Made(forward), positive())
    assert (site.via, site.kind, site.p, site.active_in_eval) == ("call", "dropout", P, True)
    site = only(Made(lambda s, x: torch.func.grad(lambda r: F.dropout(r, P).sum())(x)), positive())
    assert_is(site, "dropout", WIDE, (), "call", evaluation=True)


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_has_no_shape_to_tell(layout):
    x = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)], layout=layout)
    found = sites(nn.Sequential(nn.Dropout(P)), x)
    assert [(site.p, site.shape, site.measured) for site in found] == [(P, None, None)]
    assert (found[0].active_in_train, found[0].active_in_eval) == (True, False)
    assert json.loads(found.to_json())["sites"][0]["shape"] is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_padded_batch_takes_torchs_fast_path():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=P, batch_first=True)
    padding = torch.zeros(8, 6, dtype=torch.bool)
    padding[:, 4:] = True
    x = torch.randn(8, 6, 16)
    found = sites(nn.TransformerEncoder(layer, 2), x, src_key_padding_mask=padding)
    assert all("fast path" in site.note and not site.active_in_eval for site in found)
    assert len(found) == 8


def test_a_part_that_fails_and_is_caught_leaves_the_rest_in_its_place():
    class Fails(nn.Module):
        def forward(self, x):
            F.dropout(x, 0.125, self.training)
            raise RuntimeError

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.drop = Fails(), nn.Dropout(P)

        def forward(self, x):
            with contextlib.suppress(RuntimeError):
                self.fails(x)
            return self.drop(F.dropout(x, 0.5, self.training))

    found = sites(Tries(), positive())
    assert [(site.name, site.via, site.p) for site in found] == [
        ("fails", "call", 0.125),
        ("", "call", 0.5),
        ("drop", "module", P),
    ]


def test_one_mask_for_all_steps_of_a_recurrence_is_one_site():
    class Variational(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.p = nn.LSTMCell(16, 8), P

        def forward(self, x):
            h = c = x.new_zeros(64, 8)
            mask = x.new_empty(64, 8).bernoulli_(1 - self.p) / (1 - self.p)
            for step in range(32):
                h, c = self.cell(x[:, step], (h, c))
                h = h * mask if self.training else h
            return h

    site = only(Variational(), positive())
    assert_is(site, "mask", (64, 8), (), "mask")
    assert site.measured.bits == 512
