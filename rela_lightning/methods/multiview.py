"""The views at the start of a batch, and how several go through a backbone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rela_lightning.batches import describe, leading_views
from rela_lightning.errors import DataError


def two_views(batch: Any, method: str, min_rows: int = 1) -> tuple[Tensor, Tensor]:
    """The two views `[B, C, H, W]` a batch starts with: `([v1, v2], ...)` or `(v1, v2, ...)`.

    Args:
        batch: The batch.
        method: Name of the method that asks, for the message.
        min_rows: Fewest images it can train on.

    Raises:
        DataError: If the batch starts with anything else, or holds too few images.
    """
    views = leading_views(batch)
    if len(views) != 2 or views[0].shape != views[1].shape:
        raise refusal(f"{method} needs two views", "([v1, v2], labels, ...) or (v1, v2, ...), equal in shape", batch)
    _check_rows(views, method, min_rows)
    return views[0], views[1]


def crops(batch: Any, method: str, min_rows: int = 1) -> list[Tensor]:
    """The views of a multi-crop batch: two of one shape `[B, C, H, W]`, then any number, smaller or not.

    Args:
        batch: The batch.
        method: Name of the method that asks, for the message.
        min_rows: Fewest images it can train on.

    Raises:
        DataError: If the batch starts with anything else, or holds too few images.
    """
    views = leading_views(batch)
    if len(views) < 2 or views[0].shape != views[1].shape or len({len(view) for view in views}) > 1:
        expected = "([v1, v2, local, ...], labels, ...) or flat, v1 and v2 equal in shape"
        raise refusal(f"{method} needs two views or more", expected, batch)
    _check_rows(views, method, min_rows)
    return views


def refusal(needs: str, expected: str, batch: Any) -> DataError:
    """The error for a batch without the views that a method needs."""
    return DataError(
        f"{needs} of each image.",
        expected=f"{expected}; views are float tensors [B, C, H, W]",
        found=f"a {type(batch).__name__} of {', '.join(describe(batch)) or 'no tensors'}",
        do="give the data set a transform that returns the views; lightly.transforms has one for each method",
    )


def _check_rows(views: Sequence[Tensor], method: str, min_rows: int) -> None:
    if len(views[0]) < min_rows:
        raise DataError(
            f"{method} cannot train on a batch of so few images.",
            expected=f"at least {min_rows} images in every batch on every device",
            found=len(views[0]),
            do="give the training loader drop_last=True, or another batch size",
        )


def encode_together(encode: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> Tensor:
    """Features `[V B, F]` of V views, view after view; neighbours of one shape go in one call."""
    runs = (list(run) for _, run in itertools.groupby(views, key=lambda view: view.shape))
    return torch.cat([encode(torch.cat(run)) for run in runs])
