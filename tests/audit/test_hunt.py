"""What a hunt through timm, torchvision, transformers and PyG has shown, as the smallest models."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sitout
from sitout._audit._rules_rates import doubt
from sitout._sites._place import Place
from zoo import has

X = torch.linspace(-1.0, 1.0, 8 * 64).reshape(8, 64) + 2.0
TOKENS = torch.linspace(-1.0, 1.0, 4 * 10 * 16).reshape(4, 10, 16) + 2.0
IMAGES = torch.linspace(-1.0, 1.0, 16 * 4 * 14 * 14).reshape(16, 4, 14, 14) + 2.0


def found(model, *inputs, seed=0):
    """Return the rules, severities and sites of what an audit finds under a fixed seed."""
    torch.manual_seed(seed)
    return {(one.rule, one.severity, one.site) for one in sitout.audit(model, *inputs)}


def errors(model, *inputs, seed=0):
    """Return the same without notes."""
    return {hit for hit in found(model, *inputs, seed=seed) if hit[1] != "note"}


class Calls(nn.Module):
    """A module whose forward is a function of it and the input."""

    def __init__(self, forward, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)
        self.run = forward

    def forward(self, *inputs):
        return self.run(self, *inputs)


class DropPath(nn.Module):
    """As in transformers: it divides before it drops."""

    def __init__(self, p):
        super().__init__()
        self.drop_prob = p

    def forward(self, x):
        if not self.training:
            return x
        keep = 1.0 - self.drop_prob
        mask = torch.rand((len(x), *(1,) * (x.dim() - 1))).add(keep).floor()
        return x.div(keep) * mask


class DropBlock(nn.Module):
    """Blocks of any size; those that leave the map are cut off."""

    def __init__(self, p, size, scale=1.0):
        super().__init__()
        self.drop_prob, self.block_size, self.gamma_scale = p, size, scale

    def forward(self, x):
        if not self.training:
            return x
        p = self.drop_prob * self.gamma_scale / self.block_size**2
        seeds = torch.bernoulli(torch.full_like(x, p))
        blocks = F.max_pool2d(seeds, self.block_size, 1, self.block_size // 2)
        return x * (1 - blocks)


def tail(dropped, bits, p):
    """Return the chance of so many, or of something less likely on that side."""
    chances = [math.comb(bits, k) * p**k * (1 - p) ** (bits - k) for k in range(bits + 1)]
    return min(sum(chances[dropped:]), sum(chances[: dropped + 1]))


# Rates


@pytest.mark.parametrize("bits", [1, 2, 16, 100])
@pytest.mark.parametrize("p", [0.001, 0.0115, 0.1, 0.5, 0.95])
def test_a_rate_is_doubted_only_against_odds_of_a_million_to_one(bits, p):
    doubted = []
    for dropped in range(bits + 1):
        place = Place((), "", nn.Dropout(p), "module", "dropout", None, [p])
        place.on, place.bits, place.dropped = True, bits, float(dropped)
        if doubt(place):
            doubted.append(dropped)
            assert tail(dropped, bits, p) < 1e-6
    if bits == 100 and p >= 0.5:
        assert {0, 10} <= set(doubted)


def test_a_block_that_falls_nowhere_is_no_proof_against_drop_block():
    model = nn.Sequential(DropBlock(1e-6, 3))
    torch.manual_seed(0)
    assert sitout.sites(model, IMAGES)[0].active_in_train
    assert not found(model, IMAGES)


def test_the_share_of_drop_block_is_held_against_its_scaled_rate():
    assert not found(nn.Sequential(DropBlock(0.4, 3, scale=0.25)), IMAGES)
    lies = DropBlock(0.1, 3)
    lies.forward = lambda x: DropBlock(0.4, 3)(x) if lies.training else x
    assert found(nn.Sequential(lies), IMAGES) == {("A30", "warning", "0")}


@pytest.mark.skipif(not has("timm"), reason="needs timm")
def test_drop_block_of_timm_drops_twice_what_it_is_asked_for():
    from timm.layers import DropBlock2d

    images = IMAGES.repeat(4, 1, 1, 1)
    assert found(nn.Sequential(DropBlock2d(0.1, 7)), images) == {("A30", "warning", "0")}
    assert found(nn.Sequential(DropBlock2d(0.1, 15)), images) == {("A30", "note", "0")}


class PatchDropout(nn.Module):
    """Keeps a random part of the tokens, but one at least."""

    def __init__(self, p):
        super().__init__()
        self.prob = p

    def forward(self, x):
        if not self.training:
            return x
        keep = max(1, int(x.shape[1] * (1.0 - self.prob)))
        order = torch.argsort(torch.randn(x.shape[:2]), dim=-1)[:, :keep]
        return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


@pytest.mark.parametrize(("tokens", "active"), [(1, False), (10, True)])
def test_a_share_of_less_than_one_token_leaves_out_none(tokens, active):
    model = nn.Sequential(PatchDropout(0.25))
    assert sitout.sites(model, TOKENS[:, :tokens])[0].active_in_train is active
    assert not found(model, TOKENS[:, :tokens])


# Scales


def test_a_mask_that_drops_all_shows_no_scale():
    model = nn.Sequential(DropPath(0.6))
    seeds = [seed for seed in range(20) if _drops_all(model, seed)]
    assert seeds
    assert all(not found(model, X[:2], seed=seed) for seed in seeds)


def _drops_all(model, seed):
    torch.manual_seed(seed)
    return not bool(model.train()(X[:2]).any())


def test_the_scale_of_a_drop_path_does_not_count_for_the_dropout_before_it():
    def run(self, x):
        return x + self.path(self.drop(self.layer(x)))

    model = Calls(run, layer=nn.Linear(64, 64), drop=nn.Dropout(0.25), path=DropPath(0.3))
    assert not found(model, X)


@pytest.mark.parametrize("before", [True, False])
def test_a_factor_that_evaluation_has_too_is_no_scale(before):
    def always(self, x):
        return self.drop(x * 0.5) if before else self.drop(x) * 0.5

    def trained(self, x):
        return always(self, x) if self.training else x

    assert not found(Calls(always, drop=nn.Dropout(0.25)), X)
    assert found(Calls(trained, drop=nn.Dropout(0.25)), X) == {("A25", "warning", "drop")}


def test_scaling_in_both_modes_is_found():
    """As NllbMoeExperts: an inverted dropout, and evaluation multiplies by the kept share."""

    def twice(self, x):
        return self.drop(x) if self.training else x * 0.75

    def once(self, x):
        return x * (torch.rand_like(x) > 0.25) if self.training else x * 0.75

    assert found(Calls(twice, drop=nn.Dropout(0.25)), X) == {("A25", "warning", "drop")}
    assert not found(Calls(once, weight=nn.Parameter(torch.ones(1))), X)


def test_a_mixture_that_evaluation_draws_too_has_no_scale_to_make_up_for():
    """As UniSpeechForPreTraining."""

    def run(self, x):
        mask = torch.bernoulli(torch.full(x.shape, 0.5)).bool()
        return x.masked_fill(mask, 0.0) + self.layer(x).masked_fill(~mask, 0.0)

    assert found(Calls(run, layer=nn.Linear(64, 64)), X) == {("A3", "error", "")}


# Places


def attend(x, p_attention, p_out, training):
    """As in torchvision: a function with two dropouts, called in one line of a module."""
    weights = F.dropout(x.softmax(-1), p_attention, training)
    return F.dropout(weights * x, p_out, training)


def test_two_dropouts_of_one_helper_function_are_two_sites():
    model = Calls(lambda self, x: attend(x, 0.25, 0.125, self.training))
    sites = sitout.sites(model, X)
    assert [(site.p, site.calls) for site in sites] == [(0.25, 1), (0.125, 1)]
    assert not found(model, X)


class Reads(nn.Module):
    """A layer that reads its rate from the config that all layers share."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, x):
        return F.dropout(x, self.config.hidden_dropout, self.training)


def test_a_rate_of_a_shared_config_feeds_every_layer():
    config = SimpleNamespace(hidden_dropout=0.25)
    model = nn.Sequential(Reads(config), Reads(config))
    assert [site.rate_at for site in sitout.sites(model, X)] == ["0.config.hidden_dropout"] * 2


def test_a_drop_path_may_get_tensors_of_several_ranks():
    def run(self, x):
        x = x + self.path(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
        return x + self.path(x)

    assert not found(Calls(run, path=DropPath(0.5)), IMAGES[:8, :, :1, :1])
    assert not found(Calls(run, path=DropPath(0.5)), IMAGES[:8])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_model_gets_its_modes_back():
    model = torch.jit.script(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.25)))
    model.train()
    assert not errors(model, X)
    assert all(module.training for module in model.modules())


def test_a_random_number_that_two_lines_read_is_one_decision():
    """As the decoder of NLLB-MoE."""

    def run(self, x):
        skip = self.training and torch.rand([]) < 0.25
        if not skip:
            x = x + self.layer(x)
        if skip:
            x = x + 0.0
        return x

    sites = sitout.sites(Calls(run, layer=nn.Linear(64, 64)), X)
    assert [(site.kind, site.p, site.calls) for site in sites] == [("layer_drop", 0.25, 1)]


# What is around


@pytest.mark.parametrize(("summed", "severity"), [(False, "warning"), (True, "note")])
def test_a_sum_between_dropout_and_batchnorm_makes_a_note(summed, severity):
    def run(self, x):
        return self.norm(x + self.drop(x) if summed else self.drop(x))

    model = Calls(run, drop=nn.Dropout(0.25), norm=nn.BatchNorm1d(64))
    assert found(model, X) == {("A8", severity, "drop")}


def test_alpha_dropout_on_the_input_of_a_model_may_follow_a_selu():
    assert not found(nn.Sequential(nn.AlphaDropout(0.25)), X)


def test_dropout_in_place_on_a_softmax_is_found():
    """As the attention of TNT in timm."""

    def run(self, x):
        return self.drop((x @ x.T).softmax(-1)) @ x

    x = X.clone().requires_grad_()
    model = Calls(run, drop=nn.Dropout(0.25, inplace=True))
    assert found(model, x) == {("A13", "error", "drop")}
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model.train()(x).sum().backward()


def test_a_few_bits_that_come_again_are_no_kept_mask():
    """A mask of 4 bits, each for 16 numbers, is now and then the same twice."""

    def run(self, x):
        if not self.training:
            return x
        return x * (torch.rand(4) < 0.75).repeat_interleave(16) / 0.75

    model = Calls(run, weight=nn.Parameter(torch.ones(1)))
    assert all("A28" not in {hit[0] for hit in found(model, X, seed=seed)} for seed in range(20))


@pytest.mark.parametrize(("name", "severity"), [("TinyMAEEmbeddings", "note"), ("Tiny", "error")])
def test_a_masked_autoencoder_is_meant_to_mask_in_evaluation(name, severity):
    def forward(self, x):
        keep = torch.argsort(torch.rand(x.shape[:2]), dim=1)[:, :3]
        return self.weight * x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))

    def init(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(1))

    made = type(name, (nn.Module,), {"__init__": init, "forward": forward})
    assert found(made(), TOKENS) == {("A3", severity, "")}
