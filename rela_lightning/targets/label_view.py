"""Raw images out of any map-style data set, with its own transform set aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from rela_lightning.data.crops import Crop, cut, draw_crop, size_of, whole
from rela_lightning.data.eight_bit import eight_bit
from rela_lightning.data.find_image import find_image
from rela_lightning.data.swap import has_rows, swapped_transform
from rela_lightning.errors import DataError
from rela_lightning.networks.preprocess import preprocessed
from rela_lightning.rng import preserved_rng

CropsOf = Callable[[Any, int], Sequence[Crop]]
"""Crops of an image, from the image and its row in the data set."""
_EXPECTED = "a PIL image, a uint8 tensor [C, H, W] or a float tensor in [0, 1], alone or in a tuple or dict"


def unchanged(*images: Any, **named: Any) -> Any:
    """The transform in place of a data set's own while that is set aside: returns what it gets."""
    if named:
        return named
    return images[0] if len(images) == 1 else images


def has_transform(dataset: Any, row: int = 0) -> bool:
    """Whether the data set has a `transform` that its samples go through. Reads one, without applying it."""
    calls = 0

    def counting(*images: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return unchanged(*images, **named)

    _read(dataset, row, counting)
    return calls > 0


def raw_image(dataset: Any, row: int) -> Any:
    """One image of a data set as it was before its `transform`.

    Args:
        dataset: Map-style; its `transform`, also inside wrappers, is restored afterwards.
        row: Index of the sample.

    Returns:
        A PIL image, or a tensor `[C, H, W]`, uint8 or float in [0, 1].

    Raises:
        DataError: If the sample holds no such image.
    """
    item = _read(dataset, row, unchanged)
    return checked_image(find_image(item), item, f"Row {row} of the data set")


def _read(dataset: Any, row: int, transform: Any) -> Any:
    try:
        with swapped_transform(dataset, transform):
            return dataset[row]
    except Exception as error:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"while reading row {row} of the data set for labelling")
        raise


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
            found=type(dataset).__name__,
            do="for iterable data compute targets on the fly, ReLACallback(prior=...), or give each sample a key: "
            "build_targets finds the targets of a stream by key",
        )
    rows = len(dataset)
    if rows < 2:
        raise DataError(
            "The data set is empty." if rows == 0 else "One row has no variance to learn a projection from.",
            expected="at least 2 rows",
            found=f"{rows} in {type(dataset).__name__}",
            do="check its path and split",
        )
    return rows


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
        crops: Crops of an image, from it and its row; see `drawn_crops`.
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


def drawn_crops(image: Any, row: int, *, views: int) -> list[Crop]:
    """The whole image and `views` random crops of it, the same ones at each call; the random state is kept."""
    if not views:
        return [whole(image)]
    with preserved_rng():
        torch.default_generator.manual_seed(row)  # torch.manual_seed would seed the GPUs too
        return [whole(image), *(draw_crop(image) for _ in range(views))]


def embed(prior: Any, images: Any) -> Tensor:
    """Features float32 `[B, V, F]` of collated `LabelItem.images`: one forward of the prior for all views."""
    parts = images if isinstance(images, (list, tuple)) else [images]
    rows, views = parts[0].shape[:2]
    flat = [part.flatten(0, 1) for part in parts]
    features: Tensor = prior(flat if isinstance(images, (list, tuple)) else flat[0])
    return features.view(rows, views, -1)


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
