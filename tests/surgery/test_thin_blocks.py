"""Residual blocks with drop path: which are thinned, what that changes, and why others stay."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sitout
from sitout._surgery._block_forward import ThinnedForward
from sitout._surgery._blocks import find_blocks
from sitout.nn import DropPath, ResidualDropPath
from surgery.networks import same_tree, tensors, tree
from zoo import has, package

P, N = 0.4, 5  # 3 of 5 samples are computed


def everything(name, module):
    return True


def thin(model, form="thinned", fits=everything):
    found, left = find_blocks(model, fits)
    edits = [edit for block in found for edit in block.install(form)]

    def undo():
        assert all(edit.holds() for edit in edits)
        for edit in reversed(edits):
            edit.undo()

    return [block.site for block in found], left, undo


def _timm(name, size=32, **options):
    def make():
        import timm

        return timm.create_model(name, num_classes=3, drop_path_rate=P, **options), size

    return make


_VIT = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 3}
_SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2)}
_SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}
_RESNET = {"layers": (1, 2, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}


def _mixer():
    from timm.models.mlp_mixer import MlpMixer

    sizes = {"img_size": 32, "patch_size": 16, "num_blocks": 3, "embed_dim": 24}
    return MlpMixer(3, drop_path_rate=P, **sizes), 32


def _regnet():
    from timm.models.regnet import Bottleneck

    made = [Bottleneck(8, 8, drop_path_rate=P), Bottleneck(8, 16, 2, drop_path_rate=P)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), *made), 16


def _efficient():
    from timm.models import _efficientnet_blocks as blocks

    kinds = [(blocks.InvertedResidual, 1), (blocks.InvertedResidual, 2)]
    kinds += [(blocks.DepthwiseSeparableConv, 1), (blocks.EdgeResidual, 1)]
    made = [kind(8, 8, stride=stride, drop_path_rate=P) for kind, stride in kinds]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), *made), 16


def _metaformer():
    from timm.models.metaformer import MetaFormer

    sizes = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16), "use_mlp_head": False}
    return MetaFormer(drop_path_rate=P, layer_scale_init_values=1.0, num_classes=3, **sizes), 32


def _gcvit():
    from timm.models.gcvit import GlobalContextVit

    sizes = {"depths": (2, 2), "num_heads": (1, 2), "embed_dim": 8, "window_ratio": (8, 16)}
    return GlobalContextVit(img_size=32, drop_path_rate=P, num_classes=3, **sizes), 32


def _eva():
    return _timm("eva02_tiny_patch14_224", 42, **{**_VIT, "img_size": 42})()


def _vision_swin():
    from torchvision.models import SwinTransformer

    sizes = {"patch_size": [4, 4], "window_size": [4, 4], "num_heads": [1, 2], "depths": [1, 2]}
    return SwinTransformer(embed_dim=8, stochastic_depth_prob=P, num_classes=3, **sizes), 32


def _vision_convnext():
    from torchvision.models import ConvNeXt
    from torchvision.models.convnext import CNBlockConfig

    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    return ConvNeXt(stages, stochastic_depth_prob=P, num_classes=3), 32


def _vision_efficientnet():
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    stages = [MBConvConfig(2, 3, stride, 8, 8, 2) for stride in (1, 2)]
    return EfficientNet(stages, 0.0, stochastic_depth_prob=P, num_classes=3), 32


def _vision_maxvit():
    from torchvision.models import MaxVit

    sizes = {"stem_channels": 8, "partition_size": 2, "block_channels": [8, 16]}
    sizes |= {"block_layers": [1, 1], "head_dim": 8}
    return MaxVit((32, 32), stochastic_depth_prob=P, num_classes=3, **sizes), 32


_HF = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_HF |= {"image_size": 32, "patch_size": 8}
_HF |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BEIT = {**_HF, "intermediate_size": 32}
_STAGES = {"depths": [1, 2], "hidden_sizes": [8, 16]}


def _face(kind, **options):
    def make():
        import transformers

        config = getattr(transformers, f"{kind}Config")(drop_path_rate=P, **options)
        return getattr(transformers, f"{kind}Model")(config), 32

    return make


_SEGFORMER = {**_STAGES, "num_encoder_blocks": 2, "num_attention_heads": [1, 2]}
_SEGFORMER |= {"sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2]}
_SEGFORMER |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_HF_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2]}
_HF_SWIN |= {"num_heads": [2, 2], "window_size": 4}

UNCALLED = "its block does not call it"

# What makes a model, how many drop paths it has and how many are thinned, why others are not, and
# how many calls of the thinned ones stay masked.
MODELS = {
    "timm-vit": (_timm("vit_tiny_patch16_224", **_VIT), 4, 4, {}, 0),
    "timm-deit3": (_timm("deit3_small_patch16_224", **_VIT), 4, 4, {}, 0),
    "timm-eva": (_eva, 4, 4, {}, 0),
    "timm-beit": (_timm("beit_base_patch16_224", **_VIT), 4, 4, {}, 0),
    "timm-cait": (_timm("cait_xxs24_224", **_VIT), 3, 3, {}, 0),
    "timm-xcit": (_timm("xcit_nano_12_p16_224", **_VIT), 9, 9, {}, 0),
    "timm-swin": (_timm("swin_tiny_patch4_window7_224", **_SWIN), 6, 6, {}, 0),
    "timm-swinv2": (_timm("swinv2_tiny_window8_256", **_SWIN), 6, 6, {}, 0),
    "timm-convnext": (
        _timm("convnext_atto", depths=(1, 2, 1, 1), dims=(8, 8, 16, 16)),
        *(4, 4, {}, 0),
    ),
    "timm-resnet-basic": (_timm("resnet18", **_RESNET), 4, 4, {}, 0),
    "timm-resnet-bottleneck": (_timm("resnet26", **_RESNET), 4, 4, {}, 0),
    "timm-resnetv2": (_timm("resnetv2_50", layers=(1, 2), channels=(8, 16)), 2, 2, {}, 0),
    "timm-efficientnet": (_efficient, 4, 3, {UNCALLED: 1}, 0),
    "timm-regnet": (_regnet, 2, 2, {}, 0),
    "timm-mixer": (_mixer, 3, 3, {}, 0),
    "timm-pvt": (_timm("pvt_v2_b0", **_SMALL), 6, 6, {}, 0),
    "timm-poolformer": (_metaformer, 8, 8, {}, 0),
    "timm-davit": (
        _timm("davit_tiny", **_SMALL),
        *(12, 9, {"its branch takes more than the stream that it is added to": 3}, 0),
    ),
    "timm-gcvit": (_gcvit, 6, 6, {}, 3),
    "torchvision-swin": (_vision_swin, 3, 3, {}, 0),
    "torchvision-convnext": (_vision_convnext, 4, 4, {}, 0),
    "torchvision-efficientnet": (_vision_efficientnet, 4, 3, {UNCALLED: 1}, 0),
    "torchvision-maxvit": (_vision_maxvit, 5, 5, {}, 0),
    "hf-dinov2": (_face("Dinov2", **_HF), 3, 3, {}, 0),
    "hf-beit": (_face("Beit", **_BEIT), 2, 2, {}, 0),
    "hf-beit-biased": (_face("Beit", use_relative_position_bias=True, **_BEIT), 2, 2, {}, 0),
    "hf-data2vec": (
        _face("Data2VecVision", **_BEIT),
        *(2, 2, {"in 1 of its calls its block uses attention outside of its branch too": 2}, 2),
    ),
    "hf-convnext": (_face("ConvNext", num_stages=2, **_STAGES), 2, 2, {}, 0),
    "hf-segformer": (_face("Segformer", **_SEGFORMER), 2, 2, {}, 0),
    "hf-swin": (
        _face("Swin", **_HF_SWIN),
        *(3, 0, {"its forward cannot be traced (symbolically traced variables": 3}, 0),
    ),
}


def _is_foreign(module):
    name = type(module).__name__
    return name == "StochasticDepth" or (
        name.endswith("DropPath") and not isinstance(module, ResidualDropPath)
    )


def set_rates(model, p):
    for module in model.modules():
        if _is_foreign(module):
            setattr(module, "p" if hasattr(module, "p") else "drop_prob", p)


def built(make):
    """Return a model in float64 with random parameters, all its drop rates alike, and images."""
    torch.manual_seed(0)
    model, size = make()
    model = model.double()
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn_like(one) / (one[0].numel() ** 0.5 if one.dim() > 1 else 2.0))
    set_rates(model, P)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        # The statistics of a batch are another matter; see the test of them.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train = lambda mode=True: None
            module.training = False
    return model, torch.randn(N, 3, size, size, dtype=torch.float64)


@pytest.fixture(params=MODELS)
def case(request):
    if not has(package(request.param)):
        pytest.skip(f"{package(request.param)} is not installed")
    return MODELS[request.param]


def outputs(model, x):
    with torch.no_grad():
        return tensors(model(x))


def masked_twin(model, sites):
    """Return a copy whose forwards are its own, with the same sites in masked form."""
    twin = copy.deepcopy(model)
    for name in sites:
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, ResidualDropPath(P, form="masked"))
    return twin


def step(model, x):
    """Return the outputs of a training step under a clock, and all gradients."""
    x = x.clone().requires_grad_()
    model.train()
    with sitout.MaskClock(model, seed=3).at(0):
        out = tensors(model(x))
    weights = [torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view_as(one) for one in out]
    sum((one * weight).sum() for one, weight in zip(out, weights, strict=True)).backward()
    return [*out, x.grad, *(one.grad for one in model.parameters())]


def assert_close(mine, theirs, bound=1e-9):
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and one.numel():
            assert (one - other).abs().max() <= bound * (1e-3 + other.abs().max())


@pytest.fixture
def masked_calls(monkeypatch):
    """Count the calls of sites in training that are not thinned."""
    seen, forward = [], ResidualDropPath.forward

    def counting(self, x):
        seen.append(self)
        return forward(self, x)

    monkeypatch.setattr(ResidualDropPath, "forward", counting)
    return seen


def test_nothing_but_the_samples_changes(case, masked_calls):
    make, total, thinned, reasons, masked = case
    model, x = built(make)
    model.eval()
    out = outputs(model, x)
    before = tree(model)
    state = model.state_dict(keep_vars=True)
    assert sum(map(_is_foreign, model.modules())) == total
    sites, left, undo = thin(model)
    assert len(sites) == thinned
    assert len(left) == sum(reasons.values())
    for why, count in reasons.items():
        assert sum(f": {why}" in line for line in left) == count
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(state)
    assert all(after[name] is state[name] for name in state)
    assert all(map(torch.equal, outputs(model, x), out))
    set_rates(model, 0.0)  # of those that are left, and would draw by themselves
    if sites:
        twin = masked_twin(_unthinned(model), sites)
        masked_calls.clear()
        mine = step(model, x)
        assert len(masked_calls) == masked
        assert_close(mine, step(twin, x))
    undo()
    model.eval()
    assert all(map(torch.equal, outputs(model, x), out))
    set_rates(model, P)
    assert same_tree(tree(model), before)


def _unthinned(model):
    twin = copy.deepcopy(model)
    for module in twin.modules():
        vars(module).pop("forward", None)
    return twin


@pytest.mark.skipif(not has("timm"), reason="timm is not installed")
def test_attention_sees_20_of_32_samples():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **{**_VIT, "patch_size": 4})
    for block in model.blocks:
        block.drop_path1, block.drop_path2 = DropPath(0.4), DropPath(0.4)
    thin(model, "auto")
    seen = []
    for block in model.blocks:
        for part in (block.attn, block.mlp):
            part.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    model.train()(torch.randn(32, 3, 32, 32)).sum().backward()
    assert seen == [(20, 65, 24)] * 6
    seen.clear()
    model.eval()(torch.randn(32, 3, 32, 32))
    assert seen == [(32, 65, 24)] * 6


# Blocks of a user's own.


class Own(nn.Module):
    """Two branches, one rate; sizes, a view of a parameter, a buffer, a method, a condition."""

    def __init__(self, p=P):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(6, 6)
        self.fc = nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.randn(4, 2))
        self.register_buffer("shift", torch.randn(8))
        self.drop_path = DropPath(p)
        self.heads = 2
        self.twice = False

    def mixed(self, x):
        b, t, c = x.shape
        if t != 6:
            raise ValueError(t)
        return self.mix(x.reshape(b, t, c).transpose(1, 2)).transpose(1, 2)

    def forward(self, x, scale=1.0, mask=None):
        b, t, c = x.shape
        y = self.mixed(self.norm(x)) * self.gain.view(-1)
        if mask is not None:
            y = y * mask
        x = x + self.drop_path(y.view(b, t, self.heads, -1).flatten(2))
        y = self.fc(x) + self.shift
        if self.twice:
            y = y * 2
        x = torch.add(self.drop_path(y * scale), x)
        return x.reshape(b, t * c)


class Down(nn.Module):
    """A convolution block whose shortcut changes the shape."""

    def __init__(self, p=P):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(True))
        self.conv = nn.Conv2d(4, 4, 3, 1, 1)
        self.short = nn.Conv2d(3, 4, 1, 2)
        self.drops = nn.ModuleList([DropPath(p)])

    def forward(self, x):
        short, x = x, self.conv(self.body(x))
        x = self.drops[0](x)
        if self.short is not None:
            short = self.short(short)
        x += short
        return x.relu_()


def own(**options):
    torch.manual_seed(0)
    return Own(**options).double(), torch.randn(N, 6, 8, dtype=torch.float64)


def test_a_block_of_ones_own_is_thinned_in_each_of_its_calls(masked_calls):
    model, x = own()
    twin = masked_twin(model, ["drop_path"])
    sites, left, _ = thin(model)
    assert (sites, left) == (["drop_path"], [])
    mine = step(model, x)
    assert masked_calls == []
    assert_close(mine, step(twin, x))


def test_a_shortcut_that_changes_the_shape_keeps_all_samples():
    model = Down().double()
    model.body[1].train = lambda mode=True: None
    model.body[1].training = False
    x = torch.randn(N, 3, 8, 8, dtype=torch.float64)
    twin = masked_twin(model, ["drops.0"])
    sites, left, _ = thin(model)
    assert (sites, left) == (["drops.0"], [])
    seen = []
    for part in (model.short, model.conv):
        part.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    assert_close(step(model, x), step(twin, x))
    assert sorted(seen) == [3, 5]


def test_statistics_are_those_of_the_kept_samples_and_of_all_where_1_is_kept():
    model = Down()
    thin(model, "auto")
    x, norm, seen = torch.randn(N, 3, 8, 8), model.body[1], []
    norm.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    norm.momentum = 1.0
    model(x)
    assert len(seen[0]) == 3
    assert torch.allclose(norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-6)
    model.drops[0].p = 0.8
    model(x)
    norm.eval()
    model(x)
    assert list(map(len, seen)) == [3, 5, 1]


def test_a_call_with_other_arguments_has_code_of_its_own(masked_calls):
    model, x = own()
    mask = torch.randn(1, 6, 1, dtype=torch.float64)
    cases = [{}, {"scale": 3.0}, {"mask": mask}, {"mask": mask, "scale": 2.0}]
    twin = masked_twin(model, ["drop_path"])
    thin(model)
    for options in cases * 2:
        masked_calls.clear()
        assert_close(*(step(_With(one, options), x) for one in (model, twin)))
        assert len(masked_calls) == 2  # those of the twin
    assert len(model.forward.plans) == len(cases)


class _With(nn.Module):
    def __init__(self, block, options):
        super().__init__()
        block.zero_grad()
        self.block, self.options = block, options

    def forward(self, x):
        return self.block(x, **self.options)


def test_what_holds_something_for_each_sample_is_never_given_to_the_kept_ones(masked_calls):
    model, x = own()
    twin = masked_twin(model, ["drop_path"])
    thin(model)
    options = {"mask": torch.randn(N, 6, 1, dtype=torch.float64)}
    assert_close(*(step(_With(one, options), x) for one in (model, twin)))
    assert len(masked_calls) == 1 + 2  # the other branch does not read the mask


def test_an_attribute_that_changes_has_the_code_made_anew(masked_calls):
    model, x = own()
    twin = masked_twin(model, ["drop_path"])
    thin(model)
    step(model, x)
    for change in ({"twice": True}, {"heads": 4}, {"twice": False, "heads": 2}):
        for one in (model, twin):
            one.zero_grad()
            vars(one).update(change)
        masked_calls.clear()
        assert_close(step(model, x), step(twin, x))
        assert len(masked_calls) == 2
    assert len(model.forward.plans) == 3


def test_a_call_that_cannot_be_told_runs_masked_and_says_so():
    model, x = own()
    thin(model)
    with pytest.warns(UserWarning, match="A thinned Own runs its branches on all samples"):
        model(x, scale=np.float32(2.0))
    with pytest.raises(TypeError, match="unexpected"), pytest.warns(match="A thinned"):
        model(x, wrong=1)
    with pytest.raises(TypeError, match="multiple values"):
        model(x, x=x)


def test_a_drop_path_that_is_replaced_later_is_respected():
    model, x = own()
    thin(model)
    model.drop_path = nn.Identity()
    with pytest.warns(UserWarning, match="something else is in the place of its drop path"):
        out = model(x)
    assert torch.equal(out, Own.forward(model, x))


def test_parameters_and_children_are_read_when_the_block_runs():
    model, x = own()
    thin(model)
    changed = {name: torch.randn_like(one) for name, one in model.state_dict().items()}
    other = copy.deepcopy(model)
    other.load_state_dict(changed, assign=True)
    torch.manual_seed(1)
    out = torch.func.functional_call(model, changed, (x,))
    torch.manual_seed(1)
    assert torch.allclose(other(x), out)
    torch.manual_seed(1)
    assert not torch.allclose(model(x), out)
    other.fc = nn.Sequential(other.fc, nn.Linear(8, 8).double())
    other(x).sum().backward()
    assert other.fc[1].weight.grad is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_thinned_and_independent(copied, masked_calls):
    model, x = own()
    _, _, undo = thin(model)
    model(x)
    other = copied(model)
    undo()
    assert type(model.drop_path) is DropPath
    assert isinstance(other.forward, ThinnedForward)
    assert other.forward.block is other
    assert [plan.branches[0].block for plan in other.forward.plans] == [other]
    assert_close(step(other, x), step(masked_twin(_unthinned(other), ["drop_path"]), x))
    assert len(masked_calls) == 2
    with torch.no_grad():
        other.fc.weight.zero_()
    assert model.fc.weight.any()


def test_a_copy_of_another_version_of_the_class_makes_its_code_anew(monkeypatch):
    model, x = own()
    thin(model)
    data = pickle.dumps(model)

    def forward(self, x):
        return x + self.drop_path(self.fc(x) * 7)

    monkeypatch.setattr(Own, "forward", forward)
    other = pickle.loads(data)
    torch.manual_seed(1)
    out = other(x)
    assert out.shape == x.shape
    assert int(((out - x).abs().sum((1, 2)) == 0).sum()) == 2


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_block_repeats_its_samples(reentrant):
    model, x = own()
    thin(model)
    seen = []
    model.fc.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    grads = []
    for call in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        mine = x.clone().requires_grad_()
        model.zero_grad()
        call(mine).square().sum().backward()
        grads.append([mine.grad, *(one.grad.clone() for one in model.parameters())])
    assert all(map(torch.equal, *grads))
    assert seen == [3, 3, 3]


def test_compiled_it_is_one_graph_for_all_steps_and_all_like_blocks():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = nn.Sequential(*(Own() for _ in range(2)))
    model = nn.Sequential(*(one for block in model for one in (block, nn.Unflatten(1, (6, 8)))))
    thin(model)
    clock, x = sitout.MaskClock(model, seed=1), torch.randn(N, 6, 8)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for at in range(3):
        with clock.at(at, rows=torch.arange(N)):
            out = model(x)
        with clock.at(at, rows=torch.arange(N)):
            assert torch.allclose(compiled(x), out, atol=1e-6)
    assert counter.frame_count == 1
    for block in model[::2]:
        block.compile(backend=counter, fullgraph=True)
    # With gradients torch warns of an input that is no leaf, for any module.
    with clock.at(3), torch.no_grad():
        model(x)
    assert counter.frame_count == 2


def test_sites_are_put_in_and_taken_out_one_by_one():
    model = nn.Sequential(Down(), Pair())
    before = tree(model)
    _, left, first = thin(model, fits=lambda name, module: name == "1.b")
    assert left == []
    forward = model[1].forward
    sites, left, second = thin(model)
    assert sites == ["0.drops.0", "1.a"]
    assert left == ["1.b: it is thinned already"]
    assert model[1].forward is forward
    assert forward.sites == ("b", "a")
    second()
    assert forward.sites == ("b",)
    assert type(model[1].a) is DropPath
    seen = []
    model[1].fc.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model[1](torch.randn(N, 8))
    assert seen == [5, 3]
    model[1].fc._forward_hooks.clear()
    first()
    assert same_tree(tree(model), before)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.a, self.b = DropPath(P), DropPath(P)

    def forward(self, x):
        x = x + self.a(self.fc(x))
        return x + self.b(self.fc(x))


# What stays as it is.


class Bare(nn.Module):
    """A block without a forward."""

    def __init__(self, drop=None):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = DropPath(P) if drop is None else drop


class Unsummed(Bare):
    def forward(self, x):
        return self.drop(self.fc(x))


class Scaled(Bare):
    def forward(self, x):
        return torch.add(x, self.drop(self.fc(x)), alpha=2)


class Uncalled(Bare):
    def forward(self, x):
        return self.fc(x)


class Elsewhere(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x.sin()) * x.cos().mean()) if x.sum() > 0 else x


class Remembers(Bare):
    def forward(self, x):
        self.last = x
        return x + self.drop(self.fc(x))


class Collects(Bare):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.mean())
        return x + self.drop(self.fc(x))


class Draws(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x)) if torch.rand(()) < 2 else x


class DrawsToo(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x)) if random.random() < 2 else x


class Asks(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x)) if isinstance(x, torch.Tensor) else x


class Silent(Bare):
    def forward(self, x):
        with torch.no_grad():
            y = self.fc(x)
        return x + self.drop(y)


class Uses(Bare):
    def forward(self, x):
        y = self.fc(x)
        return x + self.drop(y), y


class Writes(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x.relu_()))


class WritesToo(Bare):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(True), nn.Linear(8, 8))

    def forward(self, x):
        return x + self.drop(self.body(x))


class WritesBeside(Bare):
    def forward(self, x):
        y = self.fc(x)
        x.add_(1)
        return x + self.drop(y)


class Reads(Bare):
    def forward(self, x):
        y = x.sin()
        return y + self.drop(self.fc(y) * x)


class Again(Bare):
    """What makes the stream is a layer, and what that takes is read too."""

    def forward(self, x):
        y = self.fc(x)
        return y + self.drop(self.fc(y) * x)


class Sizes(Bare):
    def forward(self, x):
        y = self.fc(x)
        return y + self.drop(self.fc(y).view(len(y), -1).reshape(x.shape[0], 8))


class Apart(Bare):
    def forward(self, x, other):
        return x + self.drop(self.fc(other))


class Still(Bare):
    def forward(self, x):
        return x + self.drop(x.sin())


class Nested(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x + self.drop(self.fc(x))))


class Makes(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x) * torch.ones(8))


class Sequence(Bare):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return x + self.drop(self.attention(x, x, x)[0])


class Whole(Unsummed):
    def forward(self, *, x):
        return x + self.drop(self.fc(x))


class Residual(Bare):
    def forward(self, x):
        return x + self.drop(self.fc(x))


class UserDropPath(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop_prob = 0.5

    def forward(self, x):
        return x


def _held():
    model = Residual()
    model.others = [model.drop]
    return model


def _twice():
    drop = DropPath(P)
    return nn.Sequential(Residual(drop), Residual(drop))


def _hooked():
    model = Residual()
    model.drop.register_forward_hook(lambda module, args, out: None)
    return model


def _patched():
    model = Residual()
    model.forward = lambda x: x
    return model


def _compiled():
    model = Residual()
    model.compile(backend="eager")
    return model


def _wrapped():
    return torch.compile(Residual(), backend="eager")


STAY = {
    "no sum": (Unsummed, "its output does not go into a sum with the stream, and only there"),
    "weighted sum": (Scaled, "its output does not go into a sum"),
    "no call": (Uncalled, "its block does not call it"),
    "condition": (Elsewhere, "its forward cannot be traced (symbolically traced variables"),
    "sets": (Remembers, "its forward sets last"),
    "appends": (Collects, "its forward sets what a list, dict or set of it holds"),
    "draws": (Draws, "its forward draws random numbers by itself"),
    "draws in Python": (DrawsToo, "its forward draws random numbers by itself"),
    "asks": (Asks, "its forward asks for the type of a tensor"),
    "mode": (Silent, "its forward changes the grad or the autocast mode"),
    "used outside": (Uses, "its block uses fc outside of its branch too"),
    "in place": (Writes, "its branch changes the stream in place, in relu_"),
    "in place in a layer": (WritesToo, "its branch changes the stream in place, in body"),
    "in place beside": (WritesBeside, "its block changes a tensor in place"),
    "reads more": (Reads, "its branch takes more than the stream that it is added to"),
    "recomputes": (Again, "its branch takes more than the stream that it is added to"),
    "batch of another": (Sizes, "its forward cannot be traced ('len' is not supported"),
    "reads another": (Apart, "its branch takes nothing of the stream that it is added to"),
    "no layer": (Still, "its branch calls no module"),
    "makes": (Makes, "its forward makes tensors from no input"),
    "sequence first": (Sequence, "attention mixes the dim along which it drops"),
    "keyword only": (Whole, "its forward takes no tensor by its place"),
    "unknown": (lambda: Residual(UserDropPath()), "what UserDropPath does is not known"),
    "batch mode": (lambda: Residual(DropPath(P, shared_dims=(0,))), "the whole batch drops"),
    "batch dim": (lambda: Residual(DropPath(P, batch_dim=1)), "its samples are in dim 1"),
    "unscaled": (lambda: Residual(DropPath(P, False)), "it does not scale what it keeps"),
    "as data": (lambda: Residual(DropPath(P).schedulable_()), "its rate is data"),
    "thinned": (lambda: Residual(ResidualDropPath(P)), "it is thinned already"),
    "root": (lambda: DropPath(P), "it is the model itself"),
    "held": (_held, "it is held in Residual.others too"),
    "twice": (_twice, "it stands in several places"),
    "hooked": (_hooked, "it has hooks, which nothing would call"),
    "patched": (_patched, "its block has a forward of its own"),
    "compiled": (_compiled, "its block is compiled; thin it before that"),
    "wrapped": (_wrapped, "its block is compiled; thin it before that"),
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays_has_its_reason_and_is_as_it_was(name):
    make, why = STAY[name]
    model = make().eval()
    before = tree(model)
    states = torch.get_rng_state(), random.getstate()
    sites, left, _ = thin(model)
    assert sites == []
    assert len(left) == 1
    assert left[0].partition(": ")[2].startswith(why)
    assert same_tree(tree(model), before)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert getattr(model, "seen", []) == []


def test_of_two_branches_within_each_other_the_inner_one_is_thinned():
    model = Nested()
    sites, left, _ = thin(model)
    assert sites == ["drop"]
    assert left == ["drop: in 1 of its calls another drop path is in its branch"]
    seen = []
    model.fc.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model(torch.randn(N, 8))
    assert seen == [3, 5]


@pytest.mark.skipif(not has("torchvision"), reason="torchvision is not installed")
def test_stochastic_depth_of_torchvision_is_thinned_by_row_and_not_by_batch():
    from torchvision.ops import StochasticDepth

    model = nn.Sequential(*(Residual(StochasticDepth(P, mode)) for mode in ("row", "batch")))
    sites, left, _ = thin(model)
    assert sites == ["0.drop"]
    assert left == ["1.drop: the whole batch drops together"]


@pytest.mark.skipif(not has("timm"), reason="timm is not installed")
def test_a_site_takes_rate_mode_and_attributes_of_the_drop_path():
    from timm.layers import DropPath as Timm

    model = Residual(Timm(0.3)).eval()
    model.drop.note = "mine"
    thin(model, "masked")
    site = model.drop
    assert (site.p, site.form, site.training, site.note) == (0.3, "masked", False, "mine")
    assert find_blocks(nn.Sequential(Residual(Timm(0.3, False))), everything)[1] == [
        "0.drop: it does not scale what it keeps"
    ]


def test_a_rate_of_0_is_thinned_too_and_computes_all():
    model, x = own(p=0.0)
    thin(model, "auto")
    assert torch.equal(model(x), Own.forward(model, x))
    model.drop_path.p = 0.4
    seen = []
    model.fc.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    model(x)
    assert seen == [3]
