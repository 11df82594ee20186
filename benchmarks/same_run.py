"""One training run in many ways: checkpointed, killed and resumed, cut, shared out, compiled.

    python benchmarks/same_run.py              # all ways beside eager; --save commits the figures
    python benchmarks/same_run.py run eager    # one way, its losses and masks as JSON

A small transformer learns to continue a text, byte by byte. Dropout sits behind the embedding,
behind the attention output and in the feed-forward part, drop path on its branch. Under a
MaskClock every mask of every step must be the same in all ways; losses may differ by what
reordered sums explain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sitout

ROOT = Path(__file__).parent.parent
TEXT, RESULTS = ROOT / "LICENSE", ROOT / "docs" / "results" / "same-run.json"
STEPS, BATCH, TIME, WIDTH, HEADS, LAYERS = 50, 16, 32, 64, 4, 2
WAYS = ("checkpoint", "resume", "micro", "processes", "compile")


class Block(torch.nn.Module):
    """Attention and feed-forward, each on a residual branch."""

    def __init__(self):
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.wide = torch.nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = torch.nn.Linear(4 * WIDTH, WIDTH)
        self.attention_drop = sitout.nn.Dropout(0.1)
        self.hidden_drop = sitout.nn.Dropout(0.3)
        self.path = sitout.nn.DropPath(0.2)

    def forward(self, x):
        """Return ``x`` with both branches added, and the masks of the three layers."""
        parts = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
        mixed, kept = seen(self.attention_drop, self.out(mixed))
        x = x + mixed
        hidden, kept_hidden = seen(self.hidden_drop, F.gelu(self.wide(self.norms[1](x))))
        branch, kept_path = seen(self.path, self.narrow(hidden))
        return x + branch, kept, kept_hidden, kept_path


class Transformer(torch.nn.Module):
    """Bytes to the logits of the next ones, and the masks that were used on the way."""

    def __init__(self):
        super().__init__()
        self.tokens = torch.nn.Embedding(256, WIDTH)
        self.places = torch.nn.Embedding(TIME, WIDTH)
        self.drop = sitout.nn.Dropout(0.1)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = torch.nn.Linear(WIDTH, 256)
        self.context_fn = None

    def forward(self, tokens):
        """Return the logits, and the masks of all layers."""
        x, *masks = seen(self.drop, self.tokens(tokens) + self.places.weight)
        for block in self.blocks:
            if self.context_fn is None:
                x, *kept = block(x)
            else:
                x, *kept = checkpoint(block, x, use_reentrant=False, context_fn=self.context_fn)
            masks += kept
        return self.head(x), masks


def seen(layer, x):
    """Return what a layer makes of ``x``, and which elements it kept."""
    y = layer(x)
    return y, (y != 0).detach()


def batch_of(data, step):
    """Return the inputs and targets of a step: they depend on its number alone."""
    draw = torch.Generator().manual_seed(step)
    starts = torch.randint(len(data) - TIME - 1, (BATCH,), generator=draw)
    windows = torch.stack([data[start : start + TIME + 1] for start in starts.tolist()])
    return windows[:, :-1], windows[:, 1:]


def train(way, *, folder=None, kill_at=None):
    """Return the losses of a run, and a digest of every mask of every step.

    Args:
        way: "eager" or one of WAYS.
        folder: where the state is saved every ten steps, and looked for at the start.
        kill_at: the step before which the process kills itself.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
    model = Transformer()
    clock = sitout.MaskClock(model, seed=17)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    forward = model
    if way == "checkpoint":
        model.context_fn = clock.recompute
    elif way == "compile":
        forward = torch.compile(model, fullgraph=True)
    elif way == "processes":
        forward = DistributedDataParallel(model)
    parts = [None]
    if way in ("micro", "processes"):
        parts = sitout.parallel.rows(BATCH).chunk(4 if way == "micro" else 1)
    done = {"losses": [], "masks": []}
    saved = folder and Path(folder) / "checkpoint.pt"
    if saved and saved.exists():
        held = torch.load(saved)
        for part, state in ((model, "model"), (optimizer, "optimizer"), (clock, "clock")):
            part.load_state_dict(held[state])
        done = held["done"]
    for step in range(len(done["losses"]), STEPS):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        inputs, targets = batch_of(data, step)
        optimizer.zero_grad()
        total, masks = 0.0, []
        for part in parts:
            x, y = (inputs, targets) if part is None else (inputs[part], targets[part])
            with clock.at(step, rows=part):
                logits, kept = forward(x)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten()) / len(parts)
            loss.backward()
            total += loss.item()
            masks.append(kept)
        optimizer.step()
        whole = [torch.cat(site) for site in zip(*masks, strict=True)]
        if way == "processes":
            total, whole = joined(total, whole)
        done["losses"].append(total)
        done["masks"].append([digest(mask) for mask in whole])
        if saved and (step + 1) % 10 == 0:
            held = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**held, "clock": clock.state_dict(), "done": done}, saved)
    return done


def digest(mask):
    """Return a short name of a mask, equal for equal masks alone."""
    shape = torch.tensor(mask.shape).numpy().tobytes()
    return hashlib.sha256(shape + mask.contiguous().numpy().tobytes()).hexdigest()[:16]


def joined(loss, masks):
    """Return the mean loss of all processes, and their masks one after the other."""
    count = torch.distributed.get_world_size()
    losses = torch.tensor(loss, dtype=torch.float64)
    torch.distributed.all_reduce(losses)
    whole = []
    for mask in masks:
        parts = [torch.empty_like(mask) for _ in range(count)]
        torch.distributed.all_gather(parts, mask.contiguous())
        whole.append(torch.cat(parts))
    return float(losses) / count, whole


def in_processes(folder, count=2):
    """Return the run of several processes, as the first one saw it."""
    store = Path(folder) / "store"
    command = [sys.executable, __file__, "run", "processes"]
    started = [
        subprocess.Popen(
            [*command, "--rank", f"{rank}:{count}:{store}"], stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    outs = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a process has failed")
    return json.loads(outs[0])


def killed_and_resumed(folder, kill_at=27):
    """Return a run that kills itself, and goes on in a new process from what was saved."""
    command = [sys.executable, __file__, "run", "resume", "--folder", folder]
    first = subprocess.run([*command, "--kill-at", str(kill_at)], capture_output=True)
    if first.returncode != -signal.SIGKILL:
        raise RuntimeError(f"not killed: {first.stderr.decode()}")
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(again.stdout)


def run(way):
    """Return the losses and masks of one way."""
    with tempfile.TemporaryDirectory() as folder:
        if way == "processes":
            return in_processes(folder)
        return killed_and_resumed(folder) if way == "resume" else train(way)


def compare(made, base):
    """Return what tells a run from another one."""
    pairs = list(zip(made["losses"], base["losses"], strict=True))
    return {
        "losses identical": all(a == b for a, b in pairs),
        "largest relative difference": max(abs(a - b) / b for a, b in pairs),
        "masks": sum(len(step) for step in made["masks"]),
        "masks identical": made["masks"] == base["masks"],
    }


def main():
    """Run one way, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["run"])
    parser.add_argument("way", nargs="?", choices=["eager", *WAYS])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--folder", help="keep the state there, and resume from it")
    parser.add_argument("--kill-at", type=int, help="the step before which to die")
    parser.add_argument("--rank", help="rank:count:store, of a process among several")
    options = parser.parse_args()
    if options.command is None:
        base = run("eager")
        rows = {"eager": {"steps": STEPS, "first loss": base["losses"][0]}}
        rows["eager"]["last loss"] = base["losses"][-1]
        for way in WAYS:
            rows[way] = compare(run(way), base)
            print(f"{way}: {json.dumps(rows[way])}", flush=True)
        if options.save:
            versions = {"torch": torch.__version__, "sitout": sitout.__version__}
            RESULTS.write_text(json.dumps({"versions": versions, **rows}, indent=1) + "\n")
        return
    if options.rank:
        rank, count, store = options.rank.split(":", 2)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(count)
        )
    made = train(options.way, folder=options.folder, kill_at=options.kill_at)
    if options.rank:
        torch.distributed.destroy_process_group()
    print(json.dumps(made))


if __name__ == "__main__":
    main()
