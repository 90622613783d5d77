"""Whether a data set's own transform mirrors images: observed, on one that grows brighter from left to right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DRAWS = 32
_BRIGHTEST = 60 / 255  # so dark that a solarisation, of what is brighter than half, leaves the order as it is


def mirrors(views_of: Callable[[Any], list[Tensor]], image: Any) -> bool:
    """Whether a view is ever brighter on the left, in several draws.

    A transform that turns images by more than a quarter, or turns colours over, passes for one that mirrors.

    Args:
        views_of: The transform; from an image to its views, each float `[C, H, W]`.
        image: A raw image, whose kind and size the observed one gets: PIL, uint8 or float tensor, or uint8 array.

    Returns:
        True as well for what cannot be observed.
    """
    ramp = _ramp(image)
    if ramp is None:
        return True
    try:
        return any(_brighter_left(view) for _ in range(_DRAWS) for view in views_of(ramp))
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError):
        return True


def _brighter_left(view: Tensor) -> bool:
    middle = view.shape[-1] // 2
    return bool(view[..., :middle].mean() > view[..., view.shape[-1] - middle :].mean() + 1e-6)


def _ramp(image: Any) -> Any:
    """Black on the left, dark grey on the right, in the form of an image."""
    if isinstance(image, Tensor) and (image.dtype == torch.uint8 or image.is_floating_point()):
        ramp = torch.linspace(0, _BRIGHTEST, image.shape[-1]).expand(image.shape)
        return (ramp if image.is_floating_point() else ramp * 255).to(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        columns = np.linspace(0, 255 * _BRIGHTEST, image.shape[1]).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(columns.reshape(1, -1, *([1] * (image.ndim - 2))), image.shape))
    if getattr(image, "mode", None) in ("L", "RGB"):
        from PIL import Image

        return Image.fromarray(_ramp(np.asarray(image)))
    return None
