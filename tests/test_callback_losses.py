"""`ReLACallback(loss=...)`: what the loss is given, and that it trains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback, TargetStore
from rela_lightning.errors import ConfigError
from rela_lightning.losses import NAMED, Contrastive, resolve_loss
from rela_lightning.schedules import Mix, Plateau, TransportOnly
from rela_lightning.transport import LinearTransport
from tests.modules import byol, same, simclr, weights
from tests.parts import make_digits
from tests.test_callback import Log, fit, loader, seeded
from tests.test_plateau import Fixed


class Calls:
    """A user's own loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, mapped: Tensor, targets: Tensor) -> Tensor:
        self.seen.append((mapped.detach(), targets))
        return ((mapped - targets) ** 2).mean()


@pytest.mark.parametrize("num_views", [1, 2])
def test_a_loss_is_called_once_a_view_with_every_sample(num_views: int, targets64: Any) -> None:
    loss, log = Calls(), Log()
    callback = ReLACallback(targets64, schedule=TransportOnly(), loss=loss, num_views=num_views)
    fit(seeded(byol), callback, log, data=loader(shuffle=False), max_epochs=1)
    store = TargetStore(targets64)
    assert len(loss.seen) == 4 * num_views
    for call, (mapped, targets) in enumerate(loss.seen):
        batch = call // num_views
        assert mapped.shape == targets.shape == (16, 16)
        assert torch.equal(targets, store[torch.arange(16 * batch, 16 * batch + 16)][:, :16])
    for step, logged in enumerate(log.seen):
        calls = loss.seen[step * num_views : (step + 1) * num_views]
        expected = sum(float(((m - t) ** 2).mean()) for m, t in calls) / num_views
        assert logged["rela/loss"] == pytest.approx(expected, rel=1e-5)


def test_views_put_together_in_one_call_are_told_apart(targets64: Any) -> None:
    """SimCLR concatenates its views: each is compared by itself, so that no row has a twin in its batch."""
    loss = Calls()
    fit(seeded(simclr), ReLACallback(targets64, schedule=Mix(), loss=loss), data=loader(shuffle=False), max_epochs=1)
    store = TargetStore(targets64)
    assert [len(mapped) for mapped, _ in loss.seen] == [16] * 8
    for call, (_, targets) in enumerate(loss.seen):
        assert torch.equal(targets, store[torch.arange(16 * (call // 2), 16 * (call // 2) + 16)][:, :16])


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*NAMED, {"cosine": 1.0, "relational": 0.5}, ["cosine", "contrastive"], Contrastive()])
def test_every_loss_trains_and_falls(loss: Any, targets64: Any) -> None:
    module, log = seeded(byol), Log()
    before = weights(module.backbone)
    fit(module, ReLACallback(targets64, schedule=TransportOnly(), loss=loss), log, max_epochs=8)
    losses = [entry["rela/loss"] for entry in log.seen]
    assert sum(losses[-8:]) < sum(losses[:8]) and not same(before, weights(module.backbone))


def test_the_first_step_is_that_of_the_loss(targets64: Any) -> None:
    """The gradient of a hand-written step, for a loss that sees the whole batch."""
    expected, module = seeded(byol), seeded(byol)
    linear, rows = LinearTransport(16, 16, seed=0), torch.arange(16)

    class Compare(Log):
        compared = 0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            targets = TargetStore(targets64)[rows][:, :16]
            resolve_loss("contrastive")(linear(expected.backbone(batch[0][0])), targets).backward()

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for own, hand in zip(pl_module.backbone.parameters(), expected.backbone.parameters(), strict=True):
                torch.testing.assert_close(own.grad, hand.grad, rtol=1e-4, atol=1e-6)
                self.compared += 1

    compare = Compare()
    callback = ReLACallback(targets64, schedule=TransportOnly(), loss="contrastive")
    fit(module, callback, compare, data=loader(shuffle=False), max_steps=1)
    assert compare.compared == 8


@pytest.mark.slow
def test_plateau_lets_go_of_a_loss_of_any_scale(targets64: Any) -> None:
    phases = []
    for scale in (1.0, 100.0):
        log, schedule = Log(), Plateau(slope=5.0, window=0.25)
        callback = ReLACallback(targets64, schedule=schedule, loss={"cosine": scale}, transform=None)
        data = DataLoader(make_digits(64, Fixed()), batch_size=16, shuffle=True)
        fit(seeded(byol), callback, log, data=data, max_epochs=50)
        phases.append([entry["rela/phase"] for entry in log.seen])
    assert phases[0] == phases[1] and 0.0 < sum(phases[0]) < 2.0 * len(phases[0])


def test_unknown_losses_are_refused_at_once(targets64: Any) -> None:
    for wrong in ("euclid", {"cosine": -1.0}, [], 3):
        with pytest.raises(ConfigError, match="loss"):
            ReLACallback(targets64, loss=wrong)  # type: ignore[arg-type]
