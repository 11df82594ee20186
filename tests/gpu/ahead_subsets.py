"""Compile the kernels of subsets and moves without a GPU; print registers and spills of each.

Run it without TRITON_INTERPRET: the interpreter compiles nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sitout.backends.triton import _moves, _rows, _subsets

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
KEY = {"key": "i64", "site": "i32", "step": "i64"}
NO_KEY_AT = dict.fromkeys(("seed_at", "call_at", "site_at", "step_at"))
SUBSET = {"units": "*i64", "groups": "*i64", **KEY, **NO_KEY_AT}
SUBSET |= {"n": "i32", "k": "i32", "fraction": "i64", "weight": "i64"}
X, ROW = "*bf16", "*i64"


def kernels():
    """Yield a name, a kernel, the types of its arguments, its constants and its warps."""
    few, many = ({"blocks": n, "shift": (4 * n).bit_length() - 1} for n in (64, 4096))
    yield "samples", _subsets.first, {**SUBSET, "weights": "*fp64"}, few, 1
    at = {"seed_at": ROW, "site_at": ROW, "step_at": ROW}
    yield "units", _subsets.first, {**SUBSET, **at, "weights": None}, many, 16
    sizes = {"inner": "i64", "tiles": "i32"}
    rows = {"rows": ROW, "weights": "*fp64", **sizes}
    tile = {"tile": _rows._TILE}
    chunk = {"chunk": _rows._CHUNK}
    yield "add", _rows.add, {"out": X, "x": X, "branch": X, "c": "i32", **rows}, tile | chunk, 4
    yield "weigh", _rows.gather, {"out": X, "grad": X, **rows}, tile, 4
    sizes = dict.fromkeys(("n_rows", "n_cols", "kept_rows", "kept_cols", "inner"), "i32")
    strides = {"x_stride": "i64", "out_stride": "i64"}
    tile = {"tile_rows": _moves._ROWS, "tile_cols": _moves._COLS}
    take = {"out": X, "x": X, "rows": ROW, "cols": ROW, **sizes, **strides}
    yield "take", _moves.gather, take, tile, 4
    del sizes["kept_cols"]
    at = {"row_at": "*i32", "col_at": "*i32", "groups": "i32", "x_stride": "i64"}
    yield "spread", _moves.scatter, {"out": X, "x": X, **sizes, **at}, tile, 4
    wide = {"out": "*fp64", "x": "*fp64", **sizes, **at}
    yield "spread-float64", _moves.scatter, wide, tile, 4
    kept = {"place": "*i32", "kept": ROW, "n": "i32", "k": "i32"}
    yield "invert", _moves.invert, kept, {"chunk": 1024}, 4


def used(cubin):
    """Return the registers of a kernel, and the bytes that it spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", told)
    registers, stack, local = map(int, found)
    return registers, stack + local


def main():
    for name, kernel, types, constants, warps in kernels():
        constants |= {each: None for each, kind in types.items() if kind is None}
        signature = {
            each: "constexpr" if each in constants else types[each] for each in kernel.arg_names
        }
        places = enumerate(kernel.arg_names)
        aligned = {
            (at,): [["tt.divisibility", 16]] for at, each in places if signature[each][0] == "*"
        }
        for arch in (80, 90):
            made = triton.compile(
                ASTSource(kernel, signature, constants, aligned),
                target=GPUTarget("cuda", arch, 32),
                options={"num_warps": warps, "enable_fp_fusion": False},
            )
            sys.stdout.write(" ".join(map(str, (name, arch, *used(made.asm["cubin"])))) + "\n")


if __name__ == "__main__":
    main()
