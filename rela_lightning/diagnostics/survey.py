"""What each prior says of a sample of images and of one random view of each: one reading of the images for all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import default_collate

from rela_lightning.data.crops import size_of
from rela_lightning.data.raw import check_length, raw_image
from rela_lightning.data.transforms import TransportViews, flips
from rela_lightning.devices import moved
from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.dataset import sampled_rows
from rela_lightning.networks.preprocess import Preprocess, preprocessed
from rela_lightning.priors.base import Prior
from rela_lightning.priors.load import load_prior
from rela_lightning.progress import Progress
from rela_lightning.rng import preserved_rng

RANDOM, PIXELS = "random network", "raw pixels"
"""Names of the two controls."""
BATCH = 64
LARGEST_VIEW = 768
"""Shorter side of a view at most, pixels: priors see less, and colours of a whole photo take seconds."""


@dataclass
class Survey:
    """Features of a sample by some priors.

    Attributes:
        length: Rows N of the whole data set.
        rows: Those of the sample, n of them.
        features: Float32 `[n, F]` of the whole images, for each prior.
        viewed: Places in the sample of the v images of which a view was drawn, spread evenly over it.
        views: Float32 `[v, F]` of one random view of each of these, for each prior.
        seconds: Per image and prior, preprocessing and forward together.
        reading: Seconds per image to read and decode it.
        images: Uint8 `[n, 3, S, S]` for a student, where a size was asked for.
    """

    length: int
    rows: list[int]
    features: dict[str, Tensor] = field(default_factory=dict)
    viewed: list[int] = field(default_factory=list)
    views: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reading: float = 0.0
    images: Tensor | None = None


def controls(seed: int = 0) -> dict[str, Prior]:
    """The two priors that know nothing: an untrained ResNet-18 at 64 px, and the image itself at 16 px."""
    untrained = load_prior("random:torchvision:resnet18", image_size=64, mean=0.5, std=0.5, seed=seed)
    pixels = Prior(nn.Flatten(), Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3), pooling="none", name=PIXELS)
    return {RANDOM: untrained, PIXELS: pixels}


def survey(
    priors: dict[str, Prior],
    dataset: Any,
    *,
    num_samples: int,
    num_views: int = 512,
    image_size: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: str | None = None,
) -> Survey:
    """Read a sample once and send it through all priors.

    Args:
        priors: By name.
        dataset: As `build_targets` takes it; its own transform is set aside.
        num_samples: Images n, spread evenly over the data set; all of it, where it has fewer.
        num_views: Images v of the sample, spread evenly over it, of which a view is drawn: crop, flip and colours of
            the transport phase.
        image_size: Side S of the images kept for a student; None keeps none.
        device: Where the priors run.
        seed: Seed of the views; the random state is left as it was.
        progress: Name under which stderr is told how far it is.

    Raises:
        DataError: If the data set has no length or indices, or rows that are not images.
        TargetError: If features are NaN or infinite.
    """
    found = Survey(length := check_length(dataset), sampled_rows(length, num_samples))
    found.viewed = sampled_rows(len(found.rows), num_views)
    with_view, flip = set(found.viewed), flips(dataset)
    whole: dict[str, list[Tensor]] = {name: [] for name in priors}
    viewed: dict[str, list[Tensor]] = {name: [] for name in priors}
    spent: dict[str, list[float]] = {name: [] for name in priors}
    kept: list[Tensor] = []
    with ExitStack() as stack:
        for prior in priors.values():
            stack.enter_context(moved(prior, device))
        told = stack.enter_context(Progress(progress, len(found.rows))) if progress else None
        for start in range(0, len(found.rows), BATCH):
            rows = found.rows[start : start + BATCH]
            inputs: dict[str, list[Any]] = {name: [] for name in priors}
            of_views: dict[str, list[Any]] = {name: [] for name in priors}
            prepared = dict.fromkeys(priors, 0.0)
            for place, row in enumerate(rows, start):  # one image at a time: large ones fill the memory
                begun = time.perf_counter()
                image = _loaded(raw_image(dataset, row))
                found.reading += (time.perf_counter() - begun) / len(found.rows)
                view = _view(image, seed + row, flip) if place in with_view else None
                for name, prior in priors.items():
                    begun = time.perf_counter()
                    inputs[name].append(preprocessed(prior.preprocess, image))
                    prepared[name] += time.perf_counter() - begun
                    if view is not None:
                        of_views[name].append(preprocessed(prior.preprocess, view))
                if image_size is not None:
                    kept.append(_small(image, image_size))
            for name, prior in priors.items():
                begun = time.perf_counter()
                whole[name].append(_forward(prior, inputs[name], device))
                spent[name].append((prepared[name] + time.perf_counter() - begun) / len(rows))
                if of_views[name]:
                    viewed[name].append(_forward(prior, of_views[name], device))
            if told is not None:
                told.add(len(rows))
    for name, times in spent.items():
        found.features[name] = torch.cat(whole[name])
        found.views[name] = torch.cat(viewed[name]) if viewed[name] else found.features[name][:0]
        _check_finite(name, found.features[name], found.rows)
        _check_finite(name, found.views[name], [found.rows[place] for place in found.viewed])
        found.seconds[name] = sum(times[1:] or times) / len(times[1:] or times)  # the first batch warms up
    found.images = torch.stack(kept) if kept else None
    return found


def _loaded(image: Any) -> Any:
    """The image, decoded: files that are opened and not read would be read for the first prior."""
    if isinstance(image, Image.Image):
        image.load()
    return image


def _forward(prior: Prior, inputs: Sequence[Any], device: torch.device | str) -> Tensor:
    """Features float32 `[n, F]`, on the CPU, of preprocessed images."""
    features: Tensor = prior(move_data_to_device(default_collate(list(inputs)), torch.device(device)))
    return features.cpu()


def _check_finite(name: str, features: Tensor, rows: list[int]) -> None:
    """Refuse features that nothing can be said of."""
    if bad := (~features.isfinite().all(dim=1)).nonzero().flatten().tolist():
        raise TargetError(
            "A prior gives NaN or infinite features.",
            expected="finite features for every image and every view of one",
            found=f"{name}, for rows {[rows[place] for place in bad[:20]]} of the data set",
            do="look at these images, check the prior's weights, or load it in 32-bit precision",
        )


def _view(image: Any, seed: int, flip: bool) -> Tensor:
    """A view of the transport phase, float `[3, H, W]` in [0, 1], the same one at each call.

    It has the image's size, up to `LARGEST_VIEW`.
    """
    shrink = min(1.0, LARGEST_VIEW / min(size_of(image)))
    height, width = (max(1, round(side * shrink)) for side in size_of(image))
    with preserved_rng(seed):
        views = TransportViews((height, width), num_views=1, flip=flip)(image)
    return views[0]


def _small(image: Any, size: int) -> Tensor:
    """The middle of an image, uint8 `[3, size, size]`."""
    plain = Preprocess((size, size), (0.0,) * 3, (1.0,) * 3)
    return (plain(image) * 255).round().to(torch.uint8)
