"""The logic of benchmarks/convergence.py, on tiny input: whose images are judged, and what a second costs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from rela_lightning.targets.source import BatchRows, open_source
from tests.benchmarks.calls import call, lines_of

SETTINGS = {"lr": 1e-3, "batch_size": 16, "momentum": 0.9}
COSTS = {"ssl": 1.0, "transport": 0.9, "transport1": 0.4, "mixed": 1.2}


@pytest.fixture
def convergence(script, data_root, tmp_path, monkeypatch):
    """The script with results of its own and calibrated step times."""
    module = script("convergence")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    step = {f"byol/{size}": {kind: {"seconds": s} for kind, s in COSTS.items()} for size in (16, 32, 64)}
    (tmp_path / "results" / "calibration.json").write_text(json.dumps({"fashion_mnist": {"step": step}}))
    (tmp_path / "results" / "tuned.json").write_text(json.dumps({"byol/fashion_mnist": SETTINGS}))
    return module


def arguments(action: str, data_root: Any, *more: object) -> tuple[object, ...]:
    return (action, "--data", "fashion_mnist", "--data-root", data_root, "--images", 128, "--prior", "random", *more)


def test_images_that_choose_and_images_that_judge_are_apart(script, data_root):
    splits = script("images").load_splits("fashion_mnist", data_root, 128)
    train, validation, test = ({image.numpy().tobytes() for image in part.images} for part in splits)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (128, 64, 64)
    assert not train & validation and not train & test and not validation & test


def test_only_run_sees_the_test_images(convergence, script, data_root, monkeypatch):
    splits = script("images").load_splits("fashion_mnist", data_root, 128)
    judged: list[torch.Tensor] = []

    def one_run(options: Any, job: Any, train: Any, evaluate: Any, kept: Any, validation: Any = None) -> dict[str, Any]:
        judged.append(evaluate.images)
        if options.action == "run":  # whose choices are made on these
            assert torch.equal(validation.images, splits.validation.images)
        assert torch.equal(train.images, splits.train.images)
        return {"method": "byol", "steps": 1, "linear_top1": 0.5, "knn_top1": 0.5}

    monkeypatch.setattr(convergence, "one_run", one_run)
    for action in ("tune", "explore", "run"):
        judged.clear()
        call(convergence, monkeypatch, *arguments(action, data_root, "--variants", "a", "b"))
        wanted = splits.test if action == "run" else splits.validation
        assert judged and all(torch.equal(images, wanted.images) for images in judged)


def test_the_best_settings_on_validation_images_are_kept_and_used(convergence, data_root, monkeypatch):
    def one_run(options: Any, job: Any, train: Any, evaluate: Any, kept: Any, **others: Any) -> dict[str, Any]:
        settings = job["settings"]
        top1 = 0.5 - abs(settings["lr"] - 2e-3) + 0.01 * (settings["momentum"] == 0.99) + settings["batch_size"] / 1e4
        return {"method": "byol", "steps": 1, "linear_top1": top1, "knn_top1": 0.5}

    monkeypatch.setattr(convergence, "one_run", one_run)
    results = convergence.RESULTS
    call(convergence, monkeypatch, *arguments("tune", data_root, "--budgets", 0.5, "--choose"))
    assert len(lines_of(results / "tuning.jsonl")) == 10
    best = {"lr": 2e-3, "momentum": 0.99, "batch_size": 64}
    assert json.loads((results / "tuned.json").read_text())["byol/fashion_mnist"] == best
    call(convergence, monkeypatch, *arguments("tune", data_root, "--budgets", 0.5, "--batch-sizes", 128, "--choose"))
    assert lines_of(results / "tuning.jsonl")[-1]["settings"] == {**best, "batch_size": 128}
    call(convergence, monkeypatch, *arguments("run", data_root, "--variants", "b"))
    assert lines_of(results / "convergence.jsonl")[-1]["settings"] == {**best, "batch_size": 128}


def test_runs_are_made_once_and_shared_out(convergence, data_root, monkeypatch):
    made: list[tuple[Any, ...]] = []

    def one_run(options: Any, job: Any, train: Any, evaluate: Any, kept: Any, **others: Any) -> dict[str, Any]:
        made.append((job["variant"], job["budget"], job["seed"]))
        return {"method": "byol", "steps": 1, "linear_top1": 0.5, "knn_top1": 0.5}

    monkeypatch.setattr(convergence, "one_run", one_run)
    asked = ("--variants", "a", "b", "plateau", "--budgets", 0.5, 1.0, "--seeds", 0, 1)
    for shard in ("0/2", "1/2", "0/1"):
        call(convergence, monkeypatch, *arguments("run", data_root, *asked, "--shard", shard))
    assert len(made) == 12 == len(set(made)) == len(lines_of(convergence.RESULTS / "convergence.jsonl"))
    call(convergence, monkeypatch, *arguments("run", data_root, *asked, "--seconds", 10))
    assert len(made) == 24  # another budget in seconds is another run
    text = (convergence.RESULTS / "convergence.jsonl").read_text()
    assert str(data_root) not in text and "--data-root DATA_ROOT" in text


class Rates(L.Callback):
    """The learning rate and the phase of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.phases: list[float] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.phases.append(float(trainer.callback_metrics.get("rela/phase", 2.0)))


def train_for(convergence: Any, data_root: Any, variant: str, seconds: float) -> tuple[Any, Rates]:
    options = SimpleNamespace(data="fashion_mnist", data_root=data_root)
    train = convergence.load_splits("fashion_mnist", data_root, 128).train
    callback = convergence.callback_of(variant, convergence.targets_of(options, train, "random"), "random")
    callbacks = [] if callback is None else [callback]
    clock = convergence.VirtualClock(seconds, COSTS, "ssl" if variant == "a" else None, *callbacks)
    rates = Rates()
    data = train.rows(range(128), convergence.SSLViews(2))
    convergence.fit(convergence.build("byol", SETTINGS, 0), data, SETTINGS, 0, clock, *callbacks, rates)
    return clock, rates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "seconds", "steps"),
    [
        ("a", 10.05, 10),
        ("b", 10.1, 25),  # one view: .4 s
        ("b2", 10.1, 11),  # two views: .9 s
        ("mix", 10.1, 8),
        ("switch", 10.1, 12 + 5),  # 40% is 4.04 s: 11 steps reach it, one batch had been fetched; 5.3 s are left
    ],
)
def test_a_budget_of_seconds_is_spent_at_the_calibrated_cost(convergence, data_root, variant, seconds, steps):
    clock, rates = train_for(convergence, data_root, variant, seconds)
    assert clock.steps == steps == len(rates.rates)
    cost = {0.0: COSTS["transport" if variant == "b2" else "transport1"], 1.0: COSTS["mixed"], 2.0: COSTS["ssl"]}
    assert clock.elapsed == pytest.approx(sum(cost[phase] for phase in rates.phases)) and clock.elapsed <= seconds
    if variant == "switch":
        assert rates.phases == [0.0] * 12 + [2.0] * 5
        assert clock.switched_at == pytest.approx(12 * 0.4)
    if variant in ("b", "b2"):
        assert clock.switched_at is None and len(clock.transport_loss) == steps


def test_a_kind_of_step_without_a_price_is_refused_before_training(convergence, data_root, monkeypatch):
    with pytest.raises(SystemExit, match=r"not calibrated on fashion_mnist.*--batch-sizes 16 --kinds online"):
        call(convergence, monkeypatch, *arguments("run", data_root, "--variants", "e", "--seconds", 2, "--budgets", 1))


@pytest.mark.slow
def test_the_learning_rate_warms_up_and_falls_as_a_cosine_of_the_seconds(convergence, data_root):
    clock, rates = train_for(convergence, data_root, "switch", 20.2)
    begun = np.cumsum([0.0] + [COSTS["transport1"] if phase == 0 else COSTS["ssl"] for phase in rates.phases[:-1]])
    share = begun / 20.2
    falling = 0.5 * (1 + np.cos(np.pi * (share - 0.1) / 0.9))
    expected = SETTINGS["lr"] * np.where(share < 0.1, np.maximum(share / 0.1, 0.02), falling)
    np.testing.assert_allclose(rates.rates, expected, rtol=1e-9)
    assert clock.steps == len(begun)


@pytest.mark.slow
def test_a_run_says_what_it_cost_and_is_repeatable(convergence, data_root, monkeypatch):
    for _ in range(2):
        for file in convergence.RESULTS.glob("*.jsonl"):
            file.rename(file.with_suffix(".before"))
        call(convergence, monkeypatch, *arguments("run", data_root, "--variants", "a", "plateau", "--seconds", 6.1))
    first, second = (
        [json.loads(line) for line in (convergence.RESULTS / name).read_text().splitlines()]
        for name in ("convergence.before", "convergence.jsonl")
    )
    for one, two in zip(first, second, strict=True):
        assert all(one[key] == two[key] for key in ("steps", "training_seconds", "linear_top1", "knn_top1"))
    plain, rela = first
    assert all(0 <= row[f"validation_{key}"] <= 1 for row in first for key in ("linear_top1", "knn_top1"))
    assert (plain["steps"], rela["steps"]) == (6, 15)
    assert plain["labelling_seconds"] == 0 < rela["labelling_seconds"]
    assert plain["prior"] is None and rela["prior"] == "random"
    assert plain["linear_top1"] != rela["linear_top1"] or plain["knn_top1"] != rela["knn_top1"]


def test_online_distillation_aims_at_what_the_store_holds(convergence, data_root, script):
    options = SimpleNamespace(data="fashion_mnist", data_root=data_root)
    train = convergence.load_splits("fashion_mnist", data_root, 128).train
    store = convergence.targets_of(options, train, "random")
    callback = convergence.callback_of("e", store, "random")
    source = open_source(callback.targets, callback.prior)
    data = train.rows(range(128), script("images").plain_view())
    source.check(data)
    views = torch.stack([image for image, _ in data])
    online = source(BatchRows(torch.arange(128), False), views, SimpleNamespace(world_size=1))[:, 0]
    stored = convergence.TargetStore(store)[torch.arange(128)].float()
    assert torch.cosine_similarity(online, stored).min() > 0.99
    assert torch.cosine_similarity(online, stored.roll(1, 0)).mean() < 0.5


@pytest.mark.slow
def test_calibration_times_every_kind_of_step(convergence, data_root, monkeypatch):
    more = ("--methods", "byol", "supervised", "--batch-sizes", 8, "--steps", 6, "--rounds", 1)
    call(convergence, monkeypatch, *arguments("calibrate", data_root, *more))
    path = convergence.RESULTS / "calibration.json"
    step = json.loads(path.read_text())["fashion_mnist"]["step"]
    assert set(step["byol/8"]) == set(convergence.KINDS) and set(step["supervised/8"]) == {"ssl"}
    assert step["byol/64"]["ssl"] == {"seconds": 1.0}  # what was calibrated before stays
    for row in step["byol/8"].values():
        assert 0 < row["data_wait"] < row["seconds"] and row["steps"] == 3 and row["scale"] == 1
        assert str(data_root) not in row["command"]


@pytest.mark.slow
def test_a_kind_that_is_calibrated_later_is_on_the_scale_of_the_others(convergence, data_root, monkeypatch):
    path = convergence.RESULTS / "calibration.json"
    known = {"seconds": 50.0, "data_wait": 10.0}
    path.write_text(json.dumps({"fashion_mnist": {"step": {"byol/32": {"ssl": known, "mixed": known}}}}))
    more = ("--methods", "byol", "--batch-sizes", 32, "--kinds", "transport1", "--steps", 6, "--rounds", 1)
    call(convergence, monkeypatch, *arguments("calibrate", data_root, *more))
    step = json.loads(path.read_text())["fashion_mnist"]["step"]["byol/32"]
    assert step["ssl"] == known == step["mixed"] and set(step) == {"ssl", "mixed", "transport1"}
    assert 5 < step["transport1"]["seconds"] < 50 and step["transport1"]["scale"] > 50


class Cut(L.Callback):
    """Ends the process's run in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 21:
            raise RuntimeError("cut off")


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_as_if_it_were_not(convergence, data_root, monkeypatch):
    """From the end of its second epoch of eight steps, over the hand-over to the end."""
    more = ("--variants", "switch", "--views", "batch", "--seconds", 25.0)
    call(convergence, monkeypatch, *arguments("run", data_root, *more))
    (whole,) = lines_of(convergence.RESULTS / "convergence.jsonl")
    assert whole["steps"] > 24 and not list(data_root.glob(".unfinished*"))
    (convergence.RESULTS / "convergence.jsonl").unlink()

    keep, train = convergence.Unfinished, convergence.bare_trainer
    monkeypatch.setattr(convergence, "Unfinished", lambda *options: keep(*options, every=0.0))
    monkeypatch.setattr(convergence, "bare_trainer", lambda *callbacks: train(*callbacks, Cut()))
    with pytest.raises(RuntimeError, match="cut off"):
        call(convergence, monkeypatch, *arguments("run", data_root, *more))
    assert len(list(data_root.glob(".unfinished*.ckpt"))) == 1

    steps: list[int] = []

    class Steps(L.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            steps.append(trainer.global_step)

    monkeypatch.setattr(convergence, "bare_trainer", lambda *callbacks: train(*callbacks, Steps()))
    call(convergence, monkeypatch, *arguments("run", data_root, *more))
    (rest,) = lines_of(convergence.RESULTS / "convergence.jsonl")
    assert steps[0] == 16 and not list(data_root.glob(".unfinished*"))
    same = ("steps", "training_seconds", "switched_at", "transport_loss", "linear_top1", "knn_top1")
    assert {name: rest[name] for name in same} == {name: whole[name] for name in same}
