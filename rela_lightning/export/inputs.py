"""What an exported network takes: channels, size and normalisation of its images, as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from rela_lightning.errors import ConfigError


class Inputs(NamedTuple):
    """Images `[N, channels, size, size]`, from [0, 1] minus `mean` over `std`; None where unknown."""

    channels: int
    size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @property
    def normalisation(self) -> str:
        """One sentence for a reader."""
        if self.mean is None or self.std is None:
            return "unknown: that of the training data"
        return f"RGB in [0, 1], minus {list(self.mean)}, divided by {list(self.std)}"


def inputs_of(
    network: nn.Module | None,
    facts: Mapping[str, Any],
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Inputs:
    """What is given; else what the run states; else what the network itself says.

    Args:
        network: The backbone, for its channels and a fixed size.
        facts: `run.json`; `image_size`, `mean` and `std` are read from it, or from its `data`.
        image_size: Side of the images, pixels.
        mean: Per-channel mean that is subtracted, on the [0, 1] scale.
        std: Per-channel standard deviation that is divided by.

    Raises:
        ConfigError: For values out of range, or one of `mean` and `std` alone.
    """
    channels = _channels(network)
    if (mean is None) != (std is None):
        raise ConfigError("`mean` and `std` belong together.", found=f"mean={mean}, std={std}")
    if image_size is not None and image_size < 1:
        raise ConfigError("`image_size` is out of range.", expected="pixels, at least 1", found=image_size)
    if mean is not None and std is not None and (len(mean) != channels or len(std) != channels or min(std) <= 0):
        raise ConfigError(
            "The normalisation cannot be used.",
            expected=f"{channels} numbers each, those of std above 0",
            found=f"mean={list(mean)}, std={list(std)}",
        )
    if mean is None:
        stated_mean, stated_std = _numbers(_stated(facts, "mean")), _numbers(_stated(facts, "std"))
        mean, std = (stated_mean, stated_std) if stated_mean and stated_std else (None, None)
    size = image_size or _fixed_size(network) or _stated(facts, "image_size")
    return Inputs(
        channels,
        size if isinstance(size, int) else None,
        tuple(mean) if mean is not None else None,
        tuple(std) if std is not None else None,
    )


def _channels(network: nn.Module | None) -> int:
    modules = network.modules() if network is not None else ()
    return next((module.in_channels for module in modules if isinstance(module, nn.Conv2d)), 3)


def _fixed_size(network: nn.Module | None) -> int | None:
    """The one size a transformer takes: timm's `patch_embed.img_size`, torchvision's `image_size`."""
    size = getattr(getattr(network, "patch_embed", None), "img_size", None) or getattr(network, "image_size", None)
    size = size[0] if isinstance(size, Sequence) else size
    return size if isinstance(size, int) else None


def _stated(facts: Mapping[str, Any], name: str) -> Any:
    data = facts.get("data")
    places = [facts, *([data, data.get("init_args")] if isinstance(data, Mapping) else [])]
    return next((place[name] for place in places if isinstance(place, Mapping) and place.get(name) is not None), None)


def _numbers(value: Any) -> tuple[float, ...] | None:
    numbers = isinstance(value, Sequence) and all(isinstance(number, (int, float)) for number in value)
    return tuple(float(number) for number in value) if numbers and value else None
