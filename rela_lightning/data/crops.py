"""Crops as numbers: drawn once, kept beside their targets, made again from any copy of the image.

A crop is five integers `(top, left, height, width, mirrored)`, in pixels of the image before any `transform`;
`mirrored` is 0 or 1. A mirrored crop is a crop of its own, as its features differ from those of the
unmirrored one. Numbers are kept and not seeds, as a seed means other crops when a library changes the way it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from rela_lightning.errors import DataError

SCALE = (0.5, 1.0)
"""Share of the image's area that a crop of the transport phase covers: the authors' setting."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop: torchvision's own."""
Crop = tuple[int, int, int, int, int]


def size_of(image: Any) -> tuple[int, int]:
    """Height and width of an image (PIL or tensor `[C, H, W]`), pixels; of one kept smaller, as it was before."""
    origin = getattr(image, "origin", None)
    height, width = F.get_size(image) if origin is None else origin.size
    return height, width


def whole(image: Any) -> Crop:
    """The crop that is the whole image, unmirrored."""
    return 0, 0, *size_of(image), 0


def draw_crop(image: Any, *, flip: bool = True) -> Crop:
    """A random crop of an image (PIL or tensor `[C, H, W]`), from torch's global random state.

    It is mirrored half of the time; without `flip` never, and its box is the same.
    """
    top, left, height, width = RandomResizedCrop.get_params(image, list(SCALE), list(RATIO))
    return top, left, height, width, int(torch.rand(()) < 0.5 and flip)


def cut(image: Any, crop: Sequence[int]) -> Any:
    """The crop of an image, in the form (PIL or tensor) and at the resolution that the image has."""
    top, left, height, width, mirrored = (int(value) for value in crop)
    part = image if (top, left, height, width) == (0, 0, *size_of(image)) else F.crop(image, top, left, height, width)
    return F.horizontal_flip(part) if mirrored else part


def check_size(image: Any, size: Sequence[int], row: int) -> None:
    """Refuse an image that has another size than when its crops were drawn: they would show other parts of it.

    Raises:
        DataError: Naming the row and both sizes.
    """
    if size_of(image) != tuple(size):
        raise DataError(
            f"The image of row {row} has another size than when it was labelled, so its crops cannot be made again.",
            expected=f"{size[0]} x {size[1]} pixels (height x width), before the data set's transform",
            found=f"{size_of(image)[0]} x {size_of(image)[1]}",
            do="train on the images that were labelled, or build the targets again for these",
        )


def overlap(crops: NDArray[np.integer[Any]], others: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Intersection over union of some crops with some others of the same image.

    Whether they are mirrored does not count.

    Args:
        crops: Integers `[..., n, 5]`.
        others: Integers `[..., V, 5]`.

    Returns:
        Float64 `[..., n, V]`, in `[0, 1]`.
    """
    ours, theirs = crops[..., :, None, :4].astype(np.float64), others[..., None, :, :4].astype(np.float64)
    begin = np.maximum(ours[..., :2], theirs[..., :2])
    end = np.minimum(ours[..., :2] + ours[..., 2:], theirs[..., :2] + theirs[..., 2:])
    shared = np.clip(end - begin, 0.0, None).prod(axis=-1)
    union = ours[..., 2:].prod(axis=-1) + theirs[..., 2:].prod(axis=-1) - shared
    return np.asarray(shared / union)
