"""Crops of a batch of images as boxes: drawn, compared, and cut out all at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from images import MEAN, STD
from torch import Tensor

SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
"""Area and aspect ratio of a crop, as of the transport phase's RandomResizedCrop."""
_TRIES = 10


def whole(count: int, size: int) -> Tensor:
    """The boxes of whole images, not mirrored: int64 `[count, 5]`."""
    return torch.tensor([0, 0, size, size, 0]).repeat(count, 1)


def draw_boxes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Boxes as torchvision's RandomResizedCrop draws them, mirrored with probability .5.

    Ten tries an image for an area and a ratio that fit; the whole image where none does.

    Args:
        count: Number of boxes.
        size: Height and width of the images, pixels.
        generator: Source of chance.

    Returns:
        int64 `[count, 5]`: top, left, height, width, mirror.
    """
    area = torch.empty(count, _TRIES).uniform_(*SCALE, generator=generator) * size * size
    ratio = torch.empty(count, _TRIES).uniform_(*map(math.log, RATIO), generator=generator).exp()
    sides = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round().long()
    fits = (sides <= size).all(dim=2)
    first = fits.long().argmax(dim=1)
    chosen = sides[torch.arange(count), first]
    chosen[~fits.any(dim=1)] = size
    corners = (torch.rand(count, 2, generator=generator) * (size - chosen + 1)).long()
    mirror = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([corners, chosen, mirror], dim=1)


def render(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The crops, resized (bilinear) and mirrored.

    Args:
        images: float `[B, C, H, W]`.
        boxes: `[B, 5]`, one for each image.
        size: Height and width of a crop, pixels.

    Returns:
        float `[B, C, size, size]`.
    """
    height, width = images.shape[2:]
    top, left, tall, wide, mirror = boxes.float().unbind(1)
    theta = torch.zeros(len(boxes), 2, 3)
    theta[:, 0, 0] = wide / width * (1 - 2 * mirror)
    theta[:, 0, 2] = (2 * left + wide) / width - 1
    theta[:, 1, 1] = tall / height
    theta[:, 1, 2] = (2 * top + tall) / height - 1
    grid = F.affine_grid(theta, [len(boxes), images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def overlap(boxes: Tensor, stored: Tensor) -> Tensor:
    """Intersection over union of each box with the stored ones of its image; mirrors are left aside.

    Args:
        boxes: `[B, 5]`.
        stored: `[B, V, 5]`.

    Returns:
        float `[B, V]` in `[0, 1]`.
    """
    ours, theirs = boxes[:, None, :4].float(), stored[..., :4].float()
    begin = torch.maximum(ours[..., :2], theirs[..., :2])
    end = torch.minimum(ours[..., :2] + ours[..., 2:], theirs[..., :2] + theirs[..., 2:])
    both = (end - begin).clamp_min(0).prod(dim=2)
    return both / (ours[..., 2:].prod(dim=2) + theirs[..., 2:].prod(dim=2) - both)


class Colours:
    """Colour jitter (.8, .8, .8, .2) with probability .8 and grayscale with .2, each image its own; then normalised.

    Made by kornia on the batch. One order of the four parts holds for a batch.
    """

    def __init__(self) -> None:
        import kornia.augmentation as K

        self.jitter = K.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)
        self.gray = K.RandomGrayscale(p=0.2)

    def __call__(self, images: Tensor) -> Tensor:
        """Other colours, float in `[0, 1]`."""
        coloured: Tensor = self.gray(self.jitter(images))
        return coloured


def normalise(images: Tensor) -> Tensor:
    """Images in `[0, 1]` as the student takes them."""
    return (images - MEAN[0]) / STD[0]
