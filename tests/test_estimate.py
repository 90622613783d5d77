"""What `rela targets --estimate` says of disk is what the store takes, and nothing is written to find out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rela_lightning import build_targets, load_prior
from rela_lightning.cli import main
from rela_lightning.data import Digits
from rela_lightning.errors import ConfigError
from rela_lightning.targets.estimate import estimate_targets
from rela_lightning.targets.shards import Shape, pass_bytes

pytestmark = pytest.mark.usefixtures("all_images")


@pytest.mark.parametrize(
    ("views", "storage", "columns"),
    [(0, "float16", None), (2, "float32", None), (0, "int8", 32), (1, "float16", 16), (1, "float32", 0.9)],
)
def test_disk_is_what_the_store_takes(views: int, storage: Any, columns: Any, tmp_path: Path) -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.25, image_size=32, mean=0.5, std=0.5, seed=0)
    options: dict[str, Any] = {"views": views, "target_dim": columns, "storage_dtype": storage}
    images = torch.utils.data.Subset(Digits(), range(400))
    state = torch.get_rng_state()
    found = estimate_targets(prior, images, **options)
    assert torch.equal(torch.get_rng_state(), state) and not list(tmp_path.iterdir())
    assert found.images == 400 and found.working_bytes == pass_bytes(400, Shape(1 + views, prior.feature_dim))
    assert found.seconds > found.images / found.images_per_second > 0
    assert found.memory_bytes is None or found.memory_bytes > 50_000_000
    build_targets(prior, images, tmp_path / "t", **options)
    taken = sum(file.stat().st_size for file in (tmp_path / "t").iterdir())
    assert found.store_bytes == pytest.approx(taken, rel=0.03, abs=8_000)


def test_a_fused_prior_and_a_handful_of_images() -> None:
    options: dict[str, Any] = {"width": 0.125, "image_size": 32, "mean": 0.5, "std": 0.5, "seed": 0}
    fused = load_prior(["random:lightly:resnet-9", "random:lightly:resnet-18"], **options)
    few = torch.utils.data.Subset(Digits(), range(5))
    found = estimate_targets(fused, few, views=1)
    assert found.images == 5 and found.seconds > 0


@pytest.mark.parametrize(
    "options",
    [
        {"views": -1}, {"target_dim": 0}, {"target_dim": 1000}, {"target_dim": 1.5}, {"batch_size": 0},
        {"num_workers": -1}, {"storage_dtype": "float8"},
    ],
)  # fmt: skip
def test_what_a_build_refuses_is_not_estimated(options: dict[str, Any], tmp_path: Path) -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
    said = []
    for call in (estimate_targets, lambda *args, **given: build_targets(*args, tmp_path / "t", **given)):
        with pytest.raises(ConfigError) as refused:
            call(prior, Digits(), **options)
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_the_command_says_it_and_writes_nothing(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    kwargs = "--prior_kwargs={width: 0.125, image_size: 32, mean: 0.5, std: 0.5}"
    words = ["targets", "random:lightly:resnet-9", "--data=DigitsData", "--path=t", kwargs]
    assert main([*words, "--estimate=true", "--views=2"]) == 0
    said = capsys.readouterr().out
    assert "1,347 images at" in said and "Nothing was written." in said and "disk: " in said
    assert not list(tmp_path.iterdir())
