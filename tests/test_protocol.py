"""One protocol of probing, over seeds and folds, against scikit-learn and a straight restatement."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from rela_lightning.diagnostics import effective_rank, feature_deviation, uniformity
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.probe import knn_predict, linear_evaluation
from rela_lightning.probe.checks import Labelled
from rela_lightning.probe.protocol import Protocol, cross_pairs, measure, without_labels


@pytest.fixture(scope="module")
def digits() -> Labelled:
    found = load_digits()
    return Labelled(torch.tensor(found.data[:600] / 16).float(), torch.tensor(found.target[:600]))


def halves(rows: Labelled) -> tuple[Labelled, Labelled]:
    return Labelled(rows.features[:400], rows.labels[:400]), Labelled(rows.features[400:], rows.labels[400:])


def test_parts_hold_every_row_once_and_every_class_alike(digits: Labelled) -> None:
    pairs = list(cross_pairs(digits, 4, seed=3))
    held = torch.cat([test.features for _, test in pairs])
    assert sorted(map(tuple, held.tolist())) == sorted(map(tuple, digits.features.tolist()))
    for train, test in pairs:
        assert len(train.labels) + len(test.labels) == 600
        assert not set(map(tuple, train.features.tolist())) & set(map(tuple, test.features.tolist()))
        shares = torch.bincount(digits.labels) / 4
        assert ((torch.bincount(test.labels) - shares).abs() < 1).all()
    again, other = (next(cross_pairs(digits, 4, seed=seed))[1].features for seed in (3, 4))
    assert torch.equal(again, pairs[0][1].features) and not torch.equal(other, again)


def test_cross_validation_is_scikit_learns_on_the_same_parts(digits: Labelled) -> None:
    asked = Protocol(solver="lbfgs", standardise=False, cross_folds=3, seed=1)
    found = measure(asked, digits, None, 10)
    scores = [
        LogisticRegression(C=1.0, max_iter=2000, tol=1e-8).fit(*map(np.asarray, train)).score(*map(np.asarray, test))
        for train, test in cross_pairs(digits, 3, seed=1)
    ]
    assert found["linear_top1"] == pytest.approx(statistics.fmean(scores), abs=0.004)
    assert found["spread"]["linear_top1"] == pytest.approx(statistics.stdev(scores), abs=0.004)


def test_several_seeds_are_the_mean_of_single_ones(digits: Labelled) -> None:
    train, test = halves(digits)
    found = measure(Protocol(epochs=2, lr=3e-3, seed=5, seeds=3), train, test, 10)
    single = [
        linear_evaluation(*train, *test, num_classes=10, epochs=2, lr=3e-3, standardise=True, seed=seed)
        for seed in (5, 6, 7)
    ]
    assert len({one["top1"] for one in single}) > 1
    for name in ("top1", "top5"):
        assert found[f"linear_{name}"] == pytest.approx(statistics.fmean(one[name] for one in single))
        assert found["spread"][f"linear_{name}"] == pytest.approx(statistics.stdev(one[name] for one in single))
    votes = knn_predict(*train, test.features, k=20, num_classes=10)
    assert found["knn_top1"] == pytest.approx(float((votes == test.labels).double().mean()))
    assert found["spread"]["knn_top1"] == 0
    assert "spread" not in measure(Protocol(epochs=1), train, test, 10)


def test_without_labels_the_spread_is_measured() -> None:
    features = torch.randn(300, 12, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 12) + 1
    found = without_labels(features)
    assert found == {
        "effective_rank": pytest.approx(effective_rank(features)),
        "feature_deviation": pytest.approx(feature_deviation(features)),
        "uniformity": pytest.approx(uniformity(features)),
    }
    with pytest.raises(DataError, match="NaN"):
        without_labels(torch.full((4, 2), torch.nan))


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"l2": -1.0}, {"seeds": 0}, {"cross_folds": 1}, {"k": 0}, {"labels_per_class": 0}]
)
def test_values_that_cannot_work_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(change))}` is out of range"):
        Protocol(**change).check()


def test_impossible_parts_are_refused(digits: Labelled) -> None:
    with pytest.raises(ConfigError, match="so many parts"):
        next(cross_pairs(digits, 100, seed=0))
    with pytest.raises(ConfigError, match="labels_per_class or cross_folds"):
        Protocol(cross_folds=5, labels_per_class=5).check()
