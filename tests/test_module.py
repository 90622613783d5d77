"""The module side: the same engine, the same numbers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from rela_lightning import ReLACallback, ReLAMixin, ReLAModule, accelerate
from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.schedules import Blend, Mix, Schedule, Switch
from tests.modules import NAMESPACES, PlainBYOL, byol, same, weights
from tests.parts import TinyBackbone
from tests.test_callback import Log, fit, loader, seeded, trainer


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix(), Blend()])
def test_accelerate_equals_the_callback(namespace: str, schedule: Schedule, targets64: Any) -> None:
    by_callback = seeded(byol, namespace)
    by_function = accelerate(seeded(byol, namespace), targets64, schedule=copy.deepcopy(schedule))
    fit(by_callback, ReLACallback(targets64, schedule=schedule), namespace=namespace)
    fit(by_function, namespace=namespace)
    assert same(weights(by_callback), weights(by_function))


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_mixin_equals_the_callback(namespace: str, targets64: Any) -> None:
    plain = type(byol(namespace))

    class Fast(ReLAMixin, plain):
        pass

    by_callback = seeded(plain, lr=0.02)
    by_mixin = seeded(Fast, lr=0.02, targets=targets64, rela={"schedule": Switch(0.5)})
    fit(by_callback, ReLACallback(targets64, schedule=Switch(0.5)), namespace=namespace)
    fit(by_mixin, namespace=namespace)
    assert same(weights(by_callback), weights(by_mixin)) and by_mixin.steps_run == 4


def test_accelerated_checkpoints_are_the_plain_ones(targets64: Any, tmp_path: Any) -> None:
    module = accelerate(seeded(byol), targets64, schedule=Switch(0.5))
    run = fit(module)
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    byol().load_state_dict(state["state_dict"], strict=True)
    again = accelerate(byol(), targets64, schedule=Switch(0.5))
    log = Log()
    trainer("lightning.pytorch", log, max_epochs=3).fit(again, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert [entry["rela/phase"] for entry in log.seen] == [2.0] * 4, "the third epoch, after the switch"


@pytest.mark.slow
def test_accelerated_modules_pickle_copy_and_fit_twice(targets64: Any) -> None:
    module = accelerate(seeded(PlainBYOL), targets64, schedule=Switch(0.5))
    for copied in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        log = Log()
        fit(copied, log)
        fit(copied, log)
        assert [entry["rela/phase"] for entry in log.seen] == ([0.0] * 4 + [2.0] * 4) * 2
    assert not module.steps_run, "copies are independent"


def test_own_callbacks_stay_and_a_second_attachment_is_refused(targets64: Any) -> None:
    class WithLog(PlainBYOL):
        def configure_callbacks(self) -> Any:
            self.seen = Log()
            return self.seen

    module = accelerate(seeded(WithLog), targets64)
    fit(module)
    assert len(module.seen.seen) == 8
    with pytest.raises(InjectionError, match="already"):
        accelerate(module, targets64)


@pytest.mark.slow
def test_module_of_transport_alone_learns(targets64: Any) -> None:
    torch.manual_seed(0)
    module, log = ReLAModule(TinyBackbone(), targets64), Log()
    fit(module, log, max_epochs=6)
    assert log.seen[-1]["rela/loss"] < log.seen[0]["rela/loss"]
    assert module(torch.rand(2, 3, 16, 16)).shape == (2, 16)
    assert set(module.state_dict()) == {f"backbone.{name}" for name in TinyBackbone().state_dict()}
    with pytest.raises(InjectionError, match="no loss of its own"):
        module.training_step(None, 0)


def test_mixin_checkpoints_are_the_plain_ones(targets64: Any, tmp_path: Any) -> None:
    class Saving(type(byol())):
        def __init__(self, lr: float = 0.05, **options: Any) -> None:
            super().__init__(lr)
            self.save_hyperparameters()

    class Fast(ReLAMixin, Saving):
        pass

    run = fit(Fast(lr=0.01, targets=targets64, rela={"schedule": Switch(0.5)}))
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert state["hyper_parameters"]["lr"] == 0.01
    assert Saving.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).lr == 0.01
    assert Fast.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).lr == 0.01


def test_two_callbacks_are_refused(targets64: Any) -> None:
    class Fast(ReLAMixin, type(byol())):
        pass

    with pytest.raises(ConfigError, match="Several ReLACallbacks"):
        fit(accelerate(Fast(targets=targets64), targets64))


def test_a_network_alone_is_no_method() -> None:
    with pytest.raises(InjectionError, match="training_step"):
        accelerate(torch.nn.Linear(2, 2), "targets")
