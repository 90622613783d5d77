"""Rows to disk by their index: the prediction writer of a labelling pass."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from rela_lightning.errors import TargetError
from rela_lightning.targets.disk import writing
from rela_lightning.targets.keys import KeyLine
from rela_lightning.targets.label_view import LabelItem
from rela_lightning.targets.partial import read_seconds, write_seconds
from rela_lightning.targets.plan import LabellingPlan
from rela_lightning.targets.records import Geometry
from rela_lightning.targets.shards import ShardWriter

log = logging.getLogger("rela_lightning")


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
        self._pending = (LabelItem(row, size, crops, None, item.line), features, event)
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
            noted = [KeyLine.parsed(line).key for line in item.line if line]
            where = torch.nonzero(bad).flatten().tolist()[:20]
            raise TargetError(
                "The prior gives NaN or infinite features.",
                expected="finite features for every image",
                found=f"samples {[noted[place] for place in where]} of the stream"
                if noted
                else f"rows {rows[where].tolist()} of the data set",
                do="look at these images, check the prior's weights, or label in 32-bit precision",
            )
        geometry = Geometry(item.size.numpy(), item.crops.numpy())
        with writing(self.plan.folder, self.plan.bytes):
            self._writer.append(rows.numpy(), geometry, features.float().numpy(), item.line)

    def _close(self) -> None:
        self._pending = None
        writer, self._writer = self._writer, None
        if writer is not None:
            with writing(self.plan.folder, self.plan.bytes):
                writer.close()


class TargetWriter(ShardSteps, BasePredictionWriter):
    """Prediction writer for `lightning.pytorch`."""
