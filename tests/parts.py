"""Small real parts that several tests share."""

from __future__ import annotations

import copy
import functools

import pytest
import sklearn.datasets
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

load_all = sklearn.datasets.load_digits
"""All digits, where a test has a third of them (`few_images`)."""


class TinyBackbone(nn.Module):
    """A small convolutional network with batch norm: `[B, 3, H, W]` to `[B, 16]`."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images).mean(dim=(2, 3))


class TwoViews:
    """Two random views of a PIL image, normalised."""

    def __init__(self, size: int = 16, views: int = 2) -> None:
        self.views = views
        self.view = v2.Compose([
            v2.ToImage(), v2.RandomResizedCrop(size, scale=(0.4, 1.0), antialias=True), v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3] * 3, [0.4] * 3),
        ])  # fmt: skip

    def __call__(self, image: object) -> list[Tensor]:
        return [self.view(image) for _ in range(self.views)]


def make_digits(count: int, transform: object = None):
    """A map-style data set of `count` digits with a `transform` attribute that works."""
    digits = copy.copy(all_digits())
    digits.transform = transform
    return Head(digits, count)


@functools.cache
def all_digits():
    """The training digits, all of them, drawn once a process."""
    from rela_lightning.data import Digits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sklearn.datasets, "load_digits", load_all)
        return Digits("train")


def numbered(count: int, transform: object = None):
    """The same images, each with its row in place of its label."""
    return Numbered(make_digits(count, transform).dataset, count)


class Head(torch.utils.data.Dataset):
    """The first rows of a data set."""

    def __init__(self, dataset: torch.utils.data.Dataset, count: int) -> None:
        self.dataset, self.count = dataset, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> object:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.dataset[index]


class Numbered(Head):
    """Rows in place of labels."""

    def __getitem__(self, index: int) -> object:
        return super().__getitem__(index)[0], index
