"""The handwritten digits of scikit-learn as a data module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rela_lightning.data.digits import Digits
from rela_lightning.data.modules.base import ImageData, Split


class DigitsData(ImageData):
    """1,797 handwritten digits in 10 classes, 8 x 8 px enlarged to `image_size`; nothing to download.

    1,347 training and 450 validation images (`rela_lightning.data.Digits`). Views are not mirrored: a mirrored 2 is no
    digit.

    Args:
        options: Those of `ImageData`; `image_size` is 32.

    Raises:
        ConfigError: For unknown views or values out of range.
        DataError: If scikit-learn is not installed.

    Example:
        >>> data = DigitsData(views="two", batch_size=64)
        >>> data.setup("fit")
        >>> views, labels = next(iter(data.train_dataloader()))
        >>> [tuple(view.shape) for view in views]
        [(64, 3, 32, 32), (64, 3, 32, 32)]
    """

    default_size = 32
    default_mean: ClassVar[Sequence[float]] = (0.305, 0.305, 0.305)
    default_std: ClassVar[Sequence[float]] = (0.323, 0.323, 0.323)
    flip = False

    def source(self, split: Split) -> Digits:
        """The digits of a split, without a transform."""
        return Digits("train" if split == "train" else "test", image_size=self.image_size)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return 10
