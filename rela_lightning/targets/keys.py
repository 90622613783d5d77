"""The keys of a store: rows are in the order of the keys' hashes, so that a row is found by a binary search.

`keys.npy` holds the sorted 64-bit hashes and nothing else: the place of a hash is its row. So a store is the same
whatever the order in which samples came, and eight bytes a sample are all that a lookup needs. That two of 10 million
keys share a hash has a chance of 3 in a million; it is looked for when a store is made, and refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rela_lightning.errors import TargetError
from rela_lightning.targets.manifest import KEYS, Opened

_SHOWN = 5


def hashes_of(keys: Sequence[str]) -> NDArray[np.uint64]:
    """The 64-bit hash of each key (BLAKE2b of its UTF-8), uint64 `[n]`."""
    digests = (hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest() for key in keys)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def places(table: NDArray[Any], asked: NDArray[Any]) -> NDArray[np.int64]:
    """Place of each number in a sorted array, int64 `[n]`; -1 where it is not in it."""
    found = np.searchsorted(table, asked)
    known = found < len(table)
    known[known] = table[found[known]] == asked[known]
    return np.where(known, found, -1).astype(np.int64)


def write_keys(path: Path, hashes: NDArray[np.uint64]) -> None:
    """Write the file of a store; `hashes` are sorted, each of them once."""
    np.save(path, hashes.astype("<u8"))


class KeyTable:
    """Finds the row of a key. Opened when first asked, and again after pickling.

    Args:
        opened: The targets whose keys these are.
    """

    def __init__(self, opened: Opened) -> None:
        self.path, self._opened = opened.folder / KEYS, opened

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "hashes"}

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """The sorted hashes, uint64 `[N]`."""
        try:
            found: NDArray[np.uint64] = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise TargetError(
                "The keys of the targets cannot be read.",
                expected=f"sorted hashes in {self.path}",
                found=f"{type(error).__name__}: {error}",
                do="restore the folder from a copy, or build the targets again with overwrite=True",
            ) from error
        self._opened.check()
        return found

    def find(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Row of each key, int64 `[n]`; -1 for a key that is not there."""
        return places(self.hashes, hashes_of(keys))

    def rows(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Row of each key, int64 `[n]`.

        Raises:
            TargetError: If a key is not there, with the number of such keys and the first of them.
        """
        rows = self.find(keys)
        unknown = [keys[place] for place in np.flatnonzero(rows < 0).tolist()]
        if unknown:
            more = ", ..." if len(unknown) > _SHOWN else ""
            raise TargetError(
                f"{len(unknown)} of {len(keys)} samples have no targets: their keys were not labelled.",
                expected=f"keys of the {len(self.hashes)} samples labelled in {self.path.parent}",
                found=", ".join(map(repr, unknown[:_SHOWN])) + more,
                do="label the stream that you train on: build_targets(prior, stream, path, overwrite=True)",
            )
        return rows


class KeyLine(NamedTuple):
    """What a pass notes of a sample.

    Attributes:
        pixels: Digest of its raw pixels.
        key: Its key.
    """

    pixels: str
    key: str

    def text(self) -> str:
        """As one line."""
        return f"{self.pixels} {json.dumps(self.key)}"

    @classmethod
    def parsed(cls, text: str) -> KeyLine:
        """The line that `text` gave."""
        pixels, _, key = text.partition(" ")
        return cls(pixels, json.loads(key))


def read_lines(folder: Path) -> Iterator[KeyLine]:
    """What a pass has noted so far; a line that was cut short is left out."""
    for file in sorted(folder.glob("keys-*.txt")):
        with file.open(encoding="ascii") as lines:
            for line in lines:
                try:
                    yield KeyLine.parsed(line.strip())
                except ValueError:
                    continue


def held_lines(folder: Path, held: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Sorted hashes of the lines of samples whose features a pass holds, uint64.

    Args:
        folder: Of the pass.
        held: Sorted hashes of the keys whose rows are there, as the shards hold them.
    """
    kinds = np.dtype([("key", "u8"), ("line", "u8")])
    noted = np.fromiter((tuple(hashes_of([line.key, line.text()])) for line in read_lines(folder)), kinds)
    whole = places(held, noted["key"].astype(np.int64)) >= 0
    lines: NDArray[np.uint64] = np.unique(noted["line"][whole])
    return lines


def refuse_ambiguous(folder: Path, repeated: NDArray[np.uint64]) -> None:
    """Do nothing if each of some hashes, which came more than once, stands for one key and one image.

    Args:
        folder: Of the pass.
        repeated: The hashes, sorted.

    Raises:
        TargetError: Naming keys that two images share, or two keys that share a hash.
    """
    seen: dict[int, KeyLine] = {}
    shared: dict[str, str] = {}
    for line in read_lines(folder):
        number = hashes_of([line.key])
        if places(repeated, number)[0] < 0:
            continue
        first = seen.setdefault(int(number[0]), line)
        if first != line:
            shared[line.key] = first.key
    if not shared:
        return
    names = [repr(key) if key == other else f"{other!r} and {key!r}" for key, other in list(shared.items())[:_SHOWN]]
    raise TargetError(
        f"Keys that stand for more than one image: {len(shared)}.",
        expected="a key that no other sample has, and images without random augmentation",
        found=", ".join(names),
        do="give each sample a key of its own, for example with the name of its shard before it",
    )
