"""Linear evaluation: one linear layer trained on a frozen backbone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from rela_lightning.batches import find_images, find_labels
from rela_lightning.compat import picklable_default
from rela_lightning.errors import ConfigError
from rela_lightning.networks.encode import encode, measure_feature_dim
from rela_lightning.networks.pooling import Pooling
from rela_lightning.optim import with_scheduler
from rela_lightning.probe.accuracy import summed_cross_entropy, topk_names
from rela_lightning.probe.checks import finite_features


@picklable_default("optimizer")
class LinearProbe(LightningModule):
    """Trains a linear classifier on the features of a frozen backbone and measures it.

    The defaults are the linear evaluation of the authors' code of arXiv 2405.14669: frozen features, Adam
    with learning rate 3e-4; they train it for 100 epochs (`Trainer(max_epochs=100)`). A copy of the
    backbone is probed, always in eval mode, so that yours keeps its batch-norm statistics, its mode and its
    gradients.

    Fit, validate and test on batches of `(images [B, C, H, W], labels [B])`. Logged: `probe/loss` (training),
    `probe/top1` and, above five classes, `probe/top5` (validation and test), all in `[0, 1]` but the loss.
    Rows with a negative label are left out.

    Args:
        backbone: Network whose output is `[B, F]`, `[B, F, H, W]` or `[B, N, F]`; pooled to `[B, F]`.
        num_classes: Number of classes C; labels are in `[0, C)`.
        feature_dim: Width F; None measures it with a dry run.
        pooling: See `rela_lightning.networks.pooling.pool`.
        labels: Where the labels are in a batch: a position, a key, a dotted path, or `auto`.
        optimizer: Makes the optimizer of the linear layer from its parameters.
        lr_scheduler: Makes a scheduler from the optimizer, stepped each epoch, `rela_lightning.optim.WarmupCosine` each
            optimizer step; None keeps the rate.

    Raises:
        ConfigError: For fewer than two classes, or a width that cannot be measured or is wrong.

    Example:
        >>> from rela_lightning.methods import build_backbone
        >>> backbone, feature_dim = build_backbone("lightly:resnet-9", width=0.125)
        >>> probe = LinearProbe(backbone, num_classes=10)
        >>> # L.Trainer(max_epochs=100).fit(probe, labelled_images, validation_images)
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        feature_dim: int | None = None,
        pooling: Pooling = "auto",
        labels: int | str = "auto",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=3e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError("A probe tells classes apart.", expected="num_classes >= 2", found=num_classes)
        self.save_hyperparameters("num_classes", "feature_dim", "pooling", "labels")
        self.backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.head = nn.Linear(feature_dim or measure_feature_dim(self.backbone, pooling), num_classes)
        accuracies = {
            name: MulticlassAccuracy(num_classes, top_k=k, average="micro", ignore_index=-1)
            for name, k in topk_names(num_classes, "probe/").items()
        }
        self.accuracy = MetricCollection(dict(accuracies), compute_groups=False)
        self.num_classes = num_classes
        self._pooling = pooling
        self._labels = labels
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler

    def train(self, mode: bool = True) -> LinearProbe:
        """Set the mode of the head; the backbone stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Scores `[B, C]` of images `[B, C, H, W]`."""
        features = encode(self.backbone, images, self._pooling).to(self.head.weight.dtype)
        if features.shape[1] != self.head.in_features:
            raise ConfigError(
                "The backbone's features have another width than the probe's linear layer.",
                expected=self.head.in_features,
                found=f"{features.shape[1]} for images of {list(images.shape[1:])}",
                do=f"pass feature_dim={features.shape[1]}",
            )
        scores: Tensor = self.head(finite_features(features, "backbone's"))
        return scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of the linear layer."""
        scores, labels = self._scores_and_labels(batch)
        loss = summed_cross_entropy(scores, labels) / (labels >= 0).sum().clamp(min=1)
        self.log("probe/loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Count top-1 and top-5 hits."""
        scores, labels = self._scores_and_labels(batch)
        self.accuracy.update(scores, labels.clamp(min=-1))
        self.log_dict(self.accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """As validation."""
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        """The optimizer of the linear layer, and its scheduler."""
        optimizer = self._optimizer(self.head.parameters())
        scheduler = self._lr_scheduler(optimizer) if self._lr_scheduler is not None else None
        return with_scheduler(self, optimizer, scheduler)

    def _scores_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        images = find_images(batch)
        self._labels, labels = find_labels(batch, len(images), self._labels, self.num_classes)
        return self(images), labels
