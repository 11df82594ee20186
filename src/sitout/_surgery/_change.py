"""Change: what surgery did to a model, and the way back."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from torch import nn

from .. import _checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .._rates import Rate

# The id of what was touched, and which of its attributes: None where all of it came or went.
Place = tuple[int, str | None]

_live: list[weakref.ref[Change]] = []


@dataclass
class Held:
    """A rate that is 0 for the time.

    Args:
        rate: its place.
        back: puts what stood there back.
        blocks: of ``disabled`` that hold it.
    """

    rate: Rate
    back: Callable[[], None]
    blocks: int = 0


silent: dict[tuple[int, str], Held] = {}


@dataclass(frozen=True)
class Edit:
    """One step of a change.

    Args:
        name: what a user calls the place.
        places: that it touched.
        undo: the way back.
        holds: whether the place is still as the step left it.
    """

    name: str
    places: tuple[Place, ...]
    undo: Callable[[], None]
    holds: Callable[[], bool] = lambda: True


class Change:
    """What a surgery did to a model. In a ``with`` block it is undone at the end.

    A change that nobody keeps stays for good. A copy of the model keeps what was changed; only
    the model itself can be taken back.

    Args:
        verb: the function that made it.
        model: the root, a new module where the root itself was replaced.
        sites: the names of the layers and rates that are new, one for each name of a shared one.
        unreached: a line for each thing that drops and was left as it is.
        edits: the steps that were done.
        before: the root as it was.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
        >>> change = sitout.set_rate(model, 0.1)
        >>> change.sites
        ['1.p']
        >>> change.undo()
        >>> model[1].p
        0.5
    """

    def __init__(
        self,
        verb: str,
        model: nn.Module,
        sites: Iterable[str],
        unreached: Iterable[str],
        edits: Iterable[Edit],
        before: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.sites = list(sites)
        self.unreached = list(unreached)
        self._verb = verb
        self._before = model if before is None else before
        self._edits = list(edits)
        self._places = {place for edit in self._edits for place in edit.places}
        self._done = False
        _live[:] = [one for one in _live if one() is not None]
        _live.append(weakref.ref(self))

    def undo(self) -> None:
        """Give the model back as it was: the same modules in the same places, the same rates.

        Modes are not turned back: a layer that returns has the mode of the one that leaves. The
        second call does nothing.

        Raises:
            RuntimeError: a later change of the same places is to be undone first, somebody has put
                something else there, or :func:`sitout.disabled` is in force. Nothing is changed
                then.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Dropout(0.5))
            >>> layer = model[0]
            >>> sitout.replace(model).undo()
            >>> model[0] is layer
            True
        """
        if self._done:
            return
        check_loud({place for place, _ in self._places}, "undo")
        later = next((one for one in _after(self) if _touch(self, one)), None)
        if later is not None:
            raise RuntimeError(
                f"{self!r} must be undone after what came later in the same places. "
                f"Got {later!r} still in force. Undo that first."
            )
        lost = next((edit.name for edit in self._edits if not edit.holds()), None)
        if lost is not None:
            raise RuntimeError(
                f"{self!r} must find what it left to be undone. Got something else at {lost!r}. "
                "Put it back first."
            )
        for edit in reversed(self._edits):
            edit.undo()
        self.model, self._done = self._before, True
        _live[:] = [one for one in _live if one() not in (self, None)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.undo()
        except RuntimeError as problem:
            if error is None:
                raise
            error.add_note(f"And this could not be undone: {problem}")

    def __repr__(self) -> str:
        state = ", undone" if self._done else ""
        return (
            f"Change({self._verb}, sites={len(self.sites)}, unreached={len(self.unreached)}{state})"
        )

    def __str__(self) -> str:
        lines = [f"{self._verb}: {len(self.sites)} sites", *(f"  {name}" for name in self.sites)]
        if self.unreached:
            lines += ["not reached:", *(f"  {line}" for line in self.unreached)]
        return "\n".join(lines)


def _after(change: Change) -> list[Change]:
    """Return the changes that were made later and are in force, the latest first."""
    live = [one for one in (reference() for reference in _live) if one is not None]
    return live[: live.index(change) : -1]


def _touch(one: Change, other: Change) -> bool:
    """Return whether two changes have a place in common."""
    whole = {place for place, attribute in one._places if attribute is None}
    others_whole = {place for place, attribute in other._places if attribute is None}
    return bool(
        one._places & other._places
        or whole & {place for place, _ in other._places}
        or others_whole & {place for place, _ in one._places}
    )


def is_at(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Return whether a module still has a name."""
    try:
        return model.get_submodule(name) is module
    except AttributeError:
        return False


def check_model(model: object, owner: str) -> None:
    """Refuse what is no module, and a model in which :func:`disabled` is in force.

    Raises:
        TypeError: it is no module.
        RuntimeError: the rates are 0 for the time.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(_checks.message(f"`model` of {owner}", "a torch.nn.Module", model))
    check_loud({id(module) for module in model.modules()}, owner)


def check_loud(modules: set[int], owner: str) -> None:
    """Refuse to touch modules that :func:`disabled` keeps silent.

    Raises:
        RuntimeError: one of them is.
    """
    if any(id(held.rate.module) in modules for held in silent.values()):
        raise RuntimeError(
            f"{owner} must be called outside of disabled(model): the rates are 0 inside, and come "
            "back at its end. End that block first."
        )
