"""Images made to see what a transform does: of the kind and size of a real one, of grey that is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

NEEDS_CONTENT = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError)
"""What a transform may raise that cannot do without the content of a real image."""


def painted(image: Any, left: float, right: float) -> Any:
    """Grey that goes evenly from one side to the other, in the form of an image.

    Args:
        image: PIL image of mode `L` or `RGB`, uint8 or float tensor `[..., H, W]`, or uint8 array `[H, W, ...]`.
        left: Grey of the first column, in `[0, 1]`: black to white.
        right: Grey of the last column.

    Returns:
        An image of its own, that a transform may change; None for another kind of image.
    """
    if isinstance(image, Tensor) and (image.dtype == torch.uint8 or image.is_floating_point()):
        columns = torch.linspace(left, right, image.shape[-1])
        return torch.empty_like(image).copy_(columns if image.is_floating_point() else columns * 255)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim > 1:
        made = np.empty_like(image)
        made[...] = np.linspace(255 * left, 255 * right, image.shape[1]).reshape(-1, *[1] * (image.ndim - 2))
        return made
    if getattr(image, "mode", None) in ("L", "RGB"):
        from PIL import Image

        return Image.fromarray(painted(np.asarray(image), left, right))
    return None
