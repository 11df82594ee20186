"""What an audit found: mistakes, each with its place and its remedy, and the report of them all."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Severity = Literal["error", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A mistake, or what may be one, at one place.

    Attributes:
        rule: the number of the rule, ``A1``.
        title: its name, ``always-on-dropout``.
        severity: ``error``, ``warning`` or ``note``.
        site: the qualified name of the module; in a scan of source, file and line; or "".
        source: file and line of the code, ``net.py:12``; None where it is unknown.
        message: what is wrong, in one sentence.
        fix: the remedy, in one sentence.

    Example:
        >>> finding = sitout.Finding(
        ...     "A1", "always-on-dropout", "error", "net.py:12", "net.py:12",
        ...     "`F.dropout` has no `training=`.", "Pass `training=self.training`.",
        ... )
        >>> finding.link
        'docs/audit.md#a1-always-on-dropout'
    """

    rule: str
    title: str
    severity: Severity
    site: str
    source: str | None
    message: str
    fix: str

    @property
    def link(self) -> str:
        """The page that shows the mistake, its evidence and the repair."""
        return f"docs/audit.md#{self.rule.lower()}-{self.title}"

    @property
    def place(self) -> str:
        """Site and source for a reader, as far as they are known."""
        if not self.source or self.source == self.site:
            return self.site or "the model"
        return f"{self.site} ({self.source})" if self.site else self.source


class Audit:
    """Everything that an audit found, the worst first; falsy when there is nothing.

    Args:
        findings: in any order.

    Attributes:
        findings: errors, then warnings, then notes; within these by rule and by site.

    Example:
        >>> audit = sitout.Audit([])
        >>> bool(audit), len(audit), str(audit)
        (False, 0, 'No finding.')
    """

    findings: list[Finding]

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = sorted(findings, key=_rank)

    @property
    def errors(self) -> list[Finding]:
        """The findings that are mistakes beyond doubt."""
        return self._of("error")

    @property
    def warnings(self) -> list[Finding]:
        """The findings that are mistakes unless someone meant them."""
        return self._of("warning")

    @property
    def notes(self) -> list[Finding]:
        """The findings that are good to know."""
        return self._of("note")

    def _of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def __len__(self) -> int:
        return len(self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __repr__(self) -> str:
        return f"Audit({self._counts() if self.findings else 'no finding'})"

    def __str__(self) -> str:
        """Return the report for a reader: what several places have in common stands once."""
        if not self.findings:
            return "No finding."
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for finding in self.findings:
            key = (finding.severity, finding.rule, finding.message, finding.fix)
            groups.setdefault(key, []).append(finding)
        return "\n\n".join([*map(_paragraph, groups.values()), f"{self._counts()}."])

    def _counts(self) -> str:
        return ", ".join(_counted(len(self._of(severity)), severity) for severity in _ORDER)

    def to_json(self) -> str:
        """Return all of it for a program.

        Example:
            >>> sitout.Audit([]).to_json()
            '{"findings": [], "errors": 0, "warnings": 0, "notes": 0}'
        """
        found = {
            "findings": [{**asdict(finding), "link": finding.link} for finding in self.findings],
            **{f"{severity}s": len(self._of(severity)) for severity in _ORDER},
        }
        return json.dumps(found)


def _rank(finding: Finding) -> tuple[object, ...]:
    return _ORDER.index(finding.severity), _natural(finding.rule), _natural(finding.site)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``A2`` before ``A15``, and ``layers.9`` before ``layers.10``."""
    return [(int(part or 0), rest) for rest, part in re.findall(r"(\D*)(\d*)", text)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _paragraph(group: list[Finding]) -> str:
    """Return what is wrong, at all the places where it is, and the remedy."""
    first = group[0]
    places = [place for place, _ in groupby(finding.place for finding in group)]
    lines = [f"{first.severity} {first.rule} {first.title}: {first.message}", f"  {places[0]}"]
    if places[1:]:
        more = f"and {_counted(len(places) - 1, 'more place')}: {', '.join(places[1:])}"
        lines += (
            f"  {line}" for line in wrap(more, 98, break_long_words=False, break_on_hyphens=False)
        )
    return "\n".join([*lines, f"  Fix: {first.fix}", f"  See: {first.link}"])
