"""Targets: what the prior says of every training image, computed once and kept on disk.

Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rela_lightning._lazy import lazy

if TYPE_CHECKING:
    from rela_lightning.targets.build import build_targets
    from rela_lightning.targets.reduce import Projection, project
    from rela_lightning.targets.store import TargetStore

_EXPORTS = {
    "Projection": ".reduce",
    "TargetStore": ".store",
    "build_targets": ".build",
    "project": ".reduce",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = ["Projection", "TargetStore", "build_targets", "project"]
