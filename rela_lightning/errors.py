"""The errors a user can meet, each with what was expected, what was found, what is available and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ReLAError(Exception):
    """Base class of every error this package raises on purpose.

    Args:
        problem: One sentence that says what went wrong.
        expected: What would have been accepted.
        found: What was met instead.
        exists: The names that do exist (submodules, models, keys), listed for the reader.
        do: The step that mends it.
    """

    def __init__(
        self,
        problem: str,
        *,
        expected: object = None,
        found: object = None,
        exists: Iterable[object] | None = None,
        do: str | None = None,
    ) -> None:
        lines = [problem]
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if found is not None:
            lines.append(f"  found:    {found}")
        if exists is not None:
            lines.append(f"  available: {', '.join(str(name) for name in exists) or '(nothing)'}")
        if do is not None:
            lines.append(f"  hint:     {do}")
        super().__init__("\n".join(lines))


def nearest_names(name: str, names: Sequence[str]) -> list[str]:
    """Up to eight of the names that exist, for `exists`: those most like a name that does not, else the first."""
    return difflib.get_close_matches(name, names, n=8, cutoff=0.4) or list(names[:8])


class ConfigError(ReLAError, ValueError):
    """An option has a value that cannot work, alone or beside another option."""


def check_positive(**options: float | None) -> None:
    """Refuse options that are zero or below; None passes.

    Raises:
        ConfigError: Naming the option.
    """
    for name, value in options.items():
        if value is not None and not value > 0:
            raise ConfigError(f"`{name}` is out of range.", expected="a number above 0", found=value)


class PriorError(ReLAError, ValueError):
    """A prior cannot be built, loaded or applied."""


class NetworkError(PriorError, ConfigError):
    """A network, for a prior or a backbone, cannot be named, built or filled."""


class DataError(ReLAError, ValueError):
    """A data set, a loader or an item of it is not what training or labelling needs."""


class TargetError(ReLAError, ValueError):
    """Targets cannot be built, are stale, or belong to other data or another prior."""


class InjectionError(ReLAError, RuntimeError):
    """The callback cannot attach to this module, trainer or strategy."""
