"""Real images for benchmarks, decoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import FashionMNIST, ImageFolder
from torchvision.transforms import v2

from rela_lightning.files import write_whole

MEAN, STD = [0.5] * 3, [0.25] * 3


class Images(Dataset):
    """Decoded images `uint8 [N, 3, 32, 32]` with labels and a `transform`; `dataset[i] -> (image, label)`."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Any], Any] | None = None) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """View or views, and the label."""
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])

    def rows(self, rows: Sequence[int], transform: Callable[[Any], Any] | None = None) -> Images:
        """Some of the images, under another transform."""
        index = torch.as_tensor(np.asarray(rows))
        return Images(self.images[index], self.labels[index], transform)


class Rows:
    """Images as torchvision's data sets in memory hand them out: `dataset[i] -> (PIL image, label)`.

    Args:
        data: Pixels, uint8 `[N, H, W, 3]`.
        targets: Labels.
    """

    def __init__(self, data: NDArray[np.uint8], targets: list[int]) -> None:
        self.data, self.targets = data, targets

    @classmethod
    def of(cls, images: Images) -> Rows:
        """The same images without a transform."""
        return cls(images.images.permute(0, 2, 3, 1).numpy(), images.labels.tolist())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        """An image, and its label."""
        return Image.fromarray(self.data[row]), self.targets[row]


class Splits(NamedTuple):
    """Rows for training and probing, for choosing settings, and for the reported figures."""

    train: Images
    validation: Images
    test: Images


def load_splits(data: str, root: Path, images: int, seed: int = 0) -> Splits:
    """Train, validation and test images; the validation images are training images left over.

    Args:
        data: `cifar10` (an image folder with `train/` and `test/`) or `fashion_mnist` (torchvision's layout).
        root: Folder of the data.
        images: Training images; 0 takes all (then there are no validation images).
        seed: Seed of the choice.
    """
    train, test = (_decoded(data, root, split) for split in ("train", "test"))
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = order[: images or len(order)]
    return Splits(train.rows(chosen), train.rows(order[len(chosen) :][:5000]), test)


def _decoded(data: str, root: Path, split: str) -> Images:
    cache = root / f".decoded-{data}-{split}.npz"
    if not cache.exists():
        source: Any = (
            FashionMNIST(root, train=split == "train") if data == "fashion_mnist" else ImageFolder(str(root / split))
        )
        images = np.stack([np.asarray(image.convert("RGB").resize((32, 32))) for image, _ in source])
        labels = np.asarray([label for _, label in source])
        write_whole(cache, lambda file: np.savez(file, images=images.transpose(0, 3, 1, 2), labels=labels))
    arrays = np.load(cache)
    return Images(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long())


class SSLViews:
    """Two SimCLR-style views for 32x32 images, without blur (as is usual at this size)."""

    def __init__(self, views: int = 2) -> None:
        self.views = views
        self.view = v2.Compose([
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Views of one image."""
        return [self.view(image) for _ in range(self.views)]


def plain_view() -> Callable[[Any], Any]:
    """The view of the probe: no augmentation."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
