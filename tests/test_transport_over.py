"""Once transport is over for good, nothing of it is left in the step."""

from __future__ import annotations

import functools
import time
from collections import deque
from multiprocessing.sharedctypes import RawValue
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback
from rela_lightning.compat import DualCallback, training_loaders
from rela_lightning.injection.tagging import IndexedDataset
from rela_lightning.probe import OnlineLinearProbe
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
from tests.modules import NAMESPACES, byol, same, simclr, weights
from tests.parts import TwoViews, make_digits
from tests.test_batches import OUT_OF_ORDER
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
        dataset = training_loaders(trainer).flattened[0].dataset
        self.rows.append(int(dataset.wanted.rows.value) if isinstance(dataset, IndexedDataset) else -1)


class Unsure(Switch):
    """The same weights, from a schedule that does not say that its switch is for good."""

    def is_over(self, progress: float) -> bool:
        return False


def loader(workers: int = 0, **options: Any) -> DataLoader:
    return DataLoader(make_digits(64, TwoViews()), batch_size=16, num_workers=workers, collate_fn=Collate(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_in_the_step_after_the_switch(namespace: str, workers: int, targets64: Any) -> None:
    watch, data = Watch(), loader(workers, persistent_workers=workers > 0)
    epochs = 4 if workers == 0 else 8
    callback = ReLACallback(targets64, schedule=Switch(0.25))
    module = seeded(byol, namespace)
    fit(module, callback, watch, data=data, namespace=namespace, max_epochs=epochs)
    transport = epochs
    assert all(len(names) == 3 for names in watch.attached[: transport + 1]), "batches on their way are still ours"
    assert watch.attached[-4:] == [()] * 4
    assert watch.hooks[-4:] == [0] * 4
    assert watch.rows == [1] * transport + [0] * (3 * epochs), "samples are the user's own from the switch on"
    assert module.steps_run == 3 * epochs


class ByHand(type(byol())):  # type: ignore[misc]
    """BYOL whose teachers are moved by the callback alone, which leaves them where they are after the switch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x0, x1 = batch[0]
        loss = self.criterion(self(x0), self.forward_momentum(x1))
        self.log("train_loss", loss)
        return loss


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "plain": (byol, {}, {}),
    "accumulating": (byol, {}, {"accumulate_grad_batches": 2}),
    "accumulating more than is on its way": (byol, {}, {"accumulate_grad_batches": 8}),
    "warm heads": (byol, {"head_warmup": 0.1}, {}),
    "a part of the data": (byol, {"data_ratio": 0.5}, {}),
    "manual": (functools.partial(simclr, manual=True), {}, {}),
    "unnamed backbone": (functools.partial(simclr, name="zebra"), {}, {}),
    "teachers that we move": (ByHand, {}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, workers", [*((case, 0) for case in CASES), pytest.param("plain", 2, marks=pytest.mark.slow)]
)
def test_taking_it_off_changes_nothing(case: str, workers: int, targets64: Any) -> None:
    made = []
    build, options, settings = CASES[case]
    for kind in (Switch, Unsure):
        module, watch = seeded(build), Watch()
        probe = OnlineLinearProbe(10, backbone="zebra" if hasattr(module, "zebra") else "backbone")
        callback = ReLACallback(targets64, schedule=kind(0.25), **options)
        run = fit(
            module,
            callback,
            watch,
            probe,
            data=loader(workers, shuffle=True),
            max_epochs=4,
            **settings,
        )
        numbers = {name: float(run.callback_metrics[name]) for name in ("rela/phase", "rela/weight", "probe/loss")}
        made.append((weights(module), numbers, watch.attached[-1], callback.state_dict()))
    (one, logged, attached, state), (other, same_logged, kept, same_state) = made
    assert (len(attached), len(kept)) == (0, 3)
    assert same(one, other)
    assert logged == same_logged and logged["rela/phase"] == 2.0
    assert state["progress"] == same_state["progress"] == 1.0
    assert state["weights"] == same_state["weights"]
    assert state["teachers"] == same_state["teachers"]
    assert same(state["transport"]["map"], same_state["transport"]["map"])
    moments, same_moments = (s["transport"]["optimizer"]["state"] for s in (state, same_state))
    assert moments.keys() == same_moments.keys() and len(moments) == 2
    assert all(same(moments[key], same_moments[key]) for key in moments)


class SaveAt(L.Callback):
    def __init__(self, epoch: int, path: Any) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            trainer.save_checkpoint(self.path)


@pytest.mark.slow
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
    assert watch.attached == [()] * 4, "and has let go of the step after its first batch"
    assert same(weights(whole), weights(resumed))
    states = []
    for path, epochs in (("mid.ckpt", 4), ("later.ckpt", 8)):  # once more, from what a resumed run has saved
        callback, watch, module = make(), Watch(), byol()
        run = trainer("lightning.pytorch", callback, watch, SaveAt(4, tmp_path / "later.ckpt"), max_epochs=epochs)
        run.fit(module, pairs(), ckpt_path=tmp_path / path)
        assert watch.attached == [()] * 4 * (epochs - 4 or 1) and module.steps_run == len(watch.rows)
        states.append(torch.load(tmp_path / path, weights_only=True)["callbacks"]["ReLACallback"])
        states.append(callback.state_dict())
    first = states[0]["transport"]
    assert float(first["optimizer"]["state"][0]["step"]) == 4.0
    for state in states[1:]:
        assert same(state["transport"]["map"], first["map"])
        assert same(state["transport"]["optimizer"]["state"][0], first["optimizer"]["state"][0])
        assert state["weights"] == [1.0, 0.0] and state["progress"] >= states[0]["progress"]
    assert states[-1]["progress"] == 1.0


class Whole(torch.utils.data.Dataset):
    """Takes the indices of a batch, and gives the batch as a dict."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: Any) -> Any:
        torch.manual_seed(int(torch.as_tensor(index).sum()))
        return {"views": torch.rand(len(index), 2, 3, 16, 16), "rows": torch.as_tensor(index)}


def test_a_data_set_of_whole_batches_goes_on_after_the_switch(targets64: Any) -> None:
    class OfDicts(type(byol())):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            rows.append(batch["rows"].tolist())
            return super().training_step([batch["views"].unbind(1)], batch_idx)

    rows: list[list[int]] = []
    batches = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(range(64)), 16, drop_last=False)
    data, watch = DataLoader(Whole(), sampler=batches, batch_size=None), Watch()
    callback = ReLACallback(targets64, schedule=Switch(0.5), views=["views"], verify_targets=0, transform=None)
    fit(seeded(OfDicts), callback, watch, data=data, max_epochs=2)
    assert rows == [list(range(start, start + 16)) for start in range(0, 64, 16)]
    assert watch.attached[-1] == () and watch.rows[-1] == 0


class Ahead(DataLoader):
    """Fetches many batches ahead, as loaders with a thread in the background do."""

    def __iter__(self) -> Any:
        ahead: deque[Any] = deque()
        for batch in super().__iter__():
            ahead.append(batch)
            if len(ahead) > 10:
                yield ahead.popleft()
        yield from ahead


class Straggling(TwoViews):
    """One worker's fifth image waits until many steps are over: without order, batches made later come before it."""

    def __init__(self, steps: Any) -> None:
        super().__init__()
        self.steps, self.images = steps, 0

    def __call__(self, image: Any) -> Any:
        self.images += 1
        while self.images == 5 and torch.utils.data.get_worker_info().id == 0 and self.steps.value < 20:
            time.sleep(0.01)
        return super().__call__(image)


class Count(L.Callback):
    def __init__(self) -> None:
        self.steps = RawValue("q", 0)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.steps.value = trainer.global_step


@pytest.mark.parametrize("kind", ["ahead", pytest.param("out of order", marks=pytest.mark.slow)])
def test_batches_that_come_late_are_the_users_own(kind: str, targets64: Any) -> None:
    watch, module, count = Watch(), seeded(byol), Count()
    if kind == "ahead":
        data: Any = Ahead(make_digits(64, TwoViews()), batch_size=2)
    else:
        images = make_digits(64, Straggling(count.steps))
        data = DataLoader(images, batch_size=2, num_workers=2, prefetch_factor=1, **OUT_OF_ORDER)
    callback = ReLACallback(targets64, schedule=Switch(0.1), transform=None)
    fit(module, callback, watch, count, data=data, max_epochs=1)
    assert 0 < module.steps_run < 32 == len(watch.attached)
    assert watch.attached[-1] == () or kind == "out of order"


@pytest.mark.slow
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


@pytest.mark.slow
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
