"""What every probe asks of features and labels before it uses them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.diagnostics.rows import check_finite
from rela_lightning.errors import DataError

_WIDE = (torch.uint16, torch.uint32, torch.uint64)
"""Types of integers in which torch does not compare."""
_TINY = torch.finfo(torch.float32).tiny


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
    rows, classes = finite_features(features, which), _tensor(labels, which, "labels")
    if classes.dtype in _WIDE:
        classes = classes.long()
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
    rows = _tensor(features, which, "features")
    if rows.ndim != 2 or rows.is_complex():
        raise DataError(
            f"The {which} features have no rows." if rows.ndim != 2 else f"The {which} features are complex.",
            expected="real numbers [N, F]",
            found=f"{list(rows.shape)}, {rows.dtype}",
        )
    rows = rows.float()
    check_finite(rows, f"The {which} features hold NaN or infinity.")
    return rows


def check_widths(train: Tensor, test: Tensor, which: tuple[str, str]) -> None:
    """Refuse features of two widths.

    Raises:
        DataError: Naming both.
    """
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"{which[0].capitalize()} and {which[1]} features do not pair up.",
            expected="[N, F] and [M, F]",
            found=f"{list(train.shape)}, {list(test.shape)}",
        )


def directions(features: Tensor) -> Tensor:
    """Rows `[N, F]` of length 1, whatever their length was: squares of very large or small ones leave float32."""
    return F.normalize(features / features.abs().amax(dim=1, keepdim=True).clamp(min=_TINY), dim=1)


def _tensor(values: Any, which: str, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The {which} {name} are no numbers.", expected="a tensor or numpy array", found=str(error)
        ) from error
