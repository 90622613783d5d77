"""Find the images and the labels inside a batch of any shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rela_lightning.batches import describe, leaves
from rela_lightning.errors import ConfigError, DataError

LABEL_NAMES = ("label", "labels", "target", "targets", "y")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def find_images(batch: Any) -> Tensor:
    """The images of a batch: its first float tensor `[B, C, H, W]`; of several views, the first.

    Args:
        batch: Tensors in tuples, lists, dicts or dataclasses. `[B, V, C, H, W]` counts as V views.

    Returns:
        Float tensor `[B, C, H, W]`.

    Raises:
        DataError: If there is none, listing what the batch holds.
    """
    for _, leaf in leaves(batch):
        if leaf.is_floating_point() and leaf.ndim in (4, 5):
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
