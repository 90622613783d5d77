"""Networks whose maps hold their channels last: as prior, student and under a probe, as their own heads pool them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import swin_v2_t

from rela_lightning import ReLACallback, load_prior
from rela_lightning.injection.backbone import Backbone
from rela_lightning.networks.encode import encode, measure_feature_dim
from rela_lightning.schedules import Mix, TransportOnly
from tests.modules import simclr
from tests.test_callback import fit, seeded


class Maps(nn.Module):
    """What a network gives before its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.network.forward_features(images)
        return found


def swin() -> nn.Module:
    return timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=2, embed_dim=12, depths=(1, 1),
                             num_heads=(1, 2), pretrained=False)  # fmt: skip


def sequencer() -> nn.Module:
    return timm.create_model("sequencer2d_s", img_size=32, embed_dims=(12, 24, 24, 24), hidden_sizes=(4, 8, 8, 8),
                             layers=(1, 1, 1, 1), pretrained=False)  # fmt: skip


def mambaout() -> nn.Module:
    return timm.create_model("mambaout_femto", depths=(1, 1), dims=(12, 24), pretrained=False)


NETWORKS = {"swin": (swin, "head.fc"), "sequencer": (sequencer, "head.fc"), "mambaout": (mambaout, "head.norm")}
"""Network, and the layer of its head that takes the mean over positions."""
HALF = {"image_size": 32, "mean": 0.5, "std": 0.5}


@pytest.mark.parametrize("name", NETWORKS)
def test_prior_student_and_probe_pool_as_the_network_does(name: str) -> None:
    torch.manual_seed(0)
    network, images, seen = NETWORKS[name][0]().eval(), torch.rand(2, 3, 32, 32), []
    handle = network.get_submodule(NETWORKS[name][1]).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network(images)
        handle.remove()
        (expected,) = seen
        assert network.forward_features(images).shape[3] == expected.shape[1] == network.num_features
    module = nn.Module()
    module.backbone = Maps(network)
    torch.testing.assert_close(encode(module.backbone, images), expected)
    assert measure_feature_dim(module.backbone) == network.num_features
    student = Backbone(module, "backbone")
    torch.testing.assert_close(student(images), expected)
    assert f"{network.num_features} features" in student.reads
    student.remove()
    prior = load_prior(module.backbone, **HALF)
    torch.testing.assert_close(prior(images), expected)


@pytest.mark.slow
def test_the_trunk_of_torchvisions_swin() -> None:
    torch.manual_seed(0)
    network = swin_v2_t().eval()
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        expected = network.avgpool(network.permute(network.features(images))).flatten(1)
    assert expected.shape == (1, 768)
    torch.testing.assert_close(encode(network.features, images), expected)


class Method(type(simclr())):  # type: ignore[misc]
    """Its own step pools by the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Maps(mambaout()), nn.Linear(24, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        first, second = (self.head(self.backbone(view).mean((1, 2))) for view in batch[0])
        return -nn.functional.cosine_similarity(first, second).mean()


@pytest.mark.parametrize("schedule", [TransportOnly(), Mix()])
def test_in_training_the_channels_are_the_features(targets64: Any, schedule: Any, caplog: Any) -> None:
    callback = ReLACallback(targets64, schedule=schedule)
    with caplog.at_level(logging.INFO):
        fit(seeded(Method), callback, max_epochs=1)
    assert any("ReLA reads backbone: 24 features an image" in record.message for record in caplog.records)
