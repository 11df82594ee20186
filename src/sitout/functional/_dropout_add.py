"""Dropout and the residual sum behind it, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import _checks, backends
from . import _call

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..masks import MaskKey


def dropout_add(
    x: Tensor,
    residual: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: MaskKey | None = None,
    rows: Tensor | None = None,
    block: Sequence[tuple[int, int]] | None = None,
    shared_dims: Sequence[int] = (),
    batch_dim: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return ``residual + dropout(x, p)``: one pass on the CPU, instead of two.

    Args:
        x: ``[B, ...]``, a floating dtype; what is dropped from.
        residual: of the same shape.
        p: drop rate, a fraction in [0, 1]; or as data.
        training: without it the result is ``residual + x``.
        key: as in :func:`dropout`, like the options below.
        rows: int64 ``[B]``.
        block: one (start, full size) per non-batch dim of the mask.
        shared_dims: dims along which one mask bit serves all.
        batch_dim: the dim of the samples.
        generator: as in :func:`dropout`.

    Returns:
        The sum, a new tensor.

    Raises:
        TypeError: as :func:`dropout`.
        ValueError: the shapes differ, or as :func:`dropout`.

    Example:
        >>> x, residual = torch.ones(4), torch.ones(4)
        >>> sitout.functional.dropout_add(x, residual, 0.5, key=sitout.MaskKey(seed=1))
        tensor([1., 3., 1., 3.])

    Reference:
        Vaswani et al. 2017, arXiv 1706.03762, section 5.4 (residual dropout).
    """
    owner = "dropout_add"
    _call.check_residual(x, residual, owner)
    options = (key, rows, block, shared_dims, batch_dim, generator)
    address = _call.quick_address(x, p, training, options)
    direct = True
    if address is None:
        p = _checks.rate_or_data(p, owner)
        begun = _call.begin(x, p, "dropout", training, owner)
        if begun is None:
            return residual + x
        address = _call.address(x, p, "dropout", owner, _call.Options(*options), begun)
        direct = begun
    return backends.drop_and_add(x, residual, address, p, "dropout", direct)
