"""The benchmarks of the targets' columns, on digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rela_lightning import load_prior
from rela_lightning.data import Digits
from rela_lightning.targets.reduce import moments, pca, project, projection
from tests.benchmarks.calls import call, lines_of


@pytest.fixture(scope="module")
def columns(script: Any) -> Any:
    return script("target_columns")


def test_targets_are_those_of_the_package_also_with_fewer_images_than_dimensions(columns: Any) -> None:
    features = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 41) ** -0.5
    for rows in (features, features[:30]):
        made = columns.targets_of(rows)
        full = pca(moments(rows))
        for name in ("shrunk", "per_dim", "isotropic"):
            expected = project(rows.double(), projection(full, name))
            similar = [t.double() @ t.double().T for t in (made[name], expected)]
            torch.testing.assert_close(*similar, rtol=1e-3, atol=1e-3)
        assert made["ledoit_wolf"].shape == made["shrunk"].shape


def test_agreement_is_the_share_of_nearest_others_with_the_same_label(columns: Any) -> None:
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 1, 1, 0])
    assert columns.agreeing(rows, labels, torch.arange(5)) == 4


def test_a_run_is_journalled_once(columns: Any, monkeypatch: Any, tmp_path: Path, data_root: Path, capsys: Any) -> None:
    monkeypatch.setattr(columns, "IMAGES", (40, 150))
    options = ["--data-root", data_root, "--features", tmp_path / "f", "--out", tmp_path / "o.jsonl"]
    options += ["--priors", "random", "--data", "fashion_mnist", "--queries", "100", "--images"]
    call(columns, monkeypatch, *options, 40)
    call(columns, monkeypatch, *options, 40, 150)
    rows = lines_of(tmp_path / "o.jsonl")
    assert [(row["images"], row["subsets"], row["queries"]) for row in rows] == [(40, 3, 120), (150, 1, 100)]
    assert all(0 <= row["agreement"]["shrunk"]["all"] <= 100 for row in rows)
    assert str(tmp_path) not in (tmp_path / "o.jsonl").read_text()
    assert capsys.readouterr().out.count("| random | fashion_mnist | 40 |") == 2
    assert np.load(next((tmp_path / "f").iterdir())).shape == (150, 256)


def test_rounding_is_imitated_and_undone(script: Any) -> None:
    rounding = script("target_rounding")
    prior = load_prior("random:lightly:resnet-9", width=0.0625, image_size=8, mean=0.5, std=0.5, seed=0)
    images = [torch.stack([prior.preprocess(image) for image, _ in list(Digits("train"))[:200]])]
    exact = prior(images[0])
    for name in ("tf32", "bf16-mixed"):
        found = rounding.measure(prior, images, exact, name)
        assert found["kept"]["columns"] <= found["all"]["columns"] and found["kept"]["shrunk"] > 0.99
        assert found["rounding"]["share"] > 0
    assert torch.equal(prior(images[0]), exact)
