"""The gentler views of the transport phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchvision.transforms import v2

from rela_lightning.data.crops import RATIO, SCALE, cut
from rela_lightning.data.swap import Transform, swapped_transform, takes_one_image, transform_owners


class TransportViews:
    """Random views of one image: crop, flip, colour jitter, grayscale; no blur, no solarisation.

    Settings of the authors' code: RandomResizedCrop(scale .5 to 1), horizontal flip, ColorJitter(.8, .8,
    .8, .2) with probability .8, grayscale with probability .2.

    Args:
        size: Height and width of a view, pixels.
        num_views: Views per image; 0 gives one tensor instead of a list.
        distinct: How many of them differ; the others repeat these, at no cost but memory. None for all.
        channels: 1 or 3.
        mean: Per-channel mean subtracted after scaling to `[0, 1]`; None for no normalisation.
        std: Per-channel standard deviation divided by.
    """

    def __init__(
        self,
        size: Sequence[int],
        *,
        num_views: int = 2,
        distinct: int | None = None,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.num_views = num_views
        self.distinct = num_views if distinct is None else min(distinct, num_views)
        self.prepare = v2.Compose([v2.ToImage(), v2.RGB() if channels == 3 else v2.Grayscale()])
        self.random_crop = v2.Compose(
            [
                v2.RandomResizedCrop(list(size), scale=SCALE, ratio=RATIO, antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )
        self.resize = v2.Resize(list(size), antialias=True)
        steps: list[Any] = []
        if channels == 3:
            steps += [v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8), v2.RandomGrayscale(p=0.2)]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        if mean is not None and std is not None:
            steps.append(v2.Normalize(list(mean), list(std)))
        self.colour = v2.Compose(steps)

    def __call__(self, image: Any, crops: Sequence[Sequence[int]] | None = None) -> list[Tensor] | Tensor:
        """Views of one image.

        Args:
            image: PIL image, or uint8 tensor `[C, H, W]`.
            crops: The crop of each distinct view, see `rela_lightning.data.crops`: exactly these are made, and their
                colours alone are random. None draws them.

        Returns:
            Views `[C, H, W]`, float32.
        """
        image = self.prepare(image)
        count = max(self.distinct, 1)
        parts = (
            (self.random_crop(image) for _ in range(count)) if crops is None else (self._cut(image, c) for c in crops)
        )
        views: list[Tensor] = [self.colour(part) for part in parts]
        return views[0] if self.num_views == 0 else [views[i % len(views)] for i in range(self.num_views)]

    def _cut(self, image: Any, crop: Sequence[int]) -> Any:
        return self.resize(cut(image, crop))


def find_normalisation(transform: Any) -> tuple[list[float], list[float]] | None:
    """Mean and std of the last `Normalize` inside a (nested) transform, or None."""
    found: tuple[list[float], list[float]] | None = None
    pending, seen = [transform], set()
    while pending:
        node = pending.pop(0)
        if id(node) in seen or isinstance(node, (str, int, float, Tensor, type, type(None))):
            continue
        seen.add(id(node))
        if type(node).__name__ == "Normalize" and hasattr(node, "mean") and hasattr(node, "std"):
            found = [float(m) for m in node.mean], [float(s) for s in node.std]
        elif isinstance(node, Mapping):
            pending.extend(list(node.values())[:32])
        elif isinstance(node, (list, tuple)):
            pending.extend(node[:32])  # transforms are few; a list of samples may be long
        elif hasattr(node, "__dict__"):
            pending.extend(vars(node).values())
    return found


def is_image(value: Any) -> bool:
    """Whether `value` is a float image tensor `[C, H, W]` with 1 or 3 channels."""
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and value.shape[0] in (1, 3)


def default_transport_transform(dataset: Any, num_views: int) -> TransportViews | None:
    """Views like the data set's own in size, channels, normalisation and structure, but gentler.

    None where the data set's views had better stay: it has no working `transform`, or its transform
    returns something other than one image or a flat sequence of images. The random state is kept.
    """
    owners = transform_owners(dataset)
    if not owners or owners[0].transform is None:
        return None
    with isolate_rng():
        if not takes_one_image(dataset):
            return None
        output = transformed_sample(dataset)
    views = list(output) if isinstance(output, (list, tuple)) else [output]
    if not views or not all(is_image(view) for view in views):
        return None
    size = max(tuple(view.shape[-2:]) for view in views)
    mean, std = find_normalisation(owners[0].transform) or (None, None)
    if mean is None and any(float(view.min()) < 0.0 or float(view.max()) > 1.0 for view in views):
        return None  # normalised in a way that cannot be read: other views would be on another scale
    # two where there were two or more: collate functions and batch hooks of the user may count on a pair
    count = min(max(num_views, 2), len(views)) if isinstance(output, (list, tuple)) else 0
    return TransportViews(size, num_views=count, distinct=num_views, channels=views[0].shape[0], mean=mean, std=std)


def transformed_sample(dataset: Any, index: int = 0) -> Any:
    """What the data set's own `transform` returns for one image."""
    captured: list[Any] = []
    own: Transform = transform_owners(dataset)[0].transform

    def capture(image: Any) -> Any:
        captured.append(own(image))
        return captured[-1]

    with swapped_transform(dataset, capture):
        dataset[index]
    return captured[0]
