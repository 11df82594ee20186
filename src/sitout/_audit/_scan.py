"""The scan: rules that need only the source of a model, which is read and never run."""

from __future__ import annotations

import os
import re
import warnings
from importlib.util import decode_source
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ._finding import Audit, Finding
from ._scan_dropout import always_on, made_in_forward, ungated_attention
from ._scan_random import floor_of_keep_plus_rand, python_randomness, without_rng
from ._scan_source import Mistake, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Rule(NamedTuple):
    """A rule of the scan: its number, its name, and what looks for it in a file."""

    number: str
    title: str
    look: Callable[[Source], Iterator[Mistake]]


RULES = (
    Rule("A1", "always-on-dropout", always_on),
    Rule("A1", "always-on-dropout", made_in_forward),
    Rule("A2", "ungated-attention-dropout", ungated_attention),
    Rule("A15", "checkpoint-without-rng", without_rng),
    Rule("A16", "randomness-in-control-flow", python_randomness),
    Rule("A26", "floor-keep-plus-rand", floor_of_keep_plus_rand),
)
# A file without any of these words cannot break a rule.
_WORDS = re.compile(
    r"(?i)drop|scaled_dot_product|flash_attn|memory_efficient|stochastic_depth|preserve_rng"
    r"|random|floor|multi_head_attention_forward"
)
_IGNORE = re.compile(r"#\s*sitout:\s*ignore(?:\[([\w\s,]*)\])?")
_SUFFIXES = ("", ".py", ".pyi", ".pyw")
_SKIPPED = frozenset({"__pycache__", "build", "site-packages"})


def scan(paths: Iterable[str | os.PathLike[str]]) -> Audit:
    """Look for dropout mistakes in Python source, without running it.

    A comment ``# sitout: ignore`` or ``# sitout: ignore[A1]`` at the call keeps the scan silent
    there. A file that is no Python is a note, and the rest is scanned all the same.

    Args:
        paths: files, and folders that are searched for ``.py`` files. Within a folder, hidden
            folders and those called ``__pycache__``, ``build`` and ``site-packages`` are skipped.

    Returns:
        What was found; the site of each finding is ``file:line``.

    Raises:
        OSError: a path does not exist or cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from sitout._audit import scan
        >>> file = Path(mkdtemp()) / "net.py"
        >>> _ = file.write_text('''
        ... import torch.nn.functional as F
        ... from torch import nn
        ... class Net(nn.Module):
        ...     def forward(self, x):
        ...         return F.dropout(x)
        ... ''')
        >>> [(found.rule, found.message) for found in scan([file])]
        [('A1', '`F.dropout` has no `training=`, so it drops in evaluation too.')]
    """
    return Audit(finding for file in python_files(paths) for finding in _scan_file(file))


def python_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that a scan of some paths reads, each once."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in _below(path) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in _SKIPPED)
        yield from (Path(where, name) for name in sorted(files) if name.endswith(".py"))


def _scan_file(file: Path) -> Iterator[Finding]:
    shown = file.as_posix()
    if file.suffix not in _SUFFIXES:
        yield _unread(shown, 1, f"{file.suffix} is no suffix of Python source")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "\d" and the like, in other people's strings
            text = decode_source(file.read_bytes())
            source = Source(shown, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        yield _unread(shown, line, str(getattr(error, "msg", "")) or type(error).__name__)
        return
    if _WORDS.search(text):
        for rule in RULES:
            yield from (_finding(source, rule, hit) for hit in _heard(source, rule))


def _heard(source: Source, rule: Rule) -> Iterator[Mistake]:
    """Yield what a rule has against a file, without what a comment at the call ignores."""
    for hit in rule.look(source):
        last = hit.call.end_lineno or hit.call.lineno
        comments = map(_IGNORE.search, source.lines[hit.call.lineno - 1 : last])
        ignored = [found[1] for found in comments if found]
        if not any(names is None or rule.number in re.split(r"[\s,]+", names) for names in ignored):
            yield hit


def _finding(source: Source, rule: Rule, hit: Mistake) -> Finding:
    at = f"{source.file}:{hit.call.lineno}"
    return Finding(rule.number, rule.title, hit.severity, at, at, hit.message, hit.fix)


def _unread(file: str, line: int, why: str) -> Finding:
    at = f"{file}:{line}"
    message = f"The file cannot be read as Python, so nothing in it was checked: {why}."
    fix = "Mend the file, or leave it out."
    return Finding("A0", "unreadable-file", "note", at, at, message, fix)
