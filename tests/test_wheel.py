"""The wheel of this tree: what is in it, and that it works away from the repository."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]

# Without site (-S) an editable installation of sitout cannot come first, nor at all.
ELSEWHERE = """
import json, runpy, sys
installed, packages, script = json.loads(sys.argv[1])
sys.path = [installed, *sys.path, *packages]
import sitout, sitout._core
print(sitout.__file__, sitout._core.__file__, sep="\\n")
runpy.run_path(script, run_name="__main__")
"""


def ran(command, folder):
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def built(folder):
    """Return the wheel; the build folder of an editable installation is left alone."""
    command = [*PIP, "wheel", ROOT, "--no-deps", "-w", folder / "dist"]
    if find_spec("scikit_build_core") and find_spec("nanobind") and shutil.which("cmake"):
        command.append("--no-build-isolation")
    ran([*command, f"--config-settings=build-dir={folder / 'build'}"], folder)
    (wheel,) = (folder / "dist").iterdir()
    return wheel


def test_the_wheel_holds_the_core_and_gives_the_results_of_the_reference_elsewhere(tmp_path):
    wheel = built(tmp_path)
    hint = "there is no compiled core in the wheel: is there a C++ compiler (Debian: g++)?"
    assert not wheel.name.endswith("-none-any.whl"), hint
    stable = sys.version_info >= (3, 12)
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert ("-cp312-abi3-" if stable else f"-{own}-{own}-") in wheel.name

    files = zipfile.ZipFile(wheel).namelist()
    assert {file.split("/")[0].split("-")[0] for file in files} == {"sitout"}
    cores = [Path(file).name for file in files if file.startswith("sitout/_core")]
    assert len(cores) == 1
    assert (".abi3." in cores[0]) == (stable and sys.platform != "win32")
    assert [file for file in files if file.endswith((".h", ".cpp", ".a"))] == []
    ours = {file.relative_to(ROOT / "src").as_posix() for file in (ROOT / "src").rglob("*.py")}
    assert ours <= set(files)

    installed = tmp_path / "installed"
    ran([*PIP, "install", "--no-deps", "--no-index", "--target", installed, wheel], tmp_path)
    packages = sorted({str(Path(one.__file__).parents[1]) for one in (torch, np)})
    given = json.dumps([str(installed), packages, str(ROOT / "tests" / "smoke.py")])
    out = ran([sys.executable, "-I", "-S", "-c", ELSEWHERE, given], tmp_path)
    package, core, *said = out.splitlines()
    assert Path(package).parent == Path(core).parent == installed / "sitout"
    assert any(line.endswith("all equal") for line in said)
