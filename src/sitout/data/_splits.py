"""Who trains, who tunes, who tests."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sitout.data._draw import draw
from sitout.data._fault import fault

if TYPE_CHECKING:
    from sitout.data._dataset import DataSet

Rows = npt.NDArray[np.int64]

VALIDATION, TEST, TRAIN_OF_POOL = 0.20, 0.25, 0.90
MOST_ROWS = 10_000
LEAST_ROWS, LEAST_OF_CLASS, LEAST_TRAIN = 50, 5, 10
_VALIDATION, _TUNING, _REPEAT = range(3)


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint rows for training, validation and test.

    Attributes:
        train: int64 [n], ascending row numbers.
        validation: likewise.
        test: likewise; empty for tuning.

    Example:
        >>> from sitout.data import load, make_splits
        >>> split = make_splits(load("wine"), seed=0).repeat(0)
        >>> len(split.train), len(split.validation), len(split.test)
        (98, 36, 44)
    """

    train: Rows
    validation: Rows
    test: Rows

    @cached_property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of a sha256 over the three."""
        digest = hashlib.sha256()
        for rows in (self.train, self.validation, self.test):
            digest.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Splits:
    """Every split of one study; ``make_splits`` builds it and explains the rule.

    Attributes:
        seed: the seed of the study.
        validation: int64 [v], the rows that tuning validates on and no repeat tests on.
        others: int64 [m], all rows but these and published test rows: where random test rows and
            the training rows of tuning come from.
        test_rows: int64 [t], the published test rows, or None.
        strata: [N], the class of every row (0 in regression).
        n_train: training rows of every split.
        n_test: test rows drawn by every repeat (0 with published test rows).
        spare_joins: whether rows that are neither trained nor tested on join the test.

    Example:
        >>> from sitout.data import load, make_splits
        >>> splits = make_splits(load("wine"), seed=0)
        >>> splits.fixed_test, splits.repeat(0).hash == splits.repeat(1).hash
        (False, False)
    """

    seed: int
    validation: Rows
    others: Rows
    test_rows: Rows | None
    strata: Rows
    n_train: int
    n_test: int
    spare_joins: bool

    @property
    def fixed_test(self) -> bool:
        """Whether every repeat tests on the same, published rows."""
        return self.test_rows is not None

    def tuning(self) -> Split:
        """Return the split to tune on: training and validation rows, no test rows."""
        root = np.random.SeedSequence((self.seed, _TUNING))
        train, _ = draw(self.others, self.strata, self.n_train, root)
        return Split(train, self.validation, train[:0])

    def repeat(self, r: int) -> Split:
        """Return the split of repeat ``r``, which counts from 0."""
        root = np.random.SeedSequence((self.seed, _REPEAT, _natural(r, "`r` of repeat")))
        seeds = root.spawn(4)
        test, pool = draw(self.others, self.strata, self.n_test, seeds[0])
        pool = np.union1d(pool, self.validation)
        validation, pool = draw(pool, self.strata, len(self.validation), seeds[1])
        train, spare = draw(pool, self.strata, self.n_train, seeds[2])
        if self.spare_joins:
            test = np.union1d(test, np.setdiff1d(spare, self.validation))
            test, _ = draw(test, self.strata, min(len(test), MOST_ROWS), seeds[3])
        return Split(train, validation, test if self.test_rows is None else self.test_rows)


def make_splits(data: DataSet, *, seed: int, train_size: int | None = None) -> Splits:
    """Plan the training, validation and test rows of a study.

    The rows that tuning validates on are drawn once per study: 20 % of the rows that are not
    published test rows, at most 10,000 and at most ``train_size``. No repeat tests on them.

    Every repeat draws its own test rows from the others, and its own training and validation rows
    (as many) from all that are left:

    - By default the test takes 25 % of all rows, and training the rest.
    - With ``train_size``, training takes that many of the rest; the rows left over join the
      test, which then has at most 10,000 rows.
    - With a published test split, the test rows are those. Training takes ``train_size`` of the
      rows that are not test or validation rows, by default 90 % of them.

    Every draw keeps the shares of the classes to within a row, and at least one row of each. It
    depends on ``(seed, r)`` alone and is the same on every machine.

    Args:
        data: at least 50 rows, at least 5 of each class.
        seed: 0 or larger.
        train_size: training rows of a repeat: at least 10, and at least one per class.

    Raises:
        DataError: the data or ``train_size`` break one of these rules.

    Example:
        >>> from sitout.data import load, make_splits
        >>> splits = make_splits(load("digits"), seed=7, train_size=200)
        >>> len(splits.validation), len(splits.repeat(0).train), len(splits.repeat(0).test)
        (200, 200, 1262)
    """
    seed = _natural(seed, "`seed` of make_splits")
    strata = np.zeros(data.n_rows, np.int64) if data.task == "regression" else data.target
    rows = np.arange(data.n_rows, dtype=np.int64)
    pool = rows if data.test_rows is None else np.setdiff1d(rows, data.test_rows)
    _check_rows(data, pool)
    most = train_size if isinstance(train_size, int) and train_size > 0 else MOST_ROWS
    n_validation = min(round(VALIDATION * len(pool)), MOST_ROWS, most)
    root = np.random.SeedSequence((seed, _VALIDATION))
    validation, others = draw(pool, strata, n_validation, root)
    n_test = round(TEST * data.n_rows) if data.test_rows is None else 0
    free = len(others) - n_test
    if train_size is not None:
        _check_train_size(train_size, free, len(data.classes))
    default = free if data.test_rows is None else round(TRAIN_OF_POOL * free)
    return Splits(
        seed=seed,
        validation=validation,
        others=others,
        test_rows=None if data.test_rows is None else np.sort(data.test_rows),
        strata=strata,
        n_train=train_size or default,
        n_test=n_test,
        spare_joins=train_size is not None and data.test_rows is None,
    )


def _check_rows(data: DataSet, pool: Rows) -> None:
    if len(pool) < LEAST_ROWS:
        raise fault("A study", f"have at least {LEAST_ROWS} rows", f"{len(pool)}")
    if data.task != "classification":
        return
    counts = np.bincount(data.target[pool], minlength=len(data.classes))
    rarest = int(counts.argmin())
    if counts[rarest] < LEAST_OF_CLASS:
        numeric = all(name.lstrip("-").replace(".", "", 1).isdigit() for name in data.classes)
        got = f"{counts[rarest]} of class {data.classes[rarest]!r}"
        way_out = "Merge it or drop it" + (", or use --task regression." if numeric else ".")
        raise fault("Every class", f"have at least {LEAST_OF_CLASS} rows", got, way_out)


def _check_train_size(size: object, free: int, classes: int) -> None:
    least = max(LEAST_TRAIN, classes)
    what = "`train_size` of make_splits (--train-size)"
    if isinstance(size, bool) or not isinstance(size, int):
        raise fault(what, "be an integer or None", repr(size))
    if not least <= size <= free:
        per_class = f", one per class of {classes}" if classes > LEAST_TRAIN else ""
        rule = f"be at least {least}{per_class} and at most {free}, the rows available"
        raise fault(what, rule, repr(size))


def _natural(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fault(what, "be an integer of 0 or more", repr(value))
    return value
