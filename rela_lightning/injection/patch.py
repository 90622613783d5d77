"""Wrap methods of somebody else's object, on the instance, and take every wrapper off again."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

_ABSENT = object()


class _Wrapped:
    """`wrapper(original, ...)`; a copy or pickle of the owner gets its own original back, unwrapped."""

    def __init__(self, original: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        self._original, self._wrapper = original, wrapper
        functools.update_wrapper(self, original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapper(self._original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._original, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._original,)


def _itself(original: Any) -> Any:
    """What a pickled wrapper becomes: the method it was around."""
    return original


class Patches:
    """Instance-level wrappers, undone in reverse order."""

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any, _Wrapped]] = []

    def wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        """Replace `owner.name` by `wrapper(original, *args, **kwargs)`, on this instance alone.

        `functools.update_wrapper` keeps the signature and `__wrapped__`: Lightning reads both to count
        arguments and to see whether a hook is overridden.
        """
        original = getattr(owner, name)
        wrapped = _Wrapped(original, wrapper)
        self._done.append((owner, name, vars(owner).get(name, _ABSENT), wrapped))
        setattr(owner, name, wrapped)

    def undo(self, *, covered: bool = True) -> None:
        """Put everything back as it was; safe to call twice.

        Args:
            covered: Whether to take off wrappers, too, that somebody has wrapped since: at the end, not in between.
        """
        kept = []
        while self._done:
            owner, name, before, wrapped = self._done.pop()
            if not covered and vars(owner).get(name) is not wrapped:
                kept.append((owner, name, before, wrapped))
            elif before is _ABSENT:
                vars(owner).pop(name, None)
            else:
                setattr(owner, name, before)
        self._done = kept[::-1]
