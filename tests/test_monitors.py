"""Early stopping, best checkpoints and plateau schedulers beside a step that is left out for a while."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError
from rela_lightning.schedules import (
    SSL_ONLY,
    TRANSPORT_ONLY,
    Blend,
    Mix,
    Plateau,
    Schedule,
    Switch,
    TransportOnly,
    Weights,
)
from tests.modules import NAMESPACES, byol
from tests.on_the_fly import prior
from tests.test_callback import fit, loader, seeded, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*waits for")


def helping(namespace: str = "lightning.pytorch") -> Any:
    """BYOL that logs in a helper, under a name made at run time, and has a validation."""

    class Helping(type(byol(namespace))):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.noted(super().training_step(batch, batch_idx))

        def noted(self, loss: torch.Tensor) -> torch.Tensor:
            self.log("_".join(("own", "loss")), loss, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.zeros(()))

    return seeded(Helping)


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize(("monitor", "on_train"), [("own_loss", True), ("own_loss", False), ("own_loss_epoch", True)])
def test_early_stopping_counts_from_the_switch(targets64: Any, namespace: str, monitor: str, on_train: bool) -> None:
    callbacks = __import__(namespace, fromlist=["callbacks"]).callbacks
    stopping = callbacks.EarlyStopping(monitor, patience=2, min_delta=1e9, check_on_train_epoch_end=on_train)
    run = trainer(namespace, ReLACallback(targets64, schedule=Switch(0.4)), stopping, max_epochs=10)
    with pytest.warns(UserWarning, match=f"EarlyStopping waits for '{monitor}'"):
        run.fit(helping(namespace), loader(), loader())
    assert run.current_epoch == 4 + 1 + 2, "the first value, and two that are no better"


@pytest.mark.slow
def test_a_name_that_nobody_logs_is_lightnings_own_error_after_the_switch(targets64: Any) -> None:
    with pytest.raises(RuntimeError, match="own_los"):
        fit(helping(), ReLACallback(targets64, schedule=Switch(0.5)), EarlyStopping("own_los"), max_epochs=4)


@pytest.mark.slow
def test_a_comment_is_no_metric(targets64: Any) -> None:
    class Commented(type(byol())):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            # "val_loss" is logged in validation
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.report()

        def report(self) -> None:
            self.log("val_loss", torch.zeros(()))

    stopping = EarlyStopping("val_loss", patience=3)
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.9)), stopping, max_epochs=10)
    run.fit(seeded(Commented), loader(), loader())
    assert run.current_epoch == 4, "a metric of validation is watched from the start"


@pytest.mark.slow
def test_the_best_checkpoint_is_one_of_the_objective_and_the_last_is_there(targets64: Any, tmp_path: Any) -> None:
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="own_loss", save_last=True, save_on_train_epoch_end=True)
    run = trainer(
        "lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.5)), best, max_epochs=6,
        enable_checkpointing=True, num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(helping(), loader(), loader())
    assert int(best.best_model_path.split("epoch=")[1].split(".")[0]) >= 3
    assert (tmp_path / "last.ckpt").exists()


class Plateaued(type(byol())):  # type: ignore[misc]
    """Its scheduler watches the loss that its step logs."""

    kind: Any = torch.optim.lr_scheduler.ReduceLROnPlateau
    interval = "epoch"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        options = {"patience": 0, "threshold": 1e9} if self.kind is Plateaued.kind else {"T_max": 10}
        scheduler = self.kind(optimizer, **options)
        config = {"scheduler": scheduler, "monitor": "train_loss", "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": config}


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned")
def test_plateau_schedulers_wait_too_and_are_strict_again(targets64: Any) -> None:
    module = seeded(Plateaued)
    run = fit(module, ReLACallback(targets64, schedule=Switch(0.5)), max_epochs=4)
    (config,) = run.lr_scheduler_configs
    assert config.scheduler.last_epoch == 2 and config.strict


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned")
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_batch_on_its_way_at_the_switch_logs_no_loss_either(targets64: Any, interval: str) -> None:
    """The switch comes before the last batch of the first epoch, which was made for the transport phase."""
    module, stopping = seeded(Plateaued), EarlyStopping("train_loss", check_on_train_epoch_end=True)
    module.interval = interval
    run = fit(module, ReLACallback(targets64, schedule=Switch(0.3)), stopping)
    (config,) = run.lr_scheduler_configs
    assert module.steps_run == 4 and config.strict
    assert config.scheduler.last_epoch == (1 if interval == "epoch" else 4)


def test_schedulers_that_never_read_their_monitor_are_left_alone(targets64: Any) -> None:
    class Cosine(Plateaued):
        kind = torch.optim.lr_scheduler.CosineAnnealingLR

    run = fit(seeded(Cosine), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=2)
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["rela/loss", "rela/phase"])
def test_what_ends_at_the_switch_is_no_metric_to_watch(targets64: Any, tmp_path: Any, monitor: str) -> None:
    def fitted(schedule: Any, watcher: Any) -> None:
        callback = ReLACallback(targets64, schedule=schedule)
        fit(seeded(byol), callback, watcher, enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=1)

    for watcher in (EarlyStopping(monitor), ModelCheckpoint(tmp_path, monitor=monitor)):
        for schedule in (Switch(0.5), Plateau(), Blend(until=0.9)):
            with pytest.raises(ConfigError, match=rf"monitors '{monitor}'(?s:.*)knn/top1"):
                fitted(schedule, watcher)
        for lasting in (TransportOnly(), Mix(), Blend(), Blend("linear")):
            fitted(lasting, watcher)

    class Ours(Plateaued):
        def configure_optimizers(self) -> Any:
            found = super().configure_optimizers()
            found["lr_scheduler"]["monitor"] = monitor
            return found

    with pytest.raises(ConfigError, match="LRSchedulerConfig monitors"):
        fit(seeded(Ours), ReLACallback(targets64, schedule=Switch(0.5)))


class Returning(Schedule):
    """SSL, transport alone for a while, and SSL again."""

    def weights(self, progress: float) -> Weights:
        return TRANSPORT_ONLY if 0.2 <= progress < 0.6 else SSL_ONLY


class TransportTwice(Schedule):
    """Transport alone, SSL for a while, and the transport loss beside it."""

    def weights(self, progress: float) -> Weights:
        return TRANSPORT_ONLY if progress < 0.2 else SSL_ONLY if progress < 0.6 else Weights(1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "monitor"),
    [(Returning(), "own_loss"), (Returning(), "own_loss_epoch"), (TransportTwice(), "rela/loss")],
)
def test_a_number_from_before_the_phase_is_not_read_again(targets64: Any, schedule: Any, monitor: str) -> None:
    stopping = EarlyStopping(monitor, patience=2, min_delta=1e9, check_on_train_epoch_end=True)
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=schedule), stopping, max_epochs=10)
    with pytest.warns(UserWarning, match=f"EarlyStopping waits for '{monitor}'"):
        run.fit(helping(), loader())
    assert run.current_epoch == 6 + 1, "two epochs before the phase without it, and one after"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned")
def test_plateau_schedulers_do_not_go_by_old_numbers(targets64: Any) -> None:
    run = fit(seeded(Plateaued), ReLACallback(targets64, schedule=Returning()), max_epochs=10)
    (config,) = run.lr_scheduler_configs
    assert config.scheduler.last_epoch == 6 and config.strict
    assert "lr_scheduler_step" not in vars(run.lightning_module)


@pytest.mark.slow
def test_the_loss_of_a_blend_to_the_end_is_there_in_every_epoch(targets64: Any) -> None:
    stopping = EarlyStopping("rela/loss", patience=100, check_on_train_epoch_end=True)
    seen: list[float] = []

    class Read(L.Callback):
        def on_train_epoch_end(self, run: Any, module: Any) -> None:
            seen.append(float(run.callback_metrics["rela/loss"]))

    fit(seeded(byol), ReLACallback(targets64, schedule=Blend()), stopping, Read(), max_epochs=4)
    assert len(set(seen)) == 4 and stopping.best_score == min(seen)


def test_the_loss_to_targets_that_are_still_to_be_learnt_is_waited_for() -> None:
    """Until the first epoch's last batch, images are collected for the projection."""
    stopping = EarlyStopping("rela/loss", check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="EarlyStopping waits for 'rela/loss'"):
        fit(seeded(byol), ReLACallback(prior=prior(), schedule=TransportOnly()), stopping, max_epochs=3)
    assert 0.0 < float(stopping.best_score) < 2.0


def test_nothing_is_left_on_the_watchers(targets64: Any) -> None:
    stopping = EarlyStopping("train_loss", check_on_train_epoch_end=True)
    fit(seeded(byol), ReLACallback(targets64, schedule=Switch(0.5)), stopping)
    assert not set(vars(stopping)) & {"on_train_epoch_end", "on_validation_end"}
