"""Targets: what the prior says of every training image, computed once and kept on disk.

Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rela_lightning.targets.build import build_targets
    from rela_lightning.targets.reduce import Projection, project
    from rela_lightning.targets.store import TargetStore

_EXPORTS = {"Projection": "reduce", "TargetStore": "store", "build_targets": "build", "project": "reduce"}

__all__ = ["Projection", "TargetStore", "build_targets", "project"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"rela_lightning.targets.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
