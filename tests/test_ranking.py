"""rank_priors: order, controls and cost, on digits and crops of photographs, against straight restatements."""

from __future__ import annotations

import dataclasses
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.stats import entropy
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import Dataset

from rela_lightning import load_prior, rank_priors, transport_distance
from rela_lightning.demo.prior import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.diagnostics import PriorRanking, PriorRow
from rela_lightning.diagnostics.survey import PIXELS, RANDOM, survey
from rela_lightning.diagnostics.worth import follow, worth_of
from rela_lightning.errors import ConfigError, DataError, PriorError, TargetError
from rela_lightning.priors import Prior
from tests.image_files import crop
from tests.modules import byol
from tests.parts import TinyBackbone, make_digits

SMALL: dict[str, Any] = {"num_samples": 48, "device": "cpu"}


def fashion() -> Prior:
    return load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)


def blind() -> Prior:
    """Sees the mean colour alone."""
    return load_prior(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), image_size=8, mean=0.5, std=0.5)


class Breaks(nn.Module):
    """Gives a value that is not finite for a picture that is red all over."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = images.mean(dim=(2, 3))
        return torch.where(features[:, :1] > 0.99, self.value, features)


@pytest.fixture(scope="module")
def ranking() -> PriorRanking:
    torch.manual_seed(0)
    return rank_priors(
        {"blind": blind(), "fashion": fashion()},
        make_digits(120),
        student=TinyBackbone(),
        steps=3,
        budget_seconds=100.0,
        **SMALL,
    )


class Listed(Dataset):
    """Samples out of a list."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def row(ranking: PriorRanking, name: str) -> PriorRow:
    return next(row for row in ranking.rows if row.name == name)


# ---- what it says -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_better_prior_is_first_and_the_controls_are_last(ranking: PriorRanking) -> None:
    assert [row.name for row in ranking.rows[:2]] == ["fashion", "blind"]
    assert {row.name for row in ranking.rows[2:]} == {RANDOM, PIXELS}
    assert [row.control for row in ranking.rows] == [False, False, True, True]
    assert (ranking.num_samples, ranking.length) == (48, 120)


@pytest.mark.slow
def test_cost_is_that_of_the_whole_data_set(ranking: PriorRanking) -> None:
    for each in ranking.rows:
        assert each.disk_bytes == 2 * each.target_dim * 120
        assert each.budget_share == pytest.approx(each.labelling_seconds / 100)
    assert 0 < row(ranking, "blind").labelling_seconds < row(ranking, RANDOM).labelling_seconds
    wide = rank_priors([blind()], make_digits(64), **SMALL)
    assert row(wide, "Sequential").budget_share is None


def test_a_row_is_what_numpy_says() -> None:
    dataset, prior = make_digits(90), fashion()
    found = survey({"it": prior}, dataset, num_samples=64, num_views=40)
    assert found.rows == sorted({round(i * 89 / 63) for i in range(64)})
    images = torch.stack([prior.preprocess(dataset[index][0]) for index in found.rows])
    features = prior(images).double().numpy()
    np.testing.assert_allclose(found.features["it"], features, atol=1e-4)
    assert found.viewed == [round(i * 63 / 39) for i in range(40)]
    worth = worth_of(found, "it")
    fitted = PCA().fit(features)
    kept = fitted.explained_variance_ > 1e-12 * fitted.explained_variance_[0]
    deviations = np.sqrt(fitted.explained_variance_[kept])
    assert worth.richness == pytest.approx(np.exp(entropy(deviations)), rel=1e-3)
    weight = 90 / (90 + 3 * 128)
    one, two = (
        fitted.transform(np.asarray(rows, dtype=np.float64))[:, kept] / deviations**weight
        for rows in (features[found.viewed], found.views["it"])
    )
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert worth.stability == pytest.approx(cosines.mean(), rel=1e-3)
    correlations = [np.corrcoef(one[:, d], two[:, d])[0, 1] for d in range(one.shape[1])]
    assert worth.stable_directions == pytest.approx(sum(correlations), rel=1e-3)


@pytest.mark.slow
def test_views_are_of_their_image_and_nothing_survives_where_they_are_not() -> None:
    found = survey({"it": fashion()}, make_digits(200), num_samples=200, num_views=200)
    features, views = found.features["it"], found.views["it"]
    right = worth_of(found, "it")
    wrong = worth_of(dataclasses.replace(found, views={"it": views.roll(7, 0)}), "it")
    assert right.stability > 0.1 > abs(wrong.stability) + 0.03
    assert right.stable_directions > 10 * abs(wrong.stable_directions)
    same = worth_of(dataclasses.replace(found, views={"it": features}), "it")
    assert same.stability == pytest.approx(1)
    assert same.stable_directions == pytest.approx(same.targets.shape[1])


def test_the_order_of_a_data_set_does_not_rank() -> None:
    """Photos before images of one colour, and after them."""

    class Structure(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            small = nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 3).flatten(1)
            return small - small.mean(dim=1, keepdim=True)

    prior = load_prior(Structure(), image_size=32, mean=[0.0] * 3, std=[1.0] * 3)
    photos = [(crop(row // 3, row, 64), 0) for row in range(128)]
    flat = [(image.resize((1, 1)).resize((64, 64)), 0) for image, _ in photos]
    directions = []
    for rows in (photos + flat, flat + photos):
        found = survey({"it": prior}, Listed(rows), num_samples=256, num_views=128)
        worth = worth_of(found, "it")
        directions.append(worth.stable_directions)
    assert min(directions) > 2
    assert directions[0] == pytest.approx(directions[1], rel=0.2)


def test_the_student_is_measured_and_left_alone(ranking: PriorRanking) -> None:
    assert all(0 < row.loss_after < 2 and 0 < row.distance_before < 2 for row in ranking.rows)  # type: ignore[operator]
    assert all(row.target_dim <= 16 for row in ranking.rows)  # the student's width
    torch.manual_seed(0)
    student = TinyBackbone()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    images = torch.randint(0, 255, (60, 3, 16, 16), dtype=torch.uint8)
    targets = torch.randn(60, 5)
    state = torch.get_rng_state()
    none, some = (follow(student, images, targets, steps=steps) for steps in (0, 60))
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert student.training
    assert torch.equal(state, torch.get_rng_state())
    assert none.after is None
    assert none.before == some.before
    pixels = images / 255
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    with torch.no_grad():
        features = student.eval()(pixels)
    assert none.before == pytest.approx(transport_distance(features, targets), abs=1e-4)


@pytest.mark.slow
def test_a_student_learns_what_can_be_learnt() -> None:
    torch.manual_seed(0)
    level = torch.rand(200, 3)
    images = (level[:, :, None, None].expand(-1, -1, 8, 8) * 255).to(torch.uint8)
    colour = follow(TinyBackbone(), images, level - 0.5, steps=60)
    noise = follow(TinyBackbone(), images, torch.randn(200, 3), steps=60)
    assert colour.after < 0.4 < noise.after  # type: ignore[operator]


@pytest.mark.slow
def test_the_student_of_a_module_is_found() -> None:
    found = rank_priors([blind()], make_digits(40), student=byol(), steps=0, **SMALL)
    assert found.rows[0].distance_before is not None
    assert found.rows[0].loss_after is None


# ---- advice -----------------------------------------------------------------------------------------------


def made(**directions: tuple[float, float]) -> PriorRanking:
    """Rows of (stable directions, seconds of labelling), with controls of 20 and 10."""
    blank = {
        field.name: None if "None" in str(field.type) else 1 for field in dataclasses.fields(PriorRow)
    } | {"agreement": {"other": 0.5}}  # fmt: skip
    rows = [
        PriorRow(**{**blank, "name": name, "control": False, "stable_directions": d, "labelling_seconds": s})
        for name, (d, s) in directions.items()
    ]
    rows += [
        PriorRow(**{**blank, "name": name, "control": True, "stable_directions": d})
        for name, d in ((RANDOM, 20.0), (PIXELS, 10.0))
    ]
    return PriorRanking(tuple(rows), 48, 100, 48)


@pytest.mark.parametrize(
    "rows, best, words",
    [
        ({"a": (80.0, 30.0), "b": (40.0, 5.0)}, "a", ["Take a: 80 directions", "20 for random network", "30.0 s"]),
        ({"a": (80.0, 9000.0), "b": (76.0, 5.0)}, "b", ["Take b: 76 directions", "a has 80, but takes 2.5 h"]),
        ({"a": (0.0, 30.0), "b": (-1.0, 3.0)}, None, ["None is better"]),
        ({"a": (21.0, 30.0)}, None, ["None is better than random network", "21 directions", "20 of its own"]),
    ],
)
def test_advice(rows: Any, best: str | None, words: list[str]) -> None:
    ranking = made(**rows)
    assert (ranking.best.name if ranking.best else None) == best
    assert all(word in ranking.advice for word in words)


def test_controls_below_zero_make_nobody_better() -> None:
    rows = [dataclasses.replace(row, stable_directions=-1.0) for row in made(a=(80.0, 30.0)).rows]
    assert PriorRanking(tuple(rows), 48, 100, 48).best is None


def test_dear_labelling_is_remarked_on() -> None:
    ranking = made(a=(80.0, 30.0))
    dear = dataclasses.replace(ranking.rows[0], budget_share=0.5)
    assert "50.0% of the budget (dear" in PriorRanking((dear, *ranking.rows[1:]), 48, 100, 48).advice


# ---- how it is shown --------------------------------------------------------------------------------------


def test_it_prints_as_a_table_and_as_json(ranking: PriorRanking) -> None:
    stream = io.StringIO()
    Console(file=stream, width=160).print(ranking)
    for text in (stream.getvalue(), str(ranking)):
        assert all(word in text for word in ("fashion", "blind", RANDOM, PIXELS, "labelling", "disk", "budget"))
        assert ranking.advice.split(":")[0] in text
    named = dataclasses.replace(
        ranking, rows=tuple(dataclasses.replace(row, name="weights[1].pth") for row in ranking.rows)
    )
    assert str(named).count("weights[1].pth") > len(named.rows), "names are no markup"
    read = json.loads(ranking.to_json())
    assert [entry["name"] for entry in read["rows"]] == [row.name for row in ranking.rows]
    assert read["advice"] == ranking.advice
    assert read["rows"][0]["agreement"].keys() == {"blind", RANDOM, PIXELS}


# ---- care -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_random_state_and_the_data_set_are_left_alone_and_it_repeats() -> None:
    dataset = make_digits(40, transform=lambda image: 1 / 0)  # its own views are not used
    student = TinyBackbone()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    one, two = (rank_priors([blind()], dataset, student=student, steps=2, **SMALL) for _ in range(2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert all(a.loss_after == b.loss_after for a, b in zip(one.rows, two.rows, strict=True))
    assert one.rows[0].stable_directions == two.rows[0].stable_directions


class Words(Dataset[str]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> str:
        return "word"


@pytest.mark.parametrize(
    "priors, options, error",
    [
        ([], {}, ConfigError),
        ("timm:resnet18", {}, ConfigError),
        (["nothing:x"], {}, PriorError),
        ([nn.Flatten()], {}, PriorError),
        ("blind", {"num_samples": 8}, ConfigError),
        ("blind", {"steps": -1}, ConfigError),
        ("blind", {"budget_seconds": 0}, ConfigError),
        ("blind", {"student": "no_such_network"}, ConfigError),
        ("blind", {"image_size": 0}, ConfigError),
        ("blind", {"student": nn.Conv2d(1, 4, 3), "steps": 1}, ConfigError),
        ("blind", {"device": "gpu"}, ConfigError),
        ("blind", {"device": "meta"}, ConfigError),
    ],
)
def test_bad_options_are_refused(priors: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        rank_priors([blind()] if priors == "blind" else priors, make_digits(40), **{**SMALL, **options})


@pytest.mark.slow
def test_what_holds_no_images_or_no_features_is_refused() -> None:
    with pytest.raises(DataError, match="no image"):
        rank_priors([blind()], Words(), **SMALL)
    constant = load_prior(nn.Sequential(nn.Flatten(), nn.Threshold(1e9, 1.0)), image_size=8, mean=0.5, std=0.5)
    with pytest.raises(TargetError, match="same features"):
        rank_priors([constant], make_digits(40), **SMALL)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_with_the_rows(broken: float) -> None:
    images = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(40)]
    images[7] = Image.new("RGB", (16, 16), (255, 0, 0))
    bright = load_prior(Breaks(broken), image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(TargetError, match="NaN or infinite") as refused:
        rank_priors({"bright": bright}, images, **SMALL)
    assert "bright, for rows [7] of" in str(refused.value)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="too few images") as refused:
        rank_priors([blind()], make_digits(31), **SMALL)
    assert "31 in" in str(refused.value)


@pytest.mark.slow
def test_two_priors_of_one_name_are_told_apart() -> None:
    names = {row.name for row in rank_priors([blind(), blind()], make_digits(40), **SMALL).rows}
    assert {"Sequential", "Sequential (2)"} <= names
    named = rank_priors({PIXELS: blind(), 18: blind()}, make_digits(40), **SMALL)  # the name of a control, no text
    assert [row.name for row in named.rows if not row.control] == [f"{PIXELS} (2)", "18"]
    assert [row.name for row in named.rows if row.control] and "18" in str(named)


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rela_lightning.cli.rank import rank
    from rela_lightning.data import DigitsData

    monkeypatch.chdir(tmp_path)
    options = {"width": 0.125, "image_size": 32, "mean": 0.5, "std": 0.5}
    where: dict[str, Any] = {"num_samples": 40, "device": "cpu"}
    rank(["random:lightly:resnet-9"], DigitsData(), prior_kwargs=options, out="new/rank.json", **where)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert RANDOM in said and "hint:" not in said
    loud = {**options, "mean": 0.0, "std": 1 / 255}
    rank(["random:lightly:resnet-9"], DigitsData(), prior_kwargs=loud, steps=0, **where)  # type: ignore[arg-type]
    assert "random:lightly:resnet-9, not rescaled: black and white differ by 255" in capsys.readouterr().out
    assert len(json.loads(Path("new/rank.json").read_text())["rows"]) == 3
    with pytest.raises(ConfigError, match="there already"):  # before any work
        rank(["nothing:x"], DigitsData(), out="new/rank.json")  # type: ignore[arg-type]
