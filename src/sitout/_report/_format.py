"""How numbers and settings are written, on the page and in the terminal alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sitout._study.results import Study

MINUS = "\N{MINUS SIGN}"  # what stands on the page; terminals get a hyphen

_SETTINGS = {
    "learning_rate": "learning rate {}",
    "epochs": "epochs {}",
    "hidden_rate": "drop rate {}",
    "input_rate": "drop rate of inputs {}",
    "rate_scale": "drop rates times {}",
    "weight_decay": "weight decay {}",
    "max_norm": "largest weight norm {}",
    "patience": "patience {}",
}


@dataclass(frozen=True)
class Numbers:
    """How the errors and differences of one study are written.

    Attributes:
        per_cent: errors are fractions, written in per cent with two decimals; otherwise they
            are in the target's unit, written with three significant digits.
        minus: the minus sign.
    """

    per_cent: bool
    minus: str = "-"

    @classmethod
    def of(cls, study: Study, minus: str = "-") -> Numbers:
        """Return the numbers of ``study``."""
        return cls(study.data.task == "classification", minus)

    def scaled(self, value: float) -> float:
        """Return ``value`` in the unit in which it is written: per cent, or the target's."""
        return 100 * value if self.per_cent else value

    def error(self, value: float) -> str:
        """Return an error with its sign of per cent.

        >>> Numbers(per_cent=True).error(0.0452), Numbers(per_cent=False).error(12.345)
        ('4.52 %', '12.3')
        """
        return self.amount(value) + (" %" if self.per_cent else "")

    def amount(self, value: float) -> str:
        """Return an amount of error, in points or the target's unit.

        >>> Numbers(per_cent=True).amount(0.0031), Numbers(per_cent=True).amount(-1e-9)
        ('0.31', '0.00')
        """
        shown = self.scaled(value)
        text = f"{shown:.2f}" if self.per_cent else significant(shown)
        return text.replace("-", self.minus, 1) if _counts(text) else text.lstrip("-")

    def difference(self, value: float) -> str:
        """Return a difference of errors with its sign, in points or the target's unit.

        >>> Numbers(per_cent=True).difference(0.0031), Numbers(per_cent=True).difference(-1e-9)
        ('+0.31', '0.00')
        """
        text = self.amount(value)
        return f"+{text}" if value > 0 and _counts(text) else text

    def interval(self, low: float, high: float) -> str:
        """Return an interval of errors or differences.

        >>> Numbers(per_cent=True).interval(-0.008, 0.0023)
        '[-0.80, 0.23]'
        """
        return f"[{self.amount(low)}, {self.amount(high)}]"


def significant(value: float) -> str:
    """Return ``value`` with three significant digits, or as a whole number from 100 on.

    >>> [significant(x) for x in (0.0, 0.012345, 9.999, 1234.5)]
    ['0', '0.0123', '10.0', '1234']
    """
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def p_value(p: float) -> str:
    """Return a probability with three decimals.

    >>> p_value(0.0312), p_value(1e-6)
    ('0.031', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """Return a time in seconds with the unit that suits it.

    >>> [seconds(x) for x in (0.0312, 4.25, 75.0, 7500.0)]
    ['31 ms', '4.2 s', '1 min 15 s', '2 h 5 min']
    """
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    unit, small, large = (1, "s", "min") if value < 3599.5 else (60, "min", "h")
    whole, rest = divmod(round(value / unit), 60)
    return f"{whole} {large} {rest} {small}"


def settings(values: dict[str, float]) -> list[str]:
    """Return tuned settings in words, one string a setting.

    >>> settings({"learning_rate": 0.001, "epochs": 40, "hidden_rate": 0.5})
    ['learning rate 0.001', 'epochs 40', 'drop rate 0.5']
    """
    return [
        _SETTINGS.get(name, name.replace("_", " ") + " {}").format(f"{value:.3g}")
        for name, value in values.items()
    ]


def _counts(text: str) -> bool:
    """Return whether a written number differs from zero."""
    return any(digit in text.split("e")[0] for digit in "123456789")
