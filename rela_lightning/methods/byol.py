"""BYOL, "Bootstrap your own latent" (arXiv 2006.07733), on lightly's heads and loss."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.utils.scheduler import cosine_schedule
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from rela_lightning.errors import ConfigError, DataError
from rela_lightning.methods.backbones import build_backbone
from rela_lightning.probe.features import measure_feature_dim, pooled


class BYOL(LightningModule):
    """A student predicts what a slowly moving teacher sees in another view of the same image.

    The loss is lightly's `-(cos(p1, z2) + cos(p2, z1)) / 2`, in `[-1, 1]`, logged as `train_loss`. BYOL's own,
    `(2 - 2 cos(p1, z2)) + (2 - 2 cos(p2, z1))`, is `4 + 4 *` this: the same minimum, gradients four times
    as large. The teacher is an exponential moving average of the student, moved before each forward; its
    momentum rises by a cosine from `momentum` to `momentum_end` over the planned steps, as in BYOL, and stays
    at `momentum` where no end is planned.

    Defaults are those of the authors' code of arXiv 2405.14669: AdamW 1e-3 with weight decay 1e-2 at a constant
    rate, heads F -> 2F -> 256, momentum 0.99. BYOL on ImageNet has hidden_dim=4096 and momentum=0.996.

    A batch starts with two views, `([v1, v2], labels, ...)`, `[v1, v2]` or `(v1, v2, labels)`; what follows is
    ignored. Validation batches are not used here: they are for the probes.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        backbone_kwargs: Passed to `build_backbone`.
        cifar_stem: 3x3 first convolution and no max-pooling, for small images; for names only.
        projector_dim: Width of both heads' output.
        hidden_dim: Width of both heads' hidden layer; None for 2F.
        momentum: Teacher momentum at the start, in `[0, 1]`.
        momentum_end: Teacher momentum at the end; the same value for a constant one.
        optimizer: Makes the optimizer from the student's parameters.
        lr_scheduler: Makes a scheduler, stepped each epoch, from the optimizer; None keeps the rate.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with two views.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        backbone_kwargs: dict[str, Any] | None = None,
        cifar_stem: bool = False,
        projector_dim: int = 256,
        hidden_dim: int | None = None,
        momentum: float = 0.99,
        momentum_end: float = 1.0,
        optimizer: OptimizerCallable = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if not (0 <= momentum <= 1 and 0 <= momentum_end <= 1):
            raise ConfigError("A momentum is out of range.", expected="0 to 1", found=f"{momentum}, {momentum_end}")
        named = isinstance(backbone, str)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", *([] if named else ["backbone"])])
        if isinstance(backbone, str):
            self.backbone, width = build_backbone(backbone, cifar_stem=cifar_stem, **(backbone_kwargs or {}))
        elif cifar_stem or backbone_kwargs:
            raise ConfigError("cifar_stem and backbone_kwargs build a backbone by name.", found="a module")
        else:
            self.backbone, width = backbone, measure_feature_dim(backbone)
        hidden = hidden_dim or 2 * width
        self.projector = BYOLProjectionHead(width, hidden, projector_dim)
        self.predictor = BYOLPredictionHead(projector_dim, hidden, projector_dim)
        self.teacher_backbone = copy.deepcopy(self.backbone)
        self.teacher_projector = copy.deepcopy(self.projector)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_projector)
        self.criterion = NegativeCosineSimilarity()
        self.momentum, self.momentum_end = momentum, momentum_end
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, F]` of images `[B, C, H, W]`."""
        return pooled(self.backbone, self.backbone(images))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Move the teacher, then the symmetric loss of the two views."""
        momentum = self._momentum_now()
        update_momentum(self.backbone, self.teacher_backbone, m=momentum)
        update_momentum(self.projector, self.teacher_projector, m=momentum)
        first, second = _two_views(batch)
        student = [self.predictor(self.projector(self(view))) for view in (first, second)]
        with torch.no_grad():
            teacher = [
                self.teacher_projector(pooled(self.teacher_backbone, self.teacher_backbone(view)))
                for view in (first, second)
            ]
        loss: Tensor = 0.5 * (self.criterion(student[0], teacher[1]) + self.criterion(student[1], teacher[0]))
        self.log("train_loss", loss, prog_bar=True, sync_dist=True, batch_size=len(first))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Nothing of its own: validation batches are for the probes."""

    def configure_optimizers(self) -> Any:
        """The student's optimizer, and its scheduler."""
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        scheduler = self._lr_scheduler(optimizer) if self._lr_scheduler is not None else None
        return LightningCLI.configure_optimizers(self, optimizer, scheduler)

    def _momentum_now(self) -> float:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            return self.momentum
        step = min(self.trainer.global_step, int(steps))
        momentum: float = cosine_schedule(step, int(steps), self.momentum, self.momentum_end)
        return momentum


def _two_views(batch: Any) -> tuple[Tensor, Tensor]:
    views = batch[0] if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], (list, tuple)) else batch
    pair = views[:2] if isinstance(views, (list, tuple)) else []
    images = len(pair) == 2 and all(isinstance(view, Tensor) and view.ndim == 4 for view in pair)
    if not images or pair[0].shape != pair[1].shape or (views is not batch and len(views) != 2):
        raise DataError(
            "BYOL needs two views of each image.",
            expected="([v1, v2], labels, ...) or [v1, v2], both views [B, C, H, W]",
            found=f"a {type(batch).__name__} that starts otherwise",
            do="give the data set a transform that returns two views, such as lightly's BYOLTransform",
        )
    return pair[0], pair[1]
