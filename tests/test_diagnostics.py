"""Measures of features against numpy, scipy and scikit-learn, and what must not change them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.spatial.distance import pdist
from scipy.stats import entropy, ortho_group
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

import rela_lightning as rela
from rela_lightning.diagnostics.linear_map import RIDGES
from rela_lightning.errors import ConfigError, DataError
from tests.ranks import forks

PIXELS = load_digits().data[:120]  # 64 wide, some columns constant
RANDOM = np.random.default_rng(0)
FEATURES = np.maximum(PIXELS @ RANDOM.normal(size=(64, 24)), 0.0)  # as after a ReLU
PAIR = {
    "transport_distance": rela.transport_distance,
    "representation_similarity": rela.representation_similarity,
    "linear_cka": rela.linear_cka,
    "linear_cka_debiased": lambda x, y: rela.linear_cka(x, y, debiased=True),
    "mutual_knn": rela.mutual_knn,
}
ALONE = {
    "effective_rank": rela.effective_rank,
    "effective_rank_centred": lambda x: rela.effective_rank(x, centre=True),
    "feature_deviation": rela.feature_deviation,
    "uniformity": rela.uniformity,
    "alignment": lambda x: rela.alignment(x[:60], x[60:120]),
}


# ---- against straight restatements ------------------------------------------------------------------------


def left_out(x: Any, y: Any, alpha: float) -> Any:
    """Each row predicted by a ridge regression to the others, its penalty on the features as all rows centre them."""
    predicted = []
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        ones = np.ones((others.sum(), 1))
        design = np.hstack([x[others] - x.mean(0), ones])
        penalty = alpha * np.diag([1.0] * x.shape[1] + [0.0])
        solved = np.linalg.solve(design.T @ design + penalty, design.T @ y[others])
        predicted.append(np.append(x[row] - x.mean(0), 1.0) @ solved)
    return np.array(predicted)


@pytest.mark.parametrize("wide", [False, True], ids=["N > F", "N < F"])
def test_transport_distance_is_the_loss_of_rows_left_out(wide: bool) -> None:
    x, y = (FEATURES[:20], PIXELS[:20]) if wide else (FEATURES[:60], PIXELS[:60, 10:20])
    y, losses = y - y.mean(0), []
    for share in RIDGES:
        alpha = share * np.linalg.norm(x - x.mean(0), 2) ** 2
        losses.append(np.mean(1 - (normalize(left_out(x, y, alpha)) * normalize(y)).sum(1)))
    assert rela.transport_distance(x, y) == pytest.approx(min(losses), abs=1e-6)
    assert rela.representation_similarity(x, y) == pytest.approx(1 - min(losses), abs=1e-6)


def test_transport_distance_is_about_what_a_trained_map_reaches() -> None:
    """`LinearTransport` trained on one half by the transport loss, measured on the other, is no better."""
    x = torch.tensor(FEATURES).float()
    x = (x - x.mean(0)) / x.std()
    y = torch.tensor(PIXELS[:, 18:23]).float()
    y = y - y.mean(0)
    torch.manual_seed(0)
    linear = rela.LinearTransport(24, 5)
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-2)
    reached = 2.0
    for _ in range(400):
        optimizer.zero_grad()
        rela.transport_loss(linear(x[::2]), y[::2]).backward()
        optimizer.step()
        reached = min(reached, float(rela.transport_loss(linear(x[1::2]), y[1::2]).detach()))
    assert reached - 0.15 < rela.transport_distance(x, y) < reached + 0.05 < 0.6


def test_cka_is_that_of_kernels() -> None:
    x, y = FEATURES, PIXELS
    rows = len(x)
    centring = np.eye(rows) - 1 / rows
    k, m = centring @ x @ x.T @ centring, centring @ y @ y.T @ centring
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert rela.linear_cka(x, y) == pytest.approx(expected, abs=1e-10)


def test_debiased_cka_is_that_of_kernels_without_diagonal() -> None:
    def hsic(k: Any, m: Any) -> float:
        k, m, n, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), len(k), np.ones(len(k))
        last = 2 / (n - 2) * one @ k @ m @ one
        return np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - last

    k, m = FEATURES @ FEATURES.T, PIXELS @ PIXELS.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert rela.linear_cka(FEATURES, PIXELS, debiased=True) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("k", [1, 7])
def test_mutual_knn_counts_shared_neighbours(k: int) -> None:
    def neighbours(x: Any) -> list[set[int]]:
        found = NearestNeighbors(n_neighbors=k, metric="cosine").fit(x).kneighbors(return_distance=False)
        return [set(row) for row in found.tolist()]

    pairs = zip(neighbours(FEATURES), neighbours(PIXELS), strict=True)
    share, chance = np.mean([len(a & b) / k for a, b in pairs]), k / (len(PIXELS) - 1)
    assert rela.mutual_knn(FEATURES, PIXELS, k=k, calibrated=False) == pytest.approx(share)
    assert rela.mutual_knn(FEATURES, PIXELS, k=k, chunk_size=50) == pytest.approx((share - chance) / (1 - chance))


def test_neighbours_that_are_equally_near_count_in_part() -> None:
    """Rows of zeros, signs and copies: no order of the rows decides, and unrelated features stay at chance."""

    def weights(x: Any, k: int) -> Any:
        unit = normalize(x)
        cosine = (unit @ unit.T).round(9)
        np.fill_diagonal(cosine, -9)
        found = np.zeros_like(cosine)
        for row, near in zip(found, cosine, strict=True):
            least = np.sort(near)[-k]
            row[near > least] = 1
            row[near == least] = (k - row.sum()) / (near == least).sum()
        return found

    draw = np.random.default_rng(3)
    x, y = (np.where(draw.random((300, 1)) < 0.4, 0.0, draw.normal(size=(300, 6))) for _ in range(2))
    signs = [np.sign(draw.normal(size=(300, 2))) for _ in range(2)]
    for one, two in ((x, y), signs):
        a, b = weights(one, 5), weights(two, 5)
        share = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        chance = 25 * 300 / 299 / np.sqrt((a * a).sum() * (b * b).sum())
        assert rela.mutual_knn(one, two, k=5, calibrated=False) == pytest.approx(share)
        assert rela.mutual_knn(one, two, k=5) == pytest.approx((share - chance) / (1 - chance), abs=1e-6)
        assert rela.mutual_knn(one, two, k=5) == pytest.approx(0, abs=0.03)
        assert rela.mutual_knn(one, 3 * one, k=5) == pytest.approx(1)
    assert rela.mutual_knn(draw.random((50, 1)), draw.random((50, 1))) == 0  # all cosines are 1: nothing is nearest


@pytest.mark.parametrize("x", [FEATURES, PIXELS[:30]], ids=["N > F", "N < F"])
@pytest.mark.parametrize("centre", [False, True])
def test_effective_rank_is_the_entropy_of_singular_values(x: Any, centre: bool) -> None:
    values = np.linalg.svd(x - x.mean(0) if centre else x, compute_uv=False)
    assert rela.effective_rank(x, centre=centre) == pytest.approx(np.exp(entropy(values)), rel=1e-6)


def test_uniformity_and_alignment_are_of_pairs() -> None:
    unit = normalize(FEATURES)
    assert rela.uniformity(FEATURES, chunk_size=7) == pytest.approx(np.log(np.exp(-2 * pdist(unit) ** 2).mean()))
    apart = np.linalg.norm(unit[:60] - unit[60:], axis=1)
    assert rela.alignment(FEATURES[:60], FEATURES[60:]) == pytest.approx((apart**2).mean())
    assert rela.alignment(FEATURES[:60], FEATURES[60:], alpha=1) == pytest.approx(apart.mean())


def test_feature_deviation_is_that_of_normalised_rows() -> None:
    width = FEATURES.shape[1]
    spread = normalize(FEATURES).var(axis=0)
    assert rela.feature_deviation(FEATURES) == pytest.approx(np.sqrt(spread.mean() * width))


# ---- what they say ----------------------------------------------------------------------------------------


def test_known_values() -> None:
    sphere = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    assert rela.effective_rank(sphere) == pytest.approx(32, rel=0.02)
    assert rela.feature_deviation(sphere) == pytest.approx(1, abs=0.01)
    assert rela.uniformity(sphere) == pytest.approx(-4, abs=0.25)
    point = sphere[:1].expand(50, -1)
    assert rela.effective_rank(point) == pytest.approx(1, abs=1e-3)
    assert rela.feature_deviation(point) == pytest.approx(0, abs=1e-6)
    assert rela.uniformity(point) == pytest.approx(0, abs=1e-6)
    assert rela.alignment(point, point) == 0
    assert rela.effective_rank(torch.zeros(5, 3)) == rela.effective_rank(point, centre=True) == 0


def test_a_linear_function_is_no_distance_away_and_its_source_may_be() -> None:
    narrow = FEATURES @ RANDOM.normal(size=(24, 3)) + 5
    assert rela.transport_distance(FEATURES, narrow) < 1e-3
    assert rela.transport_distance(narrow, FEATURES) > 0.1


def test_unrelated_features_are_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 40, generator=generator), torch.randn(400, 30, generator=generator)
    assert rela.transport_distance(x, y) == pytest.approx(1, abs=0.05)
    assert rela.mutual_knn(x, y) == pytest.approx(0, abs=0.03)
    assert rela.linear_cka(x, y) > 0.05 > abs(rela.linear_cka(x, y, debiased=True))


# ---- what must not change them ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIR)
def test_pairs_do_not_see_rotation_scale_and_order(name: str) -> None:
    measure, order = PAIR[name], RANDOM.permutation(len(PIXELS))
    rotations = [ortho_group.rvs(width, random_state=1) for width in (24, 64)]
    assert subspace_angles(rotations[0], np.eye(24)).max() < 1e-6
    value = measure(FEATURES, PIXELS)
    assert 0.05 < value < 0.95
    moved = measure(3e3 * FEATURES[order] @ rotations[0], 1e-3 * PIXELS[order] @ rotations[1])
    assert moved == pytest.approx(value, abs=1e-6)
    if name != "mutual_knn":  # of cosines: these have an origin
        assert measure(FEATURES + 10.0, PIXELS - 7.0) == pytest.approx(value, abs=1e-6)
    misplaced = measure(FEATURES[order], PIXELS)
    assert (misplaced < value - 0.05) != (name == "transport_distance")


@pytest.mark.parametrize("name", [name for name in ALONE if name != "alignment"])
def test_spread_does_not_see_rotation_scale_and_order(name: str) -> None:
    order, rotation = RANDOM.permutation(len(FEATURES)), ortho_group.rvs(24, random_state=1)
    moved = ALONE[name](0.01 * FEATURES[order] @ rotation)
    assert moved == pytest.approx(ALONE[name](FEATURES), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*PAIR, *ALONE])
def test_every_dtype_is_computed_precisely(name: str, dtype: torch.dtype) -> None:
    """Of numbers that the dtype holds, the same value whatever the dtype is."""
    x = torch.tensor(FEATURES).bfloat16().clamp(max=1000).half()
    y = torch.tensor(PIXELS).half()
    x, y = x.bfloat16().double(), y.bfloat16().double()
    call = PAIR[name] if name in PAIR else (lambda a, b: ALONE[name](a))
    value = call(x.to(dtype), y.to(dtype))
    assert isinstance(value, float)
    assert value == pytest.approx(call(x, y), abs=1e-9)


@pytest.mark.parametrize("name", [*PAIR, *ALONE])
@pytest.mark.parametrize("factor", [1e-160, 1e-20, 1e90, 1e160])
def test_numbers_far_from_one_change_nothing(name: str, factor: float) -> None:
    call = (lambda x: PAIR[name](x, PIXELS)) if name in PAIR else ALONE[name]
    assert call(FEATURES * factor) == pytest.approx(call(FEATURES), rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*PAIR, *ALONE])
def test_arrays_come_in_any_order_and_kind(name: str) -> None:
    """Reversed rows, columns first, bytes of another machine, longer floats, read-only, whole numbers, truths."""
    call = (lambda x: PAIR[name](x, PIXELS)) if name in PAIR else ALONE[name]
    value, fixed = call(FEATURES), FEATURES.copy()
    fixed.setflags(write=False)
    twice = np.repeat(FEATURES, 2, axis=0)
    for same in (
        np.ascontiguousarray(FEATURES[::-1])[::-1], np.asfortranarray(FEATURES), twice[::2], fixed,
        FEATURES.astype(">f8"), FEATURES.astype(np.longdouble), FEATURES.tolist(),
    ):  # fmt: skip
        assert call(same) == pytest.approx(value, abs=1e-6)  # lists too are float64
    whole = FEATURES.round()
    for kind in (np.int32, np.uint16, np.uint32):
        assert call(whole.astype(kind)) == pytest.approx(call(whole), abs=1e-9)
    truths = np.median(FEATURES) < FEATURES
    assert call(truths) == call(torch.tensor(truths)) == pytest.approx(call(truths * 1.0), abs=1e-9)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_rows() -> None:
    """20,000 rows: 3 GB for a matrix of all pairs in float64. Peak memory is read in a process of its own."""
    import resource
    import sys

    def measure() -> None:
        x, y = torch.randn(20000, 8), torch.randn(20000, 6)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rela.transport_distance(x, y), rela.linear_cka(x, y, debiased=True), rela.effective_rank(x)
        rela.mutual_knn(x[:12000], y[:12000]), rela.uniformity(x[:12000])
        print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

    [done] = forks(measure)
    assert done.code == 0, done.output
    grown = int(done.output.split()[-1])
    assert grown < 600_000 * (1024 if sys.platform == "darwin" else 1)


# ---- what is refused --------------------------------------------------------------------------------------


BAD: dict[str, tuple[Any, str]] = {
    "nan": (np.where(np.arange(24) == 3, np.nan, FEATURES), "NaN or infinity"),
    "infinite": (torch.tensor(FEATURES * 1e4).half(), "float16 features overflow"),
    "one row": (FEATURES[:1], "N >="),
    "no rows": (FEATURES[:0], "N >="),
    "no width": (FEATURES[:, :0], "real features"),
    "maps": (FEATURES.reshape(120, 4, 6), "real features"),
    "complex": (FEATURES + 1j, "real features"),
    "objects": (FEATURES.astype(object), "found:    ndarray"),
    "texts": (["a", "b", "c"], "found:    list"),
    "nothing": (None, "found:    NoneType"),
}


@pytest.mark.parametrize("name", [*PAIR, *ALONE])
@pytest.mark.parametrize("bad", BAD)
def test_bad_features_are_refused(name: str, bad: str) -> None:
    features, message = BAD[bad]
    call = (lambda x: PAIR[name](x, x)) if name in PAIR else ALONE[name]
    if name == "alignment" and not hasattr(features, "dtype"):
        return  # its halves are taken from arrays
    with pytest.raises(DataError, match=message):
        call(features if name != "alignment" else np.concatenate([np.asarray(features)] * 2))


@pytest.mark.parametrize("name", PAIR)
def test_features_that_do_not_pair_up_or_vary_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="120 and 119 rows"):
        PAIR[name](FEATURES, PIXELS[1:])
    constant = torch.full((120, 4), 0.1)
    with pytest.raises(DataError, match="All rows of `Y`"):
        PAIR[name](FEATURES, constant)
    with pytest.raises(DataError, match="All rows of `X`"):
        PAIR[name](constant + 1e-8 * torch.rand(120, 4, dtype=torch.float64), PIXELS)


def test_debiased_cka_of_rows_that_are_all_equally_alike_is_refused() -> None:
    """Nothing but rounding is left of it, of any size."""
    with pytest.raises(DataError, match="All pairs of rows of `Y`"):
        rela.linear_cka(FEATURES[:16], np.eye(16), debiased=True)
    outlier = np.ones((120, 4)) + (np.arange(120) == 5)[:, None]
    with pytest.raises(DataError, match="All pairs of rows of `X`"):
        rela.linear_cka(outlier, PIXELS, debiased=True)


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 <= k <= 118"):
        rela.mutual_knn(FEATURES, PIXELS, k=119)
    for call in (
        lambda: rela.mutual_knn(FEATURES, PIXELS, chunk_size=0),
        lambda: rela.uniformity(FEATURES, chunk_size=0),
        lambda: rela.uniformity(FEATURES, t=0),
        lambda: rela.alignment(FEATURES, FEATURES, alpha=0),
        lambda: rela.uniformity(FEATURES, t=float("nan")),
        lambda: rela.alignment(FEATURES, FEATURES, alpha=float("nan")),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(DataError, match="one shape"):
        rela.alignment(FEATURES, PIXELS)
