"""Find the image views inside a batch of any shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from rela_lightning.batches import describe, leaves
from rela_lightning.errors import DataError


def tensors(value: Any) -> list[Tensor]:
    """All tensors inside a value, in order."""
    return [leaf for _, leaf in leaves(value)]


def find_views(batch: Any, rows: int | None, names: Sequence[str] | None = None) -> list[Tensor]:
    """All image views in a batch, in order.

    Args:
        batch: The batch as the training step gets it: tensors in tuples, lists, dicts or dataclasses.
        rows: Number B of samples in the batch; None takes the shortest view's.
        names: Dotted paths such as `"0.1"` or `"image"`; None takes every float tensor `[k B, C, H, W]`
            (and `[B, V, C, H, W]`, as V views).

    Returns:
        Views, each `[k B, C, H, W]` with k >= 1.

    Raises:
        DataError: If there is none, listing what the batch holds.
    """
    parts = dict(leaves(batch))
    if names is None:
        chosen = [leaf for leaf in parts.values() if leaf.is_floating_point() and leaf.ndim in (4, 5)]
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


def _kinds(batch: Any) -> str:
    inside = sorted({type(part).__name__ for part in batch}) if isinstance(batch, (list, tuple)) else []
    return type(batch).__name__ + (f" of {', '.join(inside)}" if inside else "")


def _single_samples(batch: Any, parts: dict[str, Tensor], rows: int) -> bool:
    collated = any(part.ndim > 0 and part.shape[0] == rows for part in parts.values())
    listed = isinstance(batch, (list, tuple)) and len(batch) == rows and bool(parts) and not collated
    return rows > 1 and (listed or sum(part.ndim == 3 for part in parts.values()) >= rows)


def shrink(images: Tensor, size: int) -> Tensor:
    """Images `[B, C, H, W]` at `[B, C, size, size]` (bilinear, antialiased), unless they are that small already."""
    if max(images.shape[-2:]) <= size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
