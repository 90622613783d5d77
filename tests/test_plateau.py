"""`Plateau` in a Trainer: it lets go of a loss that lies still, keeps one that falls, and survives a checkpoint."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback, TargetStore, load_prior
from rela_lightning.schedules import Plateau
from tests.modules import NAMESPACES, byol
from tests.parts import make_digits
from tests.test_callback import Log, TwoViews, fit, seeded, trainer
from tests.test_transport_over import Watch

EPOCHS, STEPS = 25, 200  # 64 images in batches of 8; a quarter of it is a window of 50


class Fixed(TwoViews):
    """The same views of an image each time, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[bytes, Any] = {}

    def __call__(self, image: Any) -> Any:
        key = image.tobytes()
        if key not in self.made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.made[key] = super().__call__(image)
        return self.made[key]


class SaveAt(L.Callback):
    """Saves after an epoch."""

    def __init__(self, epoch: int, path: Any) -> None:
        self.epoch, self.path = epoch, path

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.path)


def data() -> DataLoader:
    return DataLoader(make_digits(64, Fixed()), batch_size=8)


def still(targets: Any) -> ReLACallback:
    """With a learning rate of zero and W frozen the loss stays where it is."""
    return ReLACallback(targets, schedule=Plateau(window=0.25), transport_optimizer=None, transform=None)


def phases(log: Log) -> list[float]:
    return [entry["rela/phase"] for entry in log.seen]


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_loss_that_lies_still_is_let_go_after_two_windows(namespace: str, targets64: Any) -> None:
    log, watch, module = Log(), Watch(), seeded(byol, namespace, lr=0.0)
    fit(module, still(targets64), log, watch, data=data(), namespace=namespace, max_epochs=EPOCHS)
    assert len(log.seen) == STEPS
    transport = phases(log).index(2.0)
    assert STEPS // 2 <= transport <= STEPS // 2 + 3
    assert set(phases(log)[transport:]) == {2.0} and module.steps_run == STEPS - transport
    assert watch.attached[transport + 4 :] == [()] * (STEPS - transport - 4), "and nothing of it is left in the step"
    assert all(watch.attached[:transport])


@pytest.mark.slow
def test_a_loss_that_falls_is_kept(targets64: Any) -> None:
    log, module = Log(), seeded(byol)
    callback = ReLACallback(targets64, schedule=Plateau(1e-6, window=0.25), transform=None)
    with pytest.warns(UserWarning, match="Plateau saw no end"):
        fit(module, callback, log, data=data(), max_epochs=EPOCHS)
    assert set(phases(log)) == {0.0} and module.steps_run == 0
    losses = torch.tensor([entry["rela/loss"] for entry in log.seen])
    assert (losses.view(4, 50).mean(1).diff() < 0).all()


@pytest.mark.slow
def test_a_resumed_run_lets_go_on_the_same_step(targets64: Any, tmp_path: Any) -> None:
    whole, rest = Log(), Log()
    fit(seeded(byol, lr=0.0), still(targets64), whole, SaveAt(8, tmp_path / "mid.ckpt"), data=data(), max_epochs=EPOCHS)
    resumed = trainer("lightning.pytorch", still(targets64), rest, max_epochs=EPOCHS)
    resumed.fit(byol(lr=0.0), data(), ckpt_path=tmp_path / "mid.ckpt")
    assert len(rest.seen) == STEPS - 72, "in the middle of the second window"
    assert phases(rest) == phases(whole)[72:] and {0.0, 2.0} == set(phases(rest))


def test_a_schedule_is_told_how_many_directions_the_prior_has(targets64: Any) -> None:
    class Told(Plateau):
        def begin(self, directions: float | None) -> None:
            super().begin(directions)
            told.append(directions)

    told: list[float | None] = []
    fit(seeded(byol), ReLACallback(targets64, schedule=Told(), transform=None), data=data(), max_steps=1)
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    fit(seeded(byol), ReLACallback(prior=prior, schedule=Told(), transform=None), data=data(), max_steps=1)
    assert told == [TargetStore(targets64).directions, None] and told[0] > 1.0
