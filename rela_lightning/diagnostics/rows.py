"""What every measure asks of features, and how it reads them: in chunks, in float64 where the device has it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rela_lightning.errors import ConfigError, DataError

CHUNK = 4096
"""Rows that are read at once where a product is as wide as the features."""
PAIRS = 256
"""Rows whose similarities with all others are held at once: `256 * N * 8` bytes, 100 MB for N = 50,000."""
_SIZES = (1e-6, 1e30)
"""Features whose largest entry is outside are brought to 1: their squares would leave the range of numbers."""


def checked_features(features: Any, name: str = "X", *, least: int = 2) -> Tensor:
    """Features `[N, F]`, a tensor of any real dtype: as they came, but for very large or small ones, which are scaled.

    Args:
        features: Tensor or array.
        name: What messages call it.
        least: Rows that are needed.

    Raises:
        DataError: If they have another shape, too few rows, or hold NaN or infinity.
    """
    rows = _as_tensor(features)
    if rows is None or rows.ndim != 2 or rows.shape[1] < 1 or rows.is_complex() or len(rows) < least:
        raise DataError(
            f"`{name}` cannot be measured.",
            expected=f"real features [N, F], N >= {least}, a tensor or an array",
            found=type(features).__name__ if rows is None else f"{list(rows.shape)}, {rows.dtype}",
        )
    check_finite(rows, f"`{name}` holds NaN or infinity.")
    largest = max(abs(float(rows.min())), abs(float(rows.max()))) if rows.is_floating_point() else 1.0
    if largest and not _SIZES[0] <= largest <= _SIZES[1]:
        rows = rows.to(precise(rows.device)) / largest
    return rows


def check_finite(rows: Tensor, problem: str) -> None:
    """Refuse features `[N, F]` that hold NaN or infinity, as those of a backbone that has diverged.

    Raises:
        DataError: Of that problem, with the number of such rows and the first of them.
    """
    broken = ~rows.isfinite().all(dim=1)
    if bool(broken.any()):
        raise DataError(
            problem,
            expected="finite features",
            found=f"{int(broken.sum())} of {len(rows)} rows, the first is row {int(broken.nonzero()[0])}",
            do="see whether the run has diverged; float16 features overflow above 65504",
        )


def _as_tensor(features: Any) -> Tensor | None:
    """A tensor, without a copy where torch can do without; None for what holds no numbers."""
    if isinstance(features, Tensor):
        rows = features.detach()
        return rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    try:
        array = np.asarray(features)
    except (TypeError, ValueError, RuntimeError):  # rows of several lengths, or tensors on a device in a list
        return None
    if array.dtype.kind not in "fiubc":
        return None
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))  # torch takes no reversed rows or bytes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing is written
        return torch.from_numpy(array)


def checked_pair(X: Any, Y: Any, *, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of features of the same images, on one device; both vary.

    Raises:
        DataError: Also if they differ in their number of rows, or all rows of one are the same.
    """
    x, y = checked_features(X, "X", least=least), checked_features(Y, "Y", least=least)
    if len(x) != len(y):
        raise DataError(
            "X and Y are not features of the same images.",
            expected="as many rows in both, row i of the same image",
            found=f"{len(x)} and {len(y)} rows",
        )
    for name, rows in (("X", x), ("Y", y)):
        total = centre = 0.0
        for chunk in chunks(rows):
            total, centre = total + float(chunk.square().sum()), centre + float((chunk - rows[0]).square().sum())
        if centre <= torch.finfo(torch.float32).eps ** 2 * total:
            raise DataError(
                f"All rows of `{name}` are the same, so it is like nothing.",
                expected="features that vary over the images",
                found=f"{len(rows)} times the same row",
            )
    return x, y.to(x.device)


def check_chunk(chunk_size: int) -> None:
    """Raise a `ConfigError` unless chunks have rows."""
    if chunk_size < 1:
        raise ConfigError("Chunks need rows.", expected="chunk_size >= 1", found=chunk_size)


def precise(device: torch.device) -> torch.dtype:
    """The dtype of the sums: float64, or float32 where there is none."""
    return torch.float32 if device.type == "mps" else torch.float64


def chunks(rows: Tensor) -> Iterator[Tensor]:
    """The rows `[N, F]` in order, in parts of the precise dtype."""
    for part in torch.split(rows, CHUNK):
        yield part.to(precise(rows.device))


def mean_of(rows: Tensor) -> Tensor:
    """Mean `[F]` of all rows, in the precise dtype."""
    return torch.stack([chunk.sum(dim=0) for chunk in chunks(rows)]).sum(dim=0) / len(rows)


def cross_product(x: Tensor, y: Tensor, x_mean: Tensor, y_mean: Tensor) -> Tensor:
    """`X^T Y` `[F, D]` of features less their means (or another shift `[F]`, `[D]`)."""
    total = torch.zeros(x.shape[1], y.shape[1], dtype=precise(x.device), device=x.device)
    for one, two in zip(chunks(x), chunks(y), strict=True):
        total += (one - x_mean).T @ (two - y_mean)
    return total
