"""Targets on disk, read row by row."""

from __future__ import annotations

import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.settings import FORMAT
from rela_lightning.priors.base import Prior
from rela_lightning.targets.assemble import PROJECTION, TARGETS
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.reduce import Projection
from rela_lightning.targets.verify import verify

MANIFEST = "manifest.json"


class TargetStore:
    """Targets written by `build_targets`, one row for each sample of the data set.

    The rows are memory-mapped when first read, so a store opens at once whatever its size, and can
    be pickled. Columns are in order of explained variance: a student of width F takes the first
    `min(F, dim)` of them.

    Args:
        path: Folder written by `build_targets`.

    Raises:
        TargetError: If there is no complete store at `path`.

    Example:
        >>> store = TargetStore("targets/clip-b16")  # doctest: +SKIP
        >>> store[torch.tensor([0, 5])].shape  # doctest: +SKIP
        torch.Size([2, 512])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.manifest: dict[str, Any] = _read_manifest(self.path)
        self._warned = False

    def __len__(self) -> int:
        return int(self.manifest["length"])

    def __repr__(self) -> str:
        return f"TargetStore({str(self.path)!r}, length={len(self)}, dim={self.dim}, prior={self.manifest['prior']!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_rows", "projection")}

    @property
    def dim(self) -> int:
        """Width D of the targets."""
        return int(self.manifest["dim"])

    @property
    def prior_identity(self) -> str:
        """`Prior.identity` of the prior that made them."""
        return str(self.settings["prior_identity"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the targets: prior, data set and settings."""
        return str(self.manifest["fingerprint"])

    @property
    def settings(self) -> dict[str, Any]:
        """The fields behind the fingerprint."""
        settings: dict[str, Any] = self.manifest["settings"]
        return settings

    @cached_property
    def projection(self) -> Projection:
        """The map from the prior's features to these targets, for `rela_lightning.targets.project`."""
        return Projection(**load_file(self.path / PROJECTION))

    def __getitem__(self, index: Any) -> Tensor:
        """Rows of the store.

        Args:
            index: Int64 tensor `[B]` of data set indices, a sequence of ints, or one int.

        Returns:
            Float32 `[B, dim]` on the CPU, or `[dim]` for one int.

        Raises:
            TargetError: If an index is not an integer of 0 to `len(self) - 1` (an IndexError too).
        """
        rows = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.dtype.kind not in "iu" or rows.ndim > 1:
            raise _RowError(
                "Targets are read by data set index.",
                expected="an int64 tensor [B]",
                found=f"{rows.dtype} {list(rows.shape)}",
            )
        outside = rows[(rows < 0) | (rows >= len(self))] if rows.ndim else rows[None][(rows < 0) | (rows >= len(self))]
        if outside.size:
            raise _RowError(
                "There are no targets for these samples.",
                expected=f"indices 0 to {len(self) - 1}",
                found=outside[:10].tolist(),
                do="build targets for the data set you train on",
            )
        return torch.from_numpy(np.array(self._rows[rows], dtype=np.float32))

    def verify(self, dataset: Any, prior: Prior | None = None, num_samples: int = 16) -> None:
        """Check that these are the targets of a data set.

        The number of rows must agree, always. Raw pixels are compared where the data set is of the
        type that was labelled and its `transform` can be set aside; where not, one warning says so.
        The random state and the data set are left as they were.

        Args:
            dataset: The data set to train on.
            prior: Embed the rows again too: its identity must agree, and so must the features (cosine
                of at least .95).
            num_samples: Rows to compare, spread evenly; 0 compares lengths only.

        Raises:
            TargetError: Naming both lengths, or the rows or the prior that differ.
        """
        unchecked = verify(self, dataset, prior, num_samples)
        if unchecked and not self._warned:
            self._warned = True
            warnings.warn(unchecked, UserWarning, stacklevel=2)

    @cached_property
    def _rows(self) -> NDArray[Any]:
        rows: NDArray[Any] = np.load(self.path / TARGETS, mmap_mode="r")
        return rows


class _RowError(TargetError, IndexError):
    """Also ends `for row in store`."""


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        unfinished = partial_folder(path).is_dir()
        raise TargetError(
            "The build of these targets is incomplete." if unfinished else "There is no target store here.",
            expected=f"a folder with {MANIFEST}, written by build_targets",
            found=f"{partial_folder(path)}, an interrupted build" if unfinished else path,
            exists=sorted(p.name for p in path.iterdir())[:12] if path.is_dir() else None,
            do="call build_targets with the same arguments again: it goes on where it stopped"
            if unfinished
            else "build_targets(prior, dataset, path), with a path at which there is nothing else",
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        version = manifest["settings"]["format_version"]
        shape = manifest["length"], manifest["dim"]
        bytes_each = 2 if manifest["settings"]["storage_dtype"] == "float16" else 4
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{file} is not a manifest of targets.", found=repr(error)) from error
    if version != FORMAT:
        raise TargetError("The targets have another format.", expected=f"version {FORMAT}", found=version)
    rows = path / TARGETS
    size = rows.stat().st_size if rows.is_file() else 0
    if size < shape[0] * shape[1] * bytes_each:
        raise TargetError(
            "The build of these targets is incomplete.",
            expected=f"{TARGETS} with {shape[0]} rows of {shape[1]}",
            found=f"{size} bytes",
            do="build them again with overwrite=True",
        )
    return manifest
