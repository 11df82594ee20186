"""The same mask or not: torch's own dropout, ours, and ours under a clock, found by experiment.

``python benchmarks/same_mask.py`` runs every experiment on the CPU in less than a minute and writes
``docs/results/same-mask.json`` and ``docs/results/same-mask.md``. With ``--check`` it writes
nothing, and fails if an answer is not the committed one. Nothing is timed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sitout

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ROWS, COLS, PROCESSES = 8, 32, 2


class Run:
    """A run of torch's own layers: a model with two dropout layers, made from a seed."""

    title = "torch"
    layer: type[torch.nn.Module] = torch.nn.Dropout

    def __init__(self, seed: int = 0, **options: object) -> None:
        torch.manual_seed(seed)
        layers = {name: self.layer(0.5, **options) for name in ("one", "two")}
        self.model = torch.nn.ModuleDict(layers)

    def at(self, step: int, rows: Tensor | None = None) -> AbstractContextManager[None]:
        """Return the block of a step: without a clock there is none."""
        return nullcontext()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the masks."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""

    def context(self) -> dict[str, Any]:
        """Return the arguments that a checkpoint without reentry needs besides."""
        return {}

    def masks(
        self,
        x: Tensor | None = None,
        step: int = 0,
        rows: Tensor | None = None,
        call: Callable[..., Any] | None = None,
    ) -> Tensor:
        """Return what one step keeps: bool ``[2, ...]``, by the layers ``one`` and ``two``."""
        x = ones() if x is None else x
        with self.at(step, rows):
            kept = self.both(x) if call is None else call(x)
        return torch.stack([y != 0 for y in kept])

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each of the two layers gives for the same input."""
        return self.model["one"](x), self.model["two"](x)


class Default(Run):
    """A run of our layers: torch's generator governs them too."""

    title = "default"
    layer = sitout.nn.Dropout


class Clock(Default):
    """A run of our layers under a clock."""

    title = "clock"

    def __init__(self, seed: int = 0, **options: object) -> None:
        super().__init__(seed, **options)
        self.clock = sitout.MaskClock(self.model, seed)

    def at(self, step: int, rows: Tensor | None = None) -> AbstractContextManager[None]:
        """Return the block of a step."""
        return self.clock.at(step, rows=rows)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the masks."""
        return self.clock.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.clock.load_state_dict(state)

    def context(self) -> dict[str, Any]:
        """Return the arguments that a checkpoint without reentry needs besides."""
        return {"context_fn": self.clock.recompute}


SIDES = (Run, Default, Clock)
Side = type[Run]
Pair = tuple[Tensor, Tensor]


def ones(rows: int = ROWS, cols: int = COLS, **options: Any) -> Tensor:
    """Return an input whose zeros, after dropout, are the mask's."""
    return torch.ones(rows, cols, **options)


def _again(side: Side) -> Pair:
    return side(seed=3).masks(), side(seed=3).masks()


def _generator(side: Side) -> Pair:
    runs = [side(generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    return runs[0].masks(), runs[1].masks()


def _threads(side: Side) -> Pair:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(side().masks(ones(512, 1024)))
    torch.set_num_threads(before)
    return found[0], found[1]


def _fewer_rows(side: Side) -> Pair:
    return side().masks()[:, :5], side().masks(ones(5))


def _fewer_cols(side: Side) -> Pair:
    return side().masks()[:, :, :24], side().masks(ones(cols=24))


def _strides(side: Side) -> Pair:
    return side().masks(), side().masks(ones().t().contiguous().t())


def _bfloat16(side: Side) -> Pair:
    return side().masks(), side().masks(ones(dtype=torch.bfloat16))


def _parts(side: Side) -> Pair:
    whole, run = side().masks(), side()
    parts = [run.masks(ones(len(rows)), rows=rows) for rows in torch.arange(ROWS).chunk(4)]
    return whole, torch.cat(parts, dim=1)


def _order(side: Side) -> Pair:
    order = torch.arange(ROWS).flip(0)
    return side().masks(), side().masks(rows=order)[:, order]


def _call_before(side: Side) -> Pair:
    first, run = side().masks(), side()
    run.layer(0.5)(ones())
    return first, run.masks()


def _layer_before(side: Side) -> Pair:
    longer = side()
    longer.model = torch.nn.ModuleDict({"zero": longer.layer(0.5), **longer.model})
    if isinstance(longer, Clock):
        longer.clock = sitout.MaskClock(longer.model, longer.clock.seed)
    first = side().masks()
    torch.manual_seed(0)

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        longer.model["zero"](x)
        return longer.both(x)

    return first, longer.masks(call=call)


def _copy(side: Side) -> Pair:
    run = side()
    other = copy.deepcopy(run)
    return run.masks(), other.masks()


def _resumed(side: Side, rng: bool = False) -> Pair:
    run = side()
    whole = [run.masks(step=step) for step in range(4)]
    run = side()
    for step in range(2):
        run.masks(step=step)
    state, rng_state = run.state(), torch.get_rng_state()
    run = side()  # the script starts again, and with it the seed
    run.load(state)
    if rng:
        torch.set_rng_state(rng_state)
    rest = [run.masks(step=step) for step in range(2, 4)]
    return torch.stack(whole[2:]), torch.stack(rest)


def _resumed_with_rng(side: Side) -> Pair:
    return _resumed(side, rng=True)


def _repeated(
    side: Side, reentrant: bool, preserve: bool, after: bool = False, generator: bool = False
) -> Pair:
    """Return the mask of a checkpointed forward, and the mask of the forward that is repeated."""
    run, seen = side(generator=torch.Generator()) if generator else side(), []

    def block(x: Tensor) -> Tensor:
        y = run.model["one"](x * 1)
        seen.append(y.detach() != 0)
        return y.sin()

    options = {} if reentrant else run.context()
    with run.at(0):
        y = checkpoint(
            block,
            ones(requires_grad=True),
            use_reentrant=reentrant,
            preserve_rng_state=preserve,
            **options,
        )
        if not after:
            y.sum().backward()
    if after:
        y.sum().backward()
    return seen[0], seen[1]


_checkpoint = functools.partial(_repeated, reentrant=False, preserve=True)
_checkpoint_only = functools.partial(_repeated, reentrant=False, preserve=False)
_checkpoint_generator = functools.partial(_checkpoint, generator=True)
_reentrant = functools.partial(_repeated, reentrant=True, preserve=True)
_reentrant_only = functools.partial(_repeated, reentrant=True, preserve=False)
_reentrant_after = functools.partial(_repeated, reentrant=True, preserve=False, after=True)


def _compiled(side: Side) -> Pair:
    eager, run = side().masks(), side()
    torch._dynamo.reset()
    return eager, run.masks(call=torch.compile(run.both, fullgraph=True))


def _compiled_checkpoint(side: Side) -> Pair:
    """Return where the gradient is right, and all of it: the graph shows no mask."""
    run, x = side(), ones(requires_grad=True)
    torch._dynamo.reset()

    def block(x: Tensor) -> Tensor:
        return run.model["one"](x * 1).sin()

    @torch.compile(fullgraph=True)
    def call(x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)

    with run.at(0):
        y = call(x)
    y.sum().backward()
    right = torch.where(y == 0, 0.0, 2.0 * torch.cos(torch.tensor(2.0)))
    return torch.isclose(x.grad, right), torch.ones_like(x, dtype=torch.bool)


def _compiled_twins(side: Side) -> Pair:
    run = side()
    torch._dynamo.reset()
    kept = run.masks(call=torch.compile(run.both, fullgraph=True))
    return kept[0], kept[1]


def _vmapped(side: Side, randomness: str) -> Pair:
    run = side()
    call = torch.func.vmap(run.both, randomness=randomness)
    kept = run.masks(call=call)
    return kept[:, 0], kept[:, 1]


_vmap_same = functools.partial(_vmapped, randomness="same")
_vmap_different = functools.partial(_vmapped, randomness="different")
_vmap_error = functools.partial(_vmapped, randomness="error")


def _two_steps(side: Side) -> Pair:
    run = side()
    return run.masks(step=0), run.masks(step=1)


def _two_calls(side: Side) -> Pair:
    run = side()

    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        return run.model["one"](x), run.model["one"](x)

    kept = run.masks(call=call)
    return kept[0], kept[1]


def _twins(side: Side) -> Pair:
    kept = side().masks()
    return kept[0], kept[1]


def _two_seeds(side: Side) -> Pair:
    return side(seed=3).masks(), side(seed=4).masks()


@functools.cache
def _in_processes() -> tuple[dict[str, Tensor], ...]:
    """Return the masks of each process, by the titles of the sides."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _process, (folder,), nprocs=PROCESSES, start_method="spawn"
        )
        return tuple(torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES))


def _process(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=PROCESSES)
    rows = sitout.parallel.rows(ROWS)
    masks = {side.title: side().masks(ones(len(rows)), rows=rows) for side in SIDES}
    torch.save(masks, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _processes(side: Side) -> Pair:
    parts = [masks[side.title] for masks in _in_processes()]
    return side().masks(), torch.cat(parts, dim=1)


def _ranks(side: Side) -> Pair:
    first, second = _in_processes()
    return first[side.title], second[side.title]


class Row(NamedTuple):
    """One experiment.

    Attributes:
        wanted: "same" or "different": what a training run would like to have.
        what: the title of the row.
        masks: returns the two masks that are compared.
        needs: "compiler" or "processes" where it takes seconds.
    """

    wanted: str
    what: str
    masks: Callable[[Side], Pair]
    needs: str = ""


TABLE = [
    Row("same", "The same run again, from the same seed", _again),
    Row("same", "`generator=` with the same seed", _generator),
    Row("same", "Another number of threads", _threads),
    Row("same", "The samples that a smaller batch has too", _fewer_rows),
    Row("same", "The columns that a narrower input has too", _fewer_cols),
    Row("same", "Another memory layout of the input", _strides),
    Row("same", "bfloat16 input against float32", _bfloat16),
    Row("same", "4 micro-batches against the whole batch", _parts),
    Row("same", "The samples of the batch in another order", _order),
    Row("same", "2 processes against 1, the batch split between them", _processes, "processes"),
    Row("same", "After one more dropout call elsewhere", _call_before),
    Row("same", "After a dropout layer was put in front", _layer_before),
    Row("same", "A deep copy, run after the original", _copy),
    Row("same", "Resumed in mid-run, torch's RNG state saved", _resumed_with_rng),
    Row("same", "Resumed in mid-run, torch's RNG state not saved", _resumed),
    Row("same", "Checkpoint: the forward and its repetition", _checkpoint),
    Row("same", "Checkpoint with `preserve_rng_state=False`", _checkpoint_only),
    Row("same", "Checkpoint of a layer with `generator=`", _checkpoint_generator),
    Row("same", "Reentrant checkpoint", _reentrant),
    Row("same", "Reentrant checkpoint with `preserve_rng_state=False`", _reentrant_only),
    Row("same", "Reentrant checkpoint, backward after the clock's block", _reentrant_after),
    Row("same", "`torch.compile` (Inductor) against eager", _compiled, "compiler"),
    Row("same", "A checkpoint in a compiled graph", _compiled_checkpoint, "compiler"),
    Row("same", '`vmap(randomness="same")`: two examples', _vmap_same),
    Row("different", "Two steps in a row", _two_steps),
    Row("different", "Two calls of one layer in a step", _two_calls),
    Row("different", "Two layers on one input", _twins),
    Row("different", "Two layers on one input, compiled (Inductor)", _compiled_twins, "compiler"),
    Row("different", "Two seeds", _two_seeds),
    Row("different", "2 processes that started from one seed", _ranks, "processes"),
    Row("different", '`vmap(randomness="different")`: two examples', _vmap_different),
    Row("different", '`vmap(randomness="error")`: two examples', _vmap_error),
]


def answer(row: Row, side: Side) -> str:
    """Return what an experiment finds: "same", "different", or why there is no answer."""
    try:
        first, second = row.masks(side)
    except Exception as error:
        text = str(error)
        if isinstance(error, TypeError) and "unexpected keyword argument" in text:
            return "no such option"
        words = text.split()
        return f"refused: {' '.join(words[:8])}{' ...' if len(words) > 8 else ''}"
    return "same" if torch.equal(first, second) else "different"


def answers(row: Row) -> dict[str, str]:
    """Return a row of the table."""
    found = {side.title: answer(row, side) for side in SIDES}
    return {"wanted": row.wanted, "what": row.what, **found}


def to_markdown(rows: list[dict[str, str]]) -> str:
    """Return the table as the documentation shows it."""
    lines = []
    for wanted in ("same", "different"):
        head = f"| where {'the same mask' if wanted == 'same' else 'another mask'} is wanted"
        lines += [f"{head} | torch | sitout | sitout under a clock |", "|---|---|---|---|"]
        for row in rows:
            if row["wanted"] == wanted:
                cells = [row["what"], *(row[side.title] for side in SIDES)]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def differences(found: list[dict[str, str]], committed: list[dict[str, str]]) -> list[str]:
    """Return what differs between two tables, a line each."""
    told = []
    old, new = ({row["what"]: row for row in rows} for rows in (committed, found))
    for what in {**old, **new}:
        if old.get(what) != new.get(what):
            told.append(f"{what}: was {old.get(what)}, is {new.get(what)}")
    return told


def main() -> int:
    """Run every experiment; write the table, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(2)
    rows = [answers(row) for row in TABLE]
    file = RESULTS / "same-mask.json"
    if check:
        told = differences(rows, json.loads(file.read_text())["rows"])
        sys.stdout.write("".join(f"{line}\n" for line in told) or "The table is as committed.\n")
        return 1 if told else 0
    versions = {"torch": torch.__version__.partition("+")[0], "sitout": sitout.__version__}
    file.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n")
    file.with_suffix(".md").write_text(to_markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
