"""The parts of a view for a whole batch: each image its own random parameters.

A step first draws, on the host, then acts, on the device and without chance. What it drew travels with the batch, so
that nothing is asked of the device. The pixel work is kornia's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rela_lightning.data.device.chance import Draws
from rela_lightning.data.device.resample import resample

_TRIES = 10  # as torchvision's RandomResizedCrop


class Step(Protocol):
    """One part of a view."""

    def draw(self, draws: Draws) -> Any:
        """Random parameters of some images: tensors and integers in tuples and lists."""

    def __call__(self, images: Tensor, drawn: Any) -> Tensor:
        """The images `[B, C, H, W]`, float in `[0, 1]`, under these parameters; may write into them."""


@dataclass(frozen=True)
class Crop:
    """A random crop, resized and mirrored: torchvision's `RandomResizedCrop` and flips.

    Attributes:
        size: Height and width of the result; None for those of the images.
        scale: Share of the area that a crop covers, from and to; None for the whole image.
        ratio: Width over height of a crop, from and to.
        bicubic: Whether it is resized bicubically, not bilinearly.
        mirror: Probability of a flip, left to right.
        turn: Probability of a flip, upside down.
    """

    size: tuple[int, int] | None = None
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    bicubic: bool = False
    mirror: float = 0.0
    turn: float = 0.0

    def draw(self, sizes: Tensor, draws: Draws) -> Tensor:
        """Boxes, see `resample`, int64 `[B, 6]`, of images of some heights and widths, int `[B, 2]`."""
        flips = [draws.happens(p) for p in (self.mirror, self.turn)]
        whole = torch.cat([torch.zeros_like(sizes), sizes], dim=1)
        boxes = whole if self.scale is None else self._boxes(sizes, draws)
        return torch.cat([boxes.long(), torch.stack(flips, dim=1).long()], dim=1)

    def _boxes(self, sizes: Tensor, draws: Draws) -> Tensor:
        """Top, left, height, width: the first try that fits; where none does, the most of the middle."""
        scale, ratio = self.scale or (1.0, 1.0), self.ratio
        tries = draws.uniform(_TRIES), draws.uniform(_TRIES)
        area = (scale[0] + (scale[1] - scale[0]) * tries[0]) * sizes.float().prod(dim=1, keepdim=True)
        aspect = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * tries[1]).exp()
        drawn = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=2).round().long()
        fits = ((drawn > 0) & (drawn <= sizes[:, None])).all(dim=2)
        chosen = drawn[torch.arange(len(sizes)), fits.long().argmax(dim=1)]
        corner = draws.uniform(2)
        none = ~fits.any(dim=1)
        chosen[none] = self._middle(sizes[none].long())
        room = sizes - chosen
        corners = (corner * (room + 1)).long().minimum(room)
        corners[none] = room[none] // 2
        return torch.cat([corners, chosen], dim=1)

    def _middle(self, sizes: Tensor) -> Tensor:
        height, width = sizes.unbind(dim=1)
        widest, tallest = (height * self.ratio[1]).round().long(), (width / self.ratio[0]).round().long()
        return torch.stack([height.minimum(tallest), width.minimum(widest)], dim=1)

    def __call__(self, pixels: Tensor, sizes: Tensor, boxes: Tensor) -> Tensor:
        """Crops, float `[B, C, *size]` in `[0, 1]`, of uint8 images; see `resample`."""
        height, width = self.size or pixels.shape[-2:]
        return resample(pixels, sizes, boxes, (height, width), bicubic=self.bicubic)


@dataclass(frozen=True)
class Sometimes:
    """Steps that are applied to some of the images."""

    probability: float
    steps: Sequence[Step]

    def draw(self, draws: Draws) -> Any:
        """Which images, and what their steps drew."""
        chosen = draws.happens(self.probability).nonzero().flatten()
        some = draws.fork(chosen)
        return chosen, [step.draw(some) for step in self.steps]

    def __call__(self, images: Tensor, drawn: Any) -> Tensor:
        """Apply them."""
        chosen, each = drawn
        if not len(chosen):
            return images
        some = images[chosen]
        for step, of_step in zip(self.steps, each, strict=True):
            some = step(some, of_step)
        return images.index_copy_(0, chosen, some)


@dataclass(frozen=True)
class Jitter:
    """Brightness, contrast, saturation and hue as torchvision's `ColorJitter`, in an order of each image's own.

    Images are sorted by the part whose turn it is, so that each part is called on neighbours.

    Attributes:
        ranges: Of the four factors, from and to; None leaves a part out. Hue is a share of the circle.
    """

    ranges: tuple[tuple[float, float] | None, ...]

    def draw(self, draws: Draws) -> Any:
        """For each of four turns, how images are sorted, how many go to each part, and their factors `[4, B]`.

        A last sorting, `[5, B]` in all, brings back the order at the start.
        """
        order = draws.uniform(4).argsort(dim=1)
        factors = torch.stack([draws.between(*(r or (1.0, 1.0))) for r in self.ranges], dim=1)
        before, sortings, counts, sorted_factors = torch.arange(len(draws)), [], [], []
        for turn in range(4):
            part, now = order[:, turn].sort(stable=True)
            counts.append(torch.bincount(part, minlength=4).tolist())
            sorted_factors.append(factors[now, part])
            sortings.append(before[now])
            before = now.argsort()
        return torch.stack([*sortings, before]), counts, torch.stack(sorted_factors)

    def __call__(self, images: Tensor, drawn: Any) -> Tensor:
        """Other colours."""
        sortings, counts, factors = drawn
        for turn, each in enumerate(counts):
            groups = torch.split(images[sortings[turn]], each)
            of_groups = torch.split(factors[turn], each)
            images = torch.cat([
                self._part(part, *both) for part, both in enumerate(zip(groups, of_groups, strict=True))
            ])  # fmt: skip
        return images[sortings[-1]]

    def _part(self, part: int, images: Tensor, factors: Tensor) -> Tensor:
        from kornia import enhance

        if self.ranges[part] is None or not len(images):
            return images
        if part == 3:
            return enhance.adjust_hue(images, factors * (2 * math.pi))
        adjust = (
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
        )[part]
        return adjust(images, factors)


@dataclass(frozen=True)
class Grey:
    """Without colour, in one channel or in as many as before."""

    one_channel: bool = False

    def draw(self, draws: Draws) -> None:
        """Nothing is drawn."""

    def __call__(self, images: Tensor, drawn: None) -> Tensor:
        """Grey images."""
        from kornia.color import rgb_to_grayscale

        grey: Tensor = rgb_to_grayscale(images)
        return grey if self.one_channel else grey.repeat(1, images.shape[1], 1, 1)  # the next step may write into it


@dataclass(frozen=True)
class Blur:
    """Gaussian blur; at the border the last pixel goes on.

    Attributes:
        sigmas: Standard deviation, pixels, from and to.
    """

    sigmas: tuple[float, float]

    def draw(self, draws: Draws) -> Tensor:
        """A standard deviation for each image, `[B, 2]`."""
        return draws.between(*self.sigmas)[:, None].repeat(1, 2)

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Blurred images."""
        from kornia.filters import gaussian_blur2d

        side = 2 * math.ceil(3 * self.sigmas[1]) + 1
        blurred: Tensor = gaussian_blur2d(images, (side, side), drawn, border_type="replicate")
        return blurred


@dataclass(frozen=True)
class Solarise:
    """Pixels from a threshold on, in `[0, 1]`, are turned over."""

    threshold: float

    def draw(self, draws: Draws) -> None:
        """Nothing is drawn."""

    def __call__(self, images: Tensor, drawn: None) -> Tensor:
        """Solarised images."""
        from kornia.enhance import solarize

        solarised: Tensor = solarize(images, self.threshold)
        return solarised


@dataclass(frozen=True)
class Normalise:
    """`(pixel - mean) / std` of each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def draw(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Nothing is drawn: both go to the device with the batch."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std

    def __call__(self, images: Tensor, drawn: tuple[Tensor, Tensor]) -> Tensor:
        """Normalised images."""
        mean, std = drawn
        return images.sub(mean).div_(std)
