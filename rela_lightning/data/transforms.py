"""The gentler views of the transport phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from rela_lightning.data.channels import with_channels
from rela_lightning.data.crops import RATIO, SCALE, cut
from rela_lightning.data.mirrored import mirrors
from rela_lightning.data.normalisation import Scale, observed_scale, stated_scale
from rela_lightning.data.swap import (
    Call,
    Transform,
    has_rows,
    makes_batches,
    observed_calls,
    rows_of_all_parts,
    swapped_transform,
    transform_owners,
)
from rela_lightning.rng import preserved_rng


class TransportViews:
    """Random views of one image: crop, flip, colour jitter, grayscale; no blur, no solarisation.

    Settings of the authors' code: RandomResizedCrop(scale .5 to 1), horizontal flip with probability .5,
    ColorJitter(.8, .8, .8, .2) with probability .8, grayscale with probability .2.

    Args:
        size: Height and width of a view, pixels.
        num_views: Views per image; 0 gives one tensor instead of a list.
        distinct: How many of them differ; the others repeat these, at no cost but memory. None for all.
        channels: 1 or 3.
        mean: Per-channel mean subtracted after scaling to `[0, 1]`; None for no normalisation.
        std: Per-channel standard deviation divided by.
        flip: Whether views are mirrored, left to right, half of the time. Crops that it is told are as they are told.
    """

    takes_crops = True
    """It can be told which crops to show."""

    def __init__(
        self,
        size: Sequence[int],
        *,
        num_views: int = 2,
        distinct: int | None = None,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        flip: bool = True,
    ) -> None:
        self.num_views = num_views
        self.distinct = num_views if distinct is None else min(distinct, num_views)
        self.channels = channels
        self.random_crop = v2.Compose(
            [
                v2.RandomResizedCrop(list(size), scale=SCALE, ratio=RATIO, antialias=True),
                v2.RandomHorizontalFlip(0.5 if flip else 0.0),
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
            image: PIL image of any mode, uint8 or float tensor `[C, H, W]`, or array `[H, W, C]`.
            crops: The crop of each distinct view, see `rela_lightning.data.crops`: exactly these are made, and their
                colours alone are random. None draws them.

        Returns:
            Views `[C, H, W]`, float32.
        """
        image = self._with_channels(image)
        if crops is None:
            parts = [self.random_crop(image) for _ in range(max(self.distinct, 1))]
        else:
            parts = [self.resize(cut(image, crop)) for crop in crops]
        views: list[Tensor] = [self.colour(part) for part in parts]
        return views[0] if self.num_views == 0 else [views[i % len(views)] for i in range(self.num_views)]

    def _with_channels(self, image: Any) -> Tensor:
        """The image as a tensor, its mode converted as in labelling: the views show what the prior saw."""
        if not isinstance(image, Image.Image):
            image = F.to_image(image)
        tensor: Tensor = F.to_image(with_channels(image, self.channels))
        return tensor


def is_image(value: Any) -> bool:
    """Whether `value` is a float image tensor `[C, H, W]` with 1 or 3 channels."""
    return isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and value.shape[0] in (1, 3)


def default_transport_transform(dataset: Any, num_views: int, collate: Callable[[Any], Any] = list) -> Transform | None:
    """Views like the data set's own in size, channels, scale and structure, but gentler: `TransportViews`.

    They are mirrored where the data set's own are: a mirrored letter is none.

    Where the data set's own are made on the device, so are these (`DeviceViews`).

    There are two where the data set's own are two or more, and as many as those where the data set or `collate` does
    not do with two, as where crops of two sizes are told apart by their place.

    Some rows of every part of the data set are read. None where the data set's own views are kept: it has
    no working `transform`; its transform returns something other than one image or a flat sequence of images, or
    different things in different parts or rows; its scale is not known; or `collate` fails on others. The random state
    is kept.

    Args:
        dataset: Map-style.
        num_views: Views of an image that differ.
        collate: Makes a batch of a list of samples.
    """
    from rela_lightning.data.device.views import DeviceViews

    with isolate_rng():
        calls = _calls(dataset)
        outputs = [_views(call.output) for call in calls]
        if not calls or any(not views or not all(is_image(view) for view in views) for views in outputs):
            return None
        listed = [isinstance(call.output, (list, tuple)) for call in calls]
        kinds = {(several, *map(_shape, views)) for several, views in zip(listed, outputs, strict=True)}
        scale = _common_scale(calls)
        if len(kinds) > 1 or scale is None or not all(scale.holds(view) for views in outputs for view in views):
            return None
        flip = _any_mirrors(calls)
        views, owner = outputs[0], calls[0].owner.transform
        size = max(tuple(view.shape[-2:]) for view in views)
        like: dict[str, Any] = {"channels": views[0].shape[0], "flip": flip, **({} if scale.plain else scale._asdict())}
        # two where there were two or more: collate functions and batch hooks of the user may count on a pair
        for count in dict.fromkeys((min(max(num_views, 2), len(views)), len(views))) if listed[0] else (0,):
            views_of_one = TransportViews(size, num_views=count, distinct=num_views, **like)
            made: Transform = owner.gentler(views_of_one) if isinstance(owner, DeviceViews) else views_of_one
            if makes_batches(dataset, made, collate):
                return made
    return None


def taking_images_of(dataset: Any, transform: Transform) -> Transform:
    """A transform of one PIL image for the images that a data set hands out: kept in memory, they are pixels."""
    from rela_lightning.data.device.views import DeviceViews, PerImage

    own = [owner.transform for owner in transform_owners(dataset)]
    if isinstance(transform, DeviceViews) or not any(isinstance(one, DeviceViews) for one in own):
        return transform
    return own[0].gentler(transform) if isinstance(transform, TransportViews) else PerImage(transform)


def flips(dataset: Any) -> bool:
    """Whether views of a data set may be mirrored: unless its own are seen never to be; the same at each call.

    True for what has no views that could be seen: a stream, a data set without a `transform` or `training_views`, one
    whose own fail.
    """
    if not has_rows(dataset):
        return True
    with preserved_rng(0), ExitStack() as stack:
        for owner in transform_owners(dataset):
            if owner.transform is None and getattr(owner, "training_views", None) is not None:
                stack.enter_context(swapped_transform(owner, owner.training_views))
        try:
            calls = _calls(dataset)
        except Exception:  # a user's transform may raise anything, and is not needed where this is asked
            return True
        viewed = all(is_image(view) for call in calls for view in _views(call.output))
        return not calls or not viewed or _any_mirrors(calls)


def common_scale(dataset: Any) -> Scale | None:
    """The scale of the views that a data set's own `transform` gives; None where it is not known."""
    with isolate_rng():
        return _common_scale(_calls(dataset))


def _calls(dataset: Any) -> list[Call]:
    """Calls of the transforms of all parts; none if a part has no working transform."""
    owners = transform_owners(dataset)
    if not owners or any(owner.transform is None for owner in owners):
        return []
    calls = [_of_one_image(call) for call in observed_calls(dataset, rows_of_all_parts(dataset)) or []]
    return calls if len({id(call.owner) for call in calls}) == len(owners) else []


def _of_one_image(call: Call) -> Call:
    """What views on the device would have been of one image."""
    from rela_lightning.data.device.views import DeviceViews

    if not isinstance(call.own, DeviceViews):
        return call
    return call._replace(own=call.own.per_image, output=call.own.per_image(call.image))


def _common_scale(calls: Sequence[Call]) -> Scale | None:
    """Of all the transforms that were called, each observed once; None if they differ or one is not known."""
    scales = [observed_scale(_applied(call), call.image, stated_scale(call.own)) for call in _one_of_each(calls)]
    known = [scale for scale in scales if scale is not None]
    return known[0] if scales and len(known) == len(scales) and all(map(known[0].like, known)) else None


def _any_mirrors(calls: Sequence[Call]) -> bool:
    return any(mirrors(_applied(call), call.image) for call in _one_of_each(calls))


def _one_of_each(calls: Sequence[Call]) -> list[Call]:
    """The first call of each transform."""
    return list({id(call.owner): call for call in reversed(calls)}.values())


def _applied(call: Call) -> Callable[[Any], list[Any]]:
    """The transform of a call, from an image to its views."""
    own = call.own
    return lambda image: _views(own(image) if own is not None else image)


def _views(output: Any) -> list[Any]:
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _shape(view: Tensor) -> tuple[int, ...]:
    return tuple(view.shape)
