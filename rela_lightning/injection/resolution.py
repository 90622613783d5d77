"""Views of lower resolution for the first part of the transport phase."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from rela_lightning.errors import ConfigError


def shrink(images: Tensor, size: int) -> Tensor:
    """Images `[B, C, H, W]` at `[B, C, size, size]` (bilinear, antialiased), unless they are that small already."""
    if max(images.shape[-2:]) <= size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def fixed_size(images: Tensor, resolution: int, error: Exception) -> ConfigError:
    """The error for a backbone that takes images of its own size only."""
    return ConfigError(
        "The backbone does not take views of `transport_resolution`.",
        expected="a backbone that takes images of any size, as most convolutional nets do",
        found=f"views of {tuple(images.shape[-2:])} pixels shrunk to {resolution}: {error.__cause__ or error}",
        do="leave transport_resolution out, or build the backbone for any size (timm: dynamic_img_size=True)",
    )
