"""What every probe asks of features and labels before it uses them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rela_lightning.errors import DataError


class Labelled(NamedTuple):
    """Rows that have a label.

    Attributes:
        features: Finite, float32 `[N, F]`.
        labels: Int64 `[N]`, from 0.
    """

    features: Tensor
    labels: Tensor


def labelled_rows(features: Any, labels: Any, which: str, num_classes: int | None = None) -> Labelled:
    """Features and labels of the rows that have one; rows with a negative label are left out.

    Args:
        features: Tensor or numpy array `[N, F]`.
        labels: Integer tensor or numpy array `[N]`.
        which: Names the rows in messages.
        num_classes: Labels have to be below it; None for any.

    Raises:
        DataError: If they do not pair up, features are not finite, labels are no integers or out of range, or no row
            has a label.
    """
    rows, classes = finite_features(features, which), torch.as_tensor(labels)
    if classes.shape != rows.shape[:1] or classes.is_floating_point() or classes.is_complex() or not len(classes):
        raise DataError(
            f"The {which} features and labels do not pair up.",
            expected="features [N, F] and integer labels [N], N >= 1",
            found=f"features {list(rows.shape)}, labels {list(classes.shape)}, {classes.dtype}",
        )
    known = classes >= 0
    if not bool(known.any()):
        raise DataError(f"No {which} row has a label.", expected="labels from 0", found=f"{len(classes)} negative ones")
    if not bool(known.all()):
        rows, classes = rows[known.to(rows.device)], classes[known]
    classes = classes.long()
    if num_classes is not None and int(classes.max()) >= num_classes:
        raise DataError(
            f"A {which} label is out of range.",
            expected=f"0 to {num_classes - 1}",
            found=f"{int(classes.min())} to {int(classes.max())}",
        )
    return Labelled(rows, classes)


def finite_features(features: Any, which: str) -> Tensor:
    """Features as float32 `[N, F]`.

    Raises:
        DataError: If they have another shape, or hold NaN or infinity, as those of a backbone that has diverged.
    """
    rows = torch.as_tensor(features)
    if rows.ndim != 2:
        raise DataError(f"The {which} features have no rows.", expected="[N, F]", found=list(rows.shape))
    rows = rows.float()
    broken = ~rows.isfinite().all(dim=1)
    if bool(broken.any()):
        raise DataError(
            f"The {which} features hold NaN or infinity.",
            expected="finite features",
            found=f"{int(broken.sum())} of {len(rows)} rows, the first is row {int(broken.nonzero()[0])}",
            do="see whether the run has diverged; float16 features overflow above 65504",
        )
    return rows
