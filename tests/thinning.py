"""Networks of thinned layers, and the dense ones with the same units dropped: the oracle."""

from __future__ import annotations

import copy

import torch

from sitout import functional as F
from sitout import nn
from sitout.masks import MaskKey

UNITS = 20  # so that 0.05, 0.3, 0.5 and 0.9 are rates that the units can have


class Gated(torch.nn.Module):
    """Two layers before one site."""

    def __init__(self, site):
        super().__init__()
        self.gate = nn.ThinnedLinear(7, UNITS, before=site)
        self.up = nn.ThinnedLinear(7, UNITS, bias=False, before=site)
        self.site = site
        self.down = nn.ThinnedLinear(UNITS, 5, after=site)

    def forward(self, x):
        return self.down(self.site(torch.nn.functional.silu(self.gate(x)) * self.up(x)))


class Forked(torch.nn.Module):
    """Two layers behind one site."""

    def __init__(self, site):
        super().__init__()
        self.first = nn.ThinnedLinear(7, UNITS, before=site)
        self.site = site
        self.left = nn.ThinnedLinear(UNITS, 5, after=site)
        self.right = nn.ThinnedLinear(UNITS, 5, after=site)

    def forward(self, x):
        hidden = self.site(self.first(x).tanh())
        return self.left(hidden) * self.right(hidden)


def mlp(p=0.5, **options):
    return nn.ThinnedMLP(7, [UNITS, UNITS], 5, p, **{"form": "thinned", **options})


def pair(p=0.5, **options):
    return nn.ThinnedMLP(7, [UNITS], 5, p, **{"form": "thinned", **options})


def gated(p=0.5, **options):
    return Gated(nn.ThinnedDropout(p, **{"form": "thinned", **options}))


def forked(p=0.5, **options):
    return Forked(nn.ThinnedDropout(p, **{"form": "thinned", **options}))


def conv(dims, norm=True, p=0.5, **options):
    """Return convolutions with a chain through two sites; batch normalization takes one group."""
    sites = [nn.ThinnedDropout(p, dim=1, **{"form": "thinned", **options}) for _ in range(2)]
    layer, norm_layer = (getattr(nn, f"Thinned{name}{dims}d") for name in ("Conv", "BatchNorm"))
    parts = [layer(3, UNITS, 3, padding="same", before=sites[0])]
    parts += [norm_layer(UNITS, before=sites[0])] if norm else []
    parts += [torch.nn.ELU(), sites[0], layer(UNITS, UNITS, 1, before=sites[1], after=sites[0])]
    parts += [torch.nn.Sigmoid(), sites[1]]
    parts += [layer(UNITS, 4, 3, stride=2, padding=1, bias=False, after=sites[1])]
    return torch.nn.Sequential(*parts)


# What makes a network, and the shape of its input.
NETS = {
    "mlp": (mlp, (13, 7)),
    "pair": (pair, (13, 7)),
    "tokens": (mlp, (13, 3, 7)),
    "gated": (gated, (13, 7)),
    "forked": (forked, (13, 7)),
    "conv1d": (lambda p=0.5, **o: conv(1, False, p, **o), (6, 3, 9)),
    "conv2d": (lambda p=0.5, **o: conv(2, False, p, **o), (6, 3, 5, 4)),
    "conv3d": (lambda p=0.5, **o: conv(3, False, p, **o), (4, 3, 2, 3, 2)),
}
NORMED = {
    f"conv{dims}d": (lambda p=0.5, dims=dims, **o: conv(dims, True, p, **o), shape)
    for dims, shape in ((1, (6, 3, 9)), (2, (6, 3, 5, 4)), (3, (4, 3, 2, 3, 2)))
}


def sites_of(net):
    return [module for module in net.modules() if isinstance(module, nn.ThinnedDropout)]


def tickets(count):
    """Return the keys that the next calls will draw, and leave the generator as it is."""
    state = torch.get_rng_state()
    keys = [MaskKey(seed=torch.randint(-(2**63), 2**63 - 1, ())) for _ in range(count)]
    torch.set_rng_state(state)
    return keys


class Fixed(torch.nn.Module):
    """The masked form, of units that are given."""

    def __init__(self, site, kept):
        super().__init__()
        self.site, self.kept = [site], kept

    def forward(self, x):
        (site,) = self.site
        return F.thinned_dropout(x, self.kept, dim=site.dim, batch_dim=site.batch_dim)


def dense(net, x, keys, rows=None):
    """Return the network of torch's own layers that drops the units at the keys of its sites."""
    held = copy.deepcopy(net)
    for module in held.modules():
        if hasattr(module, "_before"):
            module._before = module._after = None
    keys = iter(keys)
    for name, site in list(held.named_modules()):
        if isinstance(site, nn.ThinnedDropout):
            options = {"groups": site.groups, "group_size": site.group_size}
            kept = F.keep_units(
                *(x, UNITS, site.p), batch_dim=site.batch_dim, key=next(keys), rows=rows, **options
            )
            parent, _, child = name.rpartition(".")
            setattr(held.get_submodule(parent), child, Fixed(site, kept))
    return held


def results(net, x, upstream=None):
    """Return the output and all gradients of one step."""
    x = x.detach().requires_grad_()
    y = net(x)
    inputs = [x, *net.parameters()]
    loss = (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).square().sum()
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    filled = [torch.zeros_like(a) if g is None else g for a, g in zip(inputs, grads, strict=True)]
    return [y.detach(), *filled]


def close(made, wanted, factor=64, least=1e-3):
    """Whether two lists of tensors are equal to rounding, by the largest of their elements."""
    if len(made) != len(wanted):
        return False
    for a, b in zip(made, wanted, strict=True):
        if a.shape != b.shape or a.isnan().any() or b.isnan().any():
            return False
        if not b.numel():
            continue
        size = max(least, float(b.abs().max()))
        if float((a.double() - b.double()).abs().max()) > factor * torch.finfo(a.dtype).eps * size:
            return False
    return True
