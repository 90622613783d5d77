"""Early stopping, best checkpoints and plateau schedulers beside a phase that leaves the training step out."""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError
from rela_lightning.namespaces import DualCallback
from rela_lightning.schedules import Blend, Mix, Plateau, Schedule, Switch, TransportOnly, Weights
from tests.modules import NAMESPACES, byol, simclr
from tests.test_callback import fit, loader, seeded, trainer


def helped(namespace: str = "lightning.pytorch") -> Any:
    """BYOL that logs by a helper, and validates."""

    class Helped(type(byol(namespace))):
        def keep(self, **values: Any) -> None:
            self.log_dict(values, on_epoch=True)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.keep(own_loss=loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.zeros(()))

    return seeded(Helped)


class Watcher(DualCallback):
    """Monitors something, as a callback of the user's own; notes the epochs in which it is asked to look."""

    def __init__(self, monitor: str) -> None:
        self.monitor, self.looked, self.validated = monitor, [], []

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.looked.append((trainer.current_epoch, float(trainer.callback_metrics[self.monitor])))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(trainer.current_epoch)

    @property
    def epochs(self) -> list[int]:
        return [epoch for epoch, _ in self.looked]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("monitor", ["own_loss", "own_loss_epoch", "own_loss_step"])
def test_who_monitors_a_metric_of_the_step_waits_for_the_step(namespace: str, monitor: str, targets64: Any) -> None:
    callbacks = import_module(namespace).callbacks
    stopping = callbacks.EarlyStopping(monitor, patience=1, min_delta=9.0, check_on_train_epoch_end=True)
    watcher, rela = Watcher(monitor), ReLACallback(targets64, schedule=Switch(0.5))
    run = trainer(namespace, stopping, rela, watcher, max_epochs=8)
    with pytest.warns(UserWarning, match=re.escape(f"EarlyStopping waits for {monitor!r}")):
        run.fit(helped(namespace), loader(), loader())
    assert watcher.epochs == watcher.validated == [4, 5]
    assert stopping.stopped_epoch == 5, "no patience is lost before the switch"
    assert stopping.best_score == watcher.looked[0][1]
    assert not {"on_train_epoch_end", "on_validation_end"} & (vars(stopping).keys() | vars(watcher).keys())


def test_the_best_checkpoint_is_one_of_the_modules_own_phase(targets64: Any, tmp_path: Any) -> None:
    keep = ModelCheckpoint(tmp_path, "{epoch}", monitor="own_loss", save_top_k=-1)
    run = trainer(
        "lightning.pytorch",
        ReLACallback(targets64, schedule=Switch(0.5)),
        keep,
        max_epochs=4,
        enable_checkpointing=True,
    )
    run.fit(helped(), loader(), loader())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=2.ckpt", "epoch=3.ckpt"]


def test_metrics_of_validation_are_looked_at_in_every_epoch(targets64: Any) -> None:
    watcher = Watcher("val_loss")
    trainer("lightning.pytorch", ReLACallback(targets64), watcher, max_epochs=3).fit(helped(), loader(), loader())
    assert watcher.epochs == watcher.validated == [0, 1, 2]


@pytest.mark.parametrize("options", [{"step": "swap_loss"}, {"schedule": Mix()}, {"schedule": Blend()}])
def test_nobody_waits_where_the_step_runs(options: Any, targets64: Any) -> None:
    watcher = Watcher("own_loss")
    fit(helped(), ReLACallback(targets64, **{"schedule": TransportOnly(), **options}), watcher)
    assert watcher.epochs == [0, 1]


def test_a_number_of_an_earlier_epoch_is_no_number_of_this_one(targets64: Any) -> None:
    """The first step of a module whose backbone has no usual name is run to look around; it logs once."""

    class Unusual(type(simclr(name="zebra"))):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = super().training_step(batch, batch_idx)
            self.log("own_loss", out["loss"])
            return out

    watcher = Watcher("own_loss")
    fit(seeded(Unusual), ReLACallback(targets64, schedule=Switch(0.75)), watcher, max_epochs=4)
    assert watcher.epochs == [0, 3]


class Late(Schedule):
    """The other way round, as a user may write it."""

    def weights(self, progress: float) -> Weights:
        return Weights(1.0, 0.0) if progress < 0.5 else Weights(0.0, 1.0)


def test_a_transport_phase_at_the_end_leaves_no_stale_number(targets64: Any) -> None:
    watcher = Watcher("own_loss")
    fit(helped(), ReLACallback(targets64, schedule=Late()), watcher, max_epochs=4)
    assert watcher.epochs == [0, 1]


def test_a_misspelt_monitor_is_said_at_once_and_fails_when_the_step_runs(targets64: Any) -> None:
    stopping = EarlyStopping("own_los", check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="waits for 'own_los'"), pytest.raises(RuntimeError, match="own_los"):
        fit(helped(), ReLACallback(targets64, schedule=Switch(0.5)), stopping, max_epochs=4)


class Rates(DualCallback):
    """Learning rate after each epoch."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def scheduled(scheduler: Any, **config: Any) -> Any:
    class Scheduled(type(helped())):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), **config}}

    return seeded(Scheduled)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_plateau_scheduler_waits_too(interval: str, targets64: Any) -> None:
    def falling(optimizer: Any) -> Any:  # no improvement is enough: falls at every look but the first
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)

    module, rates, strict = scheduled(falling, monitor="own_loss_step", interval=interval), Rates(), []

    class Strict(DualCallback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            strict.extend(config.strict for config in trainer.lr_scheduler_configs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = fit(module, ReLACallback(targets64, schedule=Switch(0.5)), rates, Strict(), max_epochs=6)
    assert len(set(rates.seen[:4])) == 1, "nothing falls before the module's own step runs"
    assert rates.seen[5] < rates.seen[3]
    assert strict == [True] and [config.strict for config in run.lr_scheduler_configs] == [True]


def test_a_scheduler_that_reads_no_monitor_may_name_one(targets64: Any) -> None:
    module = scheduled(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), monitor="own_loss")
    rates = Rates()
    fit(module, ReLACallback(targets64, schedule=Switch(0.5)), rates, max_epochs=3)
    assert rates.seen == [0.05, 0.025, 0.0125]


@pytest.mark.parametrize("schedule", [Switch(0.5), Plateau(), Blend(until=0.5)])
def test_the_transport_loss_is_no_monitor_of_a_run_that_goes_on_without_it(schedule: Any, targets64: Any) -> None:
    def plateau(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)

    for watcher in (EarlyStopping("rela/loss"), ModelCheckpoint(monitor="rela/loss")):
        with pytest.raises(ConfigError, match=rf"(?s){type(watcher).__name__} monitors rela/loss.*to do"):
            fit(helped(), ReLACallback(targets64, schedule=schedule), watcher, enable_checkpointing=True)
    with pytest.raises(ConfigError, match="monitors rela/loss"):
        fit(scheduled(plateau, monitor="rela/loss"), ReLACallback(targets64, schedule=schedule))


@pytest.mark.parametrize("schedule", [TransportOnly(), Mix(), Blend()])
def test_the_transport_loss_is_a_monitor_where_it_stays(schedule: Any, targets64: Any) -> None:
    watcher = Watcher("rela/loss")
    fit(helped(), ReLACallback(targets64, schedule=schedule), watcher)
    assert watcher.epochs == [0, 1]


def test_the_transport_loss_is_gone_after_the_switch(targets64: Any) -> None:
    seen = []

    class Look(DualCallback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            seen.append("rela/loss" in trainer.callback_metrics)

    fit(helped(), ReLACallback(targets64, schedule=Switch(0.25)), Look(), max_epochs=4)
    assert seen == [False, True, False, False]


def test_the_log_of_the_module_is_given_back(targets64: Any) -> None:
    module = helped()
    fit(module, ReLACallback(targets64, schedule=Switch(0.5)))
    assert "log" not in vars(module)
