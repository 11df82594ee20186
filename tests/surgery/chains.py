"""Networks with chains that can be thinned: of torch, timm, torchvision and transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from zoo import has

WIDE = 64  # a rate of 0.5 and of 0.25 is exact


class Plain(nn.Module):
    """A module of a user, whose forward calls a function and its layers."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, WIDE)
        self.drop = nn.Dropout(0.5)
        self.fc2 = nn.Linear(WIDE, 4)

    def forward(self, x, scale=None):
        x = self.drop(F.relu(self.fc1(x)))
        return self.fc2(x) if scale is None else self.fc2(x) * scale


class Heads(nn.Module):
    """Two layers read the units; an activation stands behind the dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, WIDE), nn.Tanh())
        self.drop = nn.Dropout(0.25)
        self.one, self.two = nn.Linear(WIDE, 3), nn.Linear(WIDE, 5, bias=False)

    def forward(self, x):
        x = F.leaky_relu(self.drop(self.body(x) * 2.0)) / 3.0
        return torch.cat([self.one(x), self.two(x)], -1)


class Gated(nn.Module):
    """A gate of a user, in float64 by a cast, with a norm around it."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.w1, self.w2 = nn.Linear(8, WIDE, bias=False), nn.Linear(8, WIDE)
        self.drop, self.w3 = nn.Dropout(0.5), nn.Linear(WIDE, 8)

    def forward(self, x):
        h = self.norm(x)
        h = (F.silu(self.w1(h)) * self.w2(h)).to(x.dtype)
        return x + self.w3(self.drop(h).contiguous())


class Untraceable(nn.Module):
    """The forward of the root asks its data; that of its part does not."""

    def __init__(self):
        super().__init__()
        self.part = Plain()
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return self.part(x) if x.sum() > -1e9 else x


class Method(nn.Module):
    """Only a method can be followed."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, WIDE), nn.Linear(WIDE, 8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return x + self.block(x) if len(x) else x

    def block(self, x):
        return self.fc2(self.drop(torch.relu(self.fc1(x))))


def _mlp():
    layers = [nn.Linear(8, WIDE), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(WIDE, WIDE), nn.BatchNorm1d(WIDE), nn.GELU(), nn.Dropout(0.25)]
    layers += [nn.Linear(WIDE, 128), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(128, 4)]
    return nn.Sequential(*layers), torch.randn(6, 8), ["2", "6", "9"]


def _deep():
    inner = nn.Sequential(nn.Sequential(nn.Linear(8, WIDE)), nn.Sequential(nn.ELU()))
    model = nn.Sequential(inner, nn.Sequential(nn.Dropout(0.5)), nn.Sequential(nn.Linear(WIDE, 4)))
    return model, torch.randn(6, 3, 8), ["1.0"]


def _conv(dims):
    conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
    drop, pool = getattr(nn, f"Dropout{dims}d"), getattr(nn, f"MaxPool{dims}d")

    def make():
        layers = [conv(3, WIDE, 3, padding="same"), norm(WIDE), nn.ReLU(), pool(2), drop(0.5)]
        layers += [conv(WIDE, 32, 2, stride=2, padding=1, bias=False), nn.PReLU(), drop(0.25)]
        layers += [pool(2), conv(32, 2, 1)]
        return nn.Sequential(*layers), torch.randn(6, 3, *[8] * dims), ["4", "7"]

    return make


def _of(made, sites, shape=(6, 8)):
    return lambda: (made(), torch.randn(shape), sites)


def _layer(made, **options):
    return lambda: made(8, 2, WIDE, dropout=0.5, **options)


def _encoder():
    layer = nn.TransformerEncoderLayer(8, 2, WIDE, dropout=0.5, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


CHAINS = {
    "mlp": _mlp,
    "nested": _deep,
    "plain": _of(Plain, ["drop"]),
    "heads": _of(Heads, ["drop"]),
    "gated": _of(Gated, ["drop"], (6, 5, 8)),
    "untraceable": _of(Untraceable, ["part.drop"]),
    "method": _of(Method, ["drop"]),
    "conv1d": _conv(1),
    "conv2d": _conv(2),
    "conv3d": _conv(3),
    "encoder layer": _of(_layer(nn.TransformerEncoderLayer), ["dropout"], (5, 6, 8)),
    "encoder": _of(_encoder, ["layers.0.dropout", "layers.1.dropout"], (6, 5, 8)),
    "decoder layer": _of(
        _layer(nn.TransformerDecoderLayer, batch_first=True, norm_first=True, activation="gelu"),
        ["dropout"],
        (6, 5, 8),
    ),
}


def _vit():
    import timm

    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        embed_dim=24,
        num_heads=2,
        depth=2,
        num_classes=4,
        proj_drop_rate=0.5,
    )
    return model, torch.randn(6, 3, 32, 32), ["blocks.0.mlp.drop1", "blocks.1.mlp.drop1"]


def _swiglu():
    from timm.layers import SwiGLU

    return SwiGLU(8, WIDE, drop=0.5), torch.randn(6, 5, 8), ["drop1"]


def _t5(name):
    def make():
        from transformers import T5Config
        from transformers.models.t5 import modeling_t5

        config = T5Config(d_model=8, d_ff=WIDE, dropout_rate=0.5, dense_act_fn="gelu_new")
        return getattr(modeling_t5, name)(config), torch.randn(6, 5, 8), ["dropout"]

    return make


def _mlp_block():
    from torchvision.models.vision_transformer import MLPBlock

    return MLPBlock(8, WIDE, 0.5), torch.randn(6, 5, 8), ["2"]


if has("timm"):
    CHAINS |= {"timm vit": _vit, "timm swiglu": _swiglu}
if has("torchvision"):
    CHAINS["torchvision mlp"] = _mlp_block
if has("transformers"):
    CHAINS |= {f"hf {name}": _t5(name) for name in ("T5DenseActDense", "T5DenseGatedActDense")}


def build(name):
    """Return a model in float64, in training, with its input and the names of its sites.

    Other dropout of torch is off, so that each forward is determined.
    """
    torch.manual_seed(3)
    model, x, sites = CHAINS[name]()
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and path not in sites:
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model.double().train(), x.double(), sites


def run(model, x):
    """Call a model; a decoder takes its input for the memory too."""
    return model(x, x) if isinstance(model, nn.TransformerDecoderLayer) else model(x)
