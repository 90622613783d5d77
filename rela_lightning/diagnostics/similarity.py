"""How alike two representations of the same images are, without a fit."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.diagnostics.rows import PAIRS, check_chunk, checked_pair, chunks, cross_product, mean_of
from rela_lightning.errors import ConfigError, DataError

_NOTHING = 1e-10
"""Of the debiased estimate of HSIC, where it is less than this share of the plain one nothing is left but rounding."""
_TIED = 16
"""Cosines that differ by so many eps of their dtype are the same."""


def linear_cka(X: Any, Y: Any, *, debiased: bool = False) -> float:
    """Linear centred kernel alignment: whether images that differ in X differ in Y.

    `|X^T Y|^2 / (|X^T X| |Y^T Y|)` on centred features (Kornblith et al. 2019, arXiv 1905.00414). Does not change when
    either is rotated, shifted or scaled. It rises with the width for few rows, for unrelated features too;
    `debiased=True` takes the unbiased estimator of HSIC (Song et al. 2012), whose value is 0 on average then.

    Args:
        X: `[N, F]`, tensor or array of any float dtype.
        Y: `[N, D]`, of the same images in the same order.
        debiased: Correct for the number of rows; needs four.

    Returns:
        In `[0, 1]`; debiased up to 1, and about 0 or a little below for unrelated features.

    Raises:
        DataError: For other shapes, too few rows, NaN, infinity, or features that do not vary; debiased, also if all
            pairs of rows are equally alike.

    Example:
        >>> import torch
        >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> round(linear_cka(features, 3 * features.flip(1)), 4)
        1.0
    """
    x, y = checked_pair(X, Y, least=4 if debiased else 2)
    means = mean_of(x), mean_of(y)
    hsic = _unbiased_hsic if debiased else _hsic
    own = [hsic(rows, rows, mean, mean) for rows, mean in zip((x, y), means, strict=True)]
    for name, rows, mean, value in zip("XY", (x, y), means, own, strict=True):
        if debiased and value <= _NOTHING * _hsic(rows, rows, mean, mean):
            raise DataError(
                f"All pairs of rows of `{name}` are equally alike, so it is like nothing.",
                expected="features in which some rows are more alike than others",
                found=f"{len(rows)} rows that differ from each other alike, or one from all others",
                do="measure more images",
            )
    return hsic(x, y, *means) / math.sqrt(own[0] * own[1])


def _hsic(x: Tensor, y: Tensor, x_mean: Tensor, y_mean: Tensor) -> float:
    return float(cross_product(x, y, x_mean, y_mean).square().sum())


def _unbiased_hsic(x: Tensor, y: Tensor, x_mean: Tensor, y_mean: Tensor) -> float:
    """`N (N - 3)` times the unbiased estimator, without the kernels `X X^T` and `Y Y^T` that it is defined by."""
    rows = len(x)
    trace = _hsic(x, y, x_mean, y_mean)
    sums: list[Tensor] = []
    diagonals: list[Tensor] = []
    for features, mean in ((x, x_mean), (y, y_mean)):
        column = torch.stack([(chunk - mean).sum(dim=0) for chunk in chunks(features)]).sum(dim=0)
        diagonal = torch.cat([(chunk - mean).square().sum(dim=1) for chunk in chunks(features)])
        sums.append(torch.cat([(chunk - mean) @ column for chunk in chunks(features)]) - diagonal)
        diagonals.append(diagonal)
    trace -= float(diagonals[0] @ diagonals[1])
    means = float(sums[0].sum() * sums[1].sum()) / ((rows - 1) * (rows - 2))
    return trace + means - 2 / (rows - 2) * float(sums[0] @ sums[1])


def mutual_knn(X: Any, Y: Any, *, k: int = 10, calibrated: bool = True, chunk_size: int = PAIRS) -> float:
    """Share of an image's k nearest neighbours that it has in both representations, against chance.

    Neighbours by cosine, the image itself left out (Huh et al. 2024, arXiv 2405.07987). Two unrelated representations
    share `c = k / (N - 1)` of them; calibrated, the share m becomes `(m - c) / (1 - c)`. Does not change when either is
    rotated or scaled. Where several images are equally near and there is no room for all of them, as for rows of zeros
    or copies of an image, each counts in part (and the share is the cosine of what counts in both), so that no order
    of the rows decides. Memory is about `chunk_size * N * 40` bytes.

    Args:
        X: `[N, F]`, tensor or array of any float dtype.
        Y: `[N, D]`, of the same images in the same order.
        k: Neighbours, 1 to N - 2.
        calibrated: Set chance to 0.
        chunk_size: Rows whose similarities with all others are held at once.

    Returns:
        1 for the same neighbours; 0 at chance (k / (N - 1), if not calibrated).

    Raises:
        DataError: For other shapes, fewer than three rows, NaN, infinity, or features that do not vary.
        ConfigError: For k or chunk_size out of range.

    Example:
        >>> import torch
        >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> mutual_knn(features, 3 * features.flip(1), k=5)
        1.0
    """
    check_chunk(chunk_size)
    x, y = checked_pair(X, Y, least=3)
    if not 1 <= k <= len(x) - 2:
        raise ConfigError("`k` counts neighbours.", expected=f"1 <= k <= {len(x) - 2} for {len(x)} rows", found=k)
    units = [torch.cat([F.normalize(chunk, dim=1) for chunk in chunks(rows)]) for rows in (x, y)]
    shared = of_x = of_y = 0.0
    for start in range(0, len(x), chunk_size):
        first, second = (_neighbours(unit, start, chunk_size, k) for unit in units)
        shared += float((first * second).sum())
        of_x, of_y = of_x + float(first.square().sum()), of_y + float(second.square().sum())
    most = math.sqrt(of_x * of_y)  # k * N where nothing is tied
    share, chance = shared / most, k * k * len(x) / (len(x) - 1) / most
    if not calibrated:
        return share
    return (share - chance) / (1 - chance) if chance < 1 - 1e-6 else 0.0  # else all images are equally near


def _neighbours(unit: Tensor, start: int, count: int, k: int) -> Tensor:
    """How much each row counts among the k nearest to rows `start` and on, `[n, N]` in `[0, 1]`; rows sum to k."""
    part = unit[start : start + count]
    similarity = part @ unit.T
    similarity[torch.arange(len(part)), torch.arange(start, start + len(part))] = -torch.inf
    least, same = similarity.topk(k, dim=1).values[:, -1:], _TIED * torch.finfo(unit.dtype).eps
    nearer = similarity > least + same
    last = (similarity >= least - same) & ~nearer
    room = k - nearer.sum(dim=1, keepdim=True)
    return torch.where(last, room / last.sum(dim=1, keepdim=True), nearer.to(unit.dtype)).to(unit.dtype)
