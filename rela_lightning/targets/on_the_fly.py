"""A projection learnt from the first images of a stream."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rela_lightning.targets.reduce import (
    Moments,
    Projection,
    directions_of,
    merge,
    moments,
    pca,
    projection,
    variance_elsewhere,
)
from rela_lightning.targets.rounding import without_rounding

_COMPARED = 256
"""Rows that are embedded in strict float32 too, to know the rounding."""


class Learner:
    """Learns the projection of features that come batch by batch and are seen once.

    The components are those of the first `3 * feature_dim` rows. New rows vary otherwise along components that were
    fitted to few: up to twice as much along the last ones. So columns are scaled, and put in order, by the larger
    of the variance of these rows and that of the `feature_dim` rows after them.

    Args:
        feature_dim: Width F of the features.
    """

    def __init__(self, feature_dim: int) -> None:
        self._for_components = 3 * feature_dim
        self._needed = self._for_components + max(feature_dim, 2)
        self._parts: dict[str, Moments] = {}

    @property
    def missing(self) -> int:
        """Rows still to come before `learn` may be called."""
        return max(0, self._needed - self._count("components") - self._count("variance"))

    @property
    def compares(self) -> bool:
        """Whether more rows are wanted in strict float32 too."""
        return self._count("rounding") < _COMPARED

    def add(self, features: Tensor, exact: Tensor) -> None:
        """Take in features `[B, F]`, and the same ones in strict float32 `[B, F]` (not looked at unless `compares`)."""
        if self.compares:
            self._merge("rounding", features.double() - exact.double())
        left = max(0, self._for_components - self._count("components"))
        self._merge("components", features[:left])
        self._merge("variance", features[left:])

    def learn(self) -> tuple[Projection, float]:
        """The map to targets, standardised as `shrunk`; and how many directions the features fill.

        Raises:
            TargetError: If all rows are the same, or rounding noise.
        """
        clear, _ = without_rounding(pca(self._parts["components"]), self._parts["rounding"])
        found = variance_elsewhere(clear, self._parts["variance"])
        return projection(found), directions_of(found.variance)

    def state_dict(self) -> dict[str, Any]:
        """What was collected, as lists of count, mean and scatter."""
        return {name: list(part) for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        names = ("components", "variance", "rounding")
        self._parts = {name: Moments(*state[name]) for name in names if name in state}

    def _count(self, name: str) -> int:
        return self._parts[name].count if name in self._parts else 0

    def _merge(self, name: str, rows: Tensor) -> None:
        if len(rows):
            part = moments(rows)
            self._parts[name] = merge(self._parts[name], part) if name in self._parts else part
