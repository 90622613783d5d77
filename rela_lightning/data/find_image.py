"""Which part of a sample is the image: found by its name, or because nothing else can be one; never by its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from rela_lightning.batches import Path, names_image, names_other, parts_of, walk
from rela_lightning.errors import DataError

_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_LEAST_SIDE = 5  # what is narrower are boxes and points


def find_image(item: Any) -> Any:
    """The image in a sample.

    A sample may be the image itself, or hold it at any depth of tuples, lists and dicts. Of several candidates one is
    taken if it has the name of an image (`image`, `img`, `rgb`, ...), or if no other could be one: a photo in colour
    beside masks, depth maps, boxes or greyscale images.

    Args:
        item: What a data set gave for a row.

    Returns:
        A PIL image, tensor or array; None if there is none.

    Raises:
        DataError: If there are several that differ, naming where they are.
    """
    found = list(walk(item, lambda value, where: _is_image(value, alone=not where)))
    for key in (_named, _not_named_otherwise, _strength):
        best = max(map(key, found), default=0)
        found = [pair for pair in found if key(pair) == best]
    if len(found) > 1 and not all(_same(found[0][1], other) for _, other in found[1:]):
        raise DataError(
            "A sample holds several images, and nothing says which one is meant.",
            expected="one image, or one with a name such as image",
            found=", ".join(f"{'.'.join(where)}: {_size(value)}" for where, value in found[:8]),
            do=f'say where it is: build_targets(..., image="{".".join(found[0][0])}"), rela targets --image'
            + _unless_views([value for _, value in found]),
        )
    return found[0][1] if found else None


class ImageAt(Dataset[Any]):
    """One part of each sample of a data set.

    Args:
        dataset: Map-style.
        where: Path of the part, keys and positions with dots between: `image`, `0`, `views.1`.
    """

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset, self.where = dataset, where

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        """The part of a row.

        Raises:
            DataError: If the sample has no such part.
        """
        return image_in(self.dataset[row], self.where, f"Row {row} of the data set")


def image_in(sample: Any, where: str | None, name: str) -> Any:
    """The image in a sample: the part that is named, else what `find_image` finds.

    Args:
        sample: What a data set gave.
        where: Path of the part; None to find it.
        name: Of the sample, for an error.

    Raises:
        DataError: If the sample has no such part.
    """
    if where is None:
        return find_image(sample)
    try:
        return part_at(sample, where.split("."))
    except LookupError as error:
        raise DataError(
            f"{name} has nothing at `{where}`.",
            expected="keys, names of fields and positions with dots between",
            found=type(sample).__name__,
            exists=list(sample) if isinstance(sample, Mapping) else None,
        ) from error


def part_at(item: Any, where: Sequence[str]) -> Any:
    """The part of a sample at a path as `walk` has it; a key may hold dots itself, as `left.jpg`.

    Raises:
        LookupError: If there is none.
    """
    if not where:
        return item
    for length in range(1, len(where) + 1):
        try:
            return part_at(_child(item, ".".join(where[:length])), where[length:])
        except (LookupError, TypeError, ValueError):
            continue
    raise LookupError(where)


def _child(item: Any, name: str) -> Any:
    if isinstance(item, Mapping):
        return {str(key): value for key, value in item.items()}[name]
    return parts_of(item)[name] if hasattr(item, "__dataclass_fields__") else item[int(name)]


def image_at(dataset: Any, where: str | None) -> Any:
    """The data set itself, or the part of its samples that is the image."""
    return dataset if where is None else ImageAt(dataset, where)


def _is_image(item: Any, *, alone: bool) -> bool:
    if isinstance(item, (Tensor, np.ndarray)):
        return item.ndim in (2, 3) and (alone or item.ndim == 3 or min(item.shape) >= _LEAST_SIDE)
    return hasattr(item, "convert") and hasattr(item, "mode")  # PIL


def _named(pair: tuple[Path, Any]) -> int:
    return names_image(pair[0])


def _not_named_otherwise(pair: tuple[Path, Any]) -> int:
    return not names_other(pair[0])


def _strength(pair: tuple[Path, Any]) -> int:
    """2 for colour, 1 for PIL images and stacks of planes, 0 for what may be anything."""
    value = pair[1]
    if not isinstance(value, (Tensor, np.ndarray)):
        return 2 if value.mode in _COLOUR else 1
    if value.ndim == 2:
        return 0
    channels, *sides = value.shape if isinstance(value, Tensor) else (value.shape[-1], *value.shape[:-1])
    if channels in (3, 4) and min(sides) >= _LEAST_SIDE:
        return 2
    return int(channels == 1 or sorted(value.shape)[1] >= _LEAST_SIDE)


def _same(one: Any, two: Any) -> bool:
    if one is two:
        return True
    first, second = np.asarray(one), np.asarray(two)
    return type(one) is type(two) and first.shape == second.shape and bool((first == second).all())


def _unless_views(images: Sequence[Any]) -> str:
    """What to do instead where the images look like views of one: float tensors of one shape."""
    floats = all(isinstance(image, Tensor) and image.is_floating_point() for image in images)
    if not floats or len({image.shape for image in images}) > 1:
        return ""
    return (
        "; where they are views of one image, label the same data set built without its augmentation: of a data set's "
        "own attributes only `transform` is set aside"
    )


def _size(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {list(value.shape)}"
    return f"PIL {value.mode} {value.height} x {value.width}"
