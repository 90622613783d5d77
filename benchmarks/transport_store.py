"""What a prior says of whole images and of crops, kept beside the data; and the targets made of it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import Images
from networks import prior_of
from torch import Tensor
from transport_views import draw_boxes, whole

from rela_lightning.targets.reduce import Projection, pca, project, projection, streaming_moments

COLUMNS = 128
"""Columns of a target: the student's width."""
LABELLING_SEED = 0
KINDS = {
    "shrunk": "shrunk", "per_dim": "per_dim", "frozen": "per_dim", "isotropic": "isotropic", "rank": "per_dim",
}  # fmt: skip
"""Standardisation by kind of target; `rank` keeps the columns that explain 95% of the variance."""


class Labelled:
    """Features of a prior by view: view 0 is the whole image, the others are crops.

    Made when they are first asked for, one file a view in a hidden folder beside the data. The crops are drawn from
    a seed and the number of the view, so that `K` views are the first of any more.

    Args:
        root: Folder of the data.
        data: Name of the data.
        images: The images to be labelled.
        prior: Name of the prior.
    """

    def __init__(self, root: Path, data: str, images: Images, prior: str) -> None:
        self.folder = root / f".views-{data}-{len(images)}-{prior}"
        self.images, self.prior = images.images, prior
        self._network: Any = None

    @property
    def network(self) -> Any:
        """The prior; it sees the whole of a crop, squashed to its own size."""
        if self._network is None:
            self._network = squashing(prior_of(self.prior))
        return self._network

    def boxes(self, view: int) -> Tensor:
        """`[N, 5]`: top, left, height, width, mirror."""
        count, size = len(self.images), self.images.shape[-1]
        generator = torch.Generator().manual_seed(1000 * LABELLING_SEED + view)
        return draw_boxes(count, size, generator) if view else whole(count, size)

    def features(self, view: int) -> Tensor:
        """`[N, F]`, float16."""
        path = self.folder / f"{view}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = embed(self.network, self.images, self.boxes(view)).half().numpy()
            working = path.with_suffix(f".{os.getpid()}.npy")
            np.save(working, made)
            working.replace(path)
        return torch.from_numpy(np.load(path))

    def targets(self, crops: int, kind: str) -> tuple[Tensor, Projection]:
        """Targets `[N, 1 + crops, D]`, float32, with `D` at most `COLUMNS`, and the map that made them.

        Mean, components and scales are those of all the rows, whole images and crops.
        """
        path = self.folder / f"targets-{KINDS[kind]}{'-rank' if kind == 'rank' else ''}-{crops}.pt"
        if not path.exists():
            views = range(1 + crops)
            components = pca(streaming_moments(self.features(view) for view in views))
            by = projection(components.first(0.95) if kind == "rank" else components, KINDS[kind])
            by = Projection(by.mean, by.components[:, :COLUMNS], by.scales[:COLUMNS])
            made = torch.stack([project(self.features(view), by) for view in views], dim=1)
            working = path.with_suffix(f".{os.getpid()}.pt")
            torch.save({"targets": made, "by": tuple(by)}, working)
            working.replace(path)
        known = torch.load(path, weights_only=True)
        return known["targets"], Projection(*known["by"])


def squashing(prior: Any) -> Any:
    """The prior with preprocessing that squashes an image to its size, as crops are squashed for the student."""
    prior.preprocess = dataclasses.replace(prior.preprocess, fit="squash")
    return prior


@torch.no_grad()
def embed(prior: Any, images: Tensor, boxes: Tensor, batch: int = 64) -> Tensor:
    """Features `[N, F]` of one crop of each uint8 image; 64 at a time stay in a processor's cache."""
    parts = []
    for some, where in zip(images.split(batch), boxes.split(batch), strict=True):
        parts.append(prior(torch.stack([prior.preprocess(cut(*pair)) for pair in zip(some, where, strict=True)])))
    return torch.cat(parts)


def cut(image: Tensor, box: Tensor) -> Tensor:
    """The crop of a uint8 image `[C, H, W]`, mirrored if the box says so."""
    top, left, height, width, mirror = box.tolist()
    crop = image[:, top : top + height, left : left + width]
    return crop.flip(2) if mirror else crop
