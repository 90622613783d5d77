"""Feature rows on disk while a pass is under way: one pair of files for each rank.

A row holds the features of every view of one image. It is written to `rows-<rank>.bin` (float32), and then an entry
with its index and its crops to `index-<rank>.bin`, so that a pass that was killed leaves only whole rows. Reading goes
in order of the index and in chunks. For a stream the index is the hash of the sample's key, a line of
`keys-<rank>.txt` says which key that is, and the order is that of the hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rela_lightning.targets.records import Geometry

CHUNK_BYTES = 4 * 2**20
_INDEX_CHUNK = 2**17


class Shape(NamedTuple):
    """What every row of a pass looks like: number of views V (the whole image among them) and feature width F."""

    views: int
    dim: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of features."""
        return 4 * self.views * self.dim

    @property
    def entry(self) -> np.dtype[Any]:
        """Type of a row's entry in the index."""
        return np.dtype([("row", "<i8"), ("size", "<i4", (2,)), ("crops", "<i4", (self.views, 5))])


def pass_bytes(length: int, shape: Shape) -> int:
    """Bytes of the files of a whole pass: its rows, their entries, and where each row is."""
    return length * (shape.row_bytes + shape.entry.itemsize) + where_bytes(length)


def where_bytes(length: int) -> int:
    """Bytes of the file that `locate` writes, without its header."""
    return 8 * length


@dataclass(frozen=True)
class Shard:
    """The files of one rank and the number of whole rows in them."""

    rows: Path
    index: Path
    count: int


class ShardWriter:
    """Appends rows to the shard of one rank; goes on after the last whole row of an earlier pass.

    Args:
        folder: Where the shards are; must exist.
        rank: Global rank of this process.
        shape: Of a row.
    """

    def __init__(self, folder: Path, rank: int, shape: Shape) -> None:
        rows, index = folder / f"rows-{rank:05d}.bin", folder / f"index-{rank:05d}.bin"
        self._shape, self._lines = shape, folder / f"keys-{rank:05d}.txt"
        self._rows, self._index = rows.open("ab"), index.open("ab")
        whole = _shard(rows, index, shape).count
        self._rows.truncate(whole * shape.row_bytes)
        self._index.truncate(whole * shape.entry.itemsize)

    def append(
        self,
        index: NDArray[np.int64],
        geometry: Geometry,
        features: NDArray[np.float32],
        lines: Sequence[str] = (),
    ) -> None:
        """Add rows.

        Args:
            index: Rows of the data set, `[B]`.
            geometry: Of these rows.
            features: `[B, V, F]`.
            lines: For a stream, a line for each of them.
        """
        entries = np.zeros(len(index), self._shape.entry)
        entries["row"], entries["size"], entries["crops"] = index, geometry.sizes, geometry.crops
        self._rows.write(np.ascontiguousarray(features, dtype=np.float32).data)
        self._rows.flush()
        if any(lines):
            with self._lines.open("a", encoding="ascii") as file:
                file.write("".join(f"\n{line}" for line in lines))  # a line that was cut short stays alone
        self._index.write(entries.data)
        self._index.flush()

    def close(self) -> None:
        """Close both files."""
        self._rows.close()
        self._index.close()


def find_shards(folder: Path, shape: Shape) -> list[Shard]:
    """All shards in a folder, by rank."""
    return [
        _shard(rows, rows.with_name(rows.name.replace("rows", "index")), shape)
        for rows in sorted(folder.glob("rows-*.bin"))
    ]


def missing_rows(folder: Path, length: int, shape: Shape) -> NDArray[np.int64]:
    """Indices below `length` that no shard holds yet, in order."""
    done = np.zeros(length, dtype=bool)
    for shard in find_shards(folder, shape):
        for _, entries in _index_chunks(shard, shape):
            done[entries["row"]] = True
    return np.flatnonzero(~done)


def held_indices(folder: Path, shape: Shape) -> NDArray[np.int64]:
    """The index of every row that a shard holds, in their order there; one that came twice is there twice."""
    parts = [
        entries["row"].copy() for shard in find_shards(folder, shape) for _, entries in _index_chunks(shard, shape)
    ]
    return np.concatenate([np.empty(0, np.int64), *parts])


def locate(folder: Path, length: int, shape: Shape, keys: NDArray[np.uint64] | None = None) -> Path:
    """Write where each row is: a file of int64 `[length]`, positions in all shards one after another.

    Args:
        folder: Where the shards are.
        length: Number of rows.
        shape: Of a row.
        keys: For a stream, the sorted hashes of its keys.
    """
    path = folder / "where.npy"
    with path.open("wb") as file:  # written out in full: a full disk is an error here, and a crash in mapped memory
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (length,)})
        for start in range(0, length, _INDEX_CHUNK):
            file.write(bytes(8 * min(_INDEX_CHUNK, length - start)))
    before = 0
    for shard in find_shards(folder, shape):
        for start, entries in _index_chunks(shard, shape):
            where = np.load(path, mmap_mode="r+")  # opened for each chunk: its pages are released
            index = entries["row"]
            rows = index if keys is None else np.searchsorted(keys, index.astype(np.uint64))
            where[rows] = np.arange(before + start, before + start + len(entries))
            where.flush()
        before += shard.count
    return path


class Chunk(NamedTuple):
    """Some rows in order of their index.

    Attributes:
        features: Float32 `[n, V, F]`.
        geometry: Of the same rows.
    """

    features: NDArray[np.float32]
    geometry: Geometry


def ordered_chunks(
    folder: Path, length: int, shape: Shape, *, keys: NDArray[np.uint64] | None = None
) -> Iterator[Chunk]:
    """All rows in order of their index, in chunks of about 4 MB; every row must be there.

    Args:
        folder: Where the shards are.
        length: Number of rows.
        shape: Of a row.
        keys: For a stream, the sorted hashes of its keys: row i is that of the i-th.
    """
    shards = find_shards(folder, shape)
    starts = np.cumsum([0] + [shard.count for shard in shards])
    where = locate(folder, length, shape, keys)
    step = max(1, CHUNK_BYTES // shape.row_bytes)
    for start in range(0, length, step):
        positions = np.array(np.load(where, mmap_mode="r")[start : start + step])
        owner = np.searchsorted(starts, positions, side="right") - 1
        features = np.empty((len(positions), shape.views, shape.dim), dtype=np.float32)
        entries = np.empty(len(positions), dtype=shape.entry)
        for number, shard in enumerate(shards):
            mine = owner == number
            if mine.any():
                at = positions[mine] - starts[number]
                stored = np.memmap(shard.rows, np.float32, "r", shape=(shard.count, shape.views, shape.dim))
                features[mine] = stored[at]
                entries[mine] = np.memmap(shard.index, shape.entry, "r", shape=(shard.count,))[at]
        yield Chunk(features, Geometry(entries["size"], entries["crops"]))


def _shard(rows: Path, index: Path, shape: Shape) -> Shard:
    indexed = index.stat().st_size // shape.entry.itemsize if index.exists() else 0
    return Shard(rows, index, min(indexed, rows.stat().st_size // shape.row_bytes))


def _index_chunks(shard: Shard, shape: Shape) -> Iterator[tuple[int, NDArray[Any]]]:
    for start in range(0, shard.count, _INDEX_CHUNK):
        count = min(_INDEX_CHUNK, shard.count - start)
        yield start, np.fromfile(shard.index, shape.entry, count, offset=shape.entry.itemsize * start)
