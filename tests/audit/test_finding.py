"""A finding links to its page, and an audit shows the worst first and each thing once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sitout
from sitout._audit import Audit, Finding


def finding(rule="A1", severity="error", site="net.py:12", message="It drops.", **given):
    return Finding(
        rule,
        given.get("title", "always-on-dropout"),
        severity,
        site,
        given.get("source"),
        message,
        given.get("fix", "Mend it."),
    )


def test_the_link_is_the_anchor_of_the_heading_of_the_rule():
    assert finding("A15", title="checkpoint-without-rng").link == (
        "docs/audit.md#a15-checkpoint-without-rng"
    )


@pytest.mark.parametrize(
    ("site", "source", "shown"),
    [
        ("net.py:12", "net.py:12", "net.py:12"),
        ("encoder.drop", "net.py:12", "encoder.drop (net.py:12)"),
        ("encoder.drop", None, "encoder.drop"),
        ("", "net.py:12", "net.py:12"),
        ("", None, "the model"),
    ],
)
def test_a_place_shows_site_and_source_as_far_as_they_are_known(site, source, shown):
    assert finding(site=site, source=source).place == shown


def test_an_audit_is_falsy_only_without_findings():
    assert not Audit([])
    assert Audit([finding(severity="note")])


def test_findings_are_sorted_by_severity_then_rule_then_site_with_numbers_as_numbers():
    given = [
        finding("A2", "note"),
        finding("A15", "warning"),
        finding("A2", "warning"),
        finding("A3", "error", "layers.10"),
        finding("A3", "error", "layers.9"),
        finding("A1", "error", "z"),
    ]
    audit = Audit(given)
    assert [(one.severity, one.rule, one.site) for one in audit] == [
        ("error", "A1", "z"),
        ("error", "A3", "layers.9"),
        ("error", "A3", "layers.10"),
        ("warning", "A2", "net.py:12"),
        ("warning", "A15", "net.py:12"),
        ("note", "A2", "net.py:12"),
    ]
    assert [len(audit.errors), len(audit.warnings), len(audit.notes), len(audit)] == [3, 2, 1, 6]


def test_the_report_of_a_clean_audit_is_one_line():
    assert str(Audit([])) == "No finding."


def test_the_report_shows_message_place_remedy_page_and_counts():
    assert str(Audit([finding(), finding("A2", "note")])).splitlines() == [
        "error A1 always-on-dropout: It drops.",
        "  net.py:12",
        "  Fix: Mend it.",
        "  See: docs/audit.md#a1-always-on-dropout",
        "",
        "note A2 always-on-dropout: It drops.",
        "  net.py:12",
        "  Fix: Mend it.",
        "  See: docs/audit.md#a2-always-on-dropout",
        "",
        "1 error, 0 warnings, 1 note.",
    ]


def test_one_message_at_many_places_stands_once_with_all_of_them():
    audit = Audit([finding(site=f"layers.{number}.self_attention") for number in range(12)])
    text = str(audit)
    assert text.count("It drops.") == 1
    assert "  layers.0.self_attention\n  and 11 more places: layers.1.self_attention," in text
    assert [text.count(f"layers.{number}.self") for number in range(12)] == [1] * 12
    assert max(map(len, text.splitlines())) <= 100


def test_two_messages_of_one_rule_are_two_paragraphs():
    assert str(Audit([finding(), finding(message="It drops more.")])).count("error A1") == 2


def test_json_holds_every_field_the_link_and_the_counts():
    found = json.loads(Audit([finding(source="net.py:12"), finding("A2", "note")]).to_json())
    assert found["findings"][0] == {
        "rule": "A1",
        "title": "always-on-dropout",
        "severity": "error",
        "site": "net.py:12",
        "source": "net.py:12",
        "message": "It drops.",
        "fix": "Mend it.",
        "link": "docs/audit.md#a1-always-on-dropout",
    }
    assert (found["errors"], found["warnings"], found["notes"]) == (1, 0, 1)


def test_every_rule_has_its_section_on_the_page_and_every_section_its_rule():
    root = Path(sitout.__file__).parent
    page = (root.parent.parent / "docs" / "audit.md").read_text()
    headings = set(re.findall(r"^## (A\d+) ([\w-]+)$", page, re.MULTILINE))
    source = "".join(file.read_text() for file in (root / "_audit").glob("*.py"))
    assert headings == set(re.findall(r'"(A\d+)",\s*"([a-z0-9-]+)"', source))
