"""Networks that no optimizer moves are not taken for the student, whatever gradients pass through them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rela_lightning import ReLACallback
from rela_lightning.errors import InjectionError
from rela_lightning.networks.names import guess_backbone
from rela_lightning.schedules import Blend, Mix, TransportOnly
from tests.modules import simclr
from tests.parts import TinyBackbone
from tests.test_callback import fit, seeded

Zebra = type(simclr(name="zebra"))


class Perceptual(nn.Module):
    """A loss on the features of a network that is larger than the student, such as LPIPS."""

    def __init__(self, frozen: bool, weights_are_learned: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1))
        self.weights = nn.Conv2d(64, 1, 1)
        self.trunk.requires_grad_(not frozen)
        self.weights.requires_grad_(weights_are_learned)

    def forward(self, images: Tensor) -> Tensor:
        return self.weights(self.trunk(images).square())


class Judged(Zebra):
    """A student of no usual name whose reconstructions a loss network judges; a frozen prior sees the images too."""

    def __init__(self, frozen: bool = True, learned: bool = False) -> None:
        super().__init__()
        self.pixels = nn.Linear(16, 3 * 16 * 16)
        self.perceptual, self.prior = Perceptual(frozen, learned), TinyBackbone(96)
        self.prior.requires_grad_(False)
        self.backbone = TinyBackbone(48).requires_grad_(False)  # frozen, under the usual name

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = torch.cat(list(batch[0])).requires_grad_()  # so that what frozen networks return requires grad, too
        h = self.zebra(x)
        seen = self.perceptual(self.pixels(h).view(-1, 3, 16, 16)) - self.perceptual(x)
        return seen.square().mean() + 0 * (self.prior(x).mean() + self.backbone(x).mean())

    def configure_optimizers(self) -> Any:
        learned = [*self.zebra.parameters(), *self.pixels.parameters(), *self.perceptual.weights.parameters()]
        return torch.optim.AdamW(learned, lr=1e-2)


@pytest.mark.parametrize(("frozen", "learned"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("schedule", [Mix(), Blend()])
def test_networks_that_are_not_trained_are_not_taken_for_the_student(
    schedule: Any, frozen: bool, learned: bool, targets64: Any, caplog: Any
) -> None:
    module = seeded(lambda: Judged(frozen, learned))
    with caplog.at_level(logging.INFO):
        fit(module, ReLACallback(targets64, schedule=schedule), max_epochs=1)
    assert any("ReLA reads zebra: 16 features" in record.message for record in caplog.records)


def test_a_larger_frozen_network_after_the_student_is_no_part_of_it(targets64: Any, caplog: Any) -> None:
    class OnMaps(Judged):
        """The frozen network takes what the student made, as a map."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            h = self.zebra(torch.cat(list(batch[0])))
            return self.perceptual.trunk[2](h.view(-1, 16, 1, 1).repeat(1, 4, 4, 4)).square().mean()

    with caplog.at_level(logging.INFO):
        fit(seeded(OnMaps), ReLACallback(targets64, schedule=Mix()), max_epochs=1)
    assert any("ReLA reads zebra: 16 features" in record.message for record in caplog.records)


@pytest.mark.parametrize("schedule", [Mix(), TransportOnly()])
def test_where_only_frozen_networks_see_images_none_is_the_student(schedule: Any, targets64: Any) -> None:
    class NoStudent(Judged):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = torch.cat(list(batch[0])).requires_grad_()
            return self.pixels(self.prior(x)[:, :16]).square().mean()

    with pytest.raises(InjectionError, match=r"is in no optimizer|never called"):
        fit(seeded(NoStudent), ReLACallback(targets64, schedule=schedule), max_epochs=1)


def test_the_frozen_part_of_a_network_is_not_read_for_the_whole() -> None:
    holder = nn.Module()
    holder.model = nn.Sequential()
    holder.model.backbone, holder.model.adapter = TinyBackbone().requires_grad_(False), nn.Linear(16, 16)
    assert guess_backbone(holder) == "model"
    holder.model.backbone.requires_grad_(True)
    assert guess_backbone(holder) == "model.backbone"
