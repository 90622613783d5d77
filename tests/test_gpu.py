"""What only a GPU can show. Skipped without one."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch

from rela_lightning import ReLACallback
from rela_lightning.injection.step import Step
from rela_lightning.schedules import Mix, Plateau, Switch, TransportOnly
from tests.modules import byol, simclr
from tests.test_callback import Log, loader, seeded

pytestmark = pytest.mark.gpu


def fit(module: Any, *callbacks: Any, data: Any = None, **options: Any) -> Any:
    trainer = L.Trainer(
        accelerator="gpu", devices=1, max_epochs=2, callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, data if data is not None else loader())
    return trainer


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
def test_precisions(precision: str, schedule: Any, targets64: Any) -> None:
    callback, log = ReLACallback(targets64, schedule=schedule), Log()
    fit(seeded(byol), callback, log, precision=precision)
    assert all(0 < entry["rela/loss"] < 2 for entry in log.seen)
    assert callback.state_dict()["transport"]["map"]["linear.weight"].dtype == torch.float32


def test_pinned_memory_and_persistent_workers(targets64: Any) -> None:
    data = loader(2, pin_memory=True, persistent_workers=True)
    log = Log()
    fit(seeded(byol), ReLACallback(targets64, schedule=Switch(0.5)), log, data=data)
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [2.0] * 4


@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
def test_inductor(schedule: Any, targets64: Any) -> None:
    module, log = seeded(simclr), Log()
    module.backbone.compile()
    fit(module, ReLACallback(targets64, schedule=schedule), log)
    assert all(0 < entry["rela/loss"] < 2 for entry in log.seen)


@pytest.mark.parametrize("strategy, options", [("ddp", {"sync_batchnorm": True}), ("fsdp", {})])
def test_strategies(strategy: str, options: dict[str, Any], targets64: Any) -> None:
    log = Log()
    callback = ReLACallback(targets64, schedule=TransportOnly(), allow_untested_strategy=True)
    fit(seeded(simclr), callback, log, strategy=strategy, **options)
    assert log.seen[-1]["rela/loss"] < log.seen[0]["rela/loss"]


def test_no_step_waits_for_the_device(targets64: Any, monkeypatch: Any) -> None:
    """After the first steps, in which row layouts are learnt, nothing in our part of a step synchronises."""
    own, steps = Step.run, [0]

    def watched(self: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        steps[0] += 1
        if steps[0] <= 4:
            return own(self, step, *args, **kwargs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return own(self, step, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Step, "run", watched)
    fit(seeded(simclr), ReLACallback(targets64, schedule=Mix()), data=loader(pin_memory=True))
    fit(seeded(simclr), ReLACallback(targets64, schedule=TransportOnly()), data=loader(pin_memory=True))
    fit(seeded(simclr), ReLACallback(targets64, schedule=Plateau()), data=loader(pin_memory=True))
    assert steps[0] == 24
