"""What a data set holds, in a few hashes: to tell whether targets belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rela_lightning.errors import DataError

SAMPLED_ROWS = 64


def sampled_rows(length: int, count: int = SAMPLED_ROWS) -> list[int]:
    """Up to `count` rows spread evenly over a data set, the first and the last among them."""
    return sorted({int(row) for row in np.linspace(0, length - 1, min(count, length)).round()})


def row_hashes(dataset: Any, rows: Sequence[int]) -> list[str]:
    """SHA-256 of the raw pixels (shape, dtype and bytes) of some rows."""
    return [_hash(dataset, row) for row in rows]


def check_repeatable(dataset: Any, rows: Sequence[int], hashes: Sequence[str]) -> None:
    """Refuse a data set whose images are different each time they are read.

    Raises:
        DataError: Naming the first such row.
    """
    for row, expected in zip(rows, hashes, strict=True):
        if _hash(dataset, row) != expected:
            raise DataError(
                f"Row {row} of the data set has other pixels each time it is read.",
                expected="images without random augmentation",
                found=f"{type(dataset).__name__}, which augments in a place other than `transform`",
                do="label the same data set built without its augmentation",
            )


def dataset_type(dataset: Any) -> str:
    """Class path of the innermost data set, under wrappers such as `Subset`; several are joined."""
    return " + ".join(dict.fromkeys(_class_path(leaf) for leaf, _ in _leaves(dataset)))


def order_hash(dataset: Any) -> str:
    """SHA-256 over the order of the rows as far as it can be read without opening images.

    Covers the `indices` of subsets and the file names (relative to `root`) of image folders.
    """
    digest = hashlib.sha256()
    for leaf, subsets in _leaves(dataset):
        for indices in subsets:
            digest.update(np.asarray(indices, dtype=np.int64).tobytes())
        samples, root = getattr(leaf, "samples", None), str(getattr(leaf, "root", ""))
        if isinstance(samples, Sequence):
            for sample in samples:
                name = sample[0] if isinstance(sample, (tuple, list)) and sample else sample
                if isinstance(name, str):
                    digest.update(name.removeprefix(root).encode())
        digest.update(b"|")
    return digest.hexdigest()


def _hash(dataset: Any, row: int) -> str:
    from rela_lightning.targets.images import pixels, raw_image  # `targets` imports this module

    array = pixels(raw_image(dataset, row))
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).hexdigest()


def _leaves(dataset: Any, subsets: tuple[Any, ...] = ()) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each innermost data set with the `indices` of the subsets around it."""
    indices = getattr(dataset, "indices", None)
    if indices is not None and np.asarray(indices).dtype.kind in "iu":
        subsets = (*subsets, indices)
    inner = getattr(dataset, "datasets", None)
    parts = list(inner) if isinstance(inner, (list, tuple)) else []
    single = getattr(dataset, "dataset", None)
    if not parts and hasattr(single, "__getitem__") and not isinstance(single, str):
        parts = [single]
    if not parts:
        return [(dataset, subsets)]
    return [leaf for part in parts for leaf in _leaves(part, subsets)]


def _class_path(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}"
