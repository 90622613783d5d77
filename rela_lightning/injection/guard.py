"""NaN and infinity in the transport loss: an error that names the rows, without a sync per step."""

from __future__ import annotations

import torch
from torch import Tensor

from rela_lightning.errors import InjectionError

_CHECK_EVERY = 50  # steps, where a check waits for the device


class FiniteGuard:
    """Checks mapped features row by row: at once on the CPU, else every 50 steps, as a check waits for the device."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, mapped: Tensor, rows: Tensor, index: Tensor) -> None:
        """Note which rows of `mapped [R, D]` are finite.

        Args:
            mapped: Mapped features.
            rows: Sample in the batch of each row, int64 `[R]`.
            index: Data set row of each sample, int64 `[B]`, on the CPU.
        """
        self._pending.append((mapped.detach().isfinite().all(dim=1), rows, index))
        if mapped.device.type == "cpu" or len(self._pending) >= _CHECK_EVERY:
            self.check()

    def check(self) -> None:
        """Raise if a row since the last check was not finite.

        Raises:
            InjectionError: With the data set rows.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.stack([finite.all() for finite, _, _ in pending]).all()):
            return
        bad = sorted({int(i) for finite, rows, index in pending for i in index[rows[~finite].cpu()]})
        raise InjectionError(
            "The transport loss is not finite.",
            expected="finite features from the backbone",
            found=f"NaN or infinity for data set rows {', '.join(map(str, bad[:10]))}"
            + (f" and {len(bad) - 10} more" if len(bad) > 10 else ""),
            do="look at these images, lower the learning rate, or use bf16 instead of fp16",
        )
