"""Faults that images and their preprocessing show by themselves, each a pure function that gives a finding or None."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LEAST_SAMPLES = 32
"""Images below which nothing is said of what a prior makes of them."""
TOO_MANY = 0.02
"""Share of blank or repeated images that is remarked on."""
NO_BETTER = "no better than a random network"
GREY_SHARE = 0.95
LARGEST_ZOOM = 8.0
"""Times an image may be enlarged for the prior: 32 px shown at 224 passes, 16 px does not."""
SPANS = (0.2, 50.0)
"""What a preprocessing may make of the step from black to white; the usual ones make 1 to 5 of it."""
OFF, BETTER = 0.4, 4.0
"""Inputs of a batch norm are off above this divergence, if another scale divides it by this much."""
KNOWN_SCALES = {
    "pixels in [0, 1]": ((0.0,) * 3, (1.0,) * 3),
    "mean and std .5": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "pixels in [0, 255]": ((0.0,) * 3, (1 / 255,) * 3),
}

Pixels = NDArray[np.floating[Any]]


class Finding(NamedTuple):
    """Something that is wrong, or looks so.

    Attributes:
        name: Of the fault.
        found: What was seen, in a sentence.
        do: What to do about it.
    """

    name: str
    found: str
    do: str

    def __str__(self) -> str:
        """A paragraph."""
        return f"{self.name}: {self.found}\n  hint: {self.do}"


class Seen(NamedTuple):
    """What is kept of an image: a sample of large photos would not fit into memory.

    Attributes:
        side: The shorter one, pixels.
        digest: Of its pixels.
        flat: Whether it is of one colour.
        plain: Whether it has no colour.
    """

    side: int
    digest: bytes
    flat: bool
    plain: bool

    @classmethod
    def of(cls, image: Pixels) -> Seen:
        """Look at an image `[C, H, W]` in [0, 255]."""
        digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest()
        return cls(min(image.shape[1:]), digest, _flat(image), float(np.ptp(image, axis=0).mean()) < 1.0)


def repeated(images: Sequence[Seen]) -> Finding | None:
    """Images that are there more than once."""
    seen = [image.digest for image in images if not image.flat]
    again = len(seen) - len(set(seen))
    if not seen or again / len(images) < TOO_MANY:
        return None
    return Finding(
        "duplicates",
        f"{again} of {len(images)} sampled images are there already, pixel for pixel.",
        "take them out, or see whether a wrapper repeats the data set: they weigh more, and validation may know them",
    )


def blank(images: Sequence[Seen]) -> Finding | None:
    """Images of one colour."""
    count = sum(image.flat for image in images)
    if count / len(images) < TOO_MANY:
        return None
    return Finding(
        "blank images",
        f"{count} of {len(images)} sampled images are of one colour.",
        "see how they are read (a missing file, a mask, a channel in place of the image) and leave them out",
    )


def grey(images: Sequence[Seen], colour_prior: bool) -> Finding | None:
    """Images without colour for a prior that was trained on colours."""
    plain = sum(image.plain for image in images)
    if not colour_prior or plain / len(images) < GREY_SHARE:
        return None
    return Finding(
        "grey images",
        f"{plain} of {len(images)} sampled images have no colour; the prior's normalisation is that of coloured ones.",
        "see whether colour is lost in reading; if there is none, compare with a prior for grey images",
    )


def tiny(images: Sequence[Seen], input_side: int) -> Finding | None:
    """Images that are far smaller than what the prior takes."""
    side = int(np.median([image.side for image in images]))
    if input_side <= LARGEST_ZOOM * side:
        return None
    return Finding(
        "tiny images",
        f"the images are {side} px and are enlarged {input_side / side:.0f} times for the prior.",
        "see whether thumbnails are read; else load the prior with a smaller `image_size`, where it takes one",
    )


class Levels(NamedTuple):
    """What a preprocessing makes of flat images, medians `[C]`."""

    black: Tensor
    white: Tensor


def levels(preprocess: Callable[[Any], Tensor]) -> Levels:
    """Black and white through a preprocessing that takes PIL images or uint8 tensors."""
    return Levels(*(_through(preprocess, (level,) * 3) for level in (0, 255)))


def wrong_scale(found: Levels) -> Finding | None:
    """Pixels that are scaled twice, not at all, or turned over."""
    span = float((found.white - found.black).mean())
    if span < 0 and abs(span) >= SPANS[0]:
        return Finding(
            "inverted preprocessing",
            f"black becomes {float(found.black.mean()):.3g} and white {float(found.white.mean()):.3g}.",
            "take out the inversion, unless the prior was trained with it",
        )
    if abs(span) < SPANS[0]:
        return Finding(
            "rescaled twice",
            f"black and white differ by {span:.2g} after preprocessing: the prior sees hardly anything.",
            "divide by 255 once: ToTensor and ToDtype(scale=True) do so already",
        )
    if span > SPANS[1]:
        return Finding(
            "not rescaled",
            f"black and white differ by {span:.3g} after preprocessing.",
            "bring pixels to [0, 1] before the normalisation: ToDtype(torch.float32, scale=True)",
        )
    return None


def swapped_channels(preprocess: Callable[[Any], Tensor], found: Levels) -> Finding | None:
    """Red and blue in each other's place."""
    if len(found.black) != 3:
        return None
    span = found.white - found.black
    red, blue = ((_through(preprocess, colour) - found.black) / span for colour in ((255, 0, 0), (0, 0, 255)))
    if not (float(red[2] - red[0]) > 0.5 and float(blue[0] - blue[2]) > 0.5):
        return None
    return Finding(
        "swapped channels",
        "a red image reaches the prior as blue.",
        "take out the swap (BGR is the order of OpenCV and of Caffe's models), unless the prior was trained so",
    )


def other_normalisation(network: nn.Module, inputs: Tensor, found: Levels) -> Finding | None:
    """Whether the prior's first batch norm has seen inputs on another scale: its running statistics tell.

    Args:
        network: The prior: it casts its inputs to the type of its weights.
        inputs: Preprocessed images `[n, 3, H, W]`.
        found: Levels of the preprocessing.
    """
    given = divergence(network, inputs)
    if given is None or given < OFF or inputs.shape[1] != 3:
        return None
    black, white = (level.to(inputs).view(-1, 1, 1) for level in found)
    plain = (inputs - black) / (white - black)
    tried = {
        name: divergence(
            network, (plain - plain.new_tensor(mean).view(-1, 1, 1)) / plain.new_tensor(std).view(-1, 1, 1)
        )
        for name, (mean, std) in KNOWN_SCALES.items()
    }
    known = {name: value for name, value in tried.items() if value is not None}
    best = min(known, key=lambda name: known[name])
    if known[best] * BETTER > given:
        return None
    return Finding(
        "other normalisation",
        f"the first batch norm of the prior sees inputs {given:.2g} away from those of its training; with {best} they "
        f"are {known[best]:.2g} away.",
        "load the prior with the mean and std it was trained with",
    )


def divergence(network: nn.Module, inputs: Tensor) -> float | None:
    """How far the inputs of the first batch norm are from its running statistics; None without one that was trained.

    Symmetric Kullback-Leibler divergence of normal distributions, at most 50 a channel, mean over channels.
    """
    norm = next((part for part in network.modules() if isinstance(part, nn.BatchNorm2d)), None)
    if norm is None or norm.running_mean is None or norm.running_var is None or not bool(norm.running_mean.any()):
        return None
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().float()))
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        handle.remove()
    if not seen:
        return None
    mean, variance = seen[0].mean(dim=(0, 2, 3)), seen[0].var(dim=(0, 2, 3))
    known_mean, known = norm.running_mean.float(), norm.running_var.float()
    known = known.clamp_min(1e-5 * float(known.max()))
    variance = variance.clamp_min(max(1e-5 * float(variance.max()), 1e-30))
    apart = (variance / known + known / variance - 2 + (mean - known_mean).square() * (1 / variance + 1 / known)) / 4
    return float(apart.clamp_max(50.0).mean())


def _flat(image: Pixels) -> bool:
    return bool(np.ptp(image.reshape(len(image), -1), axis=1).max() < 2.0)


def _through(preprocess: Callable[[Any], Tensor], colour: tuple[int, int, int]) -> Tensor:
    """Median of each channel of a flat image after preprocessing."""
    from PIL import Image

    try:
        made = preprocess(Image.new("RGB", (64, 64), colour))
    except Exception:  # made for tensors, and free in how it says so
        made = preprocess(torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, 64, 64))
    return made.detach().double().flatten(1).median(dim=1).values
