"""From features and targets to the transport loss: the map W, the loss, and a check of what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rela_lightning.errors import InjectionError
from rela_lightning.injection.guard import FiniteGuard
from rela_lightning.injection.optim import TransportMap
from rela_lightning.injection.student import Features
from rela_lightning.losses import Loss

Gather = Callable[[Tensor], Tensor | None]
"""From targets `[B, D]` of this rank to those of the other ranks, `[M, D]`; None where there are none."""


class TransportHead:
    """Maps features and compares them with targets.

    Args:
        transport: The map W.
        loss: The loss, see `rela_lightning.losses.resolve_loss`.
        gather: For losses that compare with the targets of all ranks.
    """

    def __init__(self, transport: TransportMap, loss: Loss, gather: Gather) -> None:
        self._transport, self._criterion, self._gather = transport, loss, gather
        self._guard = FiniteGuard()

    def loss(self, features: Features, targets: Tensor, index: Tensor) -> Tensor:
        """Transport loss of a step: the mean over views, each of which has a row for every sample.

        Args:
            features: Of R rows.
            targets: Targets of the batch, `[B, n, D]`: of each of n views, or one for all.
            index: Data set row of each sample, int64 `[B]`, on the CPU.

        Returns:
            Scalar float32.

        Raises:
            InjectionError: If rows are missing or not finite.
        """
        values, rows = features.values, features.rows
        if values.shape[0] != rows.shape[0]:
            raise InjectionError(
                "The backbone returned another number of rows than it was given.",
                expected=f"{rows.shape[0]} rows of features",
                found=f"{values.shape[0]}",
                do='if each image has several rows, say how they are ordered: row_layout="cat" (a b a b) or '
                '"interleaved" (a a b b); else name the layer that returns one row per image with `feature_layer`',
            )
        linear = self._transport.build(values.shape[1], targets.shape[2], values.device)
        targets = targets[:, :, : linear.target_dim].to(values.device, non_blocking=True)
        mapped, wanted = linear(values), pair(targets, features)
        self._guard.add(mapped, rows, index)
        parts = [self._compare(mapped[part], wanted[part]) for part in by_view(rows, len(index))]
        loss = torch.stack(parts).mean()
        self._transport.saw(loss)
        return loss

    @property
    def losses_per_step(self) -> int:
        """See `TransportMap`."""
        return self._transport.losses_per_step

    def forget(self) -> None:
        """See `TransportMap`."""
        self._transport.forget()

    def check_deferred(self) -> None:
        """Check the values that were not finite, left on the device.

        Raises:
            InjectionError: With the data set rows.
        """
        self._guard.check()

    def _compare(self, mapped: Tensor, targets: Tensor) -> Tensor:
        if self._criterion.takes_negatives:
            return self._criterion(mapped, targets, self._gather(targets))
        return self._criterion(mapped, targets)


def of_other_ranks(trainer: Any, targets: Tensor) -> Tensor | None:
    """Targets `[M, D]` of the other ranks' batches, which must be as large as this one's; None on one device."""
    if trainer.world_size == 1:
        return None
    ranks = trainer.strategy.all_gather(targets.contiguous())
    others: Tensor = torch.cat([ranks[: trainer.global_rank], ranks[trainer.global_rank + 1 :]]).flatten(0, 1)
    return others


def pair(targets: Tensor, features: Features) -> Tensor:
    """The target `[R, D]` of each row of features, from the targets `[B, n, D]` of a batch."""
    if features.views is None or targets.shape[1] == 1:
        return targets[features.rows, 0]
    return targets[features.rows, features.views]


def by_view(rows: Tensor, samples: int) -> list[Tensor | slice]:
    """Positions of R rows, one index a view: each view has every sample once.

    Args:
        rows: Sample of each row, int64 `[R]`.
        samples: Number B of samples. Where R is no multiple of it, all rows count as one view.
    """
    if len(rows) == samples or len(rows) % samples:
        return [slice(None)]
    return list(rows.argsort(stable=True).view(samples, -1).unbind(1))
