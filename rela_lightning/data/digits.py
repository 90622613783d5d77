"""Handwritten digits that come with scikit-learn: real images, nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from rela_lightning.errors import ConfigError, DataError

Split = Literal["train", "test", "all"]
SPLITS: tuple[str, ...] = ("train", "test", "all")


class Digits(Dataset[tuple[Any, int]]):
    """1,797 handwritten digits of the UCI repository as RGB images: `dataset[i] -> (image, label)`.

    The 8x8 grey images of `sklearn.datasets.load_digits` (0 to 16) are scaled to 0 to 255 and enlarged
    bilinearly, once. `train` and `test` are a fixed stratified split, 1,347 and 450 images
    (`train_test_split(test_size=0.25, random_state=0)`).

    Args:
        split: `train`, `test` or `all`.
        transform: Called on the PIL image; None returns the image itself.
        image_size: Height and width of the images, pixels.

    Attributes:
        targets: List of the labels, 0 to 9.
        classes: Their names, `"0"` to `"9"`.

    Raises:
        ConfigError: For an unknown split or an image size below 1.
        DataError: If scikit-learn is not installed.

    Example:
        >>> digits = Digits("train")
        >>> len(digits), digits[0][0].size
        (1347, (32, 32))
    """

    def __init__(
        self, split: Split = "train", *, transform: Callable[[Any], Any] | None = None, image_size: int = 32
    ) -> None:
        if split not in SPLITS:
            raise ConfigError("Unknown split.", expected="one of the names below", found=split, exists=SPLITS)
        if image_size < 1:
            raise ConfigError("Images need a size.", expected="image_size >= 1", found=image_size)
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise DataError(
                "The digits come with scikit-learn, which is not installed.",
                expected="the extra `demo`",
                do="pip install 'rela-lightning[demo]'",
            ) from error
        bunch = load_digits()
        rows = np.arange(len(bunch.target))
        if split != "all":
            train, test = train_test_split(rows, test_size=0.25, random_state=0, stratify=bunch.target)
            rows = np.sort(train if split == "train" else test)
        self.transform = transform
        self.targets: list[int] = [int(label) for label in bunch.target[rows]]
        self.classes: list[str] = [str(name) for name in bunch.target_names]
        self._images = [_enlarge(bunch.images[row], image_size) for row in rows]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image (PIL RGB, or what `transform` makes of it) and label."""
        image = self._images[index]
        return (image.copy() if self.transform is None else self.transform(image)), self.targets[index]


def _enlarge(image: np.ndarray[Any, Any], size: int) -> Image.Image:
    grey = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    return grey.resize((size, size), Image.Resampling.BILINEAR).convert("RGB")
