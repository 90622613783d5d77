"""Thin images: what is cut off after a resize is not resized first."""

from __future__ import annotations

import math
from typing import Any


def middle(image: Any, resize: tuple[int, int], crop: tuple[int, int]) -> Any:
    """What a resize of the shorter side and a centre crop will see of a thin image, and some more.

    A strip of 20 x 20,000 pixels would be 1 GB once its shorter side is 224. What is left is centred, and long enough
    that the scale changes by less than a thousandth, and the crop moves by half a pixel at most. Other images are
    returned as they are.

    Args:
        image: PIL image, or tensor `[..., C, H, W]`.
        resize: Height and width that the resized image covers.
        crop: Height and width of the centre crop.
    """
    import torchvision.transforms.v2.functional as F

    height, width = F.get_size(image)
    ratio = max(resize[0] / height, resize[1] / width)
    kept = []
    for side, wanted in ((height, crop[0]), (width, crop[1])):
        most = max(math.ceil(4 * wanted / ratio), math.ceil(1024 / ratio))
        kept.append(side if side <= most else most + (side - most) % 2)  # the same distance at both ends
    return image if kept == [height, width] else F.center_crop(image, kept)
