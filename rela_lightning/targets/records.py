"""One row of a store, format 2: the target, the crop it belongs to, and a check sum over both.

Everything about one view of one image lies side by side, so that one access to the disk reads it. A store is an array
of such records `[N, 1 + K]`: view 0 is the whole image, views 1 to K are crops.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Storage = Literal["float16", "float32", "int8"]
STORAGES: tuple[Storage, ...] = ("float16", "float32", "int8")
_NUMBERS = {"float16": "<f2", "float32": "<f4", "int8": "|i1"}
_INT8_MAX = 127.0
_SUM_BYTES = 4  # the check sum, last in the record


class Geometry(NamedTuple):
    """Where some rows' views come from.

    Attributes:
        sizes: Height and width of the image, pixels, int32 `[n, 2]`.
        crops: One crop (see `rela_lightning.data.crops`) for each view, int32 `[n, V, 5]`.
    """

    sizes: NDArray[np.int32]
    crops: NDArray[np.int32]


def record_type(dim: int, storage: Storage) -> np.dtype[Any]:
    """The numpy type of a record with a target of `dim` columns."""
    return np.dtype(
        [
            ("target", _NUMBERS[storage], (dim,)),
            *([("scale", "<f4")] if storage == "int8" else []),
            ("size", "<i4", (2,)),
            ("crop", "<i4", (5,)),
            ("sum", "<u4"),
        ]
    )


def encode(targets: NDArray[np.floating[Any]], geometry: Geometry, storage: Storage) -> NDArray[Any]:
    """Records of some rows.

    Numbers that the storage type cannot hold become infinite in float16; int8 has a scale of its own for each record,
    its largest entry over 127.

    Args:
        targets: Targets `[n, V, D]`.
        geometry: Of the same rows.
        storage: Type of the numbers on disk.

    Returns:
        Records `[n, V]`.
    """
    records = np.zeros(targets.shape[:2], record_type(targets.shape[2], storage))
    if storage == "int8":
        largest = np.abs(targets).max(axis=2)
        scale = np.where(largest > 0.0, largest / _INT8_MAX, 1.0).astype(np.float32)
        records["scale"] = scale
        records["target"] = np.rint(targets / scale[..., None])
    else:
        with np.errstate(over="ignore"):
            records["target"] = targets
    records["size"] = geometry.sizes[:, None]
    records["crop"] = geometry.crops
    records["sum"] = check_sums(records)
    return records


def decode(records: NDArray[Any]) -> NDArray[np.float32]:
    """Targets float32 `[..., D]` of records `[...]`."""
    targets: NDArray[np.float32] = records["target"].astype(np.float32)
    if "scale" in (records.dtype.names or ()):
        targets *= records["scale"][..., None]
    return targets


def check_sums(records: NDArray[Any]) -> NDArray[np.uint32]:
    """CRC-32 of each record but for the field that holds it; uint32 of the records' shape."""
    flat = np.ascontiguousarray(records).reshape(-1)
    size = records.dtype.itemsize
    raw = memoryview(flat.tobytes())
    sums = [zlib.crc32(raw[start : start + size - _SUM_BYTES]) for start in range(0, flat.size * size, size)]
    return np.array(sums, dtype=np.uint32).reshape(records.shape)


def cosines(targets: NDArray[np.floating[Any]], again: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Cosine of each target `[..., D]` with what storage made of it; 1 where both are zero."""
    first, second = targets.astype(np.float64), again.astype(np.float64)
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine: NDArray[np.float64] = np.ones_like(norms)
    np.divide((first * second).sum(axis=-1), norms, out=cosine, where=norms > 0.0)
    return cosine
