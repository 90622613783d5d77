"""Untrained networks: the paper's cheapest prior, and a control for the others."""

from __future__ import annotations

from typing import Any

from rela_lightning.networks.build import Built, build_network
from rela_lightning.rng import preserved_rng


def build(name: str, *, pretrained: bool = False, image_size: int | None = None, seed: int = 0, **kwargs: Any) -> Built:
    """An untrained network.

    Args:
        name: `open_clip:...`, `timm:...`, `torchvision:...` or `lightly:...`.
        pretrained: Not read: the weights are always random.
        image_size: Side of the images, in pixels.
        seed: Seed of its weights; the global random state is left as it was.
        kwargs: Passed on to the library's factory.
    """
    with preserved_rng(seed):
        return build_network(name, pretrained=False, image_size=image_size, **kwargs)
