"""Real digits whose views carry the number of their row in a corner pixel: the truth that rows are checked by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from rela_lightning.data import Digits
from tests.parts import Head

ROWS = 32
SIZE = 32


@functools.cache
def digits() -> Any:
    """The first digits of the training split, as PIL images."""
    return Head(Digits("train", image_size=SIZE), ROWS)


@functools.cache
def _row_of_image() -> dict[bytes, int]:
    return {digits()[row][0].tobytes(): row for row in range(ROWS)}


def paint(views: Any, image: Any) -> Any:
    """Write the row of `image` into pixel (0, 0) of every float RGB tensor in `views`."""
    if isinstance(views, Tensor):
        if views.is_floating_point() and views.ndim in (3, 4) and views.shape[-3] == 3:
            views = views.clone()
            views[..., 0, 0] = _row_of_image()[image.tobytes()] / ROWS
        return views
    if isinstance(views, dict):
        return {key: paint(view, image) for key, view in views.items()}
    return type(views)(paint(view, image) for view in views)


def painted_rows(images: Tensor) -> list[int]:
    """The rows that images `[N, 3, H, W]` carry."""
    return [round(value * ROWS) for value in images[:, 0, 0, 0].tolist()]


class Painted:
    """A transform whose views carry their row."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        return paint(self.transform(image), image)


class Views:
    """Random crops of one image, one for each size given, in a list; a single tensor for `sizes=SIZE`."""

    def __init__(self, sizes: int | list[int], *, stack: bool = False) -> None:
        self.sizes, self.stack = sizes, stack
        tail = [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3] * 3, [0.4] * 3)]
        self.view = {
            size: v2.Compose([v2.ToImage(), v2.RandomResizedCrop(size, (0.4, 1.0)), *tail, v2.ToPureTensor()])
            for size in ({sizes} if isinstance(sizes, int) else sizes)
        }

    def __call__(self, image: Any) -> Any:
        if isinstance(self.sizes, int):
            return self.view[self.sizes](image)
        views = [self.view[size](image) for size in self.sizes]
        return torch.stack(views) if self.stack else views


def two_views() -> Views:
    return Views([SIZE, SIZE])


def one_view() -> Views:
    return Views([SIZE])


def multi_crop() -> Views:
    return Views([SIZE, SIZE, SIZE // 2, SIZE // 2])


class ZooData(Dataset[Any]):
    """Digits under a transform, wrapped the way the module expects them."""

    def __init__(self, transform: Callable[[Any], Any], wrap: Callable[[Any, int, int], Any] | None) -> None:
        self.transform, self.wrap = transform, wrap

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        image, label = digits()[row]
        views = self.transform(image) if self.transform is not None else image
        return (views, label) if self.wrap is None else self.wrap(views, label, row)


def loader(case: Any) -> DataLoader[Any]:
    data = ZooData(Painted(case.views()), case.wrap)
    return DataLoader(data, batch_size=8, shuffle=True, collate_fn=case.collate)
