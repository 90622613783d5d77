"""What the probing callbacks share: read a batch, encode it, bring validation batches, log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


class ProbeCallback(DualCallback):
    """Base of the probes: features of the user's backbone on the user's batches, nothing changed.

    Args:
        backbone: Dotted path of the network (or method) that is called; `auto` tries the usual names.
        pooling: See `rela_lightning.networks.pooling.pool`.
        labels: Where the labels are in a batch: a position, a key, a dotted path, or `auto`.
    """

    def __init__(self, *, backbone: str, pooling: Pooling, labels: int | str) -> None:
        check_pooling(pooling)
        self.backbone = backbone
        self.pooling: Pooling = pooling
        self.labels = labels
        self._label_paths: dict[str, int | str] = {}
        self._found: Encoder | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let validation loaders run where the module has no `validation_step`."""
        wait_at_exit()
        self._label_paths, self._found = {}, None
        if stage == "fit" and not has_validation_step(pl_module):
            pl_module.validation_step = no_validation_of_its_own  # type: ignore[method-assign]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a backbone that is not there before anything is trained."""
        self._found = find_backbone(pl_module, self.backbone)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._found = None
        if vars(pl_module).get("validation_step") is no_validation_of_its_own:
            del pl_module.validation_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.teardown(trainer, pl_module, "fit")

    def read(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: str, num_classes: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Float32 features `[B, F]`, detached, and labels `[B]` of a batch; `stage` names its loader."""
        images = find_images(batch)
        path = self._label_paths.get(stage, self.labels)
        self._label_paths[stage], labels = find_labels(batch, len(images), path, num_classes)
        self._found = self._found or find_backbone(pl_module, self.backbone)
        with trainer.precision_plugin.forward_context():
            features = encode(self._found, images, self.pooling)
        return features.float(), labels


def log_number(pl_module: LightningModule, name: str, value: float) -> None:
    """Log, at the end of an epoch, a number that is already the same on all ranks."""
    pl_module.log(name, value, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
