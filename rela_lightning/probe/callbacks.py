"""What the probing callbacks share: read a batch, encode it, bring validation batches, log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rela_lightning.batches import find_images, find_labels
from rela_lightning.compat import NAMESPACES, DualCallback
from rela_lightning.networks.encode import Encoder, encode, find_backbone
from rela_lightning.networks.pooling import Pooling, check_pooling
from rela_lightning.process_group import wait_at_exit

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


def no_validation_of_its_own(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
    """Stands in for a missing `validation_step`, so that validation batches reach the callbacks.

    Lightning's warning that it will skip the validation loop comes earlier and does not hold then.
    """


def has_validation_step(pl_module: LightningModule) -> bool:
    """Whether the module defines `validation_step`, by its class or on the instance."""
    if "validation_step" in vars(pl_module):
        return True
    owner = next(cls for cls in type(pl_module).__mro__ if "validation_step" in vars(cls))
    return not owner.__module__.startswith(tuple(f"{name}." for name in NAMESPACES))


class FeatureCallback(DualCallback):
    """Base of callbacks that read features: of the user's backbone on the user's batches, nothing changed.

    Args:
        backbone: Dotted path of the network (or method) that is called; `auto` tries the usual names.
        pooling: See `rela_lightning.networks.pooling.pool`.
    """

    logs_as: ClassVar[str]
    """What the names of its metrics begin with, before the slash."""

    def __init__(self, *, backbone: str, pooling: Pooling) -> None:
        check_pooling(pooling)
        self.prefix = self.logs_as
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self._found: Encoder | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look for the backbone anew; of several alike in a run each has its own names, the second `probe_2/...`."""
        wait_at_exit()
        self._found = None
        alike = [one for one in trainer.callbacks if isinstance(one, FeatureCallback) and one.logs_as == self.logs_as]  # type: ignore[attr-defined]
        before = next((place for place, one in enumerate(alike) if one is self), 0)
        self.prefix = f"{self.logs_as}_{before + 1}" if before else self.logs_as

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a backbone that is not there before anything is trained."""
        self._found = find_backbone(pl_module, self.backbone)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module."""
        self._found = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As after the end."""
        self.teardown(trainer, pl_module, "fit")

    def features(self, trainer: Trainer, pl_module: LightningModule, images: Tensor) -> Tensor:
        """Float32 features `[B, F]` of images `[B, C, H, W]`, detached."""
        self._found = self._found or find_backbone(pl_module, self.backbone)
        with trainer.precision_plugin.forward_context():
            return encode(self._found, images, self.pooling).float()


class ProbeCallback(FeatureCallback):
    """Base of the probes: features and labels, in validation too.

    Args:
        backbone: Dotted path of the network (or method) that is called; `auto` tries the usual names.
        pooling: See `rela_lightning.networks.pooling.pool`.
        labels: Where the labels are in a batch: a position, a key, a dotted path, or `auto`.
    """

    def __init__(self, *, backbone: str, pooling: Pooling, labels: int | str) -> None:
        super().__init__(backbone=backbone, pooling=pooling)
        self.labels = labels
        self._label_paths: dict[str, int | str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let validation loaders run where the module has no `validation_step`."""
        super().setup(trainer, pl_module, stage)
        self._label_paths = {}
        if stage == "fit" and not has_validation_step(pl_module):
            pl_module.validation_step = no_validation_of_its_own  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        super().teardown(trainer, pl_module, stage)
        if vars(pl_module).get("validation_step") is no_validation_of_its_own:
            del pl_module.validation_step

    def read(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: str, num_classes: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Float32 features `[B, F]`, detached, and labels `[B]` of a batch; `stage` names its loader."""
        images = find_images(batch)
        path = self._label_paths.get(stage, self.labels)
        self._label_paths[stage], labels = find_labels(batch, len(images), path, num_classes)
        return self.features(trainer, pl_module, images), labels


def gathered(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows `[n, ...]` of all processes, in rank order; n may differ between them."""
    if trainer.world_size == 1:
        return rows
    counts = trainer.strategy.all_gather(torch.tensor([len(rows)], device=rows.device)).flatten().tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = trainer.strategy.all_gather(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def log_number(pl_module: LightningModule, name: str, value: float) -> None:
    """Log, at the end of an epoch, a number that is already the same on all ranks."""
    pl_module.log(name, value, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
