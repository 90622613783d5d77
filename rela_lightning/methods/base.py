"""What every method shares: a backbone, an optimizer, a loss that is safe in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from rela_lightning.compat import picklable_default
from rela_lightning.errors import ConfigError, check_positive
from rela_lightning.methods.multiview import crops, two_views
from rela_lightning.networks.backbones import build_backbone
from rela_lightning.networks.encode import measure_feature_dim, pooled
from rela_lightning.optim import parameter_groups, with_scheduler

GATHER = torch.distributed.is_available()
"""Whether losses over a batch take in the batches of all processes, where there are several."""


@picklable_default("optimizer")
class Method(LightningModule):
    """Base of the methods here: builds the backbone, finds the views, makes the optimizer.

    A method adds its heads and its `training_step`. Validation batches are not used: they are for the probes.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        backbone_kwargs: Passed to `build_backbone`.
        cifar_stem: 3x3 first convolution and no max-pooling, for small images; for names only.
        optimizer: Makes the optimizer from the trainable parameters. The default is that of the authors' code
            of arXiv 2405.14669.
        lr_scheduler: Makes a scheduler from the optimizer, stepped each epoch, `rela_lightning.optim.WarmupCosine` each
            optimizer step; None keeps the rate.
        exclude_bias_and_norm: No weight decay for biases, normalisation layers and other parameters of one dimension,
            and with lightly's LARS no adaptation of their rate: SimCLR, BYOL, Barlow Twins, VICReg.
        bias_and_norm_lr: Rate of these parameters; None for that of the others. Barlow Twins has 0.0048 for 256 images.

    Raises:
        ConfigError: For an unknown backbone or values out of range.

    Example:
        >>> class Rotation(Method):
        ...     def training_step(self, batch, batch_idx):
        ...         one, two = self.two_views(batch)
        ...         return (self(one) - self(two)).square().mean()
        >>> Rotation("lightly:resnet-9", optimizer=None) is not None
        True
    """

    views: str = "two"
    """Name of the views it trains on, in `rela_lightning.data.views`; the data modules ask for it."""
    drop_last: bool = True
    """Whether the last batch of an epoch is left out where it is not full; the data modules ask for it."""
    min_rows = 2
    """Fewest images a batch may have: batch norm in the heads, and contrast, need two."""

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        backbone_kwargs: dict[str, Any] | None = None,
        cifar_stem: bool = False,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
        exclude_bias_and_norm: bool = False,
        bias_and_norm_lr: float | None = None,
    ) -> None:
        check_positive(bias_and_norm_lr=bias_and_norm_lr)
        super().__init__()
        objects = (
            ["optimizer", "lr_scheduler"] if isinstance(backbone, str) else ["optimizer", "lr_scheduler", "backbone"]
        )
        self.save_hyperparameters(ignore=objects)  # those would not survive `torch.load(weights_only=True)`
        if isinstance(backbone, str):
            self.backbone, self.feature_dim = build_backbone(backbone, cifar_stem=cifar_stem, **(backbone_kwargs or {}))
        elif cifar_stem or backbone_kwargs:
            raise ConfigError("cifar_stem and backbone_kwargs build a backbone by name.", found="a module")
        else:
            self.backbone, self.feature_dim = backbone, measure_feature_dim(backbone)
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._exclude_bias_and_norm, self._bias_and_norm_lr = exclude_bias_and_norm, bias_and_norm_lr

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, F]` of images `[B, C, H, W]`."""
        return pooled(self.backbone, self.backbone(images), images)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing of its own: validation batches are for the probes."""

    def configure_optimizers(self) -> Any:
        """The optimizer of the trainable parameters, and its scheduler."""
        return self._scheduled(self._optimizer(self._groups_of(self)))

    def _groups_of(self, part: nn.Module) -> list[Any]:
        """The trainable parameters of a part of the module, grouped as the options say."""
        return parameter_groups(
            part, exclude_bias_and_norm=self._exclude_bias_and_norm, bias_and_norm_lr=self._bias_and_norm_lr
        )

    def _scheduled(self, optimizer: torch.optim.Optimizer) -> Any:
        """What `configure_optimizers` returns for an optimizer: it, and its scheduler."""
        scheduler = self._lr_scheduler(optimizer) if self._lr_scheduler is not None else None
        return with_scheduler(self, optimizer, scheduler)

    def two_views(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The two views a batch starts with, see `views.two_views`."""
        return two_views(batch, type(self).__name__, self.min_rows)

    def crops(self, batch: Any) -> list[Tensor]:
        """The global and local crops a batch starts with, see `views.crops`."""
        return crops(batch, type(self).__name__, self.min_rows)

    def of_all_devices(self, features: Tensor) -> Tensor:
        """Features `[N, D]`, without gradient, of the batches `[B, D]` of all devices, rank after rank."""
        gathered: Any = self.all_gather(features.detach())
        together: Tensor = gathered.flatten(0, -2)
        return together

    def log_loss(self, loss: Tensor, rows: int) -> Tensor:
        """Log `train_loss` over `rows` samples; returns the loss."""
        self.log("train_loss", loss, prog_bar=True, sync_dist=True, batch_size=rows)
        return loss


def in_float32(criterion: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A loss outside autocast, its half-precision tensors as float32: sums over a batch overflow float16."""
    tensors: list[Tensor] = []

    def widen(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    args = apply_to_collection(args, Tensor, widen)
    with torch.autocast(tensors[0].device.type, enabled=False):
        return criterion(*args, **kwargs)
