"""A prior that embeds every batch, and a schedule that notes what it is told of the targets."""

from __future__ import annotations

from rela_lightning import load_prior
from rela_lightning.priors.base import Prior
from rela_lightning.schedules import TransportOnly


def prior() -> Prior:
    """Untrained, 16 features: 64 images teach their projection."""
    return load_prior("random:lightly:resnet-9", width=0.03125, image_size=16, mean=0.5, std=0.5, seed=1)


class Told(TransportOnly):
    """Keeps what `begin` is given, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float | None] = []

    def begin(self, directions: float | None) -> None:
        self.told.append(directions)
