"""Names that tell things apart."""

from __future__ import annotations

from collections.abc import Iterable


def distinct(names: Iterable[str]) -> list[str]:
    """The names in their order, with a number behind those that were there before: `a`, `b`, `a (2)`.

    Example:
        >>> distinct(["a", "b", "a"])
        ['a', 'b', 'a (2)']
    """
    found: list[str] = []
    for name in names:
        numbered, number = name, 1
        while numbered in found:
            number += 1
            numbered = f"{name} ({number})"
        found.append(numbered)
    return found


def in_picture(name: str) -> str:
    r"""A name as matplotlib draws it letter by letter: `$` begins no formula, and `_` leaves none out of a legend.

    Example:
        >>> print(in_picture("_a $5"))
         _a \$5
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
