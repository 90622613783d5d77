"""Crops of a batch, each image its own box, resized to one size: two matrix products.

A resize is linear along each side, so a crop that is resized, and mirrored or not, is `rows @ image @ columns^T`. The
weights are those of torchvision's and Pillow's antialiased resize of the cropped image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resample(pixels: Tensor, sizes: Tensor, boxes: Tensor, out: tuple[int, int], *, bicubic: bool = False) -> Tensor:
    """The boxes of some images, resized.

    Args:
        pixels: Images, uint8 `[B, C, H, W]`.
        sizes: Height and width `[B, 2]` that the boxes are measured in: those of the images before they were resized
            to `[H, W]`.
        boxes: Top, left, height, width, mirrored, upside down; integers `[B, 6]`, one box for each image.
        out: Height and width of the result.
        bicubic: Bicubic weights instead of bilinear ones.

    Returns:
        Float32 `[B, C, *out]` in `[0, 1]`.
    """
    rows, columns = (_weights(pixels.shape[2 + side], sizes, boxes, out, side, bicubic) for side in (0, 1))
    images = pixels.float().div_(255.0)
    made = rows[:, None] @ (images @ columns[:, None].transpose(-1, -2))
    return made.clamp_(0.0, 1.0) if bicubic else made


def _weights(kept: int, sizes: Tensor, boxes: Tensor, out: tuple[int, int], side: int, bicubic: bool) -> Tensor:  # noqa: PLR0917
    """Weight of each of `kept` pixels in each pixel of the result along a side, `[B, out, kept]`; rows sum to 1.

    Where an image was resized, a crop begins and ends between pixels.
    """
    pixels_each = kept / sizes[:, side].float()
    start, length = boxes[:, side] * pixels_each, boxes[:, side + 2] * pixels_each
    turned, count = boxes[:, 5 - side] > 0, out[side]
    kernel, reach = (_cubic, 2.0) if bicubic else (_triangle, 1.0)
    place = torch.arange(count, device=start.device, dtype=torch.float32) + 0.5
    pixel = torch.arange(kept, device=start.device, dtype=torch.float32)
    step = (length / count)[:, None]
    place = torch.where(turned[:, None], count - place, place)
    centre = (start[:, None] + place * step)[..., None]
    weights = kernel(((pixel + 0.5 - centre) / step.clamp(min=1.0)[..., None]).abs().clamp_(max=reach))
    end = (start + length)[:, None, None]
    outside = (pixel < start[:, None, None].floor()) | (pixel >= end.ceil())
    weights = weights.masked_fill_(outside, 0.0)
    return weights.div_(weights.sum(dim=-1, keepdim=True))


def _triangle(distance: Tensor) -> Tensor:
    return 1.0 - distance


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as Pillow has it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return torch.where(distance < 1.0, near, far)
