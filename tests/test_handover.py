"""Once the transport loss is off it stays off, and what is logged says so without costing a step anything."""

from __future__ import annotations

import csv
import gc
import io
import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from rela_lightning import ReLACallback
from rela_lightning.injection.budget import Budget
from rela_lightning.injection.passes import Passes
from rela_lightning.injection.phases import Phases
from rela_lightning.schedules import Blend, Mix, Plateau, Schedule, Switch, TransportOnly, Weights
from tests.modules import PlainBYOL, byol
from tests.test_budget import trainer as counters
from tests.test_callback import Log, fit, loader, seeded, trainer


def resumed(targets: Any, tmp_path: Any, schedule: Any, first: int, plan: int, more: int) -> list[float]:
    """Phases of the steps after a run of `first` epochs, planned for `plan`, goes on with a plan of `more` epochs."""
    run = trainer("lightning.pytorch", ReLACallback(targets, schedule=schedule()), max_epochs=plan)

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == first - 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    run.callbacks.append(Save())
    torch.manual_seed(0)
    run.fit(seeded(byol), loader())
    log = Log()
    again = trainer("lightning.pytorch", ReLACallback(targets, schedule=schedule()), log, max_epochs=more)
    again.fit(byol(), loader(), ckpt_path=tmp_path / "a.ckpt")
    return [entry["rela/phase"] for entry in log.seen]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "first", "plan", "more", "phases"),
    [
        (lambda: Switch(0.5), 2, 2, 6, [2.0] * 16),
        (lambda: Switch(0.5), 3, 4, 12, [2.0] * 36),  # the switch came at epoch 2
        (lambda: Switch(0.5), 1, 4, 8, [0.0] * 12 + [2.0] * 16),  # it had not come: half of the new plan
        (lambda: Blend("linear", 0.5), 2, 2, 4, [2.0] * 8),
        (lambda: Plateau(at_least=0.1, at_most=0.25), 2, 4, 40, [2.0] * 152),
        (TransportOnly, 2, 2, 4, [0.0] * 8),
        (Mix, 2, 2, 4, [1.0] * 8),
    ],
)
def test_a_longer_plan_does_not_go_back(
    targets64: Any, tmp_path: Any, schedule: Any, first: int, plan: int, more: int, phases: list[float]
) -> None:
    assert resumed(targets64, tmp_path, schedule, first, plan, more) == phases


class Watching(Schedule):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def weights(self, progress: float) -> Weights:
        self.seen.append(progress)
        return Weights(1.0, 1.0 - progress / 2)


@pytest.mark.slow
def test_a_schedule_sees_progress_that_never_falls(targets64: Any, tmp_path: Any) -> None:
    made: list[Watching] = []

    def watching() -> Watching:
        made.append(Watching())
        return made[-1]

    resumed(targets64, tmp_path, watching, 2, 2, 6)
    planned = {percent / 100 for percent in range(100)}  # asked once before training, to say what is planned
    first, second = ([p for p in schedule.seen if 0.05 < p < 1.0 and p not in planned] for schedule in made)
    assert first == sorted(first) and second == sorted(second) and min(second) >= max(first) == 0.875


# ---- what is logged ----------------------------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch: Any) -> list[tuple[int, str]]:
    """Every call of `module.log` with a name of ours, with the step."""
    calls: list[tuple[int, str]] = []
    own = L.LightningModule.log

    def log(self: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name.startswith("rela/"):
            calls.append((self.global_step, name))
        own(self, name, *args, **kwargs)

    monkeypatch.setattr(L.LightningModule, "log", log)
    return calls


@pytest.mark.slow
def test_nothing_is_logged_after_the_switch(targets64: Any, logged: list[tuple[int, str]]) -> None:
    log = Log()
    fit(seeded(byol), ReLACallback(targets64, schedule=Switch(0.5)), log, max_epochs=4)
    weights = {"rela/weight", "rela/ssl_weight", "rela/phase"}
    assert {name for step, name in logged if step == 0} == {*weights, "rela/loss"}
    assert [name for step, name in logged if step in (1, 2, 3)] == ["rela/loss"] * 3
    assert {name for step, name in logged if step == 8} == weights, "the switch itself"
    assert max(step for step, _ in logged) == 8
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 8 + [2.0] * 8, "which everybody can still read"
    assert log.seen[-1]["rela/ssl_weight"] == 1.0 and log.seen[-1]["rela/weight"] == 0.0


def test_weights_that_change_are_logged_each_time(targets64: Any, logged: list[tuple[int, str]]) -> None:
    log = Log()
    fit(seeded(byol), ReLACallback(targets64, schedule=Blend("linear")), log, max_epochs=2)
    assert [entry["rela/weight"] for entry in log.seen] == pytest.approx(
        [1.0, 1.0, *(1 - step / 8 for step in range(2, 8))]  # the second batch was made when the first was
    )
    assert sum(name == "rela/weight" for _, name in logged) == 7


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3, 50])
def test_a_logger_hears_of_each_phase_at_any_interval(targets64: Any, tmp_path: Any, every: int) -> None:
    logger, log = CSVLogger(tmp_path), Log()
    fit(
        seeded(byol), ReLACallback(targets64, schedule=Switch(0.3)), log, max_epochs=4, logger=logger,
        log_every_n_steps=every,
    )  # fmt: skip
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rela/phase"]]
    by_step = {int(row["step"]): float(row["rela/phase"]) for row in rows}
    switch = [entry["rela/phase"] for entry in log.seen].index(2.0)
    assert by_step[0] == 0.0 and by_step[switch] == 2.0 and set(by_step.values()) == {0.0, 2.0}
    assert all(value == (0.0 if step < switch else 2.0) for step, value in by_step.items())


def test_late_transport_views_never_reach_the_users_step() -> None:
    run = counters(max_steps=10, global_step=9)
    phases = Phases(Switch(0.5), 0.0, run, lambda: True, lambda views, targets, rows: None)
    phases.start(Budget(run, Passes(run)))
    phases.decide(in_flight=6)
    order = [phases.for_batch(views).number for views in (True, False, True, False, False)]
    assert order == [0.0, 2.0, 0.0, 2.0, 2.0]


@pytest.mark.slow
def test_reloaded_loaders_are_let_go(targets64: Any) -> None:
    made: list[Any] = []
    alive: list[int] = []

    class Reloading(PlainBYOL):
        def train_dataloader(self) -> Any:
            data = loader()
            made.append(weakref.ref(data))
            return data

        def on_train_epoch_end(self) -> None:
            gc.collect()
            alive.append(sum(data() is not None for data in made))

    run = trainer("lightning.pytorch", ReLACallback(targets64), max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(seeded(Reloading))
    assert len(made) == 4 and alive == [1] * 4


def test_a_module_saved_whole_during_fit_is_the_plain_one(targets64: Any) -> None:
    sizes: list[int] = []

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            if not sizes:
                module.trainer = None  # it holds open files and the loaders
                file = io.BytesIO()
                torch.save(module, file)
                sizes.append(file.tell())
                module.trainer = trainer
                file.seek(0)
                loaded = torch.load(file, weights_only=False)
                assert type(loaded.training_step).__name__ == "method"

    fit(seeded(PlainBYOL), ReLACallback(targets64), Save(), data=loader(2, persistent_workers=True), max_epochs=1)
    assert sizes[0] < 1_000_000


@pytest.mark.parametrize("later", [Switch(0.9), Plateau(at_least=0.8), TransportOnly(), Mix()])
def test_other_options_do_not_take_a_switch_back(later: Schedule) -> None:
    """Where it was for good; another class of schedule is refused elsewhere."""
    phases = Phases(later, 0.0, None, lambda: True, lambda *_: None)
    with pytest.warns(UserWarning, match="stays over"):
        phases.restore(Weights(1.0, 0.0), 0.5, True)
    phases._budget = mock.Mock(progress=lambda under_way: 0.6)
    phases.decide()
    assert phases.now.number == 2.0 and phases.over
