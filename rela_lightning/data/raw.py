"""Raw images out of any map-style data set, with its own transform set aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rela_lightning.data.copies import rebuilt
from rela_lightning.data.eight_bit import eight_bit
from rela_lightning.data.find_image import ImageAt, find_image
from rela_lightning.data.swap import calling, has_rows, swapped_transform, transform_owners
from rela_lightning.errors import DataError
from rela_lightning.rng import preserved_rng

_EXPECTED = "a PIL image, a uint8 tensor [C, H, W] or a float tensor in [0, 1], alone or in a tuple or dict"


def unchanged(*images: Any, **named: Any) -> Any:
    """The transform in place of a data set's own while that is set aside: returns what it gets."""
    if named:
        return named
    return images[0] if len(images) == 1 else images


def has_transform(dataset: Any) -> bool:
    """Whether the data set has a `transform` that its samples go through. Reads a row, without applying it."""
    return bool(_read(dataset, 0)[1])


def raw_image(dataset: Any, row: int) -> Any:
    """One image of a data set as it was before its `transform`.

    Args:
        dataset: Map-style; its `transform`, also inside wrappers, is restored afterwards.
        row: Index of the sample.

    Returns:
        A PIL image, or a tensor `[C, H, W]`, uint8 or float in [0, 1].

    Raises:
        DataError: If the sample holds no such image, or cannot be read without its `transform`.
    """
    item, _ = _read(dataset, row)
    return checked_image(find_image(item), item, f"Row {row} of the data set")


def _read(dataset: Any, row: int) -> tuple[Any, list[Any]]:
    """A sample whose transform was set aside, and what that was given.

    Where the data set cannot go on with what it got back, as one that stacks views, the sample is what was given.
    """
    given: list[Any] = []

    def aside(*images: Any, **named: Any) -> Any:
        given.append(unchanged(*images, **named))
        return given[-1]

    try:
        with swapped_transform(dataset, aside):
            return dataset[row], given
    except Exception as error:
        if given and not isinstance(dataset, ImageAt):  # whose image is that of a place in the sample
            return given, given
        if transform_owners(dataset) and not isinstance(error, OSError) and _can_be_read(dataset, row):
            raise DataError(
                f"Row {row} of the data set cannot be read while its `transform` is set aside.",
                expected="a `transform` that is called on an image, with any callable in its place",
                found=f"{type(error).__name__}: {error}",
                do="label the same data set built without its augmentation",
            ) from error
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"while reading row {row} of the data set for labelling")
        raise


def _can_be_read(dataset: Any, row: int) -> bool:
    try:
        with preserved_rng():
            dataset[row]
    except Exception:  # a user's data set may raise anything
        return False
    return True


class AsItIs(Dataset[Any]):
    """A data set whose transforms are not set aside: its samples are the images.

    Args:
        dataset: Map-style.
    """

    transform: Any = None  # so that nobody looks for one further inside

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        """The sample of a row."""
        return self.dataset[row]


def own_class(dataset: Any) -> str:
    """Name of the class of a user's data set, without what is put around it here."""
    while isinstance(dataset, (AsItIs, ImageAt)):
        dataset = dataset.dataset
    return type(dataset).__name__


def past_cache(dataset: Any) -> Any:
    """A data set that may be read with its transforms set aside: another one would keep what was read, for training.

    Of several parts, those that keep what their transform returned are read as they are.
    """
    if not has_rows(dataset):
        return dataset
    with preserved_rng():
        called, owners = calling(dataset)
    if called == owners:
        return dataset
    return AsItIs(dataset) if called == 0 else rebuilt(dataset, past_cache)


def pixels(image: Any) -> np.ndarray:
    """Pixels of a PIL image or tensor as an array `[C, H, W]`, the same for both forms of an image."""
    if isinstance(image, Tensor):
        return np.ascontiguousarray(image.cpu().numpy())
    array = np.asarray(eight_bit(image))
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def check_length(dataset: Any) -> int:
    """Length of a data set that can be labelled.

    Raises:
        DataError: If it is iterable only, has no length, or has fewer than two rows.
    """
    if not has_rows(dataset):
        raise DataError(
            "Targets are found by the index of a sample, so the data set needs a length and indices.",
            expected="a map-style data set: len(dataset) and dataset[i]",
            found=own_class(dataset),
            do="for iterable data compute targets on the fly, ReLACallback(prior=...), or give each sample a key: "
            "build_targets finds the targets of a stream by key",
        )
    rows = len(dataset)
    if rows < 2:
        raise DataError(
            "The data set is empty." if rows == 0 else "One row has no variance to learn a projection from.",
            expected="at least 2 rows",
            found=f"{rows} in {own_class(dataset)}",
            do="check its path and split",
        )
    return rows


def checked_image(image: Any, item: Any, name: str) -> Any:
    """A raw image in one of the forms that labelling takes.

    Args:
        image: What was found in a sample; None for nothing.
        item: The sample.
        name: Of the sample, for an error.

    Raises:
        DataError: If it is no raw image.
    """
    if image is None:
        raise DataError(
            f"{name} holds no image.",
            expected=_EXPECTED,
            found=_kind(item),
            do="wrap the data set so that dataset[i] is the image or holds it",
        )
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise _unusable(image, name)
        # arrays of images are [H, W] or [H, W, C] by custom
        image = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 2 else image.transpose(2, 0, 1)))
    if not isinstance(image, Tensor):
        return image
    image = image[None] if image.ndim == 2 else image
    in_range = image.is_floating_point() and image.numel() > 0 and bool(image.min() >= 0.0) and bool(image.max() <= 1.0)
    if image.dtype != torch.uint8 and not in_range:
        raise _unusable(image, name)
    return image


def _unusable(image: Any, name: str) -> DataError:
    return DataError(
        f"{name} is not a raw image.",
        expected=_EXPECTED,
        found=_kind(image),
        do="label the images before normalisation: the prior brings its own preprocessing",
    )


def _kind(item: Any) -> str:
    if isinstance(item, (Tensor, np.ndarray)):
        real = item.dtype not in (torch.complex64, torch.complex128) and 0 not in item.shape
        values = f", values {float(item.min()):.3g} to {float(item.max()):.3g}" if real else ""
        return f"{type(item).__name__} {list(item.shape)}, {item.dtype}{values}"
    if isinstance(item, Mapping):
        return f"dict of {', '.join(f'{key}: {_kind(value)}' for key, value in list(item.items())[:6])}"
    if isinstance(item, (tuple, list)):
        return f"{type(item).__name__} of {', '.join(_kind(value) for value in item[:6])}"
    return type(item).__name__
