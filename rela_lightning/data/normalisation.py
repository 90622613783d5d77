"""On which scale a data set's own transform gives its views: observed, on a black image and on a white one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rela_lightning.data.painted import NEEDS_CONTENT, painted

_DRAWS = 16
_TOLERANCE = 0.02


class Scale(NamedTuple):
    """`(pixel - mean) / std` for pixels in [0, 1].

    Attributes:
        mean: Of each channel.
        std: Of each channel.
    """

    mean: list[float]
    std: list[float]

    @property
    def plain(self) -> bool:
        """Whether pixels stay in [0, 1]."""
        return all(abs(m) < _TOLERANCE for m in self.mean) and all(abs(s - 1) < _TOLERANCE for s in self.std)

    def holds(self, view: Tensor) -> bool:
        """Whether a view `[C, H, W]` lies in the range of this scale."""
        mean, std = (view.new_tensor(values).view(-1, 1, 1) for values in self)
        pixels = view * std + mean
        return bool((pixels >= -_TOLERANCE).all() and (pixels <= 1 + _TOLERANCE).all())

    def like(self, other: Scale) -> bool:
        """Whether both are the same, but for what is observed with tolerance."""
        if len(self.mean) != len(other.mean):
            return False
        pairs = zip(self.mean + self.std, other.mean + other.std, strict=True)
        return all(abs(one - two) <= _TOLERANCE * max(1, abs(two)) for one, two in pairs)


def observed_scale(views_of: Callable[[Any], list[Tensor]], image: Any, stated: Scale | None) -> Scale | None:
    """The scale of a transform, from what it makes of flat images: black gives `-mean / std`, white `(1 - mean) / std`.

    A transform draws its colours at random, and may darken white or turn it over, but not always: of several draws
    the largest counts, and for black the smallest.

    Args:
        views_of: The transform; from an image to its views, each float `[C, H, W]`.
        image: A raw image, whose kind and size the flat ones get: PIL, uint8 or float tensor, or uint8 array.
        stated: What a `Normalize` inside the transform says; taken, as it is exact, if it is what is observed.

    Returns:
        The scale; None where there is none, as for views standardised by their own mean.
    """
    flat = [painted(image, level, level) for level in (0.0, 1.0)]
    if any(one is None for one in flat):
        return None
    try:
        drawn = [[_level(view) for _ in range(_DRAWS) for view in views_of(plain)] for plain in flat]
    except NEEDS_CONTENT:
        return None
    if len({level.shape for levels in drawn for level in levels}) != 1:
        return None  # views of several numbers of channels, as an image beside a mask
    low, high = torch.stack(drawn[0]).amin(0), torch.stack(drawn[1]).amax(0)
    span = high - low
    if not bool(torch.isfinite(span).all()) or bool((span < 1e-3).any()):
        return None
    found = Scale((-low / span).tolist(), (1 / span).tolist())
    return stated if stated is not None and stated.like(found) else found


def stated_scale(transform: Any) -> Scale | None:
    """Mean and std of the last `Normalize` inside a (nested) transform, or None."""
    found: Scale | None = None
    pending, seen = [transform], set()
    while pending:
        node = pending.pop(0)
        if id(node) in seen or isinstance(node, (str, int, float, Tensor, type, type(None))):
            continue
        seen.add(id(node))
        if type(node).__name__ == "Normalize" and hasattr(node, "mean") and hasattr(node, "std"):
            found = Scale(*([float(value) for value in np.atleast_1d(values)] for values in (node.mean, node.std)))
        elif isinstance(node, Mapping):
            pending.extend(list(node.values())[:32])
        elif isinstance(node, (list, tuple)):
            pending.extend(node[:32])  # transforms are few; a list of samples may be long
        elif hasattr(node, "__dict__"):
            pending.extend(vars(node).values())
    return found


def _level(view: Tensor) -> Tensor:
    """Median of each channel: what is erased or padded is less than half of a view."""
    return view.detach().double().flatten(1).median(dim=1).values
