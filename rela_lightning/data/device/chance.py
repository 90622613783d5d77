"""Random numbers of each image by its own seed: the same ones whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """A stream of random numbers for each of some images: SplitMix64 (Steele, Lea and Flood, 2014), all at once.

    There is no state to keep: the numbers are a function of the seeds.

    Args:
        seeds: Uint64 `[R]`.
    """

    def __init__(self, seeds: NDArray[np.uint64]) -> None:
        self._seeds, self._taken = seeds, 0

    @classmethod
    def of(cls, rows: Tensor, *key: int) -> Draws:
        """The streams of some rows, int64 `[R]`, under a key of non-negative integers."""
        base = np.random.SeedSequence(key).generate_state(1, np.uint64)
        return cls(_mixed(rows.numpy().astype(np.uint64) * _STEP + base))

    @classmethod
    def together(cls, several: Sequence[Draws]) -> Draws:
        """The streams of several, one after the other."""
        return cls(np.concatenate([draws._next(1)[:, 0] for draws in several]))

    def __len__(self) -> int:
        """Number of images."""
        return len(self._seeds)

    def fork(self, rows: Tensor | None = None) -> Draws:
        """Fresh streams, of the images at some places, int64 `[n]`, or of all."""
        seeds = self._next(1)[:, 0]
        return Draws(seeds if rows is None else seeds[rows.numpy()])

    def uniform(self, count: int) -> Tensor:
        """Uniform numbers in `[0, 1)`, float32 `[R, count]`."""
        bits = self._next(count) >> np.uint64(40)  # as many as float32 holds exactly
        return torch.from_numpy((bits * 2.0**-24).astype(np.float32))

    def between(self, low: float, high: float) -> Tensor:
        """A uniform number for each image, float32 `[R]`."""
        return low + (high - low) * self.uniform(1)[:, 0]

    def happens(self, probability: float) -> Tensor:
        """Whether it does, bool `[R]`."""
        return self.uniform(1)[:, 0] < probability

    def _next(self, count: int) -> NDArray[np.uint64]:
        numbers = np.arange(self._taken + 1, self._taken + count + 1, dtype=np.uint64)
        self._taken += count
        return _mixed(self._seeds[:, None] + numbers * _STEP)


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), np.uint64)
