"""Rows of a store, memory-mapped: read by index and view, and checked each time they are read."""

from __future__ import annotations

import math
import os
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rela_lightning.errors import TargetError
from rela_lightning.targets.manifest import TARGETS, Opened
from rela_lightning.targets.records import Storage, check_sums, decode, record_type

_NPY_PREFIX = 10  # of version 1.0: the magic string, the version, and two bytes that say how long the rest is


class StoredRows(NamedTuple):
    """Some views of some images.

    Attributes:
        targets: Float32 `[B, n, D]`.
        crops: The crop each target belongs to (see `rela_lightning.data.crops`), int32 `[B, n, 5]`.
        sizes: Height and width of each image when it was labelled, int32 `[B, 2]`.
    """

    targets: NDArray[np.float32]
    crops: NDArray[np.int32]
    sizes: NDArray[np.int32]


class RowReader:
    """The array of records behind a store. Opened when first read, and again after pickling.

    Args:
        opened: The targets that are read.
        shape: Number of rows N, and of views V of each.
        dim: Width D of a target.
        storage: Type of the numbers.

    Raises:
        TargetError: When first read, if the file is not that array, or is of other targets.
    """

    def __init__(self, opened: Opened, shape: tuple[int, int], dim: int, storage: Storage) -> None:
        self.path, self.shape, self._opened = opened.folder / TARGETS, shape, opened
        self._type = record_type(dim, storage)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_records"}

    def read(self, index: NDArray[np.integer[Any]], views: NDArray[np.integer[Any]]) -> StoredRows:
        """Some views of some rows.

        Args:
            index: Rows `[B]`, each of 0 to N - 1.
            views: Views of each, `[B, n]`, each of 0 to V - 1.

        Raises:
            TargetError: If a record is not what was written.
        """
        records = self._records[index[:, None], views]
        self._check(records, index)
        return StoredRows(decode(records), records["crop"], records["size"][:, 0])

    @cached_property
    def _records(self) -> NDArray[Any]:
        """All that follows the header, whose text is for other readers of `.npy`: only its length is read."""
        records = None
        try:
            with self.path.open("rb") as file:
                beside = os.fstat(file.fileno()).st_size - math.prod(self.shape) * self._type.itemsize
                header = _NPY_PREFIX + int.from_bytes(file.read(_NPY_PREFIX)[-2:], "little")
                if beside == header:
                    records = np.memmap(file, self._type, "r", offset=header, shape=self.shape)
            found = f"{beside} bytes beside them" if beside > 0 else f"{-beside} bytes too few"
        except OSError as error:
            found = f"{type(error).__name__}: {error}"
        self._opened.check()
        if records is not None:
            return records
        raise TargetError(
            "The targets cannot be read.",
            expected=f"{list(self.shape)} records of {self._type.itemsize} bytes in {self.path}",
            found=found,
            do="restore the folder from a copy, or build the targets again with overwrite=True",
        )

    def _check(self, records: NDArray[Any], index: NDArray[Any]) -> None:
        broken = (check_sums(records) != records["sum"]).any(axis=1)
        if broken.any():
            raise TargetError(
                "Targets on disk have changed since they were written.",
                expected="rows that agree with their check sums",
                found=f"rows {np.unique(index[broken])[:10].tolist()} of {self.path} do not",
                do="restore the file from a copy, or build the targets again with overwrite=True",
            )
