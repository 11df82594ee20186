"""The kernels without Python: under sanitizers, and on an instruction set of another machine."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"]
FLAGS = ["-std=c++17", "-ffp-contract=off", *WARNINGS, f"-I{CSRC}", "-pthread"]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
X86 = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "scalar": [],
}
SUM = "39c1389e119d8407"  # that of all targets: a change of it is a change of results


def built(folder, compiler, machine, targets, flags):
    """Return the program ``checksum`` with the kernels of some targets."""
    objects, running = [], []
    for target, own in targets.items():
        objects.append(folder / f"{target}.o")
        define = f"-DSITOUT_{target.upper()}"
        command = [compiler, *FLAGS, *flags, *own, define, "-c", CSRC / "kernels.cpp"]
        running.append(subprocess.Popen([*command, "-o", objects[-1]]))
    assert [one.wait() for one in running] == [0] * len(running)
    sources = [CSRC / name for name in ("dispatch.cpp", "plan.cpp", "share.cpp", "checksum.cpp")]
    program = folder / "checksum"
    command = [compiler, *FLAGS, *flags, f"-DSITOUT_{machine}", *sources, *objects]
    subprocess.run([*command, "-o", program], check=True)
    return program


def missing(*programs):
    return [program for program in programs if shutil.which(program) is None]


@pytest.mark.skipif(missing("g++") != [], reason="there is no g++")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="this is no x86-64 machine")
def test_the_targets_of_this_machine_agree_and_the_sanitizers_find_nothing(tmp_path):
    program = built(tmp_path, "g++", "X86", X86, SANITIZERS)
    for target in X86:
        done = subprocess.run([program, target], capture_output=True, text=True)
        if done.stdout.startswith("this machine runs "):
            assert target not in done.stdout.split()
            continue
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, SUM, "")


@pytest.mark.skipif(
    missing("aarch64-linux-gnu-g++", "qemu-aarch64") != [],
    reason="there is no aarch64-linux-gnu-g++ or no qemu-aarch64",
)
def test_neon_agrees_in_an_emulator(tmp_path):
    targets = {"neon": [], "scalar": []}
    program = built(tmp_path, "aarch64-linux-gnu-g++", "ARM", targets, ["-O2", "-static"])
    for target in targets:
        done = subprocess.run(["qemu-aarch64", program, target], capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, SUM)
