"""What Triton makes of each kernel, without a GPU: registers, spills, and the width of its loads.

    python benchmarks/kernels.py             a table for sm_80 and sm_90
    python benchmarks/kernels.py --json      the same as one JSON list

Every case goes through the code that serves a user; only the launch is replaced by a compilation
for a target that need not be there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TARGETS = (80, 90)
DTYPES = ("bfloat16", "float32", "float64")
_COLUMNS = ("registers", "local", "shared", "mul_hi", "instructions", "loads", "stores")


def rows(
    targets: Sequence[int] = TARGETS, pattern: str = "", dtypes: Sequence[str] = DTYPES
) -> list[dict[str, Any]]:
    """Return one row for each kernel and target, made in a process of its own.

    Args:
        targets: compute capabilities, 80 for 8.0.
        pattern: a regular expression that the name of a case must match.
        dtypes: "bfloat16", "float16", "float32" or "float64".

    Returns:
        case, dtype, target, warps; registers; bytes of local memory, which are spills, and of
        shared memory; high products; instructions; barriers; global loads and stores as
        {width in bits: count}. All counts are those of one thread of a program.
    """
    environment = {key: one for key, one in os.environ.items() if key != "TRITON_INTERPRET"}
    asked = [*map(str, targets), "--json", "--pattern", pattern, "--dtypes", *dtypes]
    done = subprocess.run(
        [sys.executable, __file__, *asked],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    made: list[dict[str, Any]] = json.loads(done.stdout)
    return made


def table(made: list[dict[str, Any]]) -> str:
    """Return rows as text."""
    lines = [("case", "dtype", "target", *_COLUMNS)]
    for row in made:
        values = [
            " ".join(f"{count}x{width}" for width, count in row[name].items())
            if isinstance(row[name], dict)
            else str(row[name])
            for name in _COLUMNS
        ]
        lines.append((row["case"], row["dtype"], f"sm_{row['target']}", *values))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cases() -> dict[str, Callable[[Any], object]]:
    """Return what is compiled: a function of a dtype for each name."""
    import torch

    from sitout import MaskKey
    from sitout.backends import Address, triton
    from sitout.backends.triton import _moves, _norm, _rows, _subsets

    where = Address(MaskKey(seed=17, site=3, step=5))
    pooled = Address(where.key, shared_dims=(2,))
    clocked = Address(MaskKey(torch.tensor(17), 3, torch.tensor(5), torch.tensor(0)))
    rate = torch.tensor([16, 6554])

    def x(dtype: Any) -> Any:
        return torch.empty(64, 1024, dtype=dtype)

    def drop(dtype: Any, law: Any = "dropout", p: Any = 0.3, address: Any = where) -> object:
        return triton.drop(x(dtype), address, p, law)

    def drop_odd(dtype: Any) -> object:
        return triton.drop(torch.empty(64, 1023, dtype=dtype), where, 0.3, "dropout")

    def drop_across(dtype: Any) -> object:
        return triton.drop(x(dtype).t(), where, 0.3, "dropout")

    def drop_shared(dtype: Any) -> object:
        return triton.drop(torch.empty(8, 8, 1024, dtype=dtype), pooled, 0.3, "dropout")

    def fuse(dtype: Any, op: str = "") -> object:
        stands = op.endswith(("_slope", "add"))
        other = x(dtype) if stands else None
        bias = None if op in ("add", "relu_slope") else torch.empty(1024, dtype=dtype)
        return triton.fuse(op, x(dtype), where, 0.3, other=other, bias=bias)

    def mask(_: Any) -> object:
        return triton.keep_mask(where, 0.3, (64, 1024), "cpu")

    def norm(dtype: Any, rms: bool = False) -> None:
        x = torch.empty(16, 4096, dtype=dtype)
        place = _norm.place(tuple(x.shape), 1, (), 0, None)
        call = _norm.Call(rms, 1e-5, place, (dtype, dtype), where, 0.1)
        bias = None if rms else x[0]
        out, total, mean, rstd = _norm.forward(x, x, x[0], bias, call, True)
        _norm.backward(out, total, total, x[0], (mean, rstd), call, (dtype, dtype), True)

    def move(dtype: Any) -> None:
        kept = torch.arange(512).view(1, -1)
        _moves.spread(_moves.take(x(dtype), None, kept), None, kept, 64, 1024)

    def add_rows(dtype: Any) -> None:
        rows, weights = torch.arange(32), torch.ones(32, dtype=torch.float64)
        _rows.add_rows(x(dtype), x(dtype)[:32], rows, weights)
        _rows.take_weighted(x(dtype), rows, weights)

    def subset(_: Any) -> None:
        _subsets.kept_units(where.mask_key, 0.5, 4096, torch.zeros(1, dtype=torch.int64))
        _subsets.kept_samples(where.mask_key, 0.4, 32, torch.tensor(0))

    found: dict[str, Callable[[Any], object]] = {
        "dropout": drop,
        "dropout, wide": partial(drop, p=0.001),
        "dropout, rate as data": partial(drop, p=rate),
        "dropout, key in tensors": partial(drop, address=clocked),
        "dropout, odd rows": drop_odd,
        "dropout, across memory": drop_across,
        "dropout, shared": drop_shared,
        "alpha": partial(drop, law="alpha"),
        "gaussian": partial(drop, law="gaussian"),
        "mask": mask,
        "layer norm": norm,
        "mean square norm": partial(norm, rms=True),
        "kept columns": move,
        "kept rows": add_rows,
        "subsets": subset,
    }
    slopes = [f"{name}_slope" for name in ("relu", "gelu", "gelu_tanh", "silu")]
    for op in ("add", "relu", "gelu", "gelu_tanh", "silu", *slopes):
        found[op] = partial(fuse, op=op)
    return found


class _Driver:
    """Stands for a GPU that Triton compiles for."""

    def __init__(self, target: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", target, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> Any:
        return self.target.arch  # what was compiled for one is not found for the other

    def get_current_stream(self, device: Any) -> int:
        return 0


def compile_all(
    targets: Sequence[int], pattern: str, dtypes: Sequence[str]
) -> list[dict[str, Any]]:
    """Do what :func:`rows` says, in this process; what follows here can launch nothing."""
    import torch
    import triton

    from sitout.backends.triton import _launch

    caught: list[Any] = []

    def launch(kernel: Any, programs: Any, device: Any, *arguments: Any, **more: Any) -> None:
        grid = programs if isinstance(programs, tuple) else (programs,)
        caught.append(kernel.warmup(*arguments, grid=grid, enable_fp_fusion=False, **more))

    _launch.launch = launch  # before the others import it
    made = []
    for target in targets:
        triton.runtime.driver.set_active(_Driver(target))
        for name, case in cases().items():
            for dtype in dtypes if re.search(pattern, name) else ():
                case(getattr(torch, dtype))
                made += [
                    {"case": _name(name, kernel), "dtype": dtype, "target": target}
                    | measure(kernel)
                    for kernel in caught
                ]
                caught.clear()
    return made


def _name(case: str, kernel: Any) -> str:
    name = kernel.src.fn.__name__
    return case if name == "elementwise" else f"{case}: {name}"


def measure(kernel: Any) -> dict[str, Any]:
    """Return what the code of a compiled kernel says."""
    import triton

    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(tool, check=True, capture_output=True, text=True).stdout
    used = {name: int(count) for name, count in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    return {
        "warps": kernel.metadata.num_warps,
        "registers": used["REG"],
        "local": used["STACK"] + used.get("LOCAL", 0),
        "shared": kernel.metadata.shared,
        "mul_hi": len(re.findall(r"\bmul\.hi\.u32\b", ptx)),
        "instructions": _code_bytes(cubin) // 16,
        "barriers": len(re.findall(r"\bbar\.sync\b", ptx)),
        "loads": _widths("ld", ptx),
        "stores": _widths("st", ptx),
    }


def _code_bytes(cubin: bytes) -> int:
    """Return the size of the code in an ELF file of 64 bits; instructions are filled up to 128."""
    start, each, count, names = struct.unpack_from("<Q10xHHH", cubin, 40)
    sections = [struct.unpack_from("<II4Q", cubin, start + each * at) for at in range(count)]
    texts = sections[names][4]
    return sum(
        size for name, _, _, _, _, size in sections if cubin[texts + name :].startswith(b".text.")
    )


def _widths(what: str, ptx: str) -> dict[str, int]:
    """Return how many loads or stores there are of each width, in bits."""
    found = re.findall(rf"\b{what}\.global(?:\.(?!v[248])\w+)*?(?:\.v([248]))?\.[bsuf](\d+)\b", ptx)
    counts = Counter(int(vector or 1) * int(bits) for vector, bits in found)
    return {str(width): counts[width] for width in sorted(counts, reverse=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", type=int, default=TARGETS)
    parser.add_argument("--pattern", default="")
    parser.add_argument("--dtypes", nargs="*", default=DTYPES)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        print("Without TRITON_INTERPRET: nothing is compiled with it.", file=sys.stderr)
    made = compile_all(asked.targets, asked.pattern, asked.dtypes)
    print(json.dumps(made) if asked.json else table(made))


if __name__ == "__main__":
    main()
