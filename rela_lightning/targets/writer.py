"""The labelling pass: `Trainer.predict` over the data set, rows to disk by their index."""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from rela_lightning.errors import TargetError
from rela_lightning.priors.base import Prior
from rela_lightning.process_group import wait_at_exit
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.disk import writing
from rela_lightning.targets.label_view import LabelItem, LabelView, drawn_crops, embed
from rela_lightning.targets.partial import prepare, read_seconds, write_seconds
from rela_lightning.targets.records import Geometry
from rela_lightning.targets.shards import Shape, ShardWriter, missing_rows, pass_bytes

log = logging.getLogger("rela_lightning")


@dataclass(frozen=True)
class LabellingPlan:
    """What one pass does.

    Attributes:
        dataset: The user's data set.
        length: Number of its rows.
        claim: On the folder where the shards go; rank 0 takes it, if it is not held.
        fields: What decides the features, see `rela_lightning.fingerprint.settings`.
        batch_size: Images in one forward of the prior: rows, times the views of each.
        num_workers: Worker processes of the loader.
        started: `time.time()` when labelling began.
        shape: Of a row.
    """

    dataset: Any
    length: int
    claim: Claim
    fields: dict[str, Any]
    batch_size: int
    num_workers: int
    started: float
    shape: Shape

    @property
    def folder(self) -> Path:
        """Where the shards go."""
        return self.claim.folder

    @property
    def bytes(self) -> int:
        """What the files of the pass take."""
        return pass_bytes(self.length, self.shape)


class LabellingSteps:
    """What the labelling module of either Lightning tree does. Mixed into its LightningModule."""

    trainer: Any
    allow_zero_length_dataloader_with_multiple_devices = True  # fewer rows left than ranks

    def __init__(self, prior: Prior, plan: LabellingPlan) -> None:
        super().__init__()
        self.prior = prior
        self.plan = plan

    def setup(self, stage: str) -> None:
        """Let rank 0 make the folder ready before anybody reads it."""
        wait_at_exit()
        on_rank_zero(self.trainer, self._prepare)

    def predict_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the rows that no shard holds yet."""
        plan, trainer = self.plan, self.trainer
        rows = missing_rows(plan.folder, plan.length, plan.shape)
        split = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        view = LabelView(
            plan.dataset,
            self.prior.preprocess,
            rows[split.get("rank", 0) :: split.get("num_replicas", 1)],
            functools.partial(drawn_crops, views=plan.shape.views - 1),
        )
        # the rows are split already: a sampler of one replica keeps Lightning from splitting them again
        whole: DistributedSampler[Any] = DistributedSampler(view, num_replicas=1, rank=0, shuffle=False)
        return DataLoader(
            view,
            batch_size=max(1, plan.batch_size // plan.shape.views),
            sampler=whole,
            num_workers=plan.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def predict_step(self, batch: LabelItem, batch_idx: int) -> tuple[LabelItem, Tensor]:
        """What the rows are, without their images, and features `[B, V, F]`."""
        return batch._replace(images=None), embed(self.prior, batch.images)

    def _prepare(self) -> None:
        self.plan.claim.take(wait=False)
        prepare(self.plan.folder, self.plan.fields, self.plan.bytes)


class ShardSteps:
    """What the writer of either Lightning tree does. Mixed into its BasePredictionWriter.

    A batch is written while the next one is being computed, so that the device never waits.
    """

    def __init__(self, plan: LabellingPlan) -> None:
        super().__init__(write_interval="batch")  # type: ignore[call-arg]  # of the BasePredictionWriter
        self.plan = plan
        self._writer: ShardWriter | None = None
        self._pending: tuple[LabelItem, Tensor, Any] | None = None
        self._clock = 0.0
        self._seconds_before = 0.0

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Open this rank's shard."""
        with writing(self.plan.folder, self.plan.bytes):
            self._writer = ShardWriter(self.plan.folder, trainer.global_rank, self.plan.shape)
        self._seconds_before = read_seconds(self.plan.folder)

    def write_on_batch_end(  # noqa: PLR0917
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Start copying this batch to the CPU and write the one before."""
        item, features = prediction
        on_gpu, event = features.is_cuda, None
        row, size, crops, features = (
            value.to("cpu", non_blocking=on_gpu) for value in (item.row, item.size, item.crops, features)
        )
        if on_gpu:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._flush()
        self._pending = (LabelItem(row, size, crops, None), features, event)
        if trainer.received_sigterm:  # Lightning notes the signal, and its predict loop does not check it
            log.warning("SIGTERM: labelling stops. The rows so far are kept, the same call goes on from there.")
            raise SystemExit(128 + signal.SIGTERM)
        if trainer.is_global_zero and time.time() - self._clock > 1.0:
            self._clock = time.time()
            write_seconds(self.plan.folder, self._seconds_before + self._clock - self.plan.started)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the last batch; wait until all ranks have."""
        self._flush()
        if trainer.is_global_zero:
            write_seconds(self.plan.folder, self._seconds_before + time.time() - self.plan.started)
        trainer.strategy.barrier("rela targets")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Close the shard."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Keep what is whole."""
        if not isinstance(exception, TargetError):
            self._flush()
        with suppress(TargetError):  # the first error counts, not that of closing on a full disk
            self._close()

    def _flush(self) -> None:
        if self._pending is None or self._writer is None:
            return
        item, features, event = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        rows: Tensor = torch.as_tensor(item.row)
        bad = ~torch.isfinite(features).flatten(1).all(dim=1)
        if bad.any():
            raise TargetError(
                "The prior gives NaN or infinite features.",
                expected="finite features for every image",
                found=f"rows {rows[bad].tolist()[:20]} of the data set",
                do="look at these images, check the prior's weights, or label in 32-bit precision",
            )
        geometry = Geometry(item.size.numpy(), item.crops.numpy())
        with writing(self.plan.folder, self.plan.bytes):
            self._writer.append(rows.numpy(), geometry, features.float().numpy())

    def _close(self) -> None:
        self._pending = None
        writer, self._writer = self._writer, None
        if writer is not None:
            with writing(self.plan.folder, self.plan.bytes):
                writer.close()


class LabellingModule(LabellingSteps, L.LightningModule):
    """Labelling module for `lightning.pytorch`."""


class TargetWriter(ShardSteps, BasePredictionWriter):
    """Prediction writer for `lightning.pytorch`."""


def steps_for(trainer: Any) -> tuple[type[Any], type[Any]]:
    """Labelling module and writer of the trainer's own Lightning tree."""
    if any(kind.__module__.startswith("pytorch_lightning.") for kind in type(trainer).__mro__):
        from rela_lightning.targets import writer_pl

        return writer_pl.LabellingModule, writer_pl.TargetWriter
    return LabellingModule, TargetWriter


def on_rank_zero(trainer: Any, work: Callable[[], None]) -> None:
    """Run `work` on rank 0 while the other ranks wait; if it fails, it fails on all of them."""
    problem: Exception | None = None
    if trainer.is_global_zero:
        try:
            work()
        except Exception as error:  # the others must not wait for ever
            problem = error
    message = trainer.strategy.broadcast("" if problem is None else str(problem) or repr(problem), src=0)
    if problem is not None:
        raise problem
    if message:
        raise TargetError(message)
