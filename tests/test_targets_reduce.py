"""Streaming PCA and standardisation against scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA as SklearnPCA

from rela_lightning.errors import ConfigError, TargetError
from rela_lightning.targets.reduce import (
    merge,
    moments,
    pca,
    project,
    projection,
    rank_tolerance,
    streaming_moments,
)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Digits as float64 `[1797, 64]`, without the pixels that are always black."""
    data = load_digits().data
    return torch.from_numpy(data[:, data.std(axis=0) > 0.1])


def reduced(features: torch.Tensor):
    return pca(moments(features))


def test_components_and_variances_are_those_of_scikit_learn(pixels):
    oracle, ours = SklearnPCA(svd_solver="full").fit(pixels.numpy()), reduced(pixels)
    np.testing.assert_allclose(ours.mean.numpy(), oracle.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.variance.numpy(), oracle.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose((ours.variance / ours.total).numpy(), oracle.explained_variance_ratio_, rtol=1e-6)
    cosine = np.abs((ours.components.numpy().T * oracle.components_).sum(axis=1))
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)


def test_targets_are_those_of_scikit_learn_whitening(pixels):
    oracle = SklearnPCA(svd_solver="full", whiten=True).fit_transform(pixels.numpy())
    ours = project(pixels, projection(reduced(pixels), "per_dim")).numpy()
    signs = np.sign((ours * oracle).sum(axis=0))
    np.testing.assert_allclose(ours, oracle * signs, atol=1e-6)


@pytest.mark.parametrize("sizes", [[1797], [1, 1, 1795], [600, 0, 1197], [256] * 7 + [5], [1] * 20 + [1777]])
def test_any_chunking_gives_the_same_moments(pixels, sizes):
    once, streamed = moments(pixels), streaming_moments(iter(torch.split(pixels, sizes)))
    assert streamed.count == 1797
    torch.testing.assert_close(streamed.mean, once.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed.scatter, once.scatter, rtol=1e-10, atol=1e-8)


def test_moments_are_stable_where_the_mean_dwarfs_the_spread(pixels):
    far = pixels + 1e7  # sums of squares would lose every digit of the variance
    variance = streaming_moments(iter(far.split(100))).scatter.diagonal() / (len(far) - 1)
    np.testing.assert_allclose(variance.numpy(), pixels.numpy().var(axis=0, ddof=1), rtol=1e-6)


def test_merge_is_the_moments_of_both(pixels):
    both = merge(moments(pixels[:700]), moments(pixels[700:]))
    np.testing.assert_allclose(both.scatter.numpy() / 1796, np.cov(pixels.numpy().T), rtol=1e-9, atol=1e-9)


def test_signs_are_fixed_whatever_the_solver_says(pixels):
    components = reduced(pixels).components
    largest = components.gather(0, components.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    flipped = reduced(-pixels).components  # the same axes; eigh's signs are its own
    torch.testing.assert_close(components, flipped, rtol=1e-8, atol=1e-8)


def test_dead_constant_and_duplicate_dimensions_are_dropped_without_nan(pixels):
    columns = [pixels, torch.zeros(1797, 2), torch.full((1797, 1), 3e4), pixels[:, :3], 2 * pixels[:, 5:6]]
    features = torch.cat(columns, dim=1).float()
    result = reduced(features)
    assert features.shape[1] - len(result.variance) == 7
    targets = project(features, projection(result, "per_dim"))
    assert targets.isfinite().all()
    np.testing.assert_allclose(targets.numpy().std(axis=0, ddof=1), 1.0, atol=1e-3)


def test_rank_cut_follows_the_stated_rule():
    width = 4
    tolerance = rank_tolerance(width)
    assert tolerance == pytest.approx((4 * 2.0**-23) ** 2)
    spread = torch.tensor([1.0, 0.1, (2 * tolerance) ** 0.5, (0.5 * tolerance) ** 0.5], dtype=torch.float64)
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64)
    features = torch.cat([signs, -signs]) * spread  # uncorrelated columns with these deviations
    assert len(reduced(features).variance) == 3
    assert len(pca(moments(features), rtol=0.5).variance) == 1


def test_fewer_rows_than_dimensions_leave_as_many_columns_as_there_are_directions(pixels):
    assert len(reduced(pixels[:10]).variance) == 9


def test_isotropic_is_one_scale_with_average_variance_one(pixels):
    result = reduced(pixels)
    by = projection(result, "isotropic")
    targets = project(pixels, by).numpy()
    assert by.scales.unique().numel() == 1
    variance = targets.var(axis=0, ddof=1)
    assert variance.mean() == pytest.approx(1.0)
    assert (np.diff(variance) <= 1e-12).all()
    np.testing.assert_allclose(variance / variance.sum(), (result.variance / result.total).numpy(), rtol=1e-6)


def test_none_only_centres_and_rotates(pixels):
    targets = project(pixels, projection(reduced(pixels), "none")).numpy()
    centred = pixels.numpy() - pixels.numpy().mean(axis=0)
    np.testing.assert_allclose(targets @ targets.T, centred @ centred.T, atol=1e-6)


def test_first_keeps_the_components_of_largest_variance(pixels):
    full = reduced(pixels)
    narrow, wide = (project(pixels, projection(of, "per_dim")) for of in (full.first(5), full))
    torch.testing.assert_close(narrow, wide[:, :5])


def test_project_takes_half_precision_and_answers_in_float32(pixels):
    by = projection(reduced(pixels))
    targets = project(pixels.half(), by)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.double(), project(pixels, by), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("features", [torch.full((9, 3), 0.1), torch.zeros(9, 3)])
def test_rows_that_are_all_the_same_are_refused(features):
    with pytest.raises(TargetError, match="every image the same features"):
        pca(streaming_moments(iter(features.split(2))))


def test_too_few_rows_and_unknown_names_are_refused(pixels):
    with pytest.raises(TargetError, match="at least 2 rows"):
        streaming_moments(iter([pixels[:1]]))
    with pytest.raises(ConfigError, match="shrunk, per_dim, isotropic, none"):
        projection(reduced(pixels), "whiten")  # type: ignore[arg-type]
