"""New modules in the places of old ones, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._change import Edit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn


def swap(modules: Mapping[str, nn.Module], made: Mapping[int, nn.Module]) -> list[Edit]:
    """Hang new modules in the places of old ones, which keep their order.

    Args:
        modules: all of a model by their qualified names, shared ones under each of them.
        made: the new modules, by the ids of the old ones.
    """
    edits, seen = [], set()
    for name, old in modules.items():
        new = made.get(id(old))
        if new is None:
            continue
        if id(old) not in seen:
            seen.add(id(old))
            edits.append(Edit(name, ((id(old), None), (id(new), None)), _mode_giver(new, old)))
        if name:
            parent, _, last = name.rpartition(".")
            edits.append(_hang(modules[parent], last, name, new))
    return edits


def _mode_giver(new: nn.Module, old: nn.Module) -> Callable[[], None]:
    def give() -> None:
        old.training = new.training
        old._is_full_backward_hook = new._is_full_backward_hook  # of the hooks that both hold

    return give


def _hang(parent: nn.Module, child: str, name: str, new: nn.Module) -> Edit:
    """Put a module in the place of a child, which keeps its place in the order."""
    old = parent._modules[child]
    parent._modules[child] = new

    def back() -> None:
        parent._modules[child] = old

    return Edit(name, ((id(parent), child),), back, lambda: parent._modules.get(child) is new)
