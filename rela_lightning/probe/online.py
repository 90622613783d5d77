"""A linear probe that is trained beside the run and changes nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from rela_lightning.compat import picklable_default
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.kept import Kept
from rela_lightning.networks.pooling import Pooling
from rela_lightning.probe.accuracy import accuracies, summed_cross_entropy, topk_counts, topk_names
from rela_lightning.probe.callbacks import ProbeCallback, log_number

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


@picklable_default("optimizer")
class OnlineLinearProbe(ProbeCallback):
    """Trains a linear classifier on detached features during `fit` and logs its accuracy.

    After each training batch the backbone runs once more on the batch's first view, in eval mode and without
    gradients (the cost: one forward of one view), and the classifier takes one step. The classifier and its
    optimizer belong to the callback: they are in the callback's part of a checkpoint, never in the module's
    `state_dict`, and the run's gradients, batch-norm statistics and random state stay as they were.

    Logged at the end of each epoch: `probe/top1` and, above five classes, `probe/top5`, on the validation
    loader (the last of several); `probe/train_top1`, on each training batch before the step on it; and
    `probe/loss`. A module without `validation_step` is lent an empty one, so that passing validation loaders
    to `fit` is enough. Rows with a negative label are left out. A second one in a run logs as `probe_2/top1`, and so
    on.

    Args:
        num_classes: Number of classes C; labels are in `[0, C)`.
        backbone: Dotted path of the network (or method) that is called; `auto` tries the usual names.
        labels: Where the labels are in a batch: a position, a key, a dotted path (`"1"`, `"meta.label"`), or
            `auto`.
        pooling: See `rela_lightning.networks.pooling.pool`.
        every_n_steps: Train on every n-th batch only; the cost falls with it.
        optimizer: Makes the classifier's optimizer from its parameters. Default: that of the authors' linear
            evaluation (arXiv 2405.14669), Adam 3e-4.

    Raises:
        ConfigError: For values out of range, a backbone or labels that are not there.
        DataError: If a batch holds no images, or its labels are not found.

    Example:
        >>> import lightning.pytorch as L
        >>> trainer = L.Trainer(callbacks=[OnlineLinearProbe(num_classes=10)], logger=False)
        >>> # trainer.fit(module, train_loader, validation_loader)
    """

    logs_as = "probe"

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "auto",
        labels: int | str = "auto",
        pooling: Pooling = "auto",
        every_n_steps: int = 1,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=3e-4),
    ) -> None:
        super().__init__(backbone=backbone, labels=labels, pooling=pooling)
        if num_classes < 2 or every_n_steps < 1:
            raise ConfigError(
                "The probe's settings cannot work.",
                expected="num_classes >= 2, every_n_steps >= 1",
                found=f"num_classes={num_classes}, every_n_steps={every_n_steps}",
            )
        self.num_classes = num_classes
        self.every_n_steps = every_n_steps
        self.optimizer = optimizer
        self._names = topk_names(num_classes, "")
        self._head: nn.Linear | None = None
        self._head_optimizer: torch.optim.Optimizer | None = None
        self._saved: dict[str, Any] = {}
        self._kept = Kept()  # by module: a classifier is of its features
        self._attached, self._given = False, False  # whether the state was given to us outside of a run
        self._train_sums: Tensor | None = None
        self._val_counts: Tensor | None = None
        self._trained = False

    @property
    def state_key(self) -> str:
        """Key of this probe's state in a checkpoint; two probes of one run may differ in any of these."""
        options = {"num_classes": self.num_classes, "backbone": self.backbone, "labels": self.labels}
        return f"{type(self).__qualname__}{options}"

    def state_dict(self) -> dict[str, Any]:
        """The classifier and its optimizer: tensors and primitives; empty before the first step."""
        if self._head is None or self._head_optimizer is None:
            return self._saved
        return {"head": self._head.state_dict(), "optimizer": self._head_optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the first batch tells the width of the features."""
        self._saved, self._trained = state_dict, bool(state_dict)
        self._given = not self._attached

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go on with the classifier of this module; that of another one knows nothing of its features."""
        super().setup(trainer, pl_module, stage)
        self._attached = True
        if stage == "fit" and not self._given:
            self._saved = self._kept.get(pl_module, {})
            self._trained = bool(self._saved)
        self._given = self._given and stage != "fit"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was; keep the classifier for `save_checkpoint` and a later `fit` of the module."""
        super().teardown(trainer, pl_module, stage)
        self._saved, self._attached = self.state_dict(), False
        if trainer.state.fn == "fit":
            self._kept[pl_module] = self._saved
        self._head = self._head_optimizer = self._train_sums = self._val_counts = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take one step of the classifier."""
        if batch_idx % self.every_n_steps:
            return
        features, labels = self.read(trainer, pl_module, batch, "train", self.num_classes)
        head, optimizer = self._head_for(features)
        with torch.enable_grad():
            scores = head(features)
            loss = summed_cross_entropy(scores, labels)
            gradients = torch.autograd.grad(loss, list(head.parameters()))
        counts = topk_counts(scores.detach(), labels)
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [counts[:1].float()])
        flat = _summed(trainer, flat)
        sizes = [*(gradient.numel() for gradient in gradients), 1]
        for parameter, part in zip(head.parameters(), torch.split(flat, sizes), strict=False):
            parameter.grad = (part / flat[-1].clamp(min=1)).view_as(parameter)
        optimizer.step()
        optimizer.zero_grad()
        sums = torch.cat([counts, loss.detach().to(counts.dtype).unsqueeze(0)])
        self._train_sums = sums if self._train_sums is None else self._train_sums + sums

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy and loss on the training batches."""
        if self._train_sums is not None:
            rows, hits, loss = _summed(trainer, self._train_sums).tolist()
            self._train_sums = None
            if not rows:
                rank_zero_warn("OnlineLinearProbe found no labelled row in this epoch: nothing of it is logged.")
                return
            log_number(pl_module, f"{self.prefix}/train_top1", hits / rows)
            log_number(pl_module, f"{self.prefix}/loss", loss / rows)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the counts of an interrupted epoch."""
        self._val_counts = None

    def on_validation_batch_end(  # noqa: PLR0917
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count hits on the last validation loader; the sanity check already reads its batches."""
        if trainer.state.fn != "fit" or dataloader_idx != len(trainer.num_val_batches) - 1:
            return
        features, labels = self.read(trainer, pl_module, batch, "validation", self.num_classes)
        if self._head is not None:
            counts = topk_counts(self._head(features), labels, tuple(self._names.values()))
            self._val_counts = counts if self._val_counts is None else self._val_counts + counts

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the accuracy on the validation batches, once it was trained on a labelled row."""
        if not self._trained and self._train_sums is not None:
            self._trained = bool(_summed(trainer, self._train_sums)[0] > 0)
        if self._val_counts is not None and self._trained and not trainer.sanity_checking:
            values = accuracies(_summed(trainer, self._val_counts))
            for name, value in zip(self._names, values, strict=True):
                log_number(pl_module, f"{self.prefix}/{name}", value)
        self._val_counts = None

    def _head_for(self, features: Tensor) -> tuple[nn.Linear, torch.optim.Optimizer]:
        """The classifier, made at the first batch: zeros, so that no random number is drawn."""
        if self._head is None or self._head_optimizer is None:
            width = features.shape[1]
            head = nn.Linear(width, self.num_classes, device="meta", dtype=torch.float32)
            head.to_empty(device=features.device)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            optimizer = self.optimizer(head.parameters())
            saved = self._saved.get("head")
            if saved is not None and saved["weight"].shape == head.weight.shape:
                head.load_state_dict(saved)
                optimizer.load_state_dict(self._saved["optimizer"])
            elif saved is not None:
                rank_zero_warn(
                    f"OnlineLinearProbe starts afresh: its saved classifier takes features of width "
                    f"{saved['weight'].shape[1]}, this backbone gives {width}."
                )
            self._head, self._head_optimizer = head, optimizer
        return self._head, self._head_optimizer


def _summed(trainer: Trainer, values: Tensor) -> Tensor:
    """Sum over all processes."""
    total = trainer.strategy.reduce(values, reduce_op="sum")
    if not isinstance(total, Tensor):
        raise DataError("The strategy reduced a tensor to something else.", found=type(total).__name__)
    return total
