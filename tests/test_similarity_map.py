"""Similarity of each model to each other: the matrix, the command and the picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rela_lightning import linear_cka, load_prior, mutual_knn, representation_similarity
from rela_lightning.cli import main
from rela_lightning.data import DigitsData
from rela_lightning.diagnostics.similarity_map import similarity_map
from rela_lightning.errors import ConfigError
from rela_lightning.probe import extract_features
from rela_lightning.runs.read import find_checkpoint
from rela_lightning.runs.rebuild import find_subject
from tests.test_cli import in_a_folder_of_its_own  # noqa: F401


def features() -> dict[str, torch.Tensor]:
    whole = torch.randn(150, 6, generator=torch.Generator().manual_seed(0))
    return {
        "whole": whole,
        "half": whole[:, :3],
        "other": torch.randn(150, 4, generator=torch.Generator().manual_seed(1)),
    }


@pytest.mark.parametrize(
    ("measure", "pair"),
    [
        ("transport", representation_similarity),
        ("cka", lambda x, y: linear_cka(x, y, debiased=True)),
        ("mutual_knn", mutual_knn),
    ],
)
def test_each_cell_is_the_measure_of_its_pair(measure: Any, pair: Any) -> None:
    given = features()
    found = similarity_map(given, measure=measure)
    expected = [[pair(x, y) for y in given.values()] for x in given.values()]
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(np.diag(found), 1, atol=0.01)
    if measure == "transport":
        assert found[0, 1] > 0.99 > found[1, 0] + 0.1 and abs(found[2, 0]) < 0.3


def test_few_images_have_few_neighbours() -> None:
    few = {name: rows[:6] for name, rows in features().items()}
    first, second, *_ = few.values()
    found = similarity_map(few, measure="mutual_knn")
    assert found[0, 1] == found[1, 0] == mutual_knn(first, second, k=4)


def test_one_model_and_an_unknown_measure_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        similarity_map({"a": torch.randn(9, 2)})
    with pytest.raises(ConfigError, match="Unknown measure"):
        similarity_map(features(), measure="likeness")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_compares_runs_checkpoints_and_priors(plain: Path, capsys: Any) -> None:
    checkpoint = str(find_checkpoint(Path("runs/plain")))
    options = {"width": 0.125, "image_size": 32, "mean": 0.5, "std": 0.5}
    words = ["runs/plain", checkpoint, "random:lightly:resnet-9", f"--prior_kwargs={json.dumps(options)}"]
    assert main(["similarity", *words, "--num_samples=120", "--device=cpu"]) == 0
    known = json.loads(Path("similarity/similarity.json").read_text())
    assert known["names"] == ["plain", f"plain {Path(checkpoint).stem}", "random:lightly:resnet-9"]
    found = np.array(known["similarity"])
    assert found[0, 1] == pytest.approx(found[0, 0]) and found[0, 2] == found[1, 2]
    assert Path("similarity/similarity.png").stat().st_size > 5000
    data, rows = DigitsData(), np.linspace(0, 149, 120).round().astype(int)
    subject, prior = find_subject("runs/plain"), load_prior("random:lightly:resnet-9", **options)
    shown, raw = data.dataset("val", "probe"), data.dataset("val")
    raw.transform = prior.preprocess
    x, y = (
        extract_features(network, [images[int(row)] for row in rows])[0]
        for network, images in ((subject.network, shown), (prior, raw))
    )
    assert found[0, 2] == pytest.approx(representation_similarity(x, y), abs=2e-3)
    assert main(["similarity", *words]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["similarity", "runs/plain", "--out=b"]) == 2
    assert "two or more" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_draws_the_same_matrix(plain: Path, capsys: Any) -> None:
    options = ["--solver=lbfgs", "--k=5", "--device=cpu"]
    for name in ("runs/plain", "runs/again"):
        if name != "runs/plain":
            shutil.copytree("runs/plain", name)
        assert main(["probe", name, *options]) == 0
    assert main(["compare", "runs/plain", "runs/plain/probe.json", "--out=c", "--similarity=true"]) == 2
    assert "two or more folders of runs" in capsys.readouterr().err and not Path("c").exists()
    assert main(["compare", "runs/plain", "runs/again", "--out=c", "--similarity=true"]) == 0
    assert main(["similarity", "runs/plain", "runs/again", "--out=s"]) == 0
    assert Path("c/similarity.json").read_text() == Path("s/similarity.json").read_text()
    assert Path("c/similarity.png").stat().st_size > 5000 and Path("c/report.md").is_file()
    capsys.readouterr()
    assert main(["compare", "runs/plain", "runs/again", "--out=c", "--similarity=true"]) == 2
    assert "there already" in capsys.readouterr().err
