"""Drawing rows without replacement, class by class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def draw(rows: Rows, strata: Rows, k: int, seed: np.random.SeedSequence) -> tuple[Rows, Rows]:
    """Draw ``k`` of ``rows`` at random, each class in its share.

    The order is that of raw PCG64 words, which numpy keeps from version to version; its
    ``Generator`` methods come without that promise.

    Args:
        rows: int64 [n], ascending.
        strata: the class of every row of the data.
        k: at most n.
        seed: decides the draw.

    Returns:
        The rows drawn [k] and the rows left [n - k], both ascending.
    """
    words = np.random.PCG64(seed).random_raw(len(rows))
    _, codes = np.unique(strata[rows], return_inverse=True)
    counts = np.bincount(codes)
    order = np.lexsort((words, codes))
    place = np.empty(len(rows), dtype=np.int64)
    place[order] = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = place < shares(counts, k)[codes]
    return rows[chosen], rows[~chosen]


def shares(counts: Rows, k: int) -> Rows:
    """Split ``k`` over classes in proportion to ``counts``, by the largest remainder.

    Every class gets at least one if ``k`` suffices; ties go to the lower code.

    Example:
        >>> shares(np.array([80, 15, 5]), 10)
        array([8, 1, 1])
    """
    quota = k * counts / max(counts.sum(), 1)
    least = min(1, k // max(len(counts), 1))
    given: Rows = np.maximum(np.floor(quota).astype(np.int64), least)
    while given.sum() < k:
        given[np.argmax(quota - given)] += 1
    while given.sum() > k:
        given[np.argmax(np.where(given > least, given - quota, -np.inf))] -= 1
    return given
