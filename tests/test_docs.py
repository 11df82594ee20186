"""The documentation says what there is: every public name, option and arm, and no dead link."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
import typer

import sitout
from sitout._study import ARMS, networks
from sitout.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
TEXTS = [*sorted(ROOT.glob("*.md")), *PAGES]

DIRECTIVE = re.compile(r"^\.\. (currentmodule|automodule|auto\w+|py:data):: ([\w.]+)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def public_modules():
    """Return the modules that a user may import: no part of their name is private."""
    found = [sitout]
    for module in pkgutil.walk_packages(sitout.__path__, "sitout."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            found.append(importlib.import_module(module.name))
    return [module for module in found if hasattr(module, "__all__")]


def documented():
    """Return the full names that the pages document."""
    names = set()
    for page in PAGES:
        module = ""
        for directive, name in DIRECTIVE.findall(page.read_text()):
            if directive in ("currentmodule", "automodule"):
                module = name
                names.add(name)
            else:
                names.add(name if name.startswith("sitout.") else f"{module}.{name}")
    return names


def resolved(name):
    """Return the object of a full name, or None."""
    home, _, last = name.rpartition(".")
    return getattr(importlib.import_module(home), last, None) if home else sitout


NAMES = documented()
OBJECTS = [resolved(name) for name in NAMES]
PUBLIC = [
    (module.__name__, name)
    for module in public_modules()
    for name in module.__all__
    if not name.startswith("__")
]


def section(page, title):
    """Return the text of a page under a heading, up to the next one of its level."""
    return (DOCS / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text):
    """Return what stands in backticks in the first column of the tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def test_the_public_modules_are_found():
    """Without this, a law over an empty set of names would hold."""
    assert {"sitout", "sitout.backends", "sitout.data", "sitout.masks", "sitout.nn"} <= {
        module for module, _ in PUBLIC
    }


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_name_is_on_a_page(module, name):
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert any(value is one for one in OBJECTS)
    else:
        assert f"{module}.{name}" in NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_on_a_page_is_there(name):
    assert resolved(name) is not None


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(text):
    targets = [link.partition("#")[0] for link in LINK.findall(text.read_text())]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (text.parent / target).exists()] == []


@pytest.mark.parametrize("command", ["study", "predict", "replay", "doctor", "audit"])
def test_the_page_of_the_command_line_lists_every_option(command):
    parameters = typer.main.get_command(app).commands[command].params
    options = [option for one in parameters for option in one.opts if option.startswith("--")]
    listed = first_cells(section("cli.md", f"sitout {command}"))
    assert listed == [option for option in options if option != "--help"]


def test_the_page_of_the_study_lists_every_arm():
    assert tuple(first_cells(section("study.md", "The arms"))) == ARMS


def test_the_network_on_the_page_of_the_study_fits_and_has_sites(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    network = networks.build(networks.factory("my_net:residual"), (3, 4), 5)
    assert [site.p for site in networks.sites(network).values()] == [0.2, 0.1] * 2
    assert network(torch.randn(7, 3, 4)).shape == (7, 5)
