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
