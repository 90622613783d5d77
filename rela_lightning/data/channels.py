"""Images of one channel or three: one rule for what a prior sees and for the views of the transport phase."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rela_lightning.data.eight_bit import eight_bit
from rela_lightning.errors import DataError


def with_channels(image: Any, channels: int) -> Any:
    """The same image with that many channels, in the form (PIL or tensor) it came in."""
    if isinstance(image, Tensor):
        return _tensor_with_channels(image, channels)
    mode = getattr(image, "mode", None)
    if mode is None:
        raise DataError(
            "A prior cannot read this as an image.",
            expected="a PIL image, or a tensor [C, H, W], uint8 or float in [0, 1]",
            found=type(image).__name__,
        )
    if channels not in (1, 3):
        raise DataError(
            "The image's mode does not fit this prior.",
            expected=f"an image that can be given {channels} channels",
            found=f"PIL mode {mode}",
            do="hand over tensors [C, H, W]",
        )
    image, wanted = eight_bit(image), "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _tensor_with_channels(image: Tensor, channels: int) -> Tensor:
    import torchvision.transforms.v2.functional as F

    if image.ndim < 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise DataError(
            "A prior cannot read this tensor as an image.",
            expected="[..., C, H, W], uint8 or float in [0, 1]",
            found=f"{list(image.shape)}, {image.dtype}",
        )
    found = image.shape[-3]
    if found == channels:
        return image
    if found == 1:
        return image.expand(*image.shape[:-3], channels, -1, -1)
    if found == 4 and channels in (1, 3):
        return _tensor_with_channels(image[..., :3, :, :], channels)
    if found == 3 and channels == 1:
        gray: Tensor = F.rgb_to_grayscale(image)
        return gray
    raise DataError(
        "The image's channels do not fit this prior.",
        expected=f"a tensor [{channels}, H, W], or one gray channel",
        found=list(image.shape),
        do="put the channels first",
    )
