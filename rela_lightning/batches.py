"""Where images, views and labels are in a batch or a sample of any shape."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rela_lightning.errors import ConfigError, DataError

IMAGE_NAMES = frozenset({"image", "img", "pixel_values", "photo", "picture", "rgb", "jpg", "jpeg", "png", "webp"})
_OTHER_NAMES = re.compile(
    r"((seg|segm|segment|segmentation|flow|edge|normal|target|disparity)|.*(mask|depth|label|box|keypoint|heat))"
    r"(e?s)?(maps?)?"
)
"""Words for what is aligned with an image, or tells of it."""
LABEL_NAMES = ("label", "labels", "target", "targets", "y")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Path = tuple[str, ...]


def walk(item: Any, is_leaf: Callable[[Any, Path], bool], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves inside tuples, lists, dicts and dataclasses, in order, with the keys and positions to each."""
    if is_leaf(item, path):
        yield path, item
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield from walk(value, is_leaf, (*path, str(key)))
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        for position, value in enumerate(item):
            yield from walk(value, is_leaf, (*path, str(position)))
    elif hasattr(item, "__dataclass_fields__"):
        yield from walk(parts_of(item), is_leaf, path)


def parts_of(item: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, also of one with slots."""
    if hasattr(item, "__dict__"):
        return dict(vars(item))
    return {name: getattr(item, name) for name in item.__dataclass_fields__ if hasattr(item, name)}


def names_image(path: Path) -> bool:
    """Whether a key on the way to a part is a usual name of an image."""
    return any(part.lower() in IMAGE_NAMES for part in path)


@functools.lru_cache(maxsize=1024)  # asked of every part of every batch
def names_other(path: Path) -> bool:
    """Whether a key on the way holds a word for something else than an image, as in `depth_map` and `targetMasks`.

    Whole words count: `flower` is no `flow`, and `normalized` no `normal`.
    """
    words = {word.lower() for part in path for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", part)}
    return any(_OTHER_NAMES.fullmatch(word) for word in words)


def leaves(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with their dotted paths (`"0.1"`, `"image"`), in order."""
    for path, tensor in walk(batch, lambda item, _: isinstance(item, Tensor)):
        yield ".".join(path), tensor


def describe(batch: Any) -> list[str]:
    """One line per tensor of a batch: path, dtype, shape."""
    return [f"{path or 'batch'}: {leaf.dtype} {list(leaf.shape)}" for path, leaf in leaves(batch)]


def tensors(value: Any) -> list[Tensor]:
    """All tensors inside a value, in order."""
    return [leaf for _, leaf in leaves(value)]


def find_views(
    batch: Any, rows: int | None, names: Sequence[str] | None = None, *, image: str | None = None
) -> list[Tensor]:
    """All image views in a batch, those of the image that is labelled first.

    Args:
        batch: The batch as the training step gets it: tensors in tuples, lists, dicts or dataclasses.
        rows: Number B of samples in the batch; None takes the shortest view's.
        names: Dotted paths such as `"0.1"` or `"image"`; None takes every float tensor `[k B, C, H, W]`
            (and `[B, V, C, H, W]`, as V views), those with the name of an image first, and of a mask, a depth map or
            the like last.
        image: Dotted path of the image in a sample, where labelling was told it: what is there goes before all others.

    Returns:
        Views, each `[k B, C, H, W]` with k >= 1.

    Raises:
        DataError: If there is none, listing what the batch holds.
    """
    parts = dict(leaves(batch))
    if names is None:
        chosen = _image_leaves(batch, image)
    else:
        missing = [name for name in names if name not in parts]
        if missing:
            raise DataError(
                "`views` names parts that the batch does not have.",
                found=", ".join(missing),
                exists=describe(batch),
                do="use the dotted paths listed",
            )
        chosen = [parts[name] for name in names]
    rows = min((len(leaf) for leaf in chosen), default=0) if rows is None else rows
    views: list[Tensor] = []
    for leaf in chosen:
        views.extend(leaf.unbind(1) if leaf.ndim == 5 else [leaf])
    found = [view.shape[0] for view in views]
    views = [view for view in views if view.shape[0] and view.shape[0] % rows == 0]
    if not views and _single_samples(batch, parts, rows):
        raise DataError(
            "The samples of the training batch are not collated into tensors, which is not supported.",
            expected=f"float tensors [B, C, H, W] with B = {rows}: one tensor for a view of all samples",
            found=f"{type(batch).__name__} of single samples: {', '.join(describe(batch)[:2])}",
            do="let the collate function stack images of one size (torch.utils.data.default_collate), and the data "
            "set's transform resize or crop them to it",
        )
    if not views and found:
        raise DataError(
            "The training batch has another number of rows than samples were drawn.",
            expected=f"{rows} rows, or a multiple of it",
            found=f"{found[0]}",
            do="keep every sample in the collate function; leave bad ones out in the data set or the sampler",
        )
    if not views:
        raise DataError(
            "No image views were found in the training batch.",
            expected=f"float tensors [B, C, H, W] with B = {rows}, the number of samples drawn",
            found=", ".join(describe(batch)) or f"no tensor at all, in {_kinds(batch)}",
            do='name them, for example views=["0.0", "0.1"]',
        )
    return views


def _image_leaves(batch: Any, image: str | None = None) -> list[Tensor]:
    """Float tensors of 4 or 5 axes: the labelled image, what has the name of one, the rest, what is named otherwise."""

    def place(pair: tuple[Path, Tensor]) -> tuple[bool, bool, bool]:
        path = pair[0]
        labelled = image is not None and f"{'.'.join(path)}.".startswith(f"{image}.")
        return not labelled, names_other(path), not names_image(path)

    found = walk(batch, lambda item, _: isinstance(item, Tensor))
    images = [(path, leaf) for path, leaf in found if leaf.is_floating_point() and leaf.ndim in (4, 5)]
    return [leaf for _, leaf in sorted(images, key=place)]


def _kinds(batch: Any) -> str:
    inside = sorted({type(part).__name__ for part in batch}) if isinstance(batch, (list, tuple)) else []
    return type(batch).__name__ + (f" of {', '.join(inside)}" if inside else "")


def _single_samples(batch: Any, parts: dict[str, Tensor], rows: int) -> bool:
    collated = any(part.ndim > 0 and part.shape[0] == rows for part in parts.values())
    listed = isinstance(batch, (list, tuple)) and len(batch) == rows and bool(parts) and not collated
    return rows > 1 and (listed or sum(part.ndim == 3 for part in parts.values()) >= rows)


def find_images(batch: Any) -> Tensor:
    """The images of a batch: its first float tensor `[B, C, H, W]`; of several views, the first.

    What has the name of an image goes first; what has the name of a mask, a depth map or the like goes last.

    Args:
        batch: Tensors in tuples, lists, dicts or dataclasses. `[B, V, C, H, W]` counts as V views.

    Returns:
        Float tensor `[B, C, H, W]`.

    Raises:
        DataError: If there is none, listing what the batch holds.
    """
    for leaf in _image_leaves(batch):
        return leaf if leaf.ndim == 4 else leaf[:, 0]
    raise DataError(
        "No images were found in the batch.",
        expected="a float tensor [B, C, H, W]",
        found=", ".join(describe(batch)) or "no tensor at all",
        do="let the data set's transform return float tensors",
    )


def find_labels(batch: Any, rows: int, path: int | str = "auto", num_classes: int | None = None) -> tuple[str, Tensor]:
    """The labels of a batch, and the path they were found at.

    `auto` takes the integer vector of length B whose path ends in `label`, `labels`, `target`, `targets`
    or `y`; else the only integer vector with values below `num_classes` (an index usually exceeds them).

    Args:
        batch: Tensors in tuples, lists, dicts or dataclasses.
        rows: Number B of images.
        path: Where the labels are: a position, a key, a dotted path (`"1"`, `"meta.label"`) or `auto`.
        num_classes: Upper bound of the labels where known. Values are looked at only under `auto`, which
            waits for the device.

    Returns:
        Dotted path, and integer tensor `[B]`. Negative labels mean "unlabelled".

    Raises:
        DataError: If there are none, or several candidates.
        ConfigError: If `path` names nothing, or something else.
    """
    vectors = {
        name: leaf for name, leaf in leaves(batch) if leaf.dtype in _INTEGERS and leaf.shape == torch.Size([rows])
    }
    if path != "auto":
        if str(path) not in vectors:
            raise ConfigError(
                f"labels={path!r} does not name the labels of the batch.",
                expected=f"the path of an integer vector of length {rows}",
                exists=describe(batch),
                do="pass one of the paths listed",
            )
        return str(path), vectors[str(path)].long()
    named = {name: leaf for name, leaf in vectors.items() if name.rsplit(".", 1)[-1] in LABEL_NAMES}
    candidates = named or {
        name: leaf for name, leaf in vectors.items() if num_classes is None or int(leaf.max()) < num_classes
    }
    if vectors and not candidates:
        raise DataError(
            f"No vector of the batch holds labels of {num_classes} classes.",
            expected=f"one integer vector of length {rows} with values below num_classes={num_classes}",
            found=", ".join(f"{name} up to {int(leaf.max())}" for name, leaf in vectors.items()),
            do="raise num_classes, or say where the labels are, for example labels=1",
        )
    if len(candidates) != 1:
        raise DataError(
            "The labels of the batch could not be told.",
            expected=f"one integer vector of length {rows}"
            + ("" if num_classes is None else f" with values below num_classes={num_classes}"),
            found=", ".join(candidates) or "none",
            exists=describe(batch),
            do='say where they are, for example labels=1 or labels="meta.label"',
        )
    ((name, labels),) = candidates.items()
    return name, labels.long()


def leading_views(batch: Any) -> list[Tensor]:
    """The float images `[B, C, H, W]` a batch starts with, flat or as a list; empty if it starts otherwise."""
    if not isinstance(batch, (list, tuple)) or not batch:
        return []
    nested = isinstance(batch[0], (list, tuple))
    parts = batch[0] if nested else batch
    views = list(itertools.takewhile(_is_image, parts))
    return views if not nested or len(views) == len(parts) else []


def _is_image(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 4 and part.is_floating_point()
