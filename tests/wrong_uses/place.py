"""Where wrong uses are tried: a folder with targets, a run and an image, all small and real."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader

from rela_lightning import TargetStore, build_targets, load_prior
from rela_lightning.methods import BYOL
from tests.modules import byol
from tests.parts import TwoViews, make_digits

RANDOM = {"width": 0.125, "image_size": 32, "mean": 0.5, "std": 0.5}


class Place:
    """A folder to work in, which is also the current one.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def prior(self) -> Any:
        """An untrained network."""
        return load_prior("random:lightly:resnet-9", **RANDOM)

    @property
    def images(self) -> Any:
        """64 digits."""
        return make_digits(64)

    @functools.cached_property
    def targets(self) -> Path:
        """Of these digits."""
        return build_targets(self.prior, self.images, self.folder / "targets").path

    @functools.cached_property
    def checkpoint(self) -> Path:
        """Of an untrained BYOL."""
        path = self.folder / "byol.ckpt"
        module = BYOL(backbone="lightly:resnet-9", backbone_kwargs={"width": 0.125})
        torch.save({"state_dict": module.state_dict(), "hyper_parameters": {}}, path)
        return path

    def store(self) -> TargetStore:
        """The targets, opened."""
        return TargetStore(self.targets)

    def fit(self, *callbacks: Any, module: Any = None, data: Any = None, **options: Any) -> None:
        """Train for two epochs of four batches."""
        quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options = {"accelerator": "cpu", "max_epochs": 2, **dict.fromkeys(quiet, False), **options}
        views = DataLoader(make_digits(64, TwoViews()), batch_size=16) if data is None else data
        L.Trainer(callbacks=list(callbacks), **options).fit(module or byol(), views)


class WrongUse(NamedTuple):
    """What somebody does, and in words what is wrong with it."""

    words: str
    call: Callable[[Place], Any]
