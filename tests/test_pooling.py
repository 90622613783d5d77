"""Which of several outputs is read, as features of a backbone and of a prior."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

from rela_lightning import load_prior
from rela_lightning.errors import ConfigError
from rela_lightning.networks.pooling import channel_axis, pool, select

LARGE, SMALL, TOKENS, FEWER = torch.rand(2, 8, 4, 4), torch.rand(2, 16, 2, 2), torch.rand(2, 9, 8), torch.rand(2, 3, 16)
LATER, VECTOR, OTHER = torch.rand(2, 9, 8), torch.rand(2, 8), torch.rand(2, 4)


@dataclass
class Output:
    mask: Any
    encoded: Tensor


@pytest.mark.parametrize(
    ("output", "expected", "words"),
    [
        (LARGE, LARGE, ""),
        ([LARGE, SMALL], SMALL, "the deepest of 2 maps"),
        ((SMALL, LARGE), SMALL, "the deepest of 2 maps"),
        ({"low": LARGE, "high": SMALL}, SMALL, "the deepest of 2 maps"),
        ({"features": [LARGE, SMALL]}, SMALL, "the deepest of 2 maps"),
        ({"last_hidden_state": TOKENS, "hidden_states": (LATER, TOKENS)}, TOKENS, ""),
        ({"hidden_states": (TOKENS, LATER)}, LATER, "the deepest of 2 token sequences"),
        ((TOKENS, FEWER), FEWER, "the deepest of 2 token sequences"),
        ((TOKENS, torch.rand(2, 1, 9, 9)), TOKENS, ""),
        ((VECTOR, [LARGE, SMALL]), VECTOR, ""),
        ((VECTOR, OTHER), VECTOR, "the first of 2 outputs"),
        ((torch.rand(()), TOKENS, torch.ones(2, 9, dtype=torch.int64)), TOKENS, ""),
        (Output(torch.ones(2, 9, dtype=torch.bool), TOKENS), TOKENS, ""),
        ([{"pooler_output": VECTOR, "last_hidden_state": TOKENS}], VECTOR, ""),
    ],
)
def test_the_deepest_or_the_first(output: Any, expected: Tensor, words: str) -> None:
    found, which = select(output)
    assert found is expected and which == words


def test_nothing_to_read() -> None:
    for output in (None, [], {}, SimpleNamespace(x=1), "text"):
        with pytest.raises(ConfigError, match="no tensor to read features from"):
            select(output)


def segmentation() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = create_feature_extractor(resnet18(), {"layer1": "low", "layer4": "out"})

        def forward(self, images: Tensor) -> Any:
            return self.body(images)

    return Net()


def pyramid() -> nn.Module:
    body = create_feature_extractor(resnet18(), {"layer1": "0", "layer4": "1"})
    return nn.Sequential(OrderedDict(body=body, fpn=FeaturePyramidNetwork([64, 512], 32)))


PRIORS = {
    "timm features_only": (lambda: timm.create_model("resnet18", features_only=True, pretrained=False), 512),
    "torchvision's extractor": (
        lambda: create_feature_extractor(resnet18(), {"layer1": "low", "layer4": "high", "layer2": "mid"}),
        512,
    ),
    "a pyramid": (pyramid, 32),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_of_several_maps_says_which_is_read(name: str) -> None:
    torch.manual_seed(0)
    network, width = PRIORS[name][0](), PRIORS[name][1]
    with pytest.warns(UserWarning, match=rf"the deepest of \d maps is read, {width} features"):
        prior = load_prior(network, image_size=32, mean=0.5, std=0.5)
    assert prior.feature_dim == width
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        maps = network.eval()(images)
    deepest = min(maps.values() if isinstance(maps, dict) else maps, key=lambda found: found.shape[-1])
    torch.testing.assert_close(prior(images), deepest.mean(dim=(2, 3)))


def test_a_usual_key_is_no_question(recwarn: Any) -> None:
    prior = load_prior(segmentation(), image_size=32, mean=0.5, std=0.5)
    assert prior.feature_dim == 512 and not [w for w in recwarn if "several tensors" in str(w.message)]


def test_pooling_of_the_chosen_map() -> None:
    torch.testing.assert_close(pool([LARGE, SMALL]), SMALL.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("shape", "image_size", "axis"),
    [
        ((512, 7, 7), (224, 224), 1),
        ((7, 7, 768), (224, 224), 3),
        ((7, 7, 768), None, 3),
        ((8, 7, 7), (224, 224), 1),
        ((7, 7, 8), (224, 224), 3),
        ((4, 4, 2), (32, 32), 3),
        ((512, 1, 1), (32, 32), 1),
        ((1, 1, 512), (32, 32), 3),
        ((1, 1, 1), (32, 32), 1),
        ((96, 7, 5), (224, 160), 1),
        ((7, 5, 96), (224, 160), 3),
        ((4, 3, 96), (100, 90), 3),  # 100 / 32 and 90 / 32, rounded up
        ((96, 3, 2), (100, 90), 1),  # rounded down
        ((7, 5, 7), (224, 160), 3),
        ((7, 7, 5), (224, 160), 1),
        ((64, 4, 8), (32, 32), 1),  # other strides along the height than along the width
        ((4, 8, 64), (32, 32), 3),
        ((8, 8, 8), (32, 32), None),
        ((16, 8, 4), (64, 32), None),
        ((16, 8, 4), (8, 4), 1),
    ],
)
def test_which_axis_holds_the_channels(shape: Any, image_size: Any, axis: Any) -> None:
    assert channel_axis(shape, image_size) == axis


def test_a_map_that_could_be_either_is_refused() -> None:
    cube = torch.rand(2, 8, 8, 8)
    for mode in ("auto", "avg", "cls"):
        with pytest.raises(ConfigError, match='pooling="channels_first" or pooling="channels_last"'):
            pool(cube, mode)
    torch.testing.assert_close(pool(cube, "channels_first"), cube.mean(dim=(2, 3)))
    torch.testing.assert_close(pool(cube, "channels_last"), cube.mean(dim=(1, 2)))
    torch.testing.assert_close(pool(TOKENS, "channels_first"), TOKENS.mean(dim=2))
    torch.testing.assert_close(pool(TOKENS, "channels_last"), TOKENS.mean(dim=1))


class Tokens(nn.Module):
    """A convolution whose map is made a sequence, `[B, F, N]` or `[B, N, F]`."""

    def __init__(self, width: int, patch: int, *, last: bool, head: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.last, self.head = nn.Conv2d(3, width, patch, patch), last, head or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images).flatten(2)
        found: Tensor = self.head(maps.mT if self.last else maps)
        return found


def with_classifier(network: nn.Module) -> nn.Module:
    """The network with a layer that its forward leaves out."""
    network.classifier = nn.Linear(24, 10)
    return network


HALF = {"image_size": 32, "mean": 0.5, "std": 0.5}


@pytest.mark.parametrize(
    ("network", "axis"),
    [
        (Tokens(24, 8, last=False), 2),
        (Tokens(24, 8, last=True), 1),
        (Tokens(16, 8, last=True, head=nn.LayerNorm(16)), 1),
        (Tokens(24, 8, last=True, head=nn.Linear(24, 40, bias=False)), 1),
        (Tokens(16, 8, last=False), None),  # 16 positions, 16 channels
        (Tokens(24, 8, last=False, head=nn.Conv1d(24, 40, 1)), 2),
        (with_classifier(Tokens(24, 8, last=False)), None),
        (with_classifier(Tokens(24, 8, last=True)), 1),
    ],
)
def test_sequences_of_either_order(network: nn.Module, axis: int | None) -> None:
    images = torch.rand(2, 3, 32, 32)
    if axis is None:
        with pytest.raises(ConfigError, match=r'axis of this sequence(?s:.*)pooling="channels_first"'):
            load_prior(network, **HALF)
        prior = load_prior(network, pooling="channels_first", **HALF)
        torch.testing.assert_close(prior(images), network(images).mean(dim=2))
    else:
        torch.testing.assert_close(load_prior(network, **HALF)(images), network(images).mean(dim=axis))


@pytest.mark.parametrize(
    ("network", "first"),
    [
        (nn.Conv2d(3, 8, 3, (4, 8), 1), True),  # [B, 8, 8, 4] of squares
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, (2, 4), 1)), None),
        (nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(5, 8, 3, (2, 4), 1), nn.BatchNorm2d(8)), True),
    ],
)
def test_as_many_channels_as_rows(network: nn.Module, first: bool | None) -> None:
    images = torch.rand(2, 3, 32, 32)
    assert network(images).shape == (2, 8, 8, 4) and channel_axis((8, 8, 4), (32, 32)) == 3
    if first is None:
        with pytest.raises(ConfigError, match="axis of this map"):
            load_prior(network, **HALF)
        return
    prior = load_prior(network, **HALF)
    torch.testing.assert_close(prior(images), network.eval()(images).mean(dim=(2, 3)))


def test_as_many_columns_as_rows_with_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), PerPosition(nn.Linear(8, 4)))
    images = torch.rand(2, 3, 32, 32)
    assert network(images).shape == (2, 8, 8, 4)
    torch.testing.assert_close(load_prior(network, **HALF)(images), network(images).mean(dim=(1, 2)))


class PerPosition(nn.Sequential):
    """Layers on maps with their channels last."""

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = super().forward(maps.movedim(1, 3))
        return found


@pytest.mark.parametrize("last", [nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8)])
def test_where_the_shape_does_not_tell_the_layers_are_asked(last: nn.Module) -> None:
    body, images = nn.Conv2d(3, 8, 4, 4), torch.rand(2, 3, 32, 32)
    prior = load_prior(body, image_size=32, mean=0.5, std=0.5)
    torch.testing.assert_close(prior(images), body(images).mean(dim=(2, 3)))
    network = nn.Sequential(body, PerPosition(last))
    with pytest.raises(ConfigError, match="which axis of this map"):
        load_prior(network, image_size=32, mean=0.5, std=0.5)
    prior = load_prior(network, image_size=32, mean=0.5, std=0.5, pooling="channels_last")
    torch.testing.assert_close(prior(images), network(images).mean(dim=(1, 2)))
