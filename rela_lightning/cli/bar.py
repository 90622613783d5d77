"""The progress bar of `rela fit` in a terminal: Lightning's, with images a second."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar

from rela_lightning.injection.passes import batch_size_of

_BATCHES = 50


class FitProgressBar(RichProgressBar):
    """Lightning's bar; beside what modules show in it, images a second of all devices over the last 50 batches.

    Data loading and callbacks are in the rate, validation is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ends: deque[float] = deque(maxlen=_BATCHES + 1)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Training begins."""
        super().on_train_start(trainer, pl_module)
        self._ends.clear()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The rate begins anew."""
        super().on_validation_end(trainer, pl_module)
        self._ends.clear()

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self._ends.append(time.perf_counter())
        super().on_train_batch_end(trainer, *args, **kwargs)

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """What is shown at the end of the bar."""
        shown: dict[str, Any] = super().get_metrics(trainer, pl_module)
        size = batch_size_of(trainer.train_dataloader) if trainer.training else None
        if size is not None and len(self._ends) > 1:
            seconds = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
            shown["images/s"] = f"{size * trainer.world_size / seconds:,.0f}"
        return shown
