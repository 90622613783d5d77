"""From the shards of a finished pass to the files of a store, in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rela_lightning.errors import TargetError
from rela_lightning.files import write_whole
from rela_lightning.targets.manifest import PROJECTION, TARGETS
from rela_lightning.targets.records import Storage, cosines, decode, encode, record_type
from rela_lightning.targets.reduce import (
    Projection,
    Standardise,
    moments,
    pca,
    project,
    projection,
    rank_tolerance,
    streaming_moments,
)
from rela_lightning.targets.rounding import MAX_ROUNDING, Exact, without_rounding
from rela_lightning.targets.shards import Chunk, Shape, ordered_chunks


def assemble(
    shards: Path,
    out: Path,
    *,
    length: int,
    shape: Shape,
    target_dim: int | float | None,
    standardise: Standardise,
    storage: Storage,
    exact: Exact | None = None,
    keys: NDArray[np.uint64] | None = None,
) -> dict[str, Any]:
    """Write `targets.npy` and `projection.safetensors`.

    Two passes over the rows, in order of their index: moments, then projection. Memory is a few
    chunks of about 4 MB and a few matrices `[F, F]`, whatever the number of rows.

    Args:
        shards: Folder with the shards; every row must be there.
        out: Folder to write to; must exist.
        length: Number of rows N.
        shape: Of a row: its views and the width F of the features. All views take part in the projection.
        target_dim: Keep at most this many columns, or as many as explain this share of the variance.
        standardise: `shrunk`, `per_dim`, `isotropic` or `none`.
        storage: `float16`, `float32` or `int8`.
        exact: Some images embedded in strict float32, which tell how coarsely the pass rounded; None to trust it.
        keys: For a stream, the sorted hashes of its keys: row i is that of the i-th.

    Returns:
        Its entries in the manifest: `dim`, `dropped_dimensions` (those without variance), `explained_variance` (a
        share of the total for each component, of which the first `dim` became columns), `rounding` (see `Rounding`;
        None without `exact`), `storage_cosine` (least and mean cosine of a stored target with the exact one).

    Raises:
        TargetError: If all rows are the same or rounding noise, or targets overflow float16.
    """

    def chunks() -> Iterator[Chunk]:
        return ordered_chunks(shards, length, shape, keys=keys)

    images = exact.images if exact else []
    compared = torch.empty(len(images), shape.views, shape.dim)
    full = pca(streaming_moments(_rows_of(chunks(), images, compared)))
    full = full._replace(rows=length)  # crops of one image are hardly new rows
    clear, rounding = full, None
    if exact is not None:
        clear, rounding = without_rounding(full, moments((compared.double() - exact.features).flatten(0, 1)))
    kept = clear.first(target_dim)
    by = projection(kept, standardise)
    cosine = _write_rows(out / TARGETS, chunks(), by, (length, shape.views), storage)
    tensors = {name: tensor.contiguous() for name, tensor in by._asdict().items()}
    write_whole(out / PROJECTION, lambda file: save_file(tensors, file))
    return {
        "dim": len(by.scales),
        "feature_dim": shape.dim,
        "dropped_dimensions": shape.dim - len(full.variance),
        "rank_tolerance": rank_tolerance(shape.dim),
        "explained_variance": (clear.variance / full.total).tolist(),
        "rounding": None if rounding is None else rounding._asdict(),
        "storage_cosine": cosine,
    }


def in_words(made: dict[str, Any], rows: int) -> list[str]:
    """What became of the prior's dimensions, one line for each reason why there are fewer columns.

    Args:
        made: What `assemble` returned.
        rows: Rows that the columns were learnt from.
    """
    width = made["feature_dim"]
    beyond = max(0, width - (rows - 1))
    constant = made["dropped_dimensions"] - beyond
    rounded = made["rounding"]["dropped_dimensions"] if made["rounding"] else 0
    lines = {
        f"{rows} rows differ in at most {rows - 1} directions, so the prior's {width} dimensions give no more columns "
        "than that; more images give more": beyond > 0,
        f"{constant} of {width} dimensions carry no variance and were dropped": constant > 0,
        f"{rounded} of {width} dimensions were dropped, as more than {MAX_ROUNDING:.0%} of what varies in them is "
        "rounding of this pass; label in 32-bit precision, without TF32, to keep them": rounded > 0,
    }
    return [line for line, holds in lines.items() if holds]


def _rows_of(chunks: Iterator[Chunk], images: Sequence[int], aside: Tensor) -> Iterator[Tensor]:
    """Features `[n * V, F]` of each chunk; those of some images are copied to `aside`, which is made before.

    Whatever small is kept from a chunk would stop its memory from being used again for the next.
    """
    start = 0
    for chunk in chunks:
        features = torch.from_numpy(chunk.features)
        for place, image in enumerate(images):
            if 0 <= image - start < len(features):
                aside[place] = features[image - start]
        start += len(features)
        yield features.flatten(0, 1)


def _write_rows(
    path: Path, chunks: Iterator[Chunk], by: Projection, rows: tuple[int, int], storage: Storage
) -> dict[str, float]:
    """Write all records; the least and the mean cosine of what is stored with what was computed."""
    kind = record_type(len(by.scales), storage)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": rows}
    least, total, start = 1.0, 0.0, 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for features, geometry in chunks:
            targets = project(torch.from_numpy(features.reshape(-1, features.shape[2])).double(), by).numpy()
            targets = targets.reshape(*features.shape[:2], -1)
            records = encode(targets, geometry, storage)
            stored = decode(records)
            if not np.isfinite(stored).all():
                bad = start + np.flatnonzero(~np.isfinite(stored).all(axis=(1, 2)))
                raise TargetError(
                    "Targets are too large for float16.",
                    expected="values within 65504",
                    found=f"rows {bad[:20].tolist()}",
                    do="use storage_dtype=torch.float32, or standardise='per_dim'",
                )
            agreement = cosines(targets, stored)
            least, total = min(least, float(agreement.min())), total + float(agreement.sum())
            file.write(records.data)
            start += len(records)
    return {"least": least, "mean": total / (rows[0] * rows[1])}
