"""Once transport is over for good, nothing of it is left in the step."""

from __future__ import annotations

import functools
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback
from rela_lightning.compat import DualCallback
from rela_lightning.injection.tagging import IndexedDataset
from rela_lightning.schedules import (
    SSL_ONLY,
    TRANSPORT_ONLY,
    AuthorsRule,
    Blend,
    Mix,
    Plateau,
    Schedule,
    Switch,
    Weights,
)
from tests.modules import NAMESPACES, byol, same, weights
from tests.parts import TwoViews, make_digits
from tests.test_callback import fit, seeded, trainer


class Collate:
    """The user's collate function, which sees whether samples are the user's own."""

    def __call__(self, samples: list[Any]) -> Any:
        return torch.utils.data.default_collate(samples)


class Watch(DualCallback):
    """At the end of each batch: what is attached to the module."""

    def __init__(self) -> None:
        self.attached: list[tuple[str, ...]] = []
        self.hooks: list[int] = []
        self.rows: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        names = ("training_step", "manual_backward", "on_before_batch_transfer")
        self.attached.append(tuple(name for name in names if name in vars(module)))
        self.hooks.append(sum(len(part._forward_hooks) for part in module.modules()))
        dataset = trainer.train_dataloader.dataset
        self.rows.append(int(dataset.wanted.rows[0]) if isinstance(dataset, IndexedDataset) else -1)


class Unsure(Switch):
    """The same weights, from a schedule that does not say that its switch is for good."""

    def is_over(self, progress: float) -> bool:
        return False


def loader(workers: int = 0, **options: Any) -> DataLoader:
    return DataLoader(make_digits(64, TwoViews()), batch_size=16, num_workers=workers, collate_fn=Collate(), **options)


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_in_the_step_after_the_switch(namespace: str, workers: int, targets64: Any) -> None:
    watch, data = Watch(), loader(workers, persistent_workers=workers > 0)
    epochs = 4 if workers == 0 else 8
    callback = ReLACallback(targets64, schedule=Switch(0.25))
    module = seeded(byol, namespace)
    fit(module, callback, watch, data=data, namespace=namespace, max_epochs=epochs)
    transport = epochs
    assert all(len(names) == 3 for names in watch.attached[: transport + 2]), "batches on their way are still ours"
    assert watch.attached[-4:] == [()] * 4
    assert watch.hooks[-4:] == [0] * 4
    assert watch.rows == [1] * transport + [0] * (3 * epochs), "samples are the user's own from the switch on"
    assert module.steps_run == 3 * epochs


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulating"])
def test_taking_it_off_changes_no_weight(workers: int, options: Any, targets64: Any) -> None:
    made = []
    for kind in (Switch, Unsure):
        module, watch = seeded(byol), Watch()
        callback = ReLACallback(targets64, schedule=kind(0.25))
        run = fit(module, callback, watch, data=loader(workers, shuffle=True), max_epochs=8, **options)
        made.append((weights(module), run.callback_metrics["train_loss"], watch.attached[-1], callback.state_dict()))
    (one, loss, attached, state), (other, same_loss, kept, same_state) = made
    assert (len(attached), len(kept)) == (0, 3)
    assert same(one, other)
    assert loss == same_loss
    assert state["progress"] == same_state["progress"] == 1.0
    assert state["weights"] == same_state["weights"]
    assert same(state["transport"]["map"], same_state["transport"]["map"])


class SaveAt(L.Callback):
    def __init__(self, epoch: int, path: Any) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            trainer.save_checkpoint(self.path)


def test_a_run_resumed_after_the_switch_tags_nothing(targets64: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    data = [(torch.rand(3, 16, 16), torch.rand(3, 16, 16)) for _ in range(64)]

    def pairs() -> DataLoader:
        return DataLoader([(views, 0) for views in data], batch_size=16, collate_fn=Collate())

    whole = seeded(byol)
    make = functools.partial(ReLACallback, targets64, schedule=Switch(0.25), transform=None, verify_targets=0)
    fit(whole, make(), SaveAt(3, tmp_path / "mid.ckpt"), data=pairs(), max_epochs=4)
    resumed, watch = byol(), Watch()
    trainer("lightning.pytorch", make(), watch, max_epochs=4).fit(resumed, pairs(), ckpt_path=tmp_path / "mid.ckpt")
    assert watch.rows == [0] * 4
    assert watch.attached[-1] == ()
    assert same(weights(whole), weights(resumed))


def test_a_wrapper_that_came_later_stays(targets64: Any) -> None:
    calls = []

    class Wrapping(L.Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.before = module.training_step

            def counted(*args: Any, **kwargs: Any) -> Any:
                calls.append(trainer.global_step)
                return self.before(*args, **kwargs)

            module.training_step = counted

        def on_train_end(self, trainer: Any, module: Any) -> None:
            module.training_step = self.before

    module = seeded(byol)
    fit(module, ReLACallback(targets64, schedule=Switch(0.25)), Wrapping(), data=loader(), max_epochs=4)
    assert calls == list(range(16))
    assert module.steps_run == 12
    assert "training_step" not in vars(module)


class Returning(Schedule):
    """Transport, SSL, and transport once more."""

    def weights(self, progress: float) -> Weights:
        return SSL_ONLY if 0.25 <= progress < 0.75 else TRANSPORT_ONLY


def test_a_schedule_that_returns_is_served(targets64: Any) -> None:
    watch, module = Watch(), seeded(byol)
    fit(module, ReLACallback(targets64, schedule=Returning()), watch, data=loader(), max_epochs=4)
    assert watch.rows == [1] * 16
    assert module.steps_run == 8


class Odd(Schedule):
    """Adaptive, of a user's own: nobody knows whether it returns."""

    adaptive = True

    def weights(self, progress: float) -> Weights:
        return SSL_ONLY


@pytest.mark.parametrize(
    "schedule, before, after",
    [
        (Switch(0.5), False, True),
        (Blend(until=0.5), False, True),
        (Blend(), False, True),
        (Mix(), False, False),
        (Mix(0.0), True, True),
        (Returning(), False, False),
        (Plateau(at_most=0.5), False, True),
        (Plateau(), False, False),
        (AuthorsRule(), False, False),
        (Odd(), False, False),
    ],
)
def test_what_schedules_say_of_their_end(schedule: Schedule, before: bool, after: bool) -> None:
    assert schedule.is_over(0.49) is before
    assert schedule.is_over(1.0) is after


def test_rules_that_have_fired_are_over() -> None:
    for schedule in (Plateau(), AuthorsRule()):
        schedule.fired = True
        assert schedule.is_over(0.2)
