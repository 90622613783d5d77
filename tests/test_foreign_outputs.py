"""Networks that return several maps, teachers that look trainable, and errors that are the network's own."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import timm
import torch
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

from rela_lightning import ReLACallback, load_prior
from rela_lightning.networks.pooling import first_tensor
from rela_lightning.schedules import Switch, TransportOnly
from tests.modules import byol, simclr, weights
from tests.parts import TinyBackbone
from tests.test_callback import fit, seeded

SETTINGS = {"image_size": 32, "mean": 0.5, "std": 0.5}


def stages() -> nn.Module:
    return timm.create_model("resnet10t", features_only=True, pretrained=False)


class Pyramid(type(simclr())):  # type: ignore[misc]
    """Its own step uses the last stage."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = stages(), nn.Linear(512, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = (self.head(self.backbone(view)[-1].mean((2, 3))) for view in batch[0])
        return -nn.functional.cosine_similarity(first, second).mean()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [TransportOnly(), Switch(0.01)])
def test_of_the_stages_of_a_network_the_deepest_is_trained_on(targets64: Any, schedule: Any, caplog: Any) -> None:
    module = seeded(Pyramid)
    before = weights(module.backbone)
    with caplog.at_level(logging.INFO):
        fit(module, ReLACallback(targets64, schedule=schedule), max_epochs=1)
    moved = [name for name, value in module.backbone.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) == len(list(module.backbone.parameters()))
    said = [record.message for record in caplog.records if "ReLA reads" in record.message]
    (line,) = said
    assert line.startswith("ReLA reads backbone: 512 features an image (the deepest of 5 maps)")


def test_as_a_prior_too() -> None:
    assert load_prior(stages(), **SETTINGS).feature_dim == 512
    stated = create_feature_extractor(resnet18(), {"layer1": "low", "layer4": "high"})
    assert load_prior(stated, **SETTINGS).feature_dim == 512
    pyramid = load_prior(resnet_fpn_backbone(backbone_name="resnet18", weights=None), **SETTINGS)
    assert pyramid.feature_dim == 256


def test_what_counts_as_the_deepest() -> None:
    def maps(*shapes: tuple[int, int]) -> list[torch.Tensor]:
        return [torch.zeros(2, channels, size, size) for channels, size in shapes]

    assert first_tensor(maps((8, 16), (16, 8), (32, 8))).shape[1] == 32
    assert first_tensor({"a": maps((8, 4))[0], "b": maps((9, 4))[0]}).shape[1] == 9
    assert first_tensor(maps((32, 4), (16, 8))).shape[1] == 32, "wherever it stands"
    assert first_tensor((torch.zeros(2, 5), maps((8, 4))[0])).shape == (2, 5)
    assert first_tensor({"features": torch.zeros(2, 5), "maps": maps((8, 4), (16, 2))}).shape == (2, 5)


@pytest.mark.parametrize("where", ["optimizer", "flags"])
def test_a_teacher_in_no_optimizer_follows(targets64: Any, where: str) -> None:
    class Loose(type(byol())):  # type: ignore[misc]
        """As lightly's benchmark scripts: the teacher keeps `requires_grad`, and the optimizer is given the student."""

        def __init__(self) -> None:
            super().__init__()
            self.teacher_backbone = copy.deepcopy(self.backbone)
            self.backbone_momentum, self.projection_head_momentum = self.teacher_backbone, self.projection_head
            self.teacher_backbone.requires_grad_(where == "optimizer")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            cosine_schedule(0, 10, 0.9, 1.0)
            return self.backbone(batch[0][0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([*self.backbone.parameters(), *self.projection_head.parameters()], lr=0.5)

    module = seeded(Loose)
    before = weights(module.teacher_backbone)
    fit(module, ReLACallback(targets64, schedule=TransportOnly(), teacher_momentum=0.5), max_epochs=1)
    student = dict(module.backbone.named_parameters())
    for name, value in module.teacher_backbone.named_parameters():
        assert not torch.equal(value, before[name]), name
        assert (value - student[name]).norm() < (before[name] - student[name]).norm(), name


class Fails(TinyBackbone):
    """Fails at one of its calls."""

    at, error, calls = 3, RuntimeError("a kernel of mine"), 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return super().forward(images)


@pytest.mark.parametrize("resolution", [None, 8])
def test_an_error_after_the_first_call_is_the_networks_own(targets64: Any, resolution: int | None) -> None:
    module = seeded(byol)
    module.backbone = Fails()
    callback = ReLACallback(targets64, schedule=Switch(0.9), transport_resolution=resolution)
    with pytest.raises(RuntimeError, match=r"^a kernel of mine$"):
        fit(module, callback)


@pytest.mark.parametrize("resolution", [None, 8])
@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory: 9 bytes")],
)
def test_memory_that_runs_out_is_called_so(targets64: Any, resolution: int | None, error: Exception) -> None:
    module = seeded(byol)
    module.backbone = Fails()
    module.backbone.at, module.backbone.error = 1, error
    callback = ReLACallback(targets64, schedule=Switch(0.9), transport_resolution=resolution)
    with pytest.raises(type(error)) as caught:
        fit(module, callback)
    assert caught.value is error


def test_a_network_that_fails_at_any_size_is_not_blamed_on_the_resolution(targets64: Any) -> None:
    module = seeded(byol)
    module.backbone = Fails()
    module.backbone.at = 1
    module.backbone.forward = lambda images: torch.zeros(2, 3) @ torch.zeros(2, 3)
    callback = ReLACallback(targets64, schedule=Switch(0.9), transport_resolution=8)
    with pytest.raises(RuntimeError, match="cannot be called on the views alone"):
        fit(module, callback)
