"""Which networks are taken for teachers of the backbone, and follow it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rela_lightning import ReLACallback
from rela_lightning.injection.teachers import find_pairs
from rela_lightning.networks.names import trained_by
from rela_lightning.schedules import TransportOnly
from tests.modules import byol, weights
from tests.test_callback import Log, fit, seeded
from tests.test_discovery import SimCLR, Told, moved


class Loose(type(byol())):
    """Nothing is frozen: the teacher is only left out of the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(True)

    def configure_optimizers(self) -> Any:
        parts = (self.backbone, self.projection_head, self.prediction_head)
        return torch.optim.SGD([p for part in parts for p in part.parameters()], lr=self.lr)


class Careless(Loose):
    """Everything is handed to the optimizer."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Averaged(Careless):
    """The teacher is torch's own average of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone_momentum = AveragedModel(self.backbone, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.backbone_momentum.update_parameters(self.backbone)
        with torch.no_grad():
            z = [self.projection_head_momentum(self.backbone_momentum(view)) for view in batch[0]]
        p = [self(view) for view in batch[0]]
        return self.criterion(p[0], z[1]) + self.criterion(p[1], z[0])


@pytest.mark.slow
@pytest.mark.parametrize("build", [Loose, Careless, Averaged])
def test_teachers_that_require_gradients_follow(build: Any, targets64: Any, caplog: Any) -> None:
    told, module = Told(caplog), seeded(build)
    before = copy.deepcopy(module.backbone_momentum)
    students: list[dict[str, Tensor]] = []

    class Students(Log):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            students.append({k: v.detach().clone() for k, v in module.backbone.named_parameters()})

    # after ours: Trainer calls callbacks in order, and the teacher follows at the end of a batch
    fit(module, ReLACallback(targets64, schedule=TransportOnly(), teacher_momentum=0.9), Students())
    for name, value in module.backbone_momentum.named_parameters():
        expected = dict(before.named_parameters())[name].detach()
        for student in students:
            expected = 0.9 * expected + 0.1 * student[name.removeprefix("module.")]
        torch.testing.assert_close(value.detach(), expected)
    assert "backbone_momentum" in told.line()


def test_layers_alike_are_no_teachers() -> None:
    """A transformer's blocks are copies of each other."""
    module = nn.Module()
    block = nn.TransformerEncoderLayer(8, 2, 16)
    module.backbone = nn.TransformerEncoder(block, 3, enable_nested_tensor=False)
    module.head_a, module.head_b = nn.Linear(8, 4), nn.Linear(8, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    assert find_pairs(module, trained_by([optimizer], module), module.backbone) == []


@pytest.mark.parametrize("how", ["frozen", "in no optimizer"])
def test_layers_of_the_backbone_that_stay_as_they_are_follow_nobody(how: str, targets64: Any) -> None:
    """Its first block is kept, as in fine-tuning; the second one is alike, and trained."""

    class Kept(SimCLR):
        def __init__(self) -> None:
            super().__init__()
            blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(2)]
            self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3), *blocks)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))
            self.backbone[1].requires_grad_(how != "frozen")

        def configure_optimizers(self) -> Any:
            parts = (self.backbone[0], self.backbone[2], self.head)
            return torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.05)

    module = seeded(Kept)
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=TransportOnly()))
    assert not any(moved(module, before, "backbone.1")) and all(moved(module, before, "backbone.2"))
