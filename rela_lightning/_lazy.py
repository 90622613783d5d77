"""Names that a package imports when they are first used, so that importing the package is quick."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: Its `__name__`.
        homes: Module of each name, relative to the package (`.digits`) or absolute; that module itself where its last
            part is the name.
    """

    def find(name: str) -> Any:
        if name not in homes:
            offered = ", ".join(sys.modules[package].__all__)
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {offered}")
        module = importlib.import_module(homes[name], package)
        return module if module.__name__ == f"{package}.{name}" else getattr(module, name)

    return find, lambda: sorted({*homes, *sys.modules[package].__all__})
