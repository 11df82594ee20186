"""The floors of the package, and what every public object says of itself."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sitout

ROOT = Path(sitout.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# A file imports only from lower floors or from its own folder.
FLOORS = {
    0: ["_checks", "_factory", "_optional", "_version", "masks"],
    1: ["backends"],
    2: ["functional"],
    3: ["nn", "clock", "_clock_rules", "_rates", "_source", "_ticker", "_where"],
    4: ["_replay", "_sites", "_surgery"],
    5: ["_audit", "mc", "parallel", "schedules"],
    6: ["_doctor", "_report", "_study", "data"],
    7: ["__init__", "__main__", "_watch", "cli", "integrations"],
}
FLOOR = {unit: floor for floor, units in FLOORS.items() for unit in units}

# On one floor the study reads data sets and writes reports, which know the type of its results.
# The clock leaves a ticker with the layers. Thinning follows forwards as the probe does.
NEIGHBOURS = {
    ("clock", "nn"),
    ("_clock_rules", "nn"),
    ("_rates", "nn"),
    ("_surgery", "_sites"),
    ("_study", "data"),
    ("_study", "_report"),
    ("_report", "_study"),
}

OPTIONAL = [
    "torch._dynamo",  # a second, for those who do not compile
    "jinja2",
    "lightning",
    "onnx",
    "optuna",
    "pandas",
    "plotly",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "skorch",
    "timm",
    "torchmetrics",
    "transformers",
    "triton",
    "typer",
]


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("sitout", *parts)).removesuffix(".__init__")


MODULES = {module_of(file): file for file in FILES}
ROOT_NAMES = {file.name for file in ROOT.glob("*.py")}


def unit_of(module):
    """Return the file or folder right under src/sitout that holds a module."""
    return [*module.split("."), "__init__"][1]


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(tree, *, types):
    """Yield every node, without what only a type checker reads unless ``types``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if types or not is_type_checking(child):
            yield from nodes(child, types=types)


def imports(file, *, types=True):
    """Return the modules of sitout that a file imports, anywhere in it, by their full names."""
    module, found = module_of(file), set()
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in nodes(ast.parse(file.read_text()), types=types):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            full = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else source for name in full]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    return found - {module}


def test_the_parser_of_imports_sees_them():
    """Without this, a law over an empty set of imports would hold."""
    assert imports(ROOT / "functional" / "_dropout.py") == {
        "sitout.functional._call",
        "sitout.masks",
    }
    assert imports(ROOT / "functional" / "_call.py") == {
        "sitout._checks",
        "sitout.backends",
        "sitout.backends._law",
        "sitout.masks",
    }
    assert "sitout.backends._law" not in imports(ROOT / "functional" / "_call.py", types=False)


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_every_file_stands_on_a_floor(file):
    assert unit_of(module_of(file)) in FLOOR, "give it a floor in FLOORS, and in the design"


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_a_file_imports_only_from_lower_floors_or_its_own_folder(file):
    own = unit_of(module_of(file))
    higher = []
    for name in imports(file):
        other = unit_of(name)
        both_files = f"{own}.py" in ROOT_NAMES and f"{other}.py" in ROOT_NAMES
        same_folder = own == other or (both_files and FLOOR[own] == FLOOR[other])
        if not (same_folder or FLOOR[other] < FLOOR[own] or (own, other) in NEIGHBOURS):
            higher.append(name)
    assert higher == []


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imports(file, types=False) for module, file in MODULES.items()}
    # `from .. import x` in a package reads x alone; its own __init__ is no dependency of a file.
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_only_optional_catches_import_errors(file):
    text = [
        ast.unparse(node)
        for tree in ast.walk(ast.parse(file.read_text()))
        for node in (
            [tree.type]
            if isinstance(tree, ast.ExceptHandler) and tree.type
            else tree.args
            if isinstance(tree, ast.Call) and ast.unparse(tree.func).endswith("suppress")
            else []
        )
    ]
    caught = [names for names in text if "ImportError" in names or "ModuleNotFound" in names]
    assert bool(caught) == (file == ROOT / "_optional.py")


def test_importing_sitout_loads_no_optional_package():
    code = f"import sys, sitout; print(*[name for name in {OPTIONAL} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_importing_sitout_brings_its_packages():
    code = (
        "import torch; state = torch.get_rng_state(); import sitout;"
        "sitout.nn, sitout.functional, sitout.masks, sitout.backends;"
        "print(torch.equal(state, torch.get_rng_state()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


PUBLIC = [
    *("sitout", "sitout.backends", "sitout.functional", "sitout.masks", "sitout.mc", "sitout.nn"),
    "sitout.schedules",
]


def public_objects():
    """Return the classes and functions in every ``__all__``."""
    for module in [*PUBLIC, "sitout.data"]:
        try:
            names = importlib.import_module(module)
        except ImportError:  # the optional packages of the study are not installed
            continue
        for name in names.__all__:
            if inspect.isclass(getattr(names, name)) or inspect.isroutine(getattr(names, name)):
                yield f"{module}.{name}", getattr(names, name)


OBJECTS = dict(public_objects())


def test_there_are_public_objects():
    assert {"sitout.MaskKey", "sitout.nn.DropPath", "sitout.masks.keep_mask"} < set(OBJECTS)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_object_shows_an_example(name):
    assert ">>> " in (inspect.getdoc(OBJECTS[name]) or "")


@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_object_explains_its_arguments(name):
    made, doc = OBJECTS[name], inspect.getdoc(OBJECTS[name]) or ""
    twin = re.search(r"; see :class:`(\w+2d)`\.$", doc.partition("\n")[0])
    if twin:  # the form for two dims explains them for the others
        doc = inspect.getdoc(OBJECTS[f"{name.rpartition('.')[0]}.{twin[1]}"]) or ""
    if inspect.isclass(made) and issubclass(made, Exception):
        pytest.skip("an exception")
    arguments = list(inspect.signature(made).parameters)
    record = dataclasses.is_dataclass(made) or hasattr(made, "_fields")
    if record and "Attributes:\n" in doc:  # made by the package, read by the user
        return
    assert not arguments or "Args:\n" in doc
    assert [argument for argument in arguments if f"    {argument}: " not in doc] == []
