"""Some rows of a data set, told by their raw pixels: exact hashes, and a few values for other decoders."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rela_lightning.data.copies import copied
from rela_lightning.data.raw import has_transform, own_class, pixels, raw_image
from rela_lightning.errors import DataError

SAMPLED_ROWS = 64
_GRID = 8
_LEVELS, _SHARE = 1.5, 0.1


class Sample(NamedTuple):
    """Some rows of a data set, in primitives.

    Attributes:
        rows: Their indices.
        hashes: SHA-256 of their raw pixels (shape, dtype and bytes).
        sizes: Height and width of each.
        points: Base64 of uint8 `[C, 8, 8]` pixels on an even grid of each; C is 1 or 3.
        transform: Whether a `transform` was set aside to read them.
    """

    rows: list[int]
    hashes: list[str]
    sizes: list[list[int]]
    points: list[str]
    transform: bool


class Difference(NamedTuple):
    """How the rows of two samples compare, beside those that are the same.

    Attributes:
        other: Rows with other pixels.
        resized: Rows with images of another size: another view, or other images.
    """

    other: list[int]
    resized: list[int]


def sampled_rows(length: int, count: int = SAMPLED_ROWS) -> list[int]:
    """Up to `count` rows spread evenly over a data set, the first and the last among them."""
    return sorted({int(row) for row in np.linspace(0, length - 1, min(count, length)).round()})


def row_hashes(dataset: Any, rows: Sequence[int]) -> list[str]:
    """SHA-256 of the raw pixels (shape, dtype and bytes) of some rows."""
    return [_hash(pixels(raw_image(dataset, row))) for row in rows]


def read_sample(dataset: Any, rows: Sequence[int]) -> Sample:
    """Read some rows.

    Raises:
        DataError: If they are not raw images.
    """
    transform, rows = has_transform(dataset), [int(row) for row in rows]
    hashes, sizes, points = [], [], []
    for row in rows:
        array = pixels(raw_image(dataset, row))
        hashes.append(_hash(array))
        sizes.append([int(side) for side in array.shape[-2:]])
        points.append(base64.b64encode(_points(array).tobytes()).decode())
    return Sample(rows, hashes, sizes, points, transform)


def take_sample(dataset: Any, length: int) -> Sample:
    """Read the sampled rows of a copy, which also shows that they are images and the same each time.

    Raises:
        DataError: If they are not; naming the first such row.
    """
    dataset = copied(dataset)
    sample = read_sample(dataset, sampled_rows(length))
    changing = changing_rows(dataset, sample, 8)
    if changing:
        raise DataError(
            f"Row {changing[0]} of the data set has other pixels each time it is read.",
            expected="images without random augmentation",
            found=f"{own_class(dataset)}, which augments in a place other than `transform`",
            do="label the same data set built without its augmentation",
        )
    return sample


def changing_rows(dataset: Any, sample: Sample, count: int) -> list[int]:
    """The first `count` rows of a sample that are not the same when they are read again."""
    again = row_hashes(dataset, sample.rows[:count])
    return [row for row, old, new in zip(sample.rows, sample.hashes, again, strict=False) if old != new]


def compare_samples(stored: Mapping[str, Any], found: Sample, *, exact: bool) -> Difference:
    """Compare rows with those of a stored sample.

    Images of one size count as the same where they differ by what decoders of the same file differ (unless
    `exact`): by less than 1.5 levels on average over the points, or less than a tenth of the points' mean deviation
    from their median, and in flat images less than half of it.

    Args:
        stored: `Sample._asdict()`.
        found: Rows that are all in the stored sample.
        exact: Whether any difference counts, as for images that were never encoded.
    """
    place = {row: i for i, row in enumerate(stored["rows"])}
    other, resized = [], []
    for row, digest, size, points in zip(found.rows, found.hashes, found.sizes, found.points, strict=True):
        i = place[row]
        if stored["hashes"][i] == digest:
            continue
        if stored["sizes"][i] != size:
            resized.append(row)
        elif exact or not _alike(stored["points"][i], points):
            other.append(row)
    return Difference(other, resized)


def _alike(first: str, second: str) -> bool:
    one, two = (np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, _GRID**2) for text in (first, second))
    difference = float(np.abs(one.astype(float) - two).mean())
    deviation = float(np.abs(one - np.median(one, axis=1, keepdims=True)).mean())
    return difference < min(deviation / 2, max(_LEVELS, _SHARE * deviation))


def _points(array: np.ndarray) -> np.ndarray:
    """Uint8 `[C, 8, 8]` pixels of an image `[C, H, W]` on an even grid, C 1 or 3."""
    ys, xs = (((np.arange(_GRID) + 0.5) * side / _GRID).astype(int) for side in array.shape[-2:])
    grid = array[: 3 if array.shape[0] >= 3 else 1][:, ys][:, :, xs].astype(np.float64)
    if array.dtype.kind == "f":
        grid = grid * 255
    gray = bool((grid == grid[:1]).all())  # whichever way it is kept
    points: np.ndarray = (grid[:1] if gray else grid).round().clip(0, 255).astype(np.uint8)
    return points


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).hexdigest()
