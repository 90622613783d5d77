"""A preprocessing of the user's own is given images of 8 bits, wherever they come from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rela_lightning import build_targets, load_prior
from rela_lightning.diagnostics import fitness, rank_priors
from rela_lightning.targets.source import BatchRows, PriorTargets
from tests.parts import TinyBackbone, make_digits

SHOWN: list[Any] = []


def by_255(image: Any) -> Tensor:
    """What image processors do: divide by 255, whatever the kind of number."""
    SHOWN.append(image)
    pixels = image if isinstance(image, Tensor) else F.pil_to_tensor(image)
    return (F.resize(pixels, [16, 16], antialias=True).float() / 255 - 0.5) / 0.5


@pytest.fixture
def prior() -> Any:
    SHOWN.clear()
    return load_prior(TinyBackbone(), preprocess=by_255)


class Digits:
    """The same images as bytes, or as floats in [0, 1]."""

    def __init__(self, floats: bool) -> None:
        self.floats, self.digits = floats, make_digits(64)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, row: int) -> Any:
        image = F.pil_to_tensor(self.digits[row][0])
        return (image / 255 if self.floats else image), 0


def test_floats_get_the_targets_of_their_bytes(tmp_path: Any, prior: Any) -> None:
    options = {"storage_dtype": torch.float32, "standardise": "none"}
    by_bytes, by_floats = (build_targets(prior, Digits(floats), tmp_path / f"{floats}", **options) for floats in (0, 1))
    torch.testing.assert_close(by_floats[torch.arange(64)], by_bytes[torch.arange(64)])


@pytest.mark.parametrize("fused", [False, True])
def test_views_embedded_on_the_fly_are_shown_in_their_own_range(prior: Any, fused: bool) -> None:
    seen: list[Tensor] = []
    prior.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    scaled = load_prior(TinyBackbone(), image_size=16, mean=0.5, std=0.5)
    views = torch.stack([Digits(True)[row][0] for row in range(8)])

    class OneRank:
        world_size = 1

    PriorTargets(load_prior([scaled, prior]) if fused else prior)(BatchRows(torch.arange(8), False), views, OneRank())
    expected = torch.stack([by_255(Digits(False)[row][0]) for row in range(8)])
    torch.testing.assert_close(seen[-1], expected)


def test_diagnostics_show_it_bytes_too(prior: Any) -> None:
    fitness(Digits(True), prior=prior, num_samples=32)
    rank_priors([prior], Digits(True), num_samples=32)
    assert all(not image.is_floating_point() for image in SHOWN if isinstance(image, Tensor))
