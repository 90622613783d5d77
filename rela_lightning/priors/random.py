"""Untrained networks: the paper's cheapest prior, and a control for the others."""

from __future__ import annotations

from typing import Any

import torch

from rela_lightning.priors.architectures import Architecture, build_architecture


def build(name: str, *, image_size: int | None = None, seed: int = 0, **kwargs: Any) -> Architecture:
    """An untrained network.

    Args:
        name: `open_clip:...`, `timm:...`, `torchvision:...` or `lightly:...`.
        image_size: Side of the images, in pixels.
        seed: Seed of its weights; the global random state is left as it was.
        kwargs: Passed on to the zoo's factory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the GPUs' states too
        return build_architecture(name, pretrained=False, image_size=image_size, **kwargs)
