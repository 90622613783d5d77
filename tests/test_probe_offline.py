import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.preprocessing import StandardScaler

from rela_lightning.errors import ConfigError, DataError
from rela_lightning.probe import few_label_evaluation, linear_evaluation
from rela_lightning.probe.accuracy import accuracies, summed_cross_entropy, topk_counts
from rela_lightning.probe.solvers import fit_adam, fit_logistic


@pytest.fixture(scope="module")
def data():
    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32), torch.tensor(bunch.target)
    return x[:900], y[:900], x[900:], y[900:]


@pytest.mark.parametrize("l2", [1.0, 100.0])
def test_lbfgs_finds_scikit_learns_optimum(data, l2):
    x, y, test, _ = data
    x, test = x.double() / 16, test.double() / 16
    oracle = LogisticRegression(C=1 / l2, solver="newton-cg", tol=1e-10, max_iter=1000).fit(x, y)
    weight, bias = fit_logistic(x, y, 10, l2=l2)
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, atol=1e-5)
    # a constant added to all biases changes nothing: compare them centred
    offset = oracle.intercept_ - oracle.intercept_.mean()
    np.testing.assert_allclose((bias - bias.mean()).numpy(), offset, atol=1e-5)
    probabilities = (test @ weight.T + bias).softmax(1)
    np.testing.assert_allclose(probabilities.numpy(), oracle.predict_proba(test), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1 / 16, 100.0)])
def test_lbfgs_gets_there_where_classes_are_separable_or_features_far_off(data, scale, offset):
    x, y = data[0].double() * scale, data[1]
    oracle = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=1000).fit(x, y)
    x = x + offset

    def objective(weight, bias):
        scores = x @ weight.T + bias
        return (scores.logsumexp(1) - scores[torch.arange(900), y]).sum() + weight.square().sum() / 2

    weight = torch.tensor(oracle.coef_)
    best = objective(weight, torch.tensor(oracle.intercept_) - weight.sum(1) * offset)
    assert objective(*fit_logistic(x, y, 10)) < best * (1 + 1e-6)


@pytest.mark.parametrize("standardise", [False, True])
def test_lbfgs_evaluation_agrees_with_scikit_learn(data, standardise):
    x, y, test, labels = data
    x, test = x / 16, test / 16
    scaler = StandardScaler(with_mean=standardise, with_std=standardise).fit(x)
    oracle = LogisticRegression(solver="newton-cg", tol=1e-8, max_iter=1000).fit(scaler.transform(x), y)
    result = linear_evaluation(x, y, test, labels, solver="lbfgs", standardise=standardise)
    scores = oracle.decision_function(scaler.transform(test))
    assert result["top1"] == pytest.approx((scores.argmax(1) == labels.numpy()).mean(), abs=1e-9)
    assert result["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5), abs=1e-9)


def test_adam_is_the_protocol_restated(data):
    x, y, _, _ = data
    weight, bias = fit_adam(x, y, 10, epochs=3, lr=1e-3, weight_decay=0.01, batch_size=100, seed=4)
    layer = torch.nn.Linear(64, 10)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        order = torch.randperm(900, generator=generator)
        for start in range(0, 900, 100):
            rows = order[start : start + 100]
            optimizer.zero_grad()
            torch.nn.CrossEntropyLoss()(layer(x[rows]), y[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(weight, layer.weight.detach())
    torch.testing.assert_close(bias, layer.bias.detach())


def test_adam_learns_the_digits_and_repeats_itself(data):
    first = linear_evaluation(*data, epochs=30)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert linear_evaluation(*data, epochs=30) == first
    assert torch.equal(state, torch.get_rng_state())
    assert first["top1"] > 0.85
    assert first["top1"] < first["top5"] <= 1.0


@pytest.mark.slow
def test_two_classes_have_no_top5(data):
    x, y, test, labels = data
    result = linear_evaluation(x, y % 2, test, labels % 2, solver="lbfgs")
    assert list(result) == ["top1"]


@pytest.mark.slow
def test_a_constant_dimension_does_no_harm(data):
    x, y, test, labels = data
    constant = torch.full((len(x), 1), 1e6)
    wider = linear_evaluation(
        torch.cat([x, constant], 1), y, torch.cat([test, constant[: len(test)]], 1), labels,
        solver="lbfgs", standardise=True,
    )  # fmt: skip
    assert wider == linear_evaluation(x, y, test, labels, solver="lbfgs", standardise=True)


@pytest.mark.slow
def test_few_labels_is_the_mean_over_draws_of_whole_fits(data):
    x, y, test, labels = data
    result = few_label_evaluation(x, y, test, labels, labels_per_class=5, folds=4)
    assert len(result["top1_folds"]) == 4
    assert len(set(result["top1_folds"])) > 1  # each fold is another draw
    assert result["top1_mean"] == pytest.approx(np.mean(result["top1_folds"]))
    assert result["top1_std"] == pytest.approx(np.std(result["top1_folds"], ddof=1))
    assert result == few_label_evaluation(x, y, test, labels, labels_per_class=5, folds=4)
    assert result != few_label_evaluation(x, y, test, labels, labels_per_class=5, folds=4, seed=1)
    more = few_label_evaluation(x, y, test, labels, labels_per_class=40, folds=2)
    assert 0.5 < result["top1_mean"] < more["top1_mean"]


@pytest.mark.slow
def test_few_labels_draws_the_same_rows_of_every_class(data, monkeypatch):
    from rela_lightning.probe import offline

    drawn = []
    genuine = offline.linear_evaluation

    def spy(features, labels, *args, **kwargs):
        drawn.append((features, labels))
        return genuine(features, labels, *args, **kwargs)

    monkeypatch.setattr(offline, "linear_evaluation", spy)
    _, y, test, labels = data
    numbered = torch.arange(900.0).unsqueeze(1)
    for features, queries in ((numbered, test[:, :1]), (numbered.repeat(1, 3), test[:, :3])):
        few_label_evaluation(features, y, queries, labels, labels_per_class=7, folds=2, standardise=False)
    for features, classes in drawn:
        assert classes.bincount(minlength=10).tolist() == [7] * 10
        assert torch.equal(y[features[:, 0].long()], classes)
    assert torch.equal(drawn[0][0], drawn[2][0][:, :1])
    assert not torch.equal(drawn[0][0], drawn[1][0])


@pytest.mark.slow
def test_all_labels_in_one_fold_is_the_whole_fit(data):
    x, y, test, labels = data
    smallest = y[:90].bincount().min().item()
    balanced = torch.cat([torch.where(y[:90] == c)[0][:smallest] for c in range(10)])
    few = few_label_evaluation(
        x[balanced], y[balanced], test, labels, labels_per_class=smallest, folds=1, l2=2.0, standardise=False
    )
    assert few["top1_std"] == 0.0
    exact = linear_evaluation(x[balanced], y[balanced], test, labels, solver="lbfgs", l2=2.0)
    assert few["top1_mean"] == pytest.approx(exact["top1"], abs=0.003)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"solver": "sgd"}, ConfigError, "adam, lbfgs"),
        ({"l2": 0.0}, ConfigError, "l2 > 0"),
        ({"epochs": 0}, ConfigError, "epochs >= 1"),
        ({"num_classes": 5}, DataError, "0 to 4"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, DataError, "training features and labels"),
        ({"test_features": torch.full((897, 64), float("nan"))}, DataError, "test features hold NaN"),
    ],
)
def test_bad_input_is_refused(data, change, error, message):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    with pytest.raises(error, match=message):
        linear_evaluation(**{**dict(zip(names, data, strict=True)), **change})


@pytest.mark.parametrize("change", [{"labels_per_class": 10_000}, {"labels_per_class": 0}, {"folds": 0}])
def test_impossible_draws_are_refused(data, change):
    with pytest.raises(ConfigError, match="smallest class"):
        few_label_evaluation(*data, **change)


def test_counts_against_scikit_learn_and_without_unlabelled_rows(data):
    torch.manual_seed(0)
    scores, labels = torch.randn(897, 10), data[3]
    counts = topk_counts(scores, labels, (1, 5))
    expected = [top_k_accuracy_score(labels, scores, k=k) for k in (1, 5)]
    assert accuracies(counts) == pytest.approx(expected)
    masked = labels.clone()
    masked[::3] = -1
    keep = masked >= 0
    assert torch.equal(topk_counts(scores, masked, (1, 5)), topk_counts(scores[keep], labels[keep], (1, 5)))
    masked[::6] = -100
    total = torch.nn.functional.cross_entropy(scores[keep], labels[keep], reduction="sum")
    torch.testing.assert_close(summed_cross_entropy(scores, masked), total)
