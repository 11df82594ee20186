"""How a rule is written: a small function from the evidence to what it holds against the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._sites._site import short
from ._finding import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .._sites import Site
    from ._evidence import Evidence


class Hit(NamedTuple):
    """One place that a rule holds against a model.

    Args:
        site: qualified name of the module; "" is the root.
        message: what is wrong, in one sentence.
        fix: the remedy, in one sentence.
        source: file and line; None if unknown.
        severity: where it is not that of the rule.
    """

    site: str
    message: str
    fix: str
    source: str | None = None
    severity: Severity | None = None


RULES: list[tuple[str, Callable[[Evidence], Iterator[Finding]]]] = []
"""Number and function of every rule, in the order in which they were defined."""


def rule(
    number: str, title: str, severity: Severity
) -> Callable[[Callable[[Evidence], Iterable[Hit]]], Callable[[Evidence], Iterable[Hit]]]:
    """Register a rule.

    Args:
        number: ``A1``; see docs/audit.md.
        title: its name, in kebab case.
        severity: of its findings, unless a hit says otherwise.
    """

    def register(
        check: Callable[[Evidence], Iterable[Hit]],
    ) -> Callable[[Evidence], Iterable[Hit]]:
        def findings(evidence: Evidence) -> Iterator[Finding]:
            for hit in check(evidence):
                weight = hit.severity or severity
                yield Finding(number, title, weight, hit.site, hit.source, hit.message, hit.fix)

        RULES.append((number, findings))
        return check

    return register


def at(site: Site, message: str, fix: str, severity: Severity | None = None) -> Hit:
    """Return a hit at a site of the probe."""
    return Hit(site.name, message, fix, short(site.source) or None, severity)


def rate(p: float | None) -> str:
    """Return a rate for a message."""
    return "an unknown rate" if p is None else f"p={p:.4g}"
