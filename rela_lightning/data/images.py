"""Any labelled data set as RGB images under one `transform`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from rela_lightning.data.eight_bit import eight_bit
from rela_lightning.errors import DataError


class RGBImages(Dataset[tuple[Any, int]]):
    """The images of another data set, in RGB, under a transform: `dataset[i] -> (image, label)`.

    Rows are those of `dataset`. Assigning `transform` changes the views; `ReLACallback` and `build_targets` do so.

    Args:
        dataset: Map-style, `dataset[i]` a PIL image and an integer label, without a transform of its own.
        transform: Called on the RGB image; None returns the image itself.
        training_views: Those that training will have, where `transform` is None: the crops of `build_targets` are
            mirrored where these are.

    Raises:
        DataError: When a row is read that is not an image and an integer label.

    Example:
        >>> from PIL import Image
        >>> images = RGBImages([(Image.new("L", (8, 8)), 3)])
        >>> images[0][0].mode, images[0][1]
        ('RGB', 3)
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Any], Any] | None = None,
        *,
        training_views: Callable[[Any], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.training_views = training_views

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, where there are any."""
        return getattr(self.dataset, "classes", None)

    @property
    def targets(self) -> list[int]:
        """The label of each row; negative for unlabelled ones."""
        labels = getattr(self.dataset, "targets", None)
        return [int(label) for label in (self.dataset.labels if labels is None else labels)]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image (PIL RGB, or what `transform` makes of it) and label."""
        image, label = _image_and_label(self.dataset[index], index)
        if isinstance(image, Image.Image) and image.mode != "RGB":
            image = eight_bit(image).convert("RGB")
        return (image if self.transform is None else self.transform(image)), label


def _image_and_label(sample: Any, index: int) -> tuple[Any, int]:
    try:
        image, label = sample
        return image, int(label)
    except (TypeError, ValueError) as error:
        parts = sample if isinstance(sample, (tuple, list, dict)) else ()
        names = ", ".join(repr(part) if isinstance(part, str) else type(part).__name__ for part in parts)
        raise DataError(
            "A row of the data set is not an image and an integer label.",
            expected="(PIL image, integer); -1 for the label of an image that has none",
            found=f"row {index}: {type(sample).__name__}" + (f" of {names}" if names else ""),
            do="let it return such pairs; ImageFolderData reads folders, also without labels, HuggingFaceData columns",
        ) from error
