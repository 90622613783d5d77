"""What a data set can tell cheaply about the order of all its rows, without opening images."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from rela_lightning.data.copies import copied
from rela_lightning.fingerprint.leaves import arrow_rows, file_names, hugging_face, images, labels, own_labels
from rela_lightning.rng import preserved_rng

_EXTENSIONS = frozenset(["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif", "npy"])
IN_MEMORY = "stored images"
_DECISIVE = ("file names", IN_MEMORY, "Hugging Face")


class Rows(NamedTuple):
    """Where each row of a data set comes from, under `Subset`, `ConcatDataset` and other wrappers.

    Attributes:
        leaves: The innermost data sets.
        leaf: Int64 `[N]`, which of them each row is from.
        row: Int64 `[N]`, its row there.
    """

    leaves: tuple[Any, ...]
    leaf: np.ndarray
    row: np.ndarray


def order_of(dataset: Any, probes: Sequence[int]) -> dict[str, str]:
    """Hashes over all rows, in their order, of whatever the data set tells about them.

    Two data sets are compared by the names (keys) that both have: the name says all that must agree
    before two hashes can be compared, such as the shape of stored images.

    | name | over |
    |---|---|
    | `file names` | paths below the deepest folder that holds all files, without extension |
    | `stored images: ...` | pixels kept in memory, up to 2 GB |
    | `Hugging Face ...` | a fingerprint; it can agree, but says nothing where it does not |
    | `labels` | labels, numbered in order of appearance |
    | `rows of ...` | the composed indices of subsets and concatenations |

    Args:
        dataset: Map-style; left as it is.
        probes: A few rows, to find out whether a wrapper of an unknown class keeps the order.

    Returns:
        Name and SHA-256; empty if the data set tells nothing.
    """
    rows = rows_of(dataset, probes)
    if rows is None:
        return {}
    told = {f"rows of {_names(rows.leaves)}": _sha([rows.leaf.tobytes(), rows.row.tobytes()])}
    names = _names_in(rows)
    if names is not None:
        told["file names"] = _sha([names.tobytes()])
    numbers = _gather(rows, [labels(leaf) for leaf in rows.leaves])
    if numbers is not None:
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        if len(first) > 1:
            told["labels"] = _sha([np.argsort(np.argsort(first))[inverse].astype(np.int64).tobytes()])
    told.update(_stored(rows))
    told.update(_fingerprints(rows))
    return told


def compare_order(stored: dict[str, str], found: dict[str, str]) -> tuple[list[str], str]:
    """Compare two results of `order_of`.

    Where file names or stored images agree, they settle it: the same images may have other labels.

    Returns:
        The names that differ, and why the order is not certain (empty if it is).
    """
    common = sorted(stored.keys() & found.keys())
    if any(name.startswith(_DECISIVE) and stored[name] == found[name] for name in common):
        return [], ""
    differ = [name for name in common if stored[name] != found[name]]
    if "labels" in common:
        return differ, "rows that share a label may have changed places unseen: nothing but labels can be compared"
    return differ, "the data sets do not both tell file names, labels or stored images"


def rows_of(dataset: Any, probes: Sequence[int], ends: Callable[[Any], bool] = lambda _: False) -> Rows | None:
    """Follow wrappers to the innermost data sets; `None` where one changes the order in an unknown way.

    Args:
        dataset: Map-style; left as it is.
        probes: A few rows, to find out whether a wrapper of an unknown class keeps the order.
        ends: Whether to stop at a wrapper, as if it were innermost.
    """
    length, inner = len(dataset), getattr(dataset, "dataset", None)
    indices = getattr(dataset, "indices", None)
    if ends(dataset):
        return Rows((dataset,), np.zeros(length, np.int64), np.arange(length))
    if isinstance(dataset, ConcatDataset) and type(dataset).__getitem__ is ConcatDataset.__getitem__:
        return _joined([rows_of(part, _first(part), ends) for part in dataset.datasets])
    if not (hasattr(inner, "__getitem__") and hasattr(inner, "__len__")) or isinstance(inner, (str, dict)):
        if isinstance(getattr(dataset, "datasets", None), (list, tuple, dict)):
            return None
        table = arrow_rows(dataset)
        return Rows((dataset,), np.zeros(length, np.int64), np.arange(length) if table is None else table)
    order = np.arange(length) if indices is None else np.asarray(indices)
    if order.dtype.kind not in "iu" or order.shape != (length,):
        return None
    known = isinstance(dataset, Subset) and type(dataset).__getitem__ is Subset.__getitem__
    if not known and not _reads(dataset, probes, order):
        return None
    below = rows_of(inner, _first(inner), ends)
    if below is None or (length and (order.max() >= len(below.row) or order.min() < -len(below.row))):
        return None
    return Rows(below.leaves, below.leaf[order], below.row[order])


def names_of(dataset: Any) -> list[str] | None:
    """Path of each row's file below the deepest folder that holds them all; None where a data set tells none."""
    rows = rows_of(dataset, _first(dataset))
    told = [file_names(leaf) for leaf in rows.leaves] if rows is not None else []
    if rows is None or any(names is None for names in told):
        return None
    names = [told[leaf][row] for leaf, row in zip(rows.leaf.tolist(), rows.row.tolist(), strict=True)]
    start = _below_all(names)
    return [name[start:] for name in names]


def labels_of(dataset: Any) -> list[int] | None:
    """Label of each row; None where a data set tells none without opening images.

    The outermost wrapper that tells labels decides: it may hand out others than the data set inside it.
    """
    rows = rows_of(dataset, _first(dataset), lambda each: own_labels(each) is not None)
    found = _gather(rows, [labels(leaf) for leaf in rows.leaves]) if rows is not None else None
    return found.tolist() if found is not None else None


def _below_all(names: Sequence[str]) -> int:
    """Length of the path of the deepest folder that holds all names."""
    return os.path.commonprefix(names).rfind("/") + 1  # noqa: RUF071  # cut at a folder


def _first(dataset: Any) -> list[int]:
    length = len(dataset)
    return sorted({0, length // 3, length // 2, length - 1}) if length else []


def _joined(parts: list[Rows | None]) -> Rows | None:
    """Rows of one data set after the other; a data set that occurs twice is one leaf."""
    leaves: dict[int, tuple[int, Any]] = {}
    leaf, row = [], []
    for part in parts:
        if part is None:
            return None
        numbers = [leaves.setdefault(id(item), (len(leaves), item))[0] for item in part.leaves]
        leaf.append(np.asarray(numbers, np.int64)[part.leaf])
        row.append(part.row)
    return Rows(tuple(item for _, item in leaves.values()), np.concatenate(leaf), np.concatenate(row))


class _Recorder:
    """Stands in for a wrapped data set and notes which rows are asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(int(index))
        return self._dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._dataset, name)


def _reads(wrapper: Any, probes: Sequence[int], order: np.ndarray) -> bool:
    """Whether a wrapper reads row `order[i]` of the data set in it for its own row `i`, in a few rows."""
    try:
        with preserved_rng():
            clone, recorder = copy.copy(wrapper), _Recorder(copied(wrapper.dataset))
            clone.dataset = recorder
            for probe in probes:
                recorder.asked.clear()
                with contextlib.suppress(Exception):  # whatever comes of the row, it was asked for
                    clone[probe]
                if set(recorder.asked) != {int(order[probe])}:
                    return False
    except Exception:  # whatever a foreign class makes of a stand-in: then its order is not known
        return False
    return True


def _gather(rows: Rows, told: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One number for each row out of those for the rows of each leaf; `None` if a leaf has none."""
    taken = np.empty(len(rows.row), np.int64)
    for number, values in enumerate(told):
        if values is None:
            return None
        here = rows.leaf == number
        taken[here] = values[rows.row[here]]
    return taken


def _names_in(rows: Rows) -> np.ndarray | None:
    """CRC32 of each row's path below the deepest folder that holds all rows, without the image's extension."""
    told, used = [file_names(leaf) for leaf in rows.leaves], []
    for number, names in enumerate(told):
        if names is None:
            return None
        some = np.zeros(len(names), bool)
        some[rows.row[rows.leaf == number]] = True
        picked = names if some.all() else [names[row] for row in np.flatnonzero(some).tolist()]
        used.append((picked, some))
    ends = [end(names) for names, _ in used if len(names) for end in (min, max)]
    start, codes = _below_all(ends), []
    for names, some in used:
        code = np.zeros(len(some), np.int64)
        code[some] = np.fromiter((_code(name[start:]) for name in names), np.int64, len(names))
        codes.append(code)
    return _gather(rows, codes)


def _code(name: str) -> int:
    stem, _, extension = name.rpartition(".")
    return zlib.crc32((stem if extension.lower() in _EXTENSIONS else name).encode(errors="surrogatepass"))


def _stored(rows: Rows) -> dict[str, str]:
    kinds = [images(leaf) for leaf in rows.leaves]
    found = [kind for kind in kinds if kind is not None]
    if len(found) < len(kinds) or len({kind.form for kind in found}) != 1:
        return {}
    if found[0].row_bytes * len(rows.row) > 2 << 30:
        return {}
    form = f"{IN_MEMORY}: {found[0].form}"
    chunk = max(1, (1 << 24) // max(1, found[0].row_bytes))
    parts = (
        found[leaf].read(rows.row[at:end])
        for start in range(0, len(rows.row), chunk)
        for leaf, at, end in _runs(rows.leaf, start, min(start + chunk, len(rows.row)))
    )
    digest = _sha(parts)
    return {form if found[0].raw else f"{form} {digest}": digest}


def _runs(leaf: np.ndarray, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of rows from one leaf: `(leaf, start, end)`."""
    cuts = [start, *(np.flatnonzero(np.diff(leaf[start:end])) + start + 1).tolist(), end]
    for at, until in pairwise(cuts):
        yield int(leaf[at]), at, until


def _fingerprints(rows: Rows) -> dict[str, str]:
    prints = [hugging_face(leaf) for leaf in rows.leaves]
    if any(text is None for text in prints):
        return {}
    digest = _sha([repr(prints).encode(), rows.leaf.tobytes(), rows.row.tobytes()])
    return {f"Hugging Face {digest}": digest}


def _names(leaves: Sequence[Any]) -> str:
    return " + ".join(f"{type(leaf).__module__}.{type(leaf).__qualname__} ({len(leaf)})" for leaf in leaves)


def _sha(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
