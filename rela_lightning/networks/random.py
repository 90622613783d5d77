"""Untrained networks: the paper's cheapest prior, and a control for the others."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from rela_lightning.networks.build import Built, build_network


def build(name: str, *, pretrained: bool = False, image_size: int | None = None, seed: int = 0, **kwargs: Any) -> Built:
    """An untrained network.

    Args:
        name: `open_clip:...`, `timm:...`, `torchvision:...` or `lightly:...`.
        pretrained: Not read: the weights are always random.
        image_size: Side of the images, in pixels.
        seed: Seed of its weights; the global random state is left as it was.
        kwargs: Passed on to the library's factory.
    """
    with isolate_rng(include_cuda=False):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        return build_network(name, pretrained=False, image_size=image_size, **kwargs)
