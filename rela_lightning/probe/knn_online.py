"""A kNN probe during validation: nothing is trained, so it is there from the first epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rela_lightning.errors import ConfigError
from rela_lightning.networks.pooling import Pooling
from rela_lightning.probe.accuracy import accuracies, topk_counts
from rela_lightning.probe.callbacks import ProbeCallback, gathered, log_number
from rela_lightning.probe.checks import directions
from rela_lightning.probe.knn import WEIGHTS, Weights, knn_predict

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class KNNProbe(ProbeCallback):
    """Logs `knn/top1`, the accuracy of a kNN vote on the backbone's features, at the end of a validation epoch.

    With two or more validation loaders, the first is the bank (the training images, under the validation
    transform) and the last holds the queries: the protocol of lightly's benchmarks. With one loader, the
    rows of each batch are the bank and the queries in turn: even rows vote on odd rows. That tells whether a
    run learns, but is not comparable with the number from two loaders.

    Features are computed in eval mode without gradients, the bank is gathered from all processes, and the
    module is left as it was. Features that are not finite are logged as NaN, with a warning. It runs in `fit` and in
    `validate`. A module without `validation_step` is lent an empty one in `fit`. Rows with a negative label are left
    out. A second one in a run logs as `knn_2/top1`, and so on.

    Args:
        k: Neighbours that vote; fewer where the bank is smaller.
        temperature: Weight of a vote is `exp(cosine similarity / temperature)`.
        weights: `distance`, or `uniform` for equal votes.
        backbone: Dotted path of the network (or method) that is called; `auto` tries the usual names.
        labels: Where the labels are in a batch: a position, a key, a dotted path (`"1"`, `"meta.label"`), or
            `auto`.
        pooling: See `rela_lightning.networks.pooling.pool`.
        max_bank: Most rows of the bank, over all processes; evenly spaced rows of every batch are kept.
            Each device holds `F * 4` bytes per row of it, and per query of its own.
        every_n_epochs: Run in every n-th epoch of `fit` only.

    Raises:
        ConfigError: For values out of range, a backbone or labels that are not there.
        DataError: If a batch holds no images, or its labels are not found.

    Example:
        >>> import lightning.pytorch as L
        >>> trainer = L.Trainer(callbacks=[KNNProbe(k=20)], logger=False)
        >>> # trainer.fit(module, train_loader, [bank_loader, query_loader])
    """

    logs_as = "knn"

    def __init__(
        self,
        k: int = 20,
        *,
        temperature: float = 0.07,
        weights: Weights = "distance",
        backbone: str = "auto",
        labels: int | str = "auto",
        pooling: Pooling = "auto",
        max_bank: int = 50_000,
        every_n_epochs: int = 1,
    ) -> None:
        super().__init__(backbone=backbone, labels=labels, pooling=pooling)
        if min(k, max_bank, every_n_epochs) < 1 or temperature <= 0 or weights not in WEIGHTS:
            raise ConfigError(
                "The kNN probe's settings cannot work.",
                expected="k, max_bank and every_n_epochs at least 1, temperature > 0, weights one of "
                + ", ".join(WEIGHTS),
                found=f"k={k}, max_bank={max_bank}, every_n_epochs={every_n_epochs}, temperature={temperature}, "
                f"weights={weights!r}",
            )
        self.k = k
        self.temperature = temperature
        self.weights: Weights = weights
        self.max_bank = max_bank
        self.every_n_epochs = every_n_epochs
        self._bank: list[tuple[Tensor, Tensor]] = []
        self._queries: list[tuple[Tensor, Tensor]] = []
        self._voted = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was and free the bank."""
        super().teardown(trainer, pl_module, stage)
        self._bank, self._queries = [], []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No vote was taken yet."""
        self._voted = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where there was nothing to vote on."""
        if not self._voted:
            rank_zero_warn(
                f"KNNProbe had no validation images, or no epoch that was due: {self.prefix}/top1 was not logged."
            )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with an empty bank."""
        self._bank, self._queries = [], []

    def on_validation_batch_end(  # noqa: PLR0917
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the features of this batch; the sanity check already reads its batches."""
        loaders = len(trainer.num_val_batches)
        if not self._due(trainer) or 0 < dataloader_idx < loaders - 1:
            return
        features, labels = self.read(trainer, pl_module, batch, f"validation {dataloader_idx}")
        features = directions(features)
        if loaders == 1:
            self._queries.append((features[1::2], labels[1::2]))
            features, labels = features[::2], labels[::2]
        if loaders == 1 or dataloader_idx == 0:
            rows = _evenly(len(features), self._quota(trainer)).to(features.device)
            self._bank.append((features[rows], labels[rows]))
        else:
            self._queries.append((features, labels))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Vote and log."""
        if self._bank and self._queries and not trainer.sanity_checking:
            self._voted = True
            bank, bank_labels = (gathered(trainer, torch.cat(parts)) for parts in zip(*self._bank, strict=True))
            queries, labels = (torch.cat(parts) for parts in zip(*self._queries, strict=True))
            labelled = bank_labels >= 0
            bank, bank_labels = bank[labelled][: self.max_bank], bank_labels[labelled][: self.max_bank]
            finite = (bank.isfinite().all() & queries.isfinite().all()).long()
            if len(bank) and int(trainer.strategy.reduce(finite, reduce_op="sum")) != trainer.world_size:
                log_number(pl_module, f"{self.prefix}/top1", float("nan"))
                rank_zero_warn(f"The backbone gives NaN or infinity: {self.prefix}/top1 is NaN. Has the run diverged?")
            elif len(bank):
                classes = int(bank_labels.max()) + 1
                predicted = knn_predict(
                    bank, bank_labels, queries,
                    k=min(self.k, len(bank)), temperature=self.temperature, weights=self.weights, num_classes=classes,
                )  # fmt: skip
                counts = topk_counts(F.one_hot(predicted, classes).float(), labels)
                counts = torch.as_tensor(trainer.strategy.reduce(counts, reduce_op="sum"))
                log_number(pl_module, f"{self.prefix}/top1", accuracies(counts)[0])
            else:
                rank_zero_warn(f"KNNProbe found no labelled row for its bank: {self.prefix}/top1 is not logged.")
        self._bank, self._queries = [], []

    def _due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True
        return (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _quota(self, trainer: Trainer) -> int:
        """Rows of one batch that the bank has room for; `max_bank` itself where the length is unknown."""
        batches = trainer.num_val_batches[0] * trainer.world_size
        if batches == float("inf"):
            return max(0, self.max_bank - sum(len(labels) for _, labels in self._bank))
        return max(1, self.max_bank // max(1, int(batches)))


def _evenly(rows: int, quota: int) -> Tensor:
    """At most `quota` of `rows` row numbers, evenly spaced."""
    keep = min(rows, quota)
    return torch.arange(keep) * rows // max(keep, 1)
