"""Images that are decoded once and kept in memory, as 8-bit pixels of one size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from rela_lightning.data.copies import copied, rebuilt
from rela_lightning.data.crops import size_of
from rela_lightning.data.find_image import image_at
from rela_lightning.data.images import RGBImages
from rela_lightning.data.raw import past_cache
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.memory import free_memory

_SHARE = 0.8  # of the free memory that images may take: training needs some too
_BATCH = 64


class Origin(NamedTuple):
    """What an image in memory says of itself, in its attribute `origin`.

    Attributes:
        row: Its row in the data set.
        size: Height and width that it had before it was resized.
    """

    row: int
    size: tuple[int, int]


class InMemory(Dataset[tuple[Tensor, int]]):
    """The images of another data set, decoded: `dataset[i] -> (uint8 [3, h, w], label)`.

    Made by `decode`. Rows and all other attributes are those of `dataset`.

    Args:
        dataset: Where they are from.
        pixels: Uint8 `[N, 3, h, w]`.
        sizes: Height and width of each before it was resized, int32 `[N, 2]`.
        labels: Int64 `[N]`.
    """

    def __init__(self, dataset: Any, pixels: Tensor, sizes: Tensor, labels: Tensor) -> None:
        self.dataset, self.pixels, self.sizes, self.labels = dataset, pixels, sizes, labels
        kept = torch.tensor(pixels.shape[-2:], dtype=torch.int32)
        self._resized = bool((sizes != kept).any())

    @property
    def targets(self) -> list[int]:
        """The label of each row."""
        found: list[int] = self.labels.tolist()
        return found

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, where there are any."""
        return getattr(self.dataset, "classes", None)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Pixels, which know their `Origin`, and label."""
        image = self.pixels[index]
        size = self.sizes[index].tolist() if self._resized else image.shape[1:]
        image.origin = Origin(int(index), tuple(size))  # type: ignore[attr-defined]
        return image, int(self.labels[index])


def originals(dataset: Any, where: str | None) -> Any:
    """What labelling reads, a copy: originals, in whose pixels crops are noted, in place of what memory keeps of them.

    Args:
        dataset: Map-style; may hold images made by `decode`, at any depth.
        where: Dotted path of the image in a sample; None for the sample itself.
    """
    return image_at(past_cache(_undecoded(copied(dataset))), where)


def _undecoded(dataset: Any) -> Any:
    return dataset.dataset if isinstance(dataset, InMemory) else rebuilt(dataset, _undecoded)


class _Kept(NamedTuple):
    pixels: Tensor  # uint8 [3, h, w]
    size: Tensor  # int32 [2], that crops are measured in


class _Keep:
    """From a PIL image to what is kept of it."""

    def __init__(self, shape: tuple[int, int], part: Callable[[Any], Any] | None) -> None:
        self.shape, self.part = shape, part

    def __call__(self, image: Any) -> _Kept:
        image = image if self.part is None else self.part(image)
        size = size_of(image)
        kept = image if size == self.shape else F.resize(image, list(self.shape), antialias=True)
        return _Kept(F.pil_to_tensor(kept), torch.tensor(size, dtype=torch.int32))


def decode(
    source: Any,
    most: int,
    *,
    part: Callable[[Any], Any] | None = None,
    num_workers: int = 0,
    processes: int = 1,
    what: str = "images",
) -> InMemory:
    """Decode all images of a data set into memory.

    Images of one size stay as they are, but for sides above `most`, which become `most`. Images of several sizes are
    all resized to `most` x `most`: nothing is cut off, and crops are drawn in the proportions that they had.

    Args:
        source: Map-style, `source[i]` a PIL image and an integer label.
        most: Largest height and width that is kept, pixels.
        part: Gives the part of a PIL image that is kept in its place, `most` x `most`; None for the whole of it.
        num_workers: Processes that decode.
        processes: How many on this machine keep a copy.
        what: The name of these images in what is said about them.

    Raises:
        ConfigError: For options out of range.
        DataError: If there are none, or they do not fit into memory.

    Example:
        >>> from rela_lightning.data import Digits
        >>> decode(Digits("test"), most=32)[7][1] == Digits("test")[7][1]
        True
    """
    if most < 1 or num_workers < 0 or processes < 1:
        raise ConfigError(
            "Images cannot be decoded with these settings.",
            expected="most >= 1, num_workers >= 0, processes >= 1",
            found=f"most={most}, num_workers={num_workers}, processes={processes}",
        )
    if not len(source):
        raise DataError(f"There are no {what} to keep in memory.", expected="at least one", found=type(source).__name__)
    first = size_of(RGBImages(source)[0][0])
    shape = (most, most) if part is not None else (min(first[0], most), min(first[1], most))
    made = None
    while made is None:
        _check_room(len(source), shape, processes, what)
        made = _decoded(
            RGBImages(source, _Keep(shape, part)), shape, num_workers, None if shape == (most, most) else first
        )
        found, shape = shape, (most, most)
    rank_zero_info(f"In memory: {len(made):,} {what}, {found[0]} x {found[1]} px, {_in_words(made.pixels.nbytes)}.")
    return made


def _decoded(
    images: RGBImages, shape: tuple[int, int], num_workers: int, alike: tuple[int, int] | None
) -> InMemory | None:
    """The images at one shape; None as soon as one is not of the size that all should have."""
    count = len(images)
    pixels = torch.empty(count, 3, *shape, dtype=torch.uint8)
    sizes, labels = torch.empty(count, 2, dtype=torch.int32), torch.empty(count, dtype=torch.int64)
    # a loader draws a seed for its workers; from its own generator, the global random state stays
    loader = DataLoader(images, _BATCH, num_workers=num_workers, generator=torch.Generator())
    for number, (kept, label) in enumerate(loader):
        rows = slice(number * _BATCH, number * _BATCH + len(label))
        pixels[rows], sizes[rows], labels[rows] = kept.pixels, kept.size, label
        if alike is not None and bool((sizes[rows] != torch.tensor(alike)).any()):
            return None
    return InMemory(images.dataset, pixels, sizes, labels)


def _check_room(count: int, shape: tuple[int, int], processes: int, what: str) -> None:
    needed, free = count * 3 * math.prod(shape) * processes, free_memory()
    if free is not None and needed > _SHARE * free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise DataError(
            f"The {what} do not fit into memory.",
            expected=f"at most {_in_words(_SHARE * free)}, {_SHARE:.0%} of what is free",
            found=f"{count:,} of {shape[0]} x {shape[1]} px{each}: {_in_words(needed)}",
            do="leave device_views out, so that views are made one image at a time, from the files; or keep the images "
            "smaller: stored_size, image_size",
        )


def _in_words(number: float) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if number >= 2**power:
            return f"{number / 2**power:.1f} {unit}" if unit == "GiB" else f"{number / 2**power:.0f} {unit}"
    return f"{number / 2**10:.0f} KiB"
