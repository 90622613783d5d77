"""Feature rows on disk while a pass is under way: one pair of files for each rank.

A row is written to `rows-<rank>.bin` (float32) and then its index to `index-<rank>.bin` (int64), so
that a pass that was killed leaves only whole rows. Reading goes in order of the index and in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 4 * 2**20
_INDEX_CHUNK = 2**17


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
        dim: Width of a row.
    """

    def __init__(self, folder: Path, rank: int, dim: int) -> None:
        rows, index = folder / f"rows-{rank:05d}.bin", folder / f"index-{rank:05d}.bin"
        self._rows, self._index = rows.open("ab"), index.open("ab")
        whole = _shard(rows, index, dim).count
        self._rows.truncate(whole * dim * 4)
        self._index.truncate(whole * 8)

    def append(self, index: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Add rows `[B, dim]` that belong to the samples `index` `[B]`."""
        self._rows.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self._rows.flush()
        self._index.write(np.ascontiguousarray(index, dtype=np.int64).data)
        self._index.flush()

    def close(self) -> None:
        """Close both files."""
        self._rows.close()
        self._index.close()


def find_shards(folder: Path, dim: int) -> list[Shard]:
    """All shards in a folder, by rank."""
    return [
        _shard(rows, rows.with_name(rows.name.replace("rows", "index")), dim)
        for rows in sorted(folder.glob("rows-*.bin"))
    ]


def missing_rows(folder: Path, length: int, dim: int) -> NDArray[np.int64]:
    """Indices below `length` that no shard holds yet, in order."""
    done = np.zeros(length, dtype=bool)
    for shard in find_shards(folder, dim):
        for _, index in _index_chunks(shard):
            done[index] = True
    return np.flatnonzero(~done)


def locate(folder: Path, length: int, dim: int) -> Path:
    """Write where each row is: a file of int64 `[length]`, positions in all shards one after another."""
    path = folder / "where.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=(length,)).flush()
    before = 0
    for shard in find_shards(folder, dim):
        for start, index in _index_chunks(shard):
            where = np.load(path, mmap_mode="r+")  # opened for each chunk: its pages are given back
            where[index] = np.arange(before + start, before + start + len(index))
            where.flush()
        before += shard.count
    return path


def ordered_chunks(folder: Path, length: int, dim: int, *, rows: int | None = None) -> Iterator[NDArray[np.float32]]:
    """All rows in order of their index, in chunks `[n, dim]` of about 4 MB; every row must be there.

    Args:
        folder: Where the shards are.
        length: Number of rows.
        dim: Width of a row.
        rows: Rows in a chunk, to override the size above.
    """
    shards = find_shards(folder, dim)
    starts = np.cumsum([0] + [shard.count for shard in shards])
    where = locate(folder, length, dim)
    step = rows or max(1, CHUNK_BYTES // (4 * dim))
    for start in range(0, length, step):
        positions = np.array(np.load(where, mmap_mode="r")[start : start + step])
        owner = np.searchsorted(starts, positions, side="right") - 1
        chunk = np.empty((len(positions), dim), dtype=np.float32)
        for number, shard in enumerate(shards):
            mine = owner == number
            if mine.any():
                stored = np.memmap(shard.rows, np.float32, "r", shape=(shard.count, dim))
                chunk[mine] = stored[positions[mine] - starts[number]]
        yield chunk


def _shard(rows: Path, index: Path, dim: int) -> Shard:
    indexed = index.stat().st_size // 8 if index.exists() else 0
    return Shard(rows, index, min(indexed, rows.stat().st_size // (4 * dim)))


def _index_chunks(shard: Shard) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for start in range(0, shard.count, _INDEX_CHUNK):
        count = min(_INDEX_CHUNK, shard.count - start)
        yield start, np.fromfile(shard.index, np.int64, count, offset=8 * start)
