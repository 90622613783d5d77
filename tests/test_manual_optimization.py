"""Manual optimization: several backwards and several optimizers in one step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.schedules import Mix, Switch, TransportOnly
from tests.modules import simclr, weights
from tests.test_callback import fit, seeded


class WithProbe(type(simclr(manual=True))):
    """Manual optimization with an online probe whose backward comes first."""

    probed = "own forward"

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(16, 10)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        main, probe = self.optimizers()
        x = torch.cat(list(batch[0]))
        labels = batch[1].repeat(2)
        if self.probed == "no grad":
            with torch.no_grad():
                features = self.backbone(x)
        else:
            features = self.backbone(x)
        probe.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.probe(features.detach()), labels))
        probe.step()
        main.zero_grad()
        shared = features if self.probed == "shared forward" else self.backbone(x)
        self.manual_backward(self.criterion(*self.head(shared).chunk(2)))
        main.step()

    def configure_optimizers(self) -> Any:
        own = [*self.backbone.parameters(), *self.head.parameters()]
        return [torch.optim.SGD(own, lr=0.1), torch.optim.SGD(self.probe.parameters(), lr=0.1)]


@pytest.mark.parametrize("probed", ["own forward", "shared forward", "no grad"])
@pytest.mark.parametrize("schedule", [Mix(), TransportOnly(), Switch(0.5)])
def test_a_probe_before_the_main_loss_does_not_swallow_the_transport_loss(
    probed: str, schedule: Any, targets64: Any
) -> None:
    module, plain = seeded(WithProbe), seeded(WithProbe)
    module.probed = plain.probed = probed
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=schedule))
    fit(plain)
    after, other = weights(module), weights(plain)
    assert not torch.equal(after["backbone.body.0.weight"], before["backbone.body.0.weight"])
    assert not torch.equal(after["backbone.body.0.weight"], other["backbone.body.0.weight"])
    assert not torch.equal(after["probe.weight"], before["probe.weight"]), "the probe keeps learning"


def test_second_losses_get_the_ssl_weight(targets64: Any) -> None:
    seen: list[float] = []

    class Two(type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for _ in range(2):
                self.manual_backward(self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2)))
            seen.append(
                float(self.head.layers[0].weight.grad.abs().sum())
                if self.head.layers[0].weight.grad is not None
                else 0.0
            )
            optimizer.step()

    fit(seeded(Two), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=1)
    assert all(value == 0.0 for value in seen), "in the transport phase no loss of the module's own counts"


def test_replacing_the_step_under_manual_optimization_is_refused(targets64: Any) -> None:
    with pytest.raises(ConfigError, match="swap_loss"):
        fit(seeded(simclr, manual=True), ReLACallback(targets64, step="replace"))


@pytest.mark.slow
def test_optimizers_that_bypass_lightning_are_an_error(targets64: Any) -> None:
    class Raw(type(simclr(manual=True))):
        def optimizers(self, use_pl_optimizer: bool = True) -> Any:
            return super().optimizers(use_pl_optimizer=False)

    with pytest.raises(InjectionError, match=r"self\.optimizers\(\)"):
        fit(seeded(Raw), ReLACallback(targets64), max_epochs=20)
