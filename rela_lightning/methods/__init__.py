"""Self-supervised methods of our own, each one file on lightly's parts, and the supervised reference.

Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rela_lightning._lazy import lazy

if TYPE_CHECKING:
    from rela_lightning.methods.barlow_twins import BarlowTwins
    from rela_lightning.methods.base import Method
    from rela_lightning.methods.byol import BYOL
    from rela_lightning.methods.dino import DINO
    from rela_lightning.methods.finetune import FineTune
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
    "BYOL": ".byol",
    "DINO": ".dino",
    "BarlowTwins": ".barlow_twins",
    "FineTune": ".finetune",
    "Method": ".base",
    "MoCoV2": ".moco_v2",
    "MoCoV3": ".moco_v3",
    "MomentumMethod": ".momentum",
    "SimCLR": ".simclr",
    "SimSiam": ".simsiam",
    "Supervised": ".supervised",
    "SwAV": ".swav",
    "VICReg": ".vicreg",
    "build_backbone": "rela_lightning.networks.backbones",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = [
    "BYOL",
    "DINO",
    "BarlowTwins",
    "FineTune",
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
