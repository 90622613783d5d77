"""Ten priors and three sets of images, all within reach of a package registry, for `ranking.py`."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import Images, Rows, Splits, SSLViews, load_splits
from networks import bare_trainer, build, fit, prior_of
from PIL import Image
from torch import Tensor, nn

from rela_lightning import load_prior
from rela_lightning.data import ImageData
from rela_lightning.demo.prior import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.files import write_whole

SIZE = 32
COLOURS = {"min_scale": 0.2, "cj_strength": 0.5, "gaussian_blur": 0.0}
"""Of SimCLR's views at this size: without blur, as is usual."""
TEXTURES = (
    "brick.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "page.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip
"""Pictures of scikit-image, each a class."""
_LEFT_OUT = 10_000  # training and validation images, which no prior may have learnt from


def splits_of(data: str, root: Path, images: int) -> Splits:
    """Training, validation and test images of a set by its name."""
    return textures(images) if data == "textures" else load_splits(data, root, images)


def textures(images: int, seed: int = 0) -> Splits:
    """Pieces of grey pictures, their class the picture they come from; no two splits share a pixel.

    Training pieces come from the left 60% of a picture, validation pieces from the next 20%, test pieces from the rest.
    """
    generator = np.random.default_rng(seed)
    counts, edges = (images, 2000, 2000), (0.0, 0.6, 0.8, 1.0)
    folder = Path(str(importlib.import_module("skimage").__file__)).parent / "data"
    pictures = [np.asarray(Image.open(folder / name).convert("L").convert("RGB")) for name in TEXTURES]
    splits = []
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        labels = np.arange(count) % len(pictures)
        pieces = []
        for label in labels:
            height, width = pictures[label].shape[:2]
            top = generator.integers(0, height - SIZE + 1)
            start = generator.integers(round(left * width), round(right * width) - SIZE + 1)
            pieces.append(pictures[label][top : top + SIZE, start : start + SIZE].transpose(2, 0, 1))
        splits.append(Images(torch.from_numpy(np.stack(pieces)), torch.from_numpy(labels)))
    return Splits(*splits)


class Decoded(ImageData):
    """Images in memory as a data module, without blur in its views, as is usual at this size.

    Args:
        images: For training.
        colour: Strengths of the colour jitter that differ from SimCLR's, such as `cj_sat`.
        options: Of `ImageData`.
    """

    def __init__(self, images: Images, *, colour: dict[str, float] | None = None, **options: Any) -> None:
        views = {**COLOURS, **(colour or {})}
        normalised: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3}
        super().__init__(image_size=SIZE, views="simclr", views_kwargs=views, drop_last=True, **normalised, **options)
        self.images = images

    def source(self, split: str) -> Any:
        """The images as torchvision's data sets in memory hand them out."""
        return Rows.of(self.images) if split == "train" else None


def train(data: Decoded, settings: dict[str, Any], seed: int, steps: int, *callbacks: Any) -> Any:
    """BYOL's module after some steps, from seeded weights."""
    module: Any = build("byol", settings, seed)
    torch.manual_seed(seed)
    bare_trainer(*callbacks, max_steps=steps).fit(module, datamodule=data)
    return module


class Pixels(nn.Module):
    """The image itself, as one vector; `build_targets` takes its principal components."""

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3 * H * W]` of images `[B, 3, H, W]`."""
        return images.flatten(1)


def half_of_cifar10(root: Path, steps: int = 800) -> nn.Module:
    """The backbone of a ResNet-9 that learnt five of CIFAR-10's classes from images that no split holds."""
    settings = {"lr": 1e-3, "batch_size": 64, "momentum": 0.99}
    module: Any = build("supervised", settings, 0)
    cached = root / f".half-of-cifar10-{steps}.pt"
    if not cached.exists():
        others = load_splits("cifar10", root, 0).train
        images, labels = others.images[_LEFT_OUT:], others.labels[_LEFT_OUT:]
        known = labels < 5
        fit(module, Images(images[known], labels[known], SSLViews(1)), settings, 0, max_steps=steps)
        write_whole(cached, lambda file: torch.save(module.backbone.state_dict(), file))
    module.backbone.load_state_dict(torch.load(cached, weights_only=True))
    return module.backbone.eval()


@functools.cache
def candidates(root: Path) -> dict[str, Any]:
    """Each prior by its name in the results, made once."""
    alone = {
        **{name: prior_of(name) for name in ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")},
        "digits": prior_of("digits"),
        "fashion_mnist": load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS),
        "half_of_cifar10": load_prior(half_of_cifar10(root), image_size=32, mean=0.5, std=0.25, pooling="avg"),
        "untrained_resnet18": prior_of("random"),
        "untrained_vit": load_prior(
            "random:timm:vit_tiny_patch16_224", image_size=64, img_size=64, mean=0.5, std=0.5, seed=0
        ),
        "pixels": load_prior(Pixels(), image_size=16, mean=0.5, std=0.5),
    }
    return {**alone, "lite0_and_digits": load_prior([alone["efficientnet_lite0"], alone["digits"]])}
