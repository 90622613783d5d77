"""From features to targets: exact streaming PCA and standardisation. Pure functions.

Features `[N, F]` are read in chunks, so that memory does not grow with N. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rela_lightning.errors import ConfigError, TargetError

Standardise = Literal["shrunk", "per_dim", "isotropic", "none"]
STANDARDISATIONS: tuple[Standardise, ...] = ("shrunk", "per_dim", "isotropic", "none")

ROWS_BEFORE = 3
"""Rows for each dimension whose weight `shrunk` gives to "all components vary alike"; see docs/targets.md."""


class Moments(NamedTuple):
    """Count, mean float64 `[F]` and scatter `sum (x - mean)(x - mean)^T` float64 `[F, F]` of some rows."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Tensor
    scatter: Tensor


class PCA(NamedTuple):
    """Principal components, in order of falling variance.

    Attributes:
        mean: Float64 `[F]`.
        components: Float64 `[F, R]`, one orthonormal column for each component.
        variance: Float64 `[R]`, variance along each component (divisor N - 1).
        total: Variance of all dimensions together.
        rows: Independent rows that they were learnt from.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor
    total: float
    rows: int

    def first(self, count: int | float | None) -> PCA:
        """The first components only: at most `count`, or as many as explain the share `count` of the variance."""
        if count is None:
            return self
        if isinstance(count, float):
            count = 1 + int((self.variance.cumsum(0) / self.total < count).sum())
        return self._replace(components=self.components[:, :count], variance=self.variance[:count])


def directions_of(amounts: Tensor) -> float:
    """How many directions share what there is: `exp(-sum_k p_k log p_k)`, `p_k` the share of direction k.

    Args:
        amounts: Variance along each component, or another measure of it, `[R]`, >= 0.

    Returns:
        From 1 (one has it all) to R (all have as much); 0 where there is nothing.
    """
    total = amounts.sum()
    return float(torch.special.entr(amounts / total).sum().exp()) if float(total) else 0.0


class Projection(NamedTuple):
    """The map from features to targets: `(x - mean) @ components * scales`.

    Attributes:
        mean: Float64 `[F]`.
        components: Float64 `[F, D]`.
        scales: Float64 `[D]`.

    Example:
        >>> by = Projection(torch.zeros(4), torch.eye(4), torch.ones(4))
        >>> by.to(dtype=torch.float64).scales.dtype
        torch.float64
    """

    mean: Tensor
    components: Tensor
    scales: Tensor

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Projection:
        """The same map on another device or in another precision."""
        return Projection(*(tensor.to(device=device, dtype=dtype) for tensor in self))


def moments(features: Tensor) -> Moments:
    """Moments of one chunk of rows `[n, F]`."""
    rows = features.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred)


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of two sets of rows together (Chan, Golub and LeVeque 1979): exact and stable."""
    count = first.count + second.count
    shift = second.mean - first.mean
    weight = second.count / count
    scatter = first.scatter + second.scatter + torch.outer(shift, shift) * (first.count * weight)
    return Moments(count, first.mean + shift * weight, scatter)


def streaming_moments(chunks: Iterable[Tensor]) -> Moments:
    """Moments of all rows, whatever the chunks; empty chunks are skipped.

    Raises:
        TargetError: If there are fewer than two rows.
    """
    total: Moments | None = None
    for chunk in chunks:
        if len(chunk):
            part = moments(chunk)
            total = part if total is None else merge(total, part)
    if total is None or total.count < 2:
        raise TargetError(
            "There is no variance to learn a projection from.",
            expected="at least 2 rows",
            found=0 if total is None else total.count,
        )
    return total


def rank_tolerance(feature_dim: int) -> float:
    """Share of the largest variance below which a component is rounding noise.

    `(F * eps)^2` with the eps of float32, in which features are computed: numpy's `matrix_rank` rule
    for standard deviations, squared. `F = 512` gives 3.7e-9.
    """
    return float((feature_dim * torch.finfo(torch.float32).eps) ** 2)


def pca(total: Moments, *, rtol: float | None = None) -> PCA:
    """Principal components above the rank cut.

    The sign of each is fixed: its entry of largest magnitude is positive.

    Args:
        total: Moments of all rows.
        rtol: Drop components whose variance is at most this share of the largest;
            `None` for `rank_tolerance(F)`.

    Raises:
        TargetError: If all rows are the same.
    """
    covariance = total.scatter / (total.count - 1)
    variance, components = torch.linalg.eigh((covariance + covariance.T) / 2)
    variance, components = variance.flip(0).clamp_min(0.0), components.flip(1)
    tolerance = rank_tolerance(len(variance)) if rtol is None else rtol
    spread = float(variance[0])
    scale = float(total.mean.square().sum())  # a constant, rounded differently by some batches, is no signal
    if spread <= torch.finfo(torch.float32).eps ** 2 * scale or spread == 0.0:
        raise TargetError(
            "The prior gives every image the same features.",
            expected="features that vary over the data set",
            found=f"largest variance {spread:.3g}",
            do="check the prior's weights and preprocessing, or the data set's images",
        )
    rank = int((variance > tolerance * spread).sum())
    components = components[:, :rank]
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    return PCA(total.mean, components * largest.sign(), variance[:rank], float(variance.sum()), total.count)


def variance_elsewhere(result: PCA, others: Moments) -> PCA:
    """The same components with the larger of their own variance and that of other rows, in order of it.

    Args:
        result: Principal components of some rows.
        others: Moments of rows that took no part in them.
    """
    along = ((result.components.T @ others.scatter) * result.components.T).sum(dim=1) / max(others.count - 1, 1)
    variance, order = torch.maximum(along, result.variance).sort(descending=True, stable=True)
    total = max(result.total, float(variance.sum()))
    return PCA(result.mean, result.components[:, order], variance, total, result.rows + others.count)


def projection(result: PCA, standardise: Standardise = "shrunk") -> Projection:
    """The map to targets with the asked standardisation.

    Columns stay in order of explained variance in every case, so that the first columns are the best
    for a narrower student.

    Args:
        result: Principal components.
        standardise: `shrunk` divides each column by the root of its shrunk variance, `variance ** w` with
            `w = N / (N + 3 F)` for N rows of F dimensions, and all of them by one number, so that their average
            variance is 1. For few rows it is `isotropic`, for many `per_dim`, and half way at three rows for each
            dimension. The logarithm of each variance is drawn to a common one, with the weight of 3 F rows seen before.
            Whitened in full, rows are all equally far from each other as soon as there are no more of
            them than dimensions; not whitened, the small components go unheard. See docs/targets.md for measurements.
            `per_dim`, the paper's form, gives each column mean 0 and standard deviation 1 (divided by
            `sqrt(variance + eps)`, with float64's eps times the largest variance; the rank cut has
            dropped what is smaller). `isotropic` divides all columns by one number, so that their average
            variance is 1: PHI-S (arXiv 2410.01680) without its last rotation, which spreads the
            variance evenly over the columns; the loss cannot tell the difference, as the cosine and
            the linear map W do not change under a rotation, and the order would be lost. `none`
            only centres and rotates: to the cosine it is the same as `isotropic`, and differs from it for
            losses that see lengths, and in float16.

    Raises:
        ConfigError: For another name.
    """
    if standardise == "shrunk":
        weight = result.rows / (result.rows + ROWS_BEFORE * len(result.components))
        scales = result.variance.pow(-weight / 2) * result.variance.pow(1 - weight).mean().rsqrt()
    elif standardise == "per_dim":
        eps = torch.finfo(torch.float64).eps * float(result.variance[0])
        scales = (result.variance + eps).rsqrt()
    elif standardise == "isotropic":
        scales = result.variance.mean().rsqrt().expand(len(result.variance)).clone()
    elif standardise == "none":
        scales = torch.ones_like(result.variance)
    else:
        raise ConfigError(
            "Unknown standardisation.",
            expected="one of the names below",
            found=standardise,
            exists=STANDARDISATIONS,
        )
    return Projection(result.mean, result.components, scales)


def project(features: Tensor, by: Projection) -> Tensor:
    """Targets of some features: `(features - mean) @ components * scales`.

    Args:
        features: `[B, F]`, any float dtype; computed in float64 if it is float64, else in float32.
        by: The map, moved to the features' device if it is elsewhere.

    Returns:
        `[B, D]`, float64 or float32.

    Example:
        >>> import torch
        >>> by = Projection(torch.zeros(4), torch.eye(4), torch.ones(4))
        >>> project(torch.ones(2, 4), by).shape
        torch.Size([2, 4])
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    mean, components, scales = by.to(features.device, dtype)
    return ((features.to(dtype) - mean) @ components) * scales
