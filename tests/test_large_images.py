"""Photos of many pixels are looked at one at a time, before labelling and in a ranking."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from rela_lightning import fitness, load_prior, rank_priors
from rela_lightning.diagnostics.survey import survey


class Photos(Dataset[Image.Image]):
    """Forty noisy images; counts how many of them are held at once."""

    def __init__(self, height: int = 24, width: int = 32) -> None:
        self.shape, self.held, self.most = (height, width, 3), [0], [0]  # lists, shared by all copies

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Image.Image:
        image = Image.fromarray(np.random.default_rng(index).integers(0, 256, self.shape).astype(np.uint8))
        self.held[0] += 1
        self.most[0] = max(self.most[0], self.held[0])
        weakref.finalize(image, self.let_go)
        return image

    def let_go(self) -> None:
        self.held[0] -= 1


def small() -> Any:
    torch.manual_seed(0)
    return load_prior(nn.Sequential(nn.Flatten(), nn.Linear(192, 16)), image_size=8, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize("look", [lambda images: fitness(images, prior=small(), num_samples=32),
                                  lambda images: rank_priors([small()], images, num_samples=32)])  # fmt: skip
def test_no_more_than_two_are_held(look: Any) -> None:
    photos = Photos()
    look(photos)
    assert 1 <= photos.most[0] <= 2


def test_views_of_photos_are_no_larger_than_priors_need() -> None:
    sizes: list[list[int]] = []

    class Prepare:
        def __call__(self, image: Any) -> Tensor:
            if isinstance(image, Tensor):
                sizes.append(list(image.shape))
            return torch.zeros(3, 8, 8)

    prior = small()
    prior.preprocess = Prepare()
    for shape in ((900, 1200), (60, 80)):
        survey({"it": prior}, Photos(*shape), num_samples=2, num_views=2)
    assert sizes == [[3, 768, 1024]] * 2 + [[3, 60, 80]] * 2
