"""Live progress of a study: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ._study.plan import clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._study.execute import Event

_SECONDS_BETWEEN_LINES = 10.0


class Watch(Protocol):
    """What a study reports to."""

    def say(self, line: str) -> None:
        """Show a line of plain text."""

    def report(self, event: Event) -> None:
        """Show that a run has finished."""


def _left(event: Event) -> str:
    return "" if event.seconds_left is None else f"about {clock(event.seconds_left)} left"


class _Bar:
    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=None, left="")

    def say(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False)

    def report(self, event: Event) -> None:
        self.progress.update(
            self.task,
            completed=event.done,
            total=event.total,
            description=event.name,
            left=_left(event),
        )


class _Lines:
    """At most a line every few seconds, and one for the last run."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.last = -_SECONDS_BETWEEN_LINES

    def say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)

    def report(self, event: Event) -> None:
        now = time.monotonic()
        if now - self.last >= _SECONDS_BETWEEN_LINES or event.done == event.total:
            self.last = now
            found = " (already on disk)" if event.resumed else ""
            left = _left(event)
            self.say(f"{event.done}/{event.total} {event.name}{found}{', ' + left if left else ''}")


@contextmanager
def watch(stream: TextIO) -> Iterator[Watch]:
    """Show the progress of a study within the block.

    Args:
        stream: a terminal or anything else.
    """
    if not stream.isatty():
        yield _Lines(stream)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}", style="dim"),
    )
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield _Bar(progress)
