import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from rela_lightning.errors import ConfigError, DataError
from rela_lightning.probe import knn_predict


@pytest.fixture(scope="module")
def data():
    bunch = load_digits()
    x = torch.tensor(bunch.data - bunch.data.mean(0), dtype=torch.float32)
    y = torch.tensor(bunch.target)
    return x[:1200], y[:1200], x[1200:]


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_agrees_with_scikit_learn(data, k, weights):
    bank, labels, queries = data
    rule = "uniform" if weights == "uniform" else (lambda distance: np.exp((1 - distance) / 0.07))
    oracle = KNeighborsClassifier(k, metric="cosine", weights=rule, algorithm="brute").fit(bank, labels)
    predicted = knn_predict(bank, labels, queries, k=k, weights=weights, chunk_size=100)
    assert predicted.dtype == torch.int64
    np.testing.assert_array_equal(predicted.numpy(), oracle.predict(queries))


def test_chunks_and_lengths_of_vectors_do_not_matter(data):
    bank, labels, queries = data
    whole = knn_predict(bank, labels, queries, chunk_size=10_000)
    scaled = knn_predict(bank * torch.rand(len(bank), 1).add(0.1), labels, queries * 3, chunk_size=7)
    assert torch.equal(whole, scaled)


def test_the_nearest_outvotes_the_many_only_at_a_low_temperature():
    bank = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])

    def vote(**options):
        return knn_predict(bank, labels, query, k=3, **options).item()

    # votes: exp(1 / t) against 2 exp(0.8 / t); equal at t = 0.2 / log 2 = 0.289
    assert vote(temperature=0.28) == 0
    assert vote(temperature=0.30) == 1
    assert vote(temperature=0.07, weights="uniform") == 1
    assert vote(temperature=0.001) == 0  # exp(1000) would overflow


def test_no_query_is_no_prediction(data):
    bank, labels, queries = data
    assert knn_predict(bank, labels, queries[:0]).shape == (0,)


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": 1201}, {"temperature": 0.0}, {"weights": "cosine"}, {"chunk_size": 0}]
)
def test_bad_options_are_refused(data, options):
    with pytest.raises(ConfigError, match="1 <= k <= 1200"):
        knn_predict(*data, **options)


def test_shapes_that_do_not_pair_are_refused(data):
    bank, labels, queries = data
    with pytest.raises(DataError, match=r"\[N, F\]"):
        knn_predict(bank, labels[:-1], queries)
    with pytest.raises(DataError, match=r"\[N, F\]"):
        knn_predict(bank, labels, queries[:, :3])
