"""What happens to an image before a prior sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rela_lightning.data.channels import with_channels
from rela_lightning.data.thin import middle
from rela_lightning.errors import PriorError

Fit = Literal["shortest", "squash", "longest"]


@dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop, scale to [0, 1] and normalise one image.

    A PIL image goes through PIL's resize and a tensor through torch's, both with antialiasing, as in
    the libraries the priors come from; the two differ by a few of 255 levels at most.

    Args:
        image_size: Height and width of the result, in pixels.
        mean: Mean of each channel, on the [0, 1] scale; their number is the number of channels.
        std: Standard deviation of each channel, on the [0, 1] scale.
        resize: Height and width to resize to before the crop; `None` for `image_size`.
        interpolation: `bicubic`, `bilinear`, `nearest` or another name that torchvision knows.
        fit: `shortest` keeps the aspect ratio and covers `resize`, `longest` keeps it and stays
            inside (the rest is black), `squash` gives it up.

    Example:
        >>> from PIL import Image
        >>> preprocess = Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        >>> preprocess(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 224, 224])
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    fit: Fit = "shortest"

    def __call__(self, image: Any) -> Tensor:
        """Preprocess one image.

        Args:
            image: PIL image, or tensor `[..., C, H, W]`, uint8 or float in [0, 1]. Gray becomes
                colour, colour becomes gray and an alpha channel is dropped, as the prior needs it.

        Returns:
            Float32 tensor `[..., len(mean), *image_size]`.

        Raises:
            DataError: If it is no such image.
        """
        import torchvision.transforms.v2.functional as F

        image = with_channels(image, len(self.mean))
        if self.fit == "shortest":
            image = middle(image, self.resize or self.image_size, self.image_size)
        image = self._resized(image, F)
        image = F.center_crop(image, list(self.image_size))
        tensor = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
        tensor = F.to_dtype(tensor, torch.float32, scale=True).clamp(0.0, 1.0)  # bicubic overshoots
        normalised: Tensor = F.normalize(tensor, list(self.mean), list(self.std), inplace=True)
        return normalised

    def _resized(self, image: Any, F: ModuleType) -> Any:
        from torchvision.transforms import InterpolationMode

        height, width = F.get_size(image)
        target = self.resize or self.image_size
        if self.fit == "squash":
            size = list(target)
        elif self.fit == "shortest" and target[0] == target[1]:
            size = [target[0]]  # torchvision's own rounding of the longer side
        else:
            pick = max if self.fit == "shortest" else min
            ratio = pick(target[0] / height, target[1] / width)
            size = [max(1, round(height * ratio)), max(1, round(width * ratio))]
        return F.resize(image, size, interpolation=InterpolationMode(self.interpolation), antialias=True)


@dataclass(frozen=True)
class EachPreprocess:
    """Several preprocessings of one image side by side, for a fusion of priors; gives a tuple."""

    parts: tuple[Any, ...]

    def __call__(self, image: Any) -> tuple[Tensor, ...]:
        """One float32 tensor `[..., C, H, W]` for each part."""
        return tuple(preprocessed(part, image) for part in self.parts)


def preprocessed(preprocess: Callable[[Any], Any], image: Any) -> Any:
    """What a prior's preprocessing makes of an image, in whatever form that comes.

    A preprocessing of the user's own takes what it was promised, single images of 8 bits: one that divides by 255
    would make floats in [0, 1] black.

    Args:
        preprocess: `Preprocess`, `EachPreprocess`, or the user's.
        image: PIL image, or tensor `[..., C, H, W]`, uint8 or float in [0, 1].

    Returns:
        Float tensor `[..., C, H, W]`, or several for a fusion of priors.
    """
    if isinstance(preprocess, (Preprocess, EachPreprocess)) or not isinstance(image, Tensor):
        return preprocess(image)
    if image.is_floating_point():
        image = (image * 255).round().to(torch.uint8)
    return torch.stack([preprocess(one) for one in image]) if image.ndim > 3 else preprocess(image)


def customised(
    own: Preprocess | None,
    network: nn.Module,
    *,
    image_size: int | None,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
) -> Preprocess:
    """The prior's own preprocessing with the user's settings over it.

    With `image_size` the shorter side is resized to exactly that and the centre is cropped; without
    an own preprocessing all three settings are needed.
    """
    if image_size is not None and (not isinstance(image_size, int) or image_size < 1):
        raise PriorError("`image_size` is a number of pixels.", expected="an int above 0", found=image_size)
    channels = first_channels(network) or (len(own.mean) if own else None)
    if own is None:
        missing = [name for name, value in (("image_size", image_size), ("mean", mean), ("std", std)) if value is None]
        if image_size is None or missing:
            raise PriorError(
                "This prior carries no preprocessing of its own.",
                expected="`preprocess=`, or `image_size=`, `mean=` and `std=`",
                found=f"no {', no '.join(missing)}",
                do="say what it was trained on, for example "
                "image_size=32, mean=0.5, std=0.5 (--prior_kwargs '{image_size: 32, mean: 0.5, std: 0.5}')",
            )
        own = Preprocess((image_size, image_size), (), ())
    elif image_size is not None:
        own = Preprocess((image_size, image_size), own.mean, own.std)
    return replace(
        own,
        mean=per_channel("mean", own.mean if mean is None else mean, channels),
        std=per_channel("std", own.std if std is None else std, channels),
    )


def per_channel(name: str, values: float | Sequence[float], channels: int | None) -> tuple[float, ...]:
    """One float for each channel; a single value is repeated, a gray prior gets the average."""
    given = tuple(float(v) for v in (values if isinstance(values, Sequence) else (values,)))
    if not all(map(math.isfinite, given)) or (name == "std" and 0.0 in given):
        raise PriorError(
            f"Images cannot be normalised with this `{name}`.",
            expected="a number, or one for each channel, of images in [0, 1]" + ("; not zero" if name == "std" else ""),
            found=values,
        )
    if channels is None or len(given) == channels:
        return given
    if len(given) == 1:
        return given * channels
    if channels == 1:
        return (sum(given) / len(given),)
    raise PriorError(
        f"`{name}` does not fit the network's channels.",
        expected=f"{channels} values",
        found=values,
    )


def first_channels(network: nn.Module) -> int | None:
    """Input channels of the network's first convolution; `None` without one."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None
