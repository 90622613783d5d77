"""Targets: what the prior says of every training image, computed once and kept on disk."""

from rela_lightning.targets.build import build_targets
from rela_lightning.targets.reduce import Projection, project
from rela_lightning.targets.store import TargetStore

__all__ = ["Projection", "TargetStore", "build_targets", "project"]
