"""Self-supervised methods of our own, each one file on lightly's parts."""

from rela_lightning.methods.backbones import build_backbone
from rela_lightning.methods.byol import BYOL

__all__ = ["BYOL", "build_backbone"]
