"""The sampler of `data_ratio`: `BudgetSampler` in a shape that Lightning leaves alone on several devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler

from rela_lightning.data.sampler import BudgetSampler


class RankedBudget(DistributedSampler[Any]):
    """A fresh share of a data set each epoch, split over the processes.

    Lightning wraps other samplers on several devices; in older releases `set_epoch` reached the wrapper only (its issue
    21454), and each epoch would draw the same share. A `DistributedSampler` it takes as it is.

    Args:
        dataset: Map-style.
        ratio: Share drawn each epoch, in `(0, 1]`.
        seed: Seed of all draws.
        num_replicas: Number of processes.
        rank: This process.

    Raises:
        ConfigError: As `BudgetSampler`.
    """

    def __init__(self, dataset: Any, ratio: float, *, seed: int, num_replicas: int, rank: int) -> None:
        self.budget = BudgetSampler(len(dataset), ratio, seed=seed, num_replicas=num_replicas, rank=rank)
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw; Lightning calls this before each epoch."""
        super().set_epoch(epoch)
        self.budget.set_epoch(epoch)

    def __len__(self) -> int:
        """Number of samples this process sees per epoch."""
        return len(self.budget)

    def __iter__(self) -> Iterator[int]:
        return iter(self.budget)
