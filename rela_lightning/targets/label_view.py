"""A data set as labelling sees it: each row preprocessed for the prior, with its crops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rela_lightning.data.crops import Crop, cut, draw_crop, size_of, whole
from rela_lightning.data.raw import raw_image
from rela_lightning.networks.preprocess import preprocessed
from rela_lightning.rng import preserved_rng

CropsOf = Callable[[Any, int], Sequence[Crop]]
"""Crops of an image, from the image and its row in the data set."""


class LabelItem(NamedTuple):
    """One row as labelling sees it; collated, each part has a leading `[B]`.

    Attributes:
        row: Index in the data set.
        size: Height and width of the raw image, pixels, int32 `[2]`.
        crops: The whole image, then the crops drawn (see `rela_lightning.data.crops`), int32 `[V, 5]`.
        images: Each crop preprocessed, float `[V, C, H, W]`; for a fusion of priors a list of these.
        line: Of a sample of a stream, what is noted of its key; else empty.
    """

    row: int
    size: Tensor
    crops: Tensor
    images: Any
    line: str = ""


def label_item(image: Any, row: int, preprocess: Any, crops: CropsOf) -> LabelItem:
    """A raw image as labelling sees it; `row` stands for it in the pass."""
    chosen = crops(image, row)
    images = default_collate([preprocessed(preprocess, cut(image, crop)) for crop in chosen])
    size = torch.tensor(size_of(image), dtype=torch.int32)
    return LabelItem(row, size, torch.tensor(chosen, dtype=torch.int32), images)


class LabelView(Dataset[LabelItem]):
    """A data set as labelling sees it: preprocessed views, own transform set aside.

    The image is read and decoded once for all of its views.

    Args:
        dataset: The user's data set; nothing in it is changed.
        preprocess: The prior's preprocessing.
        rows: Rows of `dataset` to go over, int64 `[R]`, in this order.
        crops: Crops of an image, from it and its row; see `DrawnCrops`.
    """

    def __init__(self, dataset: Any, preprocess: Any, rows: np.ndarray, crops: CropsOf) -> None:
        self.dataset = dataset
        self.preprocess = preprocess
        self.rows = rows
        self.crops = crops

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> LabelItem:
        row = int(self.rows[position])
        return label_item(raw_image(self.dataset, row), row, self.preprocess, self.crops)

    def __iter__(self) -> Iterator[LabelItem]:
        return (self[position] for position in range(len(self)))


@dataclass(frozen=True)
class DrawnCrops:
    """The whole image and random crops of it, the same ones at each call; the random state is kept.

    Attributes:
        views: Number of crops beside the whole image.
        flip: Whether half of them are mirrored.
    """

    views: int
    flip: bool = True

    def __call__(self, image: Any, row: int) -> list[Crop]:
        """See `CropsOf`."""
        if not self.views:
            return [whole(image)]
        with preserved_rng(row):
            return [whole(image), *(draw_crop(image, flip=self.flip) for _ in range(self.views))]


def embed(prior: Any, images: Any) -> Tensor:
    """Features float32 `[B, V, F]` of collated `LabelItem.images`: one forward of the prior for all views."""
    parts = images if isinstance(images, (list, tuple)) else [images]
    rows, views = parts[0].shape[:2]
    flat = [part.flatten(0, 1) for part in parts]
    features: Tensor = prior(flat if isinstance(images, (list, tuple)) else flat[0])
    return features.view(rows, views, -1)
