"""How many directions each prior's features fill: against numpy, on handwritten digits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.benchmarks.calls import call


def test_directions_of_two_priors(script, data_root, tmp_path, monkeypatch):
    directions = script("directions")
    file = tmp_path / "directions.json"
    call(
        directions, monkeypatch, "--data", "fashion_mnist", "--data-root", data_root, "--images", 128,
        "--priors", "random", "fashion_mnist", "--results", file,
    )  # fmt: skip
    written = json.loads(file.read_text())
    assert written["result"]["images"] == 128
    assert str(data_root) not in file.read_text()
    images = script("images").load_splits("fashion_mnist", data_root, 128).train
    for name, found in written["result"]["directions"].items():
        prior = directions.prior_named(name)
        features = np.concatenate([prior(prior.preprocess(images[row][0])[None]).numpy() for row in range(128)])
        variances = np.linalg.eigvalsh(np.cov(features.astype(np.float64), rowvar=False)).clip(1e-30)
        shares = variances / variances.sum()
        assert found == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=0.1)
