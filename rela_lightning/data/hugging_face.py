"""A data set of Hugging Face as images and labels: which columns they are in, and how they are read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
from torch.utils.data import Dataset

from rela_lightning.batches import LABEL_NAMES, names_image
from rela_lightning.data.folder import UNLABELLED
from rela_lightning.data.readable import UNREADABLE, open_rgb
from rela_lightning.errors import ConfigError, DataError

AUTO = "auto"


def image_column(features: Mapping[str, Any], wanted: str = AUTO) -> str:
    """The column that holds the images.

    Args:
        features: The columns of a data set, with their types.
        wanted: Its name; `auto` takes the one of images, of several the one with the name of an image.

    Raises:
        ConfigError: If there is no such column, or several could be meant.
    """
    if wanted != AUTO:
        return _known(features, wanted, "image")
    images = [name for name in features if _kind(features[name]) == "Image"]
    images = images or [name for name in features if names_image((name,))]
    named = [name for name in images if names_image((name,))]
    found = named if len(images) > 1 else images
    if len(found) != 1:
        raise ConfigError(
            "Which column holds the images could not be told.",
            expected="one column of images, or one with a name such as image",
            found=", ".join(images) or "none",
            exists=_described(features),
            do="say which one: image=NAME",
        )
    return found[0]


def label_column(features: Mapping[str, Any], wanted: str | None = AUTO) -> str | None:
    """The column that holds the labels; None where there are none.

    Args:
        features: The columns of a data set, with their types.
        wanted: Its name; `auto` takes one named label, labels, target, targets or y, else the one of classes; None for
            no labels.

    Raises:
        ConfigError: If there is no such column, or several could be meant.
    """
    if wanted is None:
        return None
    if wanted != AUTO:
        return _known(features, wanted, "label")
    classes = [name for name in features if _kind(features[name]) == "ClassLabel"]
    named = [name for name in LABEL_NAMES if name in features]
    if len(classes) > 1 and not named:
        raise ConfigError(
            "Which column holds the labels could not be told.",
            found=", ".join(classes),
            exists=_described(features),
            do="say which one, label=NAME, or label=None to do without",
        )
    return next(iter(named or classes), None)


class HuggingFaceImages(Dataset[tuple[Any, int]]):
    """A map-style data set of Hugging Face: `dataset[i] -> (PIL RGB image, label)`, row i its row i.

    Images are read as those in folders are (`rela_lightning.data.FolderImages`): upright, in 8 bits.

    Args:
        dataset: A `datasets.Dataset`.
        image: The column of images: encoded, as files or bytes.
        label: The column of labels: classes, whole numbers or texts; None for no labels.
        classes: Names of the classes, where another split has set them.

    Attributes:
        targets: List of the labels, 0 to C - 1; -1 without.
        classes: Their names; None without labels.

    Raises:
        DataError: If the columns hold something else, or a class is not among `classes`; on reading, if an image
            cannot be decoded.
    """

    def __init__(
        self, dataset: Any, image: str, label: str | None = None, classes: Sequence[str] | None = None
    ) -> None:
        self.dataset, self.image, self.label = _encoded(dataset, image), image, label
        self.classes: list[str] | None = None
        self.targets = [UNLABELLED] * len(dataset)
        if label is not None:
            names, known = _class_names(dataset, label)
            self.classes = list(classes) if classes is not None else known
            numbers = {name: number for number, name in enumerate(self.classes)}
            self.targets = [UNLABELLED if name is None else numbers.get(name, -2) for name in names]
            strange = sorted({str(names[row]) for row, number in enumerate(self.targets) if number == -2})
            if strange:
                raise DataError(
                    f"The column {label!r} has classes that the training images do not have.",
                    expected=f"some of {len(self.classes)} classes: {', '.join(self.classes[:8])}",
                    found=", ".join(strange[:8]),
                )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Image and label of a row."""
        found = self.dataset[index][self.image]
        try:
            return _opened(found), self.targets[index]
        except UNREADABLE as error:
            raise DataError(
                f"The image in row {index} cannot be read.",
                found=f"{type(error).__name__}: {error}",
                do="leave the row out, for example with dataset.filter and dataset.save_to_disk",
            ) from error


def _opened(found: Any) -> Any:
    """An image out of what a column of encoded images gives: bytes, or the path of a file, also inside an archive."""
    if found is None:
        raise ValueError("the row has no image")
    if found.get("bytes") is not None:
        return open_rgb(io.BytesIO(found["bytes"]))
    path = str(found["path"])
    if "://" not in path:
        return open_rgb(Path(path))
    with fsspec.open(path, "rb") as file:
        return open_rgb(file)


def _encoded(dataset: Any, image: str) -> Any:
    """The data set with its images as they are stored, whatever format it was in."""
    from datasets import Image

    try:
        return dataset.with_format(None).cast_column(image, Image(decode=False))
    except Exception as error:  # whatever pyarrow says of a cast that it does not know
        raise DataError(
            f"The column {image!r} does not hold images.",
            expected="encoded images: files or bytes",
            found=f"{_kind(dataset.features[image])}: {' '.join(str(error).split())[:120]}",
            exists=_described(dataset.features),
            do="say which column does: image=NAME",
        ) from error


def _class_names(dataset: Any, label: str) -> tuple[list[str | None], list[str]]:
    """The name of each row's class, and all names in order; a missing or negative label is None."""
    feature, values = dataset.features[label], dataset.with_format(None)[label][:]
    if not all(value is None or isinstance(value, (int, str)) for value in values):
        raise DataError(
            f"The column {label!r} does not hold labels.",
            expected="classes, whole numbers or texts, one for each image",
            found=_kind(feature),
            exists=_described(dataset.features),
            do="say which column does, label=NAME, or label=None to do without",
        )
    given = [None if value is None or (not isinstance(value, str) and value < 0) else value for value in values]
    named = getattr(feature, "names", None)
    if named is not None:
        return [None if value is None else named[value] for value in given], list(named)
    ordered = sorted({value for value in given if value is not None})
    return [None if value is None else str(value) for value in given], [str(value) for value in ordered]


def _known(features: Mapping[str, Any], name: str, option: str) -> str:
    if name not in features:
        raise ConfigError(f"There is no column {name!r}.", found=f"{option}={name!r}", exists=_described(features))
    return name


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _described(features: Mapping[str, Any]) -> list[str]:
    return [f"{name} ({_kind(feature)})" for name, feature in features.items()]
