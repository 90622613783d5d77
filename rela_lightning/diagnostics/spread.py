"""How features are spread: collapsed to a point, to a few directions, or over the whole sphere."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.diagnostics.rows import PAIRS, check_chunk, checked_features, chunks, cross_product, mean_of
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.targets.reduce import directions_of


def effective_rank(features: Any, *, centre: bool = False) -> float:
    """RankMe: how many directions the features fill, whatever their scale and rotation.

    `exp(-sum_k p_k log p_k)` with `p_k = s_k / sum(s)` over the singular values s (Garrido et al. 2023, arXiv
    2210.02885; without their eps, which changes nothing here). It compares runs of one method on the same images, and
    cannot be above the number of rows.

    Args:
        features: `[N, F]`, tensor or array; N above F, where it can be.
        centre: Take the mean off first, so that a large common part does not hide the rest. RankMe does not.

    Returns:
        From 1 (one direction) to min(N, F) (all alike); 0 where there is nothing at all.

    Raises:
        DataError: For another shape, fewer than two rows, NaN or infinity.

    Example:
        >>> import torch
        >>> round(effective_rank(torch.eye(8)), 2)
        8.0
    """
    rows = checked_features(features)
    mean = mean_of(rows)
    shift = mean if centre else torch.zeros_like(mean)
    if len(rows) < rows.shape[1]:
        whole = torch.cat([chunk - shift for chunk in chunks(rows)])
        gram = whole @ whole.T
    else:
        gram = cross_product(rows, rows, shift, shift)
    return rank_of_variances(torch.linalg.eigvalsh(gram))


def rank_of_variances(variances: Tensor) -> float:
    """Effective rank of features whose squared singular values (or variances along components) these are."""
    return directions_of(variances.clamp_min(0.0).sqrt())


def feature_deviation(features: Any) -> float:
    """Standard deviation of normalised features: 0 where all images look alike, 1 where they are spread evenly.

    `sqrt(sum_d var_d)` over the rows `x / |x|`, which is `sqrt(1 - |mean row|^2)`: the measure by which SimSiam
    (arXiv 2011.10566) shows a collapse, times the root of the width, so that the width does not matter.

    Args:
        features: `[N, F]`, tensor or array; rows of zeros count as zeros.

    Returns:
        In `[0, 1]`.

    Raises:
        DataError: For another shape, fewer than two rows, NaN or infinity.

    Example:
        >>> import torch
        >>> feature_deviation(torch.ones(8, 4))
        0.0
    """
    rows = checked_features(features)
    mean = torch.stack([F.normalize(chunk, dim=1).sum(dim=0) for chunk in chunks(rows)]).sum(dim=0) / len(rows)
    squares = sum(float((F.normalize(chunk, dim=1) - mean).square().sum()) for chunk in chunks(rows))
    return float((squares / len(rows)) ** 0.5)


def alignment(features: Any, others: Any, *, alpha: float = 2.0) -> float:
    """How far apart two views of an image are, on the sphere: `mean |x - y|^alpha` over normalised rows.

    Wang and Isola 2020 (arXiv 2005.10242). To be read beside `uniformity`: both are 0 where all features collapse.

    Args:
        features: `[N, F]`, of one view of each image.
        others: `[N, F]`, of another view of the same images.
        alpha: Power of the distance, above 0.

    Returns:
        In `[0, 2 ** alpha]`, low is good.

    Raises:
        DataError: For other shapes, fewer than two rows, NaN or infinity.
        ConfigError: For alpha out of range.

    Example:
        >>> import torch
        >>> round(alignment(torch.eye(8), torch.eye(8).roll(1, 0)), 4)
        2.0
    """
    if not 0 < alpha < math.inf:
        raise ConfigError("`alpha` is a power.", expected="alpha > 0, finite", found=alpha)
    x, y = checked_features(features, "features"), checked_features(others, "others")
    if x.shape != y.shape:
        raise DataError(
            "Two views of the same images have features of one shape.",
            expected="two tensors of one shape [N, F]",
            found=f"{list(x.shape)} and {list(y.shape)}",
        )
    pairs = zip(chunks(x), chunks(y.to(x.device)), strict=True)
    sums = [
        float((F.normalize(one, dim=1) - F.normalize(two, dim=1)).norm(dim=1).pow(alpha).sum()) for one, two in pairs
    ]
    return sum(sums) / len(x)


def uniformity(features: Any, *, t: float = 2.0, chunk_size: int = PAIRS) -> float:
    """How evenly features cover the sphere: `log mean exp(-t |x - y|^2)` over all pairs of normalised rows.

    Wang and Isola 2020 (arXiv 2005.10242). Memory is about `chunk_size * N * 8` bytes.

    Args:
        features: `[N, F]`, tensor or array.
        t: Sharpness, above 0.
        chunk_size: Rows whose distances to all others are held at once.

    Returns:
        From 0 (all in one point) down to about `-2 t`; low is good.

    Raises:
        DataError: For another shape, fewer than two rows, NaN or infinity.
        ConfigError: For t or chunk_size out of range.

    Example:
        >>> import torch
        >>> round(uniformity(torch.eye(8)), 4)
        -4.0
    """
    check_chunk(chunk_size)
    if not 0 < t < math.inf:
        raise ConfigError("`t` is a sharpness.", expected="t > 0, finite", found=t)
    rows = checked_features(features)
    unit = torch.cat([F.normalize(chunk, dim=1) for chunk in chunks(rows)])
    squares, total, start = unit.square().sum(dim=1), 0.0, 0
    for part in torch.split(unit, chunk_size):
        here = squares[start : start + len(part)]
        distance = (here[:, None] + squares - 2 * part @ unit.T).clamp_min(0.0)
        near = distance.mul_(-t).exp_()
        near[torch.arange(len(part)), torch.arange(start, start + len(part))] = 0.0  # itself
        total, start = total + float(near.sum()), start + len(part)
    pairs = torch.tensor(total, dtype=torch.float64) / (len(rows) * (len(rows) - 1))
    return float(pairs.log())
