"""Whether a data set's own transform mirrors images: observed, on one that grows brighter from left to right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rela_lightning.data.painted import NEEDS_CONTENT, painted

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
    ramp = painted(image, 0.0, _BRIGHTEST)
    if ramp is None:
        return True
    try:
        return any(_brighter_left(view) for _ in range(_DRAWS) for view in views_of(ramp))
    except NEEDS_CONTENT:
        return True


def _brighter_left(view: Tensor) -> bool:
    middle = view.shape[-1] // 2
    return bool(view[..., :middle].mean() > view[..., view.shape[-1] - middle :].mean() + 1e-6)
