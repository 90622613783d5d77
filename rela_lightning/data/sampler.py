"""Spend a share of the data per epoch: a fresh uniform subset each time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from rela_lightning.errors import ConfigError


class BudgetSampler(Sampler[int]):
    """Draws a fresh uniform subset of a data set each epoch, without replacement.

    The `data_ratio` of arXiv 2405.14669: "10% of the data" means 10% of the steps, each epoch on another
    tenth, so that over many epochs nearly every sample is seen. The draw is a function of `(seed, epoch)`
    only: a run that resumes at epoch e draws what an unbroken run drew there.

    All ranks make the same draw and take every `num_replicas`-th index of it from `rank` on, so that ranks
    are disjoint and equally long. The remainder of `round(ratio * num_samples) / num_replicas` is dropped.
    With `num_replicas > 1`, pass `use_distributed_sampler=False` to the Trainer: the ranks are split here.

    Args:
        num_samples: Length of the data set.
        ratio: Share drawn each epoch, in `(0, 1]`; at least one sample per replica is drawn.
        seed: Non-negative seed of all draws.
        num_replicas: Number of processes that share the draw.
        rank: This process, in `[0, num_replicas)`.

    Raises:
        ConfigError: For a ratio outside `(0, 1]`, fewer samples than replicas, a rank or seed out of range.

    Example:
        >>> sampler = BudgetSampler(1000, ratio=0.1)
        >>> sampler.set_epoch(3)
        >>> len(sampler), list(sampler) == list(sampler)
        (100, True)
    """

    def __init__(self, num_samples: int, ratio: float, *, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        if not 0.0 < ratio <= 1.0:
            raise ConfigError("The data ratio cannot work.", expected="0 < ratio <= 1", found=ratio)
        if not 0 <= rank < num_replicas:
            raise ConfigError(
                "The rank is not one of the replicas.",
                expected="0 <= rank < num_replicas",
                found=f"rank {rank}, num_replicas {num_replicas}",
            )
        if num_samples < num_replicas:
            raise ConfigError(
                "There are fewer samples than processes.",
                expected=f"at least {num_replicas} samples, one per replica",
                found=f"{num_samples} samples",
                do="use fewer devices or more data",
            )
        if seed < 0:
            raise ConfigError("The seed is negative.", expected="seed >= 0", found=seed)
        self.num_samples = num_samples
        self.ratio = ratio
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draw; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of samples this rank sees per epoch."""
        return max(1, round(self.ratio * self.num_samples) // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        draw = torch.randperm(self.num_samples, generator=generator)[: len(self) * self.num_replicas]
        yield from draw[self.rank :: self.num_replicas].tolist()
