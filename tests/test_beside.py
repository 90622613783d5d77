"""Beside everything else people put into a Trainer: optimizers, schedulers, precision, other callbacks."""

from __future__ import annotations

import csv
import functools
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightly.utils.lars import LARS
from lightly.utils.scheduler import CosineWarmupScheduler
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import lr_scheduler as schedulers

from rela_lightning import CollapseMonitor, ReLACallback
from rela_lightning.errors import InjectionError
from rela_lightning.schedules import Mix, Switch, TransportOnly
from tests.modules import byol, same, simclr, weights
from tests.test_callback import Log, fit, loader, seeded

SCHEDULERS = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=2), schedulers.CosineAnnealingLR(o, 4)], [2]
    ),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=20),
    "cosine warm-up": lambda o: CosineWarmupScheduler(o, 2, 8),
    "multi-step": lambda o: schedulers.MultiStepLR(o, [2, 4]),
}
OPTIMIZERS = {
    "lars": functools.partial(LARS, lr=0.1, momentum=0.9),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3),
    "fused groups": lambda p: torch.optim.SGD([{"params": q} for q in list(p)], lr=0.01, momentum=0.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
@pytest.mark.parametrize("name", [*SCHEDULERS, *OPTIMIZERS])
def test_the_users_optimizer_stays_the_users(name: str, schedule: Any, targets64: Any, tmp_path: Any) -> None:
    def build() -> Any:
        class Module(type(simclr())):
            def configure_optimizers(self) -> Any:
                self.made = OPTIMIZERS.get(name, functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9))(
                    self.parameters()
                )
                self.groups = [len(group["params"]) for group in self.made.param_groups]
                if name not in SCHEDULERS:
                    return self.made
                return [self.made], [{"scheduler": SCHEDULERS[name](self.made), "interval": "step"}]

        return Module()

    module, log = seeded(build), Log()
    run = fit(module, ReLACallback(targets64, schedule=schedule), log)
    assert [len(group["params"]) for group in module.made.param_groups] == module.groups
    assert {id(p) for g in module.made.param_groups for p in g["params"]} == {id(p) for p in module.parameters()}
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    with_plain = build()
    again.fit(with_plain, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert again.global_step == 12, "resuming without the callback works"


def test_fp16_scaler_semantics(targets64: Any) -> None:
    """A CPU GradScaler: W is unscaled with the rest, and an overflow skips its step too."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    scaled, plain = ReLACallback(targets64, schedule=Mix()), ReLACallback(targets64, schedule=Mix())
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    mixed.forward_context = torch.enable_grad  # float32 arithmetic: only the scaling is under test
    a, b = seeded(byol), seeded(byol)
    fit(a, scaled, plugins=[mixed], max_steps=3, max_epochs=1)
    fit(b, plain, max_steps=3, max_epochs=1)
    for x, y in zip(weights(a).values(), weights(b).values(), strict=True):
        torch.testing.assert_close(x, y)
    one, two = (c.state_dict()["transport"]["map"]["linear.weight"] for c in (scaled, plain))
    torch.testing.assert_close(one, two)


def test_overflow_skips_the_map_too(targets64: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)  # every gradient overflows at first
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    callback = ReLACallback(targets64, schedule=Mix(1e6), transport_optimizer=sgd)
    mixed = MixedPrecision("16-mixed", "cpu", scaler)
    mixed.forward_context = torch.enable_grad
    module = seeded(byol)
    fit(module, callback, plugins=[mixed], max_steps=1, max_epochs=1)
    from rela_lightning import LinearTransport

    initial = LinearTransport(16, 16, seed=0).state_dict()["linear.weight"]
    assert torch.equal(callback.state_dict()["transport"]["map"]["linear.weight"], initial)
    assert scaler.get_scale() < 2.0**126


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(lightnings, "WeightAveraging"), reason="needs lightning 2.6")
def test_weight_averaging_beside(targets64: Any) -> None:
    """It deep-copies the module while our hooks are on it; the copy must not feed the map."""
    plain, beside, log = seeded(byol), seeded(byol), Log()
    callback = ReLACallback(targets64, schedule=Mix())
    fit(plain, ReLACallback(targets64, schedule=Mix()))
    average = lightnings.WeightAveraging(avg_fn=lambda old, new, n: old + (new - old) / (n + 1))
    fit(beside, average, callback, log)
    assert not same(weights(plain), weights(beside)), "the average is what is left in the module"
    assert all(0 < entry["rela/loss"] < 2 for entry in log.seen)


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["batch size", "learning rate"])
def test_tuners_pass_through(tuner: str, targets64: Any, tmp_path: Any) -> None:
    class Tunable(type(byol())):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size, self.learning_rate = 8, 0.01

        def train_dataloader(self) -> Any:
            return loader(batch_size=self.batch_size)

    module, log = seeded(Tunable), Log()
    finder = (
        BatchSizeFinder(max_trials=2, steps_per_trial=2, init_val=4)
        if tuner == "batch size"
        else LearningRateFinder(num_training_steps=3, update_attr=False)
    )
    run = L.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[finder, ReLACallback(targets64, schedule=Switch(0.5)), log],
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=tuner != "batch size",
        default_root_dir=tmp_path,
    )  # fmt: skip
    run.fit(module)
    phases = [entry["rela/phase"] for entry in log.seen]
    assert phases[0] == 0.0 and phases[-1] == 2.0


@pytest.mark.slow
def test_a_monitor_on_the_left_out_step_waits(targets64: Any) -> None:
    stopping = EarlyStopping(monitor="train_loss", check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="EarlyStopping waits for 'train_loss'.*swap_loss"):
        fit(seeded(byol), ReLACallback(targets64, schedule=TransportOnly()), stopping)
    fit(seeded(byol), ReLACallback(targets64, schedule=TransportOnly(), step="swap_loss"), stopping)
    fit(seeded(byol), ReLACallback(targets64, schedule=Mix()), stopping)


class Two(type(simclr(manual=True))):  # type: ignore[misc]
    """Two optimizers, each stepped once a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        trunk, head = self.optimizers()
        loss = self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2))
        trunk.zero_grad(), head.zero_grad()
        self.manual_backward(loss)
        trunk.step(), head.step()
        self.log("own", loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.backbone.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
                torch.optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)]  # fmt: skip


def test_loggers_get_all_numbers_at_the_same_steps(targets64: Any, tmp_path: Any) -> None:
    """Lightning counts batches for loggers, also where each batch has several optimizer steps."""
    logger = CSVLogger(tmp_path, name="", version="")
    watched = ReLACallback(targets64, schedule=Switch(0.5)), CollapseMonitor(every_n_steps=4, num_samples=16)
    fit(seeded(Two), *watched, logger=logger, log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["own"]] == list(range(8))
    assert [(int(row["step"]), row["rela/phase"]) for row in rows if row["rela/phase"] and not row["own"]] == [
        (0, "0.0"),
        (4, "2.0"),
    ]
    assert [int(row["step"]) for row in rows if row["features/deviation"]] == [0, 4]


@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
def test_several_optimizers(schedule: Any, targets64: Any) -> None:
    heads: list[bool] = []

    class Heads(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            self.before = module.head.layers[0].weight.clone()

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            heads.append(not torch.equal(self.before, module.head.layers[0].weight))

    callback = ReLACallback(targets64, schedule=schedule)
    fit(seeded(Two), callback, Heads())
    assert heads == ([False] * 4 + [True] * 4 if isinstance(schedule, Switch) else [True] * 8)
    steps = callback.state_dict()["transport"]["optimizer"]["state"][0]["step"]
    assert float(steps) == (4 if isinstance(schedule, Switch) else 8), "W is stepped once a batch"


def test_direct_backward_in_manual_optimization_is_an_error(targets64: Any) -> None:
    class Direct(type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            loss = self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    with pytest.raises(InjectionError, match=r"self\.manual_backward"):
        fit(seeded(Direct), ReLACallback(targets64, schedule=Mix()))
