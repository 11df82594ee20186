"""What modules returned before the first draw, for models that run as a whole for each sample."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Memo:
    """Keeps the outputs of the calls of modules that ended before the first draw.

    Of a call within a call only the outer one is kept. Not kept are calls with hooks, which would
    run again, those that write to what they are given, and those that return objects of classes
    of their own.

    Args:
        model: whose modules they are.
        drawn: whether there has been a draw.
    """

    def __init__(self, model: nn.Module, drawn: Callable[[], bool]) -> None:
        self._model, self._drawn = model, drawn
        # How many calls were kept when each running one began, and what it was given.
        self._begun: list[tuple[int, list[tuple[Tensor, int]]]] = []
        self.kept: list[tuple[nn.Module, Any]] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what modules return within a block."""
        with ExitStack() as stack:
            for module in set(self._model.modules()) - {self._model}:
                for handle in (
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave, with_kwargs=True),
                ):
                    stack.callback(handle.remove)
            yield

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        self._begun.append((len(self.kept), [(one, _version(one)) for one in given]))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        before, given = self._begun.pop()
        has_hooks = len(module._forward_hooks) + len(module._forward_pre_hooks) > 2  # but for ours
        writes = any(_version(one) != version for one, version in given)
        known = all(isinstance(one, _KNOWN) for one in tree_leaves(out))
        if known and not (self._drawn() or has_hooks or writes):
            del self.kept[before:]
            self.kept.append((module, _copied(out)))

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Let the modules return what they have returned, in the order of their calls."""
        waiting: dict[nn.Module, list[Any]] = {}
        for module, out in self.kept:
            waiting.setdefault(module, []).append(out)
        with ExitStack() as stack:
            for module, outs in waiting.items():
                stack.callback(_give_back, module, vars(module).get("forward"))
                module.forward = _Replay(outs, module.forward)
            yield


_KNOWN = (Tensor, int, float, str, type(None))


def _version(one: Tensor) -> int:
    return -1 if one.is_inference() else one._version


class _Replay:
    """A forward that returns what was kept, then runs again."""

    def __init__(self, outs: list[Any], forward: Callable[..., Any]) -> None:
        self._outs, self._forward = iter(outs), forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for out in self._outs:
            return _copied(out)
        return self._forward(*args, **kwargs)


def _copied(out: Any) -> Any:
    """Return copies of all tensors: who gets them may write to them."""
    return tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, out)


def _give_back(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
