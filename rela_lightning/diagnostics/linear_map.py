"""How far one representation is from another after the best linear map, on rows the map was not fitted to."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.diagnostics.rows import checked_pair, chunks, cross_product, mean_of

RIDGES = tuple(10.0**-power for power in range(9))
"""Strengths of ridge regression that are tried, as shares of the largest squared singular value of X."""


def transport_distance(X: Any, Y: Any) -> float:
    """How badly the best linear map takes features X to targets Y: the transport loss on rows left out of the fit.

    `mean_i (1 - cos(W_i x_i + b_i, y_i))`, y less its mean, where the map `W_i, b_i` is fitted to all rows but
    the i-th: the role of the paper's representation distance (arXiv 2405.14669, Definition 4), with the loss that
    training uses. The map is a ridge regression, whose predictions of left-out rows have a closed form; of a few
    ridges the best counts. So nothing is drawn, and nothing depends on the order of the rows. It does not change when
    X or Y are rotated, shifted or scaled. It is directed: Y may follow from X and not X from Y. Rows have to be of
    different images, as a copy of a row would give it away.

    Args:
        X: Features `[N, F]`, tensor or array of any float dtype, such as a student's.
        Y: Targets `[N, D]`, of the same images in the same order. For targets of a store, as they are read from it.

    Returns:
        0 where Y is a linear function of X, about 1 where X says nothing of Y (at most 2). Beside min(N, F, D) a small
        N leaves the map too few rows and the distance grows.

    Raises:
        DataError: For other shapes, fewer than three rows, NaN, infinity, or features that do not vary.

    Example:
        >>> import torch
        >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> round(abs(transport_distance(features, features[:, :3])), 2)
        0.0
    """
    x, y = checked_pair(X, Y, least=3)
    x_mean, y_mean = mean_of(x), mean_of(y)
    axes, strength = _principal_axes(x, x_mean)
    product = axes.T @ cross_product(x, y, x_mean, y_mean)
    weights = 1.0 / (strength + strength[0] * torch.tensor(RIDGES, device=x.device).to(strength).unsqueeze(1))
    total = torch.zeros(len(weights), dtype=strength.dtype, device=x.device)
    for one, two in zip(chunks(x), chunks(y), strict=True):
        coordinates, targets = (one - x_mean) @ axes, two - y_mean
        for number, weight in enumerate(weights):
            own = 1 / len(x) + (coordinates.square() @ weight).unsqueeze(1)  # share of a row in its own prediction
            left_out = (coordinates * weight) @ product - own * targets  # times a positive number
            total[number] += (1.0 - F.cosine_similarity(left_out, targets, dim=1, eps=1e-12)).sum()
    return float(total.min()) / len(x)


def representation_similarity(X: Any, Y: Any) -> float:
    """How well the best linear map takes X to Y: the mean cosine on rows left out of the fit, `1 - transport_distance`.

    Over pairs of models this is the heat map of source and target models (arXiv 2405.14669, Figure 4a).

    Args:
        X: Features of the source `[N, F]`, tensor or array of any float dtype.
        Y: Features of the target `[N, D]`, of the same images in the same order.

    Returns:
        1 where Y is a linear function of X, about 0 where X says nothing of Y.

    Raises:
        DataError: As `transport_distance`.

    Example:
        >>> import torch
        >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> round(representation_similarity(features, features[:, :3]), 2)
        1.0
    """
    return 1.0 - transport_distance(X, Y)


def _principal_axes(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Right singular vectors `[F, R]` of centred features, and their squared singular values `[R]`, falling."""
    if len(x) < x.shape[1]:
        rows = torch.cat([chunk - mean for chunk in chunks(x)])
        strength, left = torch.linalg.eigh(rows @ rows.T)
        axes = rows.T @ left / strength.clamp_min(torch.finfo(strength.dtype).tiny).sqrt()
    else:
        strength, axes = torch.linalg.eigh(cross_product(x, x, mean, mean))
    kept = strength > strength[-1] * x.shape[1] * torch.finfo(strength.dtype).eps
    return axes[:, kept].flip(1), strength[kept].flip(0)
