"""A check that row i of a batch is made from sample i."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rela_lightning.batches import tensors
from rela_lightning.errors import DataError
from rela_lightning.injection.rows import fingerprints


def check_order(samples: Sequence[Any], batch: Any) -> None:
    """Compare the samples handed to a collate function with the rows it returned, by content.

    Rows that match no sample (the collate function changed their pixels) cannot be checked and pass.

    Args:
        samples: What the data set returned, one entry a sample.
        batch: What the collate function made of them.

    Raises:
        DataError: If a row holds another sample's image, naming both.
    """
    own = [
        [
            (tuple(t.shape), float(fingerprints(t[None])))
            for t in tensors(sample)
            if t.ndim == 3 and t.is_floating_point()
        ]
        for sample in samples
    ]
    owners = {key: position for position, keys in reversed(list(enumerate(own))) for key in keys}
    if not owners:
        return
    for view in tensors(batch):
        if not _rows_of_images(view, len(samples)):
            continue
        shape = tuple(view.shape[1:])
        for position, value in enumerate(fingerprints(view).tolist()):
            key = (shape, value)
            if key in owners and key not in own[position]:
                raise DataError(
                    f"Row {position} of a training batch holds the image of sample {owners[key]}.",
                    expected="a collate function that keeps the order of its samples",
                    found="one that reorders them, so that targets would go to other images",
                    do="let the sampler choose the order, and the collate function keep it",
                )


def _rows_of_images(view: Tensor, samples: int) -> bool:
    return view.ndim == 4 and view.is_floating_point() and view.shape[0] == samples
