"""What an innermost data set keeps about its rows: file names, labels, images in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rela_lightning.data.raw import pixels

_FILES = (
    "samples", "imgs", "_samples", "image_files", "_image_files", "image_paths", "img_paths", "img_files", "paths",
    "filepaths", "file_paths", "files", "filenames", "file_names", "file_list", "images", "_images",
)  # fmt: skip
_LABELS = ("targets", "labels", "_labels", "y")
_IMAGES = ("data", "images", "_images", "imgs", "x")
_COLUMNS = ("label", "labels", "fine_label"), ("image", "img")


class Stored(NamedTuple):
    """Images that a data set keeps in memory.

    Attributes:
        form: Type, dtype and shape, without the number of rows.
        raw: Whether these are 8-bit pixels; others may be scaled in many ways.
        row_bytes: Size of one image (of the first, where they differ).
        read: Bytes of some rows, int64 `[R]`.
    """

    form: str
    raw: bool
    row_bytes: int
    read: Callable[[np.ndarray], Any]


def file_names(leaf: Any) -> Sequence[str] | None:
    """Path of each row's file (of each row of its table, for Hugging Face), or `None`; alone or first in a tuple."""
    names = _arrow_names(leaf)
    if names is not None:
        return names
    for owner in (leaf, getattr(leaf, "reader", None)):
        for attribute in _FILES:
            values = leaf if isinstance(leaf, (list, tuple)) else _listed(owner, attribute, len(leaf))
            if not isinstance(values, (list, tuple, np.ndarray)) or len(values) == 0:
                continue
            if isinstance(values[0], (tuple, list)) and len(values[0]) and isinstance(values[0][0], (str, PurePath)):
                values = [value[0] for value in values]
            if isinstance(values[0], (str, PurePath)):
                return _below(str(getattr(leaf, "root", "")), [str(value) for value in values])
    return None


def labels(leaf: Any) -> np.ndarray | None:
    """Int64 label of each row (of each row of its table, for Hugging Face), or `None`."""
    column = _arrow_column(leaf, _COLUMNS[0])
    if column is not None and column.dtype.kind in "iu":
        return column.astype(np.int64)
    found = own_labels(leaf)
    if found is not None:
        return found
    samples = leaf if isinstance(leaf, (list, tuple)) else _listed(leaf, "samples", len(leaf))
    if isinstance(samples, (list, tuple)) and samples and isinstance(samples[0], (list, tuple)):
        return _integers([sample[1] if len(sample) > 1 else None for sample in samples])
    tensors = getattr(leaf, "tensors", None)
    return _integers(tensors[1]) if isinstance(tensors, (list, tuple)) and len(tensors) > 1 else None


def own_labels(dataset: Any) -> np.ndarray | None:
    """Int64 label of each row, as `targets`, `labels` and the like of a data set or wrapper tell it, or `None`."""
    found = (_integers(_listed(dataset, attribute, len(dataset))) for attribute in _LABELS)
    return next((values for values in found if values is not None), None)


def images(leaf: Any) -> Stored | None:
    """Images in memory, or `None`."""
    tensors = getattr(leaf, "tensors", None)
    first = tensors[0] if isinstance(tensors, (list, tuple)) and tensors else leaf
    for kept in (first, *(_listed(leaf, attribute, len(leaf)) for attribute in _IMAGES)):
        values = _as_array(kept)
        if isinstance(values, np.ndarray) and values.ndim >= 3 and len(values) == len(leaf):
            return _of_array(values)
        if isinstance(values, (list, tuple)) and values and _is_image(values[0]):
            return _of_list(values)
    return None


def arrow_rows(leaf: Any) -> np.ndarray | None:
    """Rows of the table under a data set of Hugging Face, after `select`, `shuffle` and `sort`; int64 `[N]`."""
    indices: Any = getattr(leaf, "_indices", None)
    return np.asarray(indices.column(0).to_numpy(), np.int64) if hasattr(indices, "column") else None


def hugging_face(leaf: Any) -> str | None:
    """The fingerprint of a data set of Hugging Face."""
    text = getattr(leaf, "_fingerprint", None)
    return text if isinstance(text, str) and text else None


def _of_array(values: np.ndarray) -> Stored:
    form = f"{values.dtype} {list(values.shape[1:])}"
    size = values.dtype.itemsize * int(np.prod(values.shape[1:]))

    def read(rows: np.ndarray) -> Any:
        steps = len(rows) < 2 or bool((np.diff(rows) == 1).all())
        part = values[int(rows[0]) : int(rows[-1]) + 1] if steps and len(rows) else values[rows]
        return np.ascontiguousarray(part).tobytes()

    return Stored(form, values.dtype == np.uint8, size, read)


def _of_list(values: Sequence[Any]) -> Stored:
    def read(rows: np.ndarray) -> bytes:
        arrays = [_array(values[row]) for row in rows.tolist()]
        return b"".join(repr(array.shape).encode() + array.tobytes() for array in arrays)

    example = _array(values[0])
    return Stored(f"list of {example.dtype}", example.dtype == np.uint8, example.nbytes, read)


def _as_array(values: Any) -> Any:
    """A tensor as an array, anything else as it is."""
    plain = isinstance(values, Tensor) and values.device.type == "cpu" and values.dtype != torch.bfloat16
    return values.detach().numpy() if plain else values


def _is_image(value: Any) -> bool:
    from PIL.Image import Image

    return isinstance(value, Image) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim in (2, 3))


def _array(value: Any) -> np.ndarray:
    return np.ascontiguousarray(value) if isinstance(value, np.ndarray) else pixels(value)


def _listed(owner: Any, attribute: str, length: int) -> Any:
    """An attribute that has one entry for each row, else `None`."""
    try:
        values = getattr(owner, attribute, None)
        return values if values is not None and not isinstance(values, (str, dict)) and len(values) == length else None
    except Exception:  # a property of a foreign class
        return None


def _integers(values: Any) -> np.ndarray | None:
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, TypeError):  # ragged, as boxes are
        return None
    return array.astype(np.int64) if array.ndim == 1 and array.dtype.kind in "iub" else None


def _below(root: str, names: list[str]) -> list[str]:
    """Names with `/`, and with the root before them where they are relative to it."""
    if os.sep != "/":
        root, names = root.replace(os.sep, "/"), [name.replace(os.sep, "/") for name in names]
    if not root or PurePath(names[0]).is_absolute() or names[0].startswith(root):
        return names
    start = root.rstrip("/") + "/"
    return [start + name for name in names]


def _arrow_names(leaf: Any) -> list[str] | None:
    """File names in the image column of a data set of Hugging Face, which are beside the encoded bytes."""
    try:
        table = leaf.data
        name = next(name for name in _COLUMNS[1] if name in table.column_names)
        paths = [path for chunk in table.column(name).chunks for path in chunk.field("path").to_pylist()]
    except Exception:  # no such table, or images kept in another way
        return None
    return None if any(path is None for path in paths) else paths


def _arrow_column(leaf: Any, names: Sequence[str]) -> np.ndarray | None:
    try:
        table = leaf.data
        return np.asarray(table.column(next(name for name in names if name in table.column_names)).to_numpy())
    except Exception:  # no such table or column
        return None
