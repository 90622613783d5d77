"""Self-supervised methods of our own, each one file on lightly's parts, and the supervised reference.

Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rela_lightning.methods.barlow_twins import BarlowTwins
    from rela_lightning.methods.base import Method
    from rela_lightning.methods.byol import BYOL
    from rela_lightning.methods.dino import DINO
    from rela_lightning.methods.moco_v2 import MoCoV2
    from rela_lightning.methods.moco_v3 import MoCoV3
    from rela_lightning.methods.momentum import MomentumMethod
    from rela_lightning.methods.simclr import SimCLR
    from rela_lightning.methods.simsiam import SimSiam
    from rela_lightning.methods.supervised import Supervised
    from rela_lightning.methods.swav import SwAV
    from rela_lightning.methods.vicreg import VICReg
    from rela_lightning.networks.backbones import build_backbone

_EXPORTS = {
    "BYOL": "rela_lightning.methods.byol",
    "DINO": "rela_lightning.methods.dino",
    "BarlowTwins": "rela_lightning.methods.barlow_twins",
    "Method": "rela_lightning.methods.base",
    "MoCoV2": "rela_lightning.methods.moco_v2",
    "MoCoV3": "rela_lightning.methods.moco_v3",
    "MomentumMethod": "rela_lightning.methods.momentum",
    "SimCLR": "rela_lightning.methods.simclr",
    "SimSiam": "rela_lightning.methods.simsiam",
    "Supervised": "rela_lightning.methods.supervised",
    "SwAV": "rela_lightning.methods.swav",
    "VICReg": "rela_lightning.methods.vicreg",
    "build_backbone": "rela_lightning.networks.backbones",
}

__all__ = [
    "BYOL",
    "DINO",
    "BarlowTwins",
    "Method",
    "MoCoV2",
    "MoCoV3",
    "MomentumMethod",
    "SimCLR",
    "SimSiam",
    "Supervised",
    "SwAV",
    "VICReg",
    "build_backbone",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
