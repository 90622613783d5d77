"""`transport_resolution`: small views for most of the transport phase, full ones before the switch and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError
from rela_lightning.injection.resolution import shrink
from rela_lightning.schedules import AuthorsRule, Blend, Mix, Plateau, Schedule, Switch, TransportOnly, Weights
from tests.modules import byol
from tests.test_callback import fit, seeded


class Sizes:
    """Height of what the backbone is called on, call by call."""

    def __init__(self, backbone: nn.Module) -> None:
        self.seen: list[int] = []
        backbone.register_forward_pre_hook(lambda _, args: self.seen.append(args[0].shape[-1]))


@pytest.mark.parametrize(
    ("schedule", "small"), [(Switch(0.5), 3), (TransportOnly(), 6), (Plateau(1e-9, at_least=0.5, at_most=0.5), 3)]
)
def test_small_for_three_quarters_of_the_transport_phase(schedule: Schedule, small: int, targets64: Any) -> None:
    module = seeded(byol)
    sizes = Sizes(module.backbone)
    fit(module, ReLACallback(targets64, schedule=schedule, transport_resolution=8))  # 8 steps
    transport = 8 if isinstance(schedule, TransportOnly) else 4
    assert sizes.seen[:small] == [8] * small
    assert sizes.seen[small:transport] == [16] * (transport - small)
    assert set(sizes.seen[transport:]) <= {16}


def test_the_loss_is_that_of_the_shrunk_views(targets64: Any) -> None:
    images = torch.rand(2, 3, 32, 32)
    halved = nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    assert torch.equal(shrink(images, 16), halved)
    assert shrink(images, 32) is images, "never enlarged"
    assert shrink(images, 64) is images


class Stepped(Schedule):
    """A user's own schedule."""

    def weights(self, progress: float) -> Weights:
        return Weights(0.0, 1.0) if progress < 0.25 else Weights(1.0, 0.5)


@pytest.mark.parametrize(
    ("schedule", "share"),
    [
        (Switch(0.4), 0.4), (TransportOnly(), 1.0), (Mix(), 0.0), (Plateau(at_least=0.1), 0.1),
        (Plateau(at_least=0.3), 0.3), (Plateau(), 0.05), (Plateau(at_most=0.1), 0.05), (AuthorsRule(), 0.0),
        (Stepped(), 0.25), (Blend(), 0.001),
    ],
)  # fmt: skip
def test_what_is_transport_alone_whatever_happens(schedule: Schedule, share: float) -> None:
    assert schedule.least_transport == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("schedule", [AuthorsRule(), Mix(), Blend()])
def test_refused_where_the_end_is_unknown(schedule: Schedule, targets64: Any) -> None:
    with pytest.raises(ConfigError, match="`transport_resolution` needs to know when the transport phase will end"):
        ReLACallback(targets64, schedule=schedule, transport_resolution=8)
    with pytest.raises(ConfigError, match="`transport_resolution` is out of range"):
        ReLACallback(targets64, transport_resolution=0)


def test_refused_where_the_users_step_runs_on_its_own_views(targets64: Any) -> None:
    callback = ReLACallback(targets64, schedule=Switch(0.5), transport_resolution=8, step="swap_loss")
    with pytest.raises(ConfigError, match="`transport_resolution` has no effect"):
        fit(seeded(byol), callback)


class FixedSize(nn.Sequential):
    """A backbone for 16 pixels only."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, 16))


def test_a_backbone_of_fixed_size_is_named(targets64: Any) -> None:
    module = seeded(byol)
    module.backbone, module.backbone_momentum = FixedSize(), FixedSize()
    with pytest.raises(ConfigError, match="does not take views of `transport_resolution`") as caught:
        fit(module, ReLACallback(targets64, transport_resolution=8))
    assert "shapes cannot be multiplied" in str(caught.value)
