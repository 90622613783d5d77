"""From transforms of one image to the same steps for a batch: one table, so that both have the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torchvision.transforms import v2

from rela_lightning.data.device.steps import Blur, Crop, Grey, Jitter, Normalise, Solarise, Sometimes, Step
from rela_lightning.data.transforms import TransportViews
from rela_lightning.errors import ConfigError

_KNOWN_IN = ("torchvision", "lightly")
_NOTHING = ("Identity", "PILToTensor", "RGB", "ToImage", "ToPureTensor", "ToTensor")
_GEOMETRY = ("RandomHorizontalFlip", "RandomResizedCrop", "RandomVerticalFlip")


@dataclass
class View:
    """How one view is made, or several alike.

    Attributes:
        crop: What part of the image it shows.
        steps: What happens to it then.
        count: How many are made, each with its own random parameters.
    """

    crop: Crop = field(default_factory=Crop)
    steps: list[Step] = field(default_factory=list)
    count: int = 1


@dataclass
class Recipe:
    """All views of an image.

    Attributes:
        views: How they are made, in order.
        shown: Which of them a batch has, by their place; None for one view that is no list.
    """

    views: list[View]
    shown: list[int] | None


def recipe_of(transform: Any) -> Recipe:
    """The recipe of a transform of one image.

    Args:
        transform: Of torchvision (`transforms` and `transforms.v2`) or of lightly, or `TransportViews`. A
            `MultiViewTransform` of lightly makes several views, everything else one.

    Raises:
        ConfigError: For steps that have no form for batches here.
    """
    from lightly.transforms.multi_view_transform import MultiViewTransform

    if isinstance(transform, TransportViews):
        grey = [v2.Grayscale()] if transform.channels == 1 else []
        alike = _view([*grey, transform.random_crop, transform.colour])
        alike.count = max(transform.distinct, 1)
        shown = [place % alike.count for place in range(transform.num_views)]
        return Recipe([alike], shown or None)
    if not isinstance(transform, MultiViewTransform):
        return Recipe([_view([transform])], None)
    views: list[View] = []
    for number, one in enumerate(transform.transforms):
        if number and one is transform.transforms[number - 1]:
            views[-1].count += 1
        else:
            views.append(_view([one]))
    return Recipe(views, list(range(len(transform.transforms))))


def _view(transforms: Sequence[Any]) -> View:
    view = View()
    for one in _chain(transforms):
        name = type(one).__name__
        if name not in _GEOMETRY:
            view.steps += _steps(one)
        elif name == "RandomResizedCrop":
            if view.crop.scale is not None or not all(isinstance(step, Grey) for step in view.steps):
                raise _refusal(one, "one crop, before colours and blur")
            view.crop = replace(view.crop, **_crop(one))
        else:  # flips change places with colours and blur
            place = "mirror" if name == "RandomHorizontalFlip" else "turn"
            before = getattr(view.crop, place)
            view.crop = replace(view.crop, **{place: before + one.p - 2 * before * one.p})
    return view


def _chain(transforms: Sequence[Any]) -> Iterator[Any]:
    """The steps inside compositions, which lightly's views are too."""
    for one in transforms:
        if type(one).__name__ in ("Compose", "Sequential"):
            yield from _chain(list(one) if isinstance(one, nn.Sequential) else one.transforms)
        elif _package(one) == "lightly" and hasattr(one, "transform"):
            yield from _chain([one.transform])
        else:
            yield one


def _package(one: Any) -> str:
    return type(one).__module__.partition(".")[0]


def _steps(one: Any) -> list[Step]:
    name = type(one).__name__
    if name in _GEOMETRY:
        raise _refusal(one, "crops and flips outside RandomApply; a flip has a probability of its own")
    if _package(one) not in _KNOWN_IN or (name not in _NOTHING and name not in _MAKERS):
        raise _refusal(one, f"transforms of torchvision or lightly: {', '.join(sorted((*_MAKERS, *_GEOMETRY)))}")
    return _MAKERS[name](one) if name in _MAKERS else []


def _crop(one: Any) -> dict[str, Any]:
    mode = getattr(one.interpolation, "value", one.interpolation)
    mode = {2: "bilinear", 3: "bicubic"}.get(mode, mode)  # Pillow's numbers, as older releases of lightly have them
    if mode not in ("bilinear", "bicubic"):
        raise _refusal(one, "bilinear or bicubic crops", mode)
    height, width = one.size if len(one.size) == 2 else (*one.size, *one.size)
    return {"size": (height, width), "scale": tuple(one.scale), "ratio": tuple(one.ratio), "bicubic": mode == "bicubic"}


def _sometimes(probability: float, steps: list[Step]) -> list[Step]:
    if not steps or probability <= 0.0:
        return []
    return [Sometimes(probability, steps)] if probability < 1.0 else steps


def _jitter(one: Any) -> list[Step]:
    parts = (one.brightness, one.contrast, one.saturation, one.hue)
    ranges = tuple(None if part is None else (float(part[0]), float(part[1])) for part in parts)
    return [Jitter(ranges)] if any(ranges) else []


def _blur(one: Any) -> list[Step]:
    if not hasattr(one, "sigmas"):
        raise _refusal(one, "lightly's GaussianBlur, whose kernel grows with sigma")
    low, high = one.sigmas
    return _sometimes(one.prob, [Blur((float(low), float(high)))])


def _apply(one: Any) -> list[Step]:
    inside = [step for each in _chain(list(one.transforms)) for step in (_steps(each) if one.p > 0.0 else ())]
    return _sometimes(one.p, inside)


def _grey(one: Any) -> list[Step]:
    return [Grey(one_channel=one.num_output_channels == 1)]


def _dtype(one: Any) -> list[Step]:
    if not one.scale or one.dtype is not torch.float32:
        raise _refusal(one, "float32 in [0, 1]: ToDtype(torch.float32, scale=True)")
    return []


def _rotation(one: Any) -> list[Step]:
    if one.prob > 0.0:
        raise _refusal(one, "no rotation (rr_prob=0)")
    return []


_MAKERS: dict[str, Callable[[Any], list[Step]]] = {
    "ColorJitter": _jitter,
    "GaussianBlur": _blur,
    "Grayscale": _grey,
    "Normalize": lambda one: [Normalise(tuple(map(float, one.mean)), tuple(map(float, one.std)))],
    "RandomApply": _apply,
    "RandomGrayscale": lambda one: _sometimes(one.p, [Grey()]),
    "RandomRotate": _rotation,
    "RandomSolarization": lambda one: _sometimes(one.prob, [Solarise(one.threshold / 255)]),
    "ToDtype": _dtype,
}


def _refusal(one: Any, expected: str, found: Any = None) -> ConfigError:
    return ConfigError(
        "These views cannot be made for a whole batch.",
        expected=expected,
        found=f"{type(one).__module__}.{type(one).__name__}" + (f", {found}" if found is not None else ""),
        do="leave device_views out: the views are then made one image at a time, by the loader's workers",
    )
