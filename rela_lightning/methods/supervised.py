"""Supervised training, the reference of the others; transport accelerates it as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from rela_lightning.batches import find_images, find_labels, leading_views
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.methods.base import Method
from rela_lightning.methods.multiview import encode_together, refusal


class Supervised(Method):
    """A backbone and a linear classifier under cross-entropy.

    Logs `train_loss`, and on validation batches `val_loss` and `val_top1` (in `[0, 1]`).

    Reference settings for ResNets on ImageNet (arXiv 1512.03385): SGD, momentum 0.9, rate 0.1 for 256 images,
    divided by 10 when the error stops falling, weight decay 1e-4.

    A batch starts with one view or several, `(view, labels, ...)`, `([v1, v2], labels, ...)` or flat, and holds
    labels, int64 `[B]`, from 0 to `num_classes - 1`. Each view is classified; the loss is the mean over all.

    Args:
        backbone: Name for `build_backbone`, or a module whose output pools to features `[B, F]`.
        num_classes: Classes, at least 2.
        label_smoothing: Share of the target spread evenly over the classes, in `[0, 1)`.
        labels: Where the labels are in a batch: a position, a key, a dotted path (`"1"`), or `auto`.
        options: `optimizer`, `lr_scheduler` and the others of `Method`.

    Raises:
        ConfigError: For an unknown backbone or values out of range.
        DataError: If a batch does not start with a view, or the labels are not found or out of range.

    Example:
        >>> module = Supervised("lightly:resnet-9", num_classes=10)  # with views="one" of a data module
    """

    views = "one"
    min_rows = 1

    def __init__(
        self,
        backbone: str | nn.Module = "resnet18",
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        labels: int | str = "auto",
        **options: Any,
    ) -> None:
        if num_classes < 2:
            raise ConfigError("`num_classes` is out of range.", expected="2 or more", found=num_classes)
        if not 0 <= label_smoothing < 1:
            raise ConfigError("`label_smoothing` is out of range.", expected="[0, 1)", found=label_smoothing)
        super().__init__(backbone, **options)
        self.num_classes, self.label_smoothing, self.labels = num_classes, label_smoothing, labels
        self.classifier = nn.Linear(self.feature_dim, num_classes)
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")
        self._labels_at: int | str | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of every view."""
        views = leading_views(batch)
        if not views or len({len(view) for view in views}) > 1:
            raise refusal("Supervised needs a view", "(view, labels, ...) or ([v1, v2], labels, ...)", batch)
        labels = self._labels(batch, len(views[0])).repeat(len(views))
        logits = self.classifier(encode_together(self, views))
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return self.log_loss(loss, len(views[0]))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and accuracy on the first view; of several loaders, the last (those before it are banks for kNN)."""
        if dataloader_idx + 1 < len(self.trainer.num_val_batches):
            return
        images = find_images(batch)
        logits, labels = self.classifier(self(images)), self._labels(batch, len(images))
        self.val_top1(logits, labels)
        options: Any = {"batch_size": len(images), "add_dataloader_idx": False}
        self.log("val_loss", cross_entropy(logits, labels), sync_dist=True, **options)
        self.log("val_top1", self.val_top1, prog_bar=True, **options)

    def _labels(self, batch: Any, rows: int) -> Tensor:
        """Labels `[B]`; where they are and what they hold is looked at in the first batch only."""
        if self._labels_at is not None:
            return find_labels(batch, rows, self._labels_at)[1]
        path, labels = find_labels(batch, rows, self.labels, self.num_classes)
        low, high = torch.stack([labels.min(), labels.max()]).tolist()
        if high < 0:
            raise DataError(
                "The images have no labels.",
                expected=f"labels from 0 to {self.num_classes - 1}",
                found=f"{low} alone in the first batch, at {path!r}",
                do="train on images with labels, as a folder for each class; or say where they are by `labels`",
            )
        if low < 0 or high >= self.num_classes:
            raise DataError(
                "A label is out of range.",
                expected=f"0 to {self.num_classes - 1}, for num_classes={self.num_classes}",
                found=f"{low} to {high} in the first batch, at {path!r}",
                do="set num_classes, or say where the labels are with `labels`",
            )
        self._labels_at = path
        return labels
