"""From the shards of a finished pass to the files of a store, in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from rela_lightning.errors import TargetError
from rela_lightning.targets.reduce import (
    Projection,
    Standardise,
    pca,
    project,
    projection,
    rank_tolerance,
    streaming_moments,
)
from rela_lightning.targets.shards import ordered_chunks

TARGETS, PROJECTION = "targets.npy", "projection.safetensors"


def assemble(
    shards: Path,
    out: Path,
    *,
    length: int,
    feature_dim: int,
    target_dim: int | float | None,
    standardise: Standardise,
    storage_dtype: torch.dtype,
) -> dict[str, Any]:
    """Write `targets.npy` and `projection.safetensors`.

    Two passes over the rows, in order of their index: moments, then projection. Memory is a few
    chunks of about 4 MB and a few matrices `[F, F]`, whatever the number of rows.

    Args:
        shards: Folder with the shards; every row must be there.
        out: Folder to write to; must exist.
        length: Number of rows N.
        feature_dim: Width F of the features.
        target_dim: Keep at most this many columns, or as many as explain this share of the variance.
        standardise: `per_dim`, `isotropic` or `none`.
        storage_dtype: `torch.float16` or `torch.float32`.

    Returns:
        What the manifest says of it: `dim`, `dropped_dimensions`, `explained_variance` (a share of
        the total for each column).

    Raises:
        TargetError: If all rows are the same, or targets overflow float16.
    """

    def chunks() -> Iterator[Tensor]:
        return (torch.from_numpy(chunk) for chunk in ordered_chunks(shards, length, feature_dim))

    full = pca(streaming_moments(chunks()))
    kept = full.first(target_dim)
    by = projection(kept, standardise)
    _write_rows(out / TARGETS, chunks(), by, length, storage_dtype)
    save_file({name: tensor.contiguous() for name, tensor in by._asdict().items()}, out / PROJECTION)
    return {
        "dim": len(by.scales),
        "feature_dim": feature_dim,
        "dropped_dimensions": feature_dim - len(full.variance),
        "rank_tolerance": rank_tolerance(feature_dim),
        "explained_variance": (kept.variance / full.total).tolist(),
    }


def _write_rows(path: Path, chunks: Iterator[Tensor], by: Projection, length: int, storage_dtype: torch.dtype) -> None:
    dtype: type[np.floating[Any]] = np.float16 if storage_dtype == torch.float16 else np.float32
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length, len(by.scales))}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = 0
        for chunk in chunks:
            with np.errstate(over="ignore"):
                rows: NDArray[Any] = project(chunk.double(), by).numpy().astype(dtype)
            if not np.isfinite(rows).all():
                bad = start + np.flatnonzero(~np.isfinite(rows).all(axis=1))
                raise TargetError(
                    "Targets are too large for float16.",
                    expected="values within 65504",
                    found=f"rows {bad[:20].tolist()}",
                    do="use storage_dtype=torch.float32, or standardise='per_dim'",
                )
            file.write(rows.data)
            start += len(rows)
