"""Targets on disk, read row by row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from rela_lightning.data.crops import Crop, check_size
from rela_lightning.errors import TargetError
from rela_lightning.priors.base import Prior
from rela_lightning.remote import is_url
from rela_lightning.targets.keys import KeyTable
from rela_lightning.targets.manifest import PROJECTION, Opened, read_manifest
from rela_lightning.targets.reader import RowReader, StoredRows
from rela_lightning.targets.reduce import Projection, directions_of
from rela_lightning.targets.remote import local_copy
from rela_lightning.targets.verify import verify


class TargetStore:
    """Targets written by `build_targets`, one row for each sample of the data set or stream.

    The rows are memory-mapped when first read, so a store opens at once whatever its size, and can
    be pickled. A file that is opened later, as in a loader's worker, must be of the same targets. Each row holds the
    target of the whole image (view 0) and of `views` crops. Columns are in order of explained variance: a student of
    width F takes the first `min(F, dim)` of them.

    Args:
        path: Folder written by `build_targets`; or its URL (`s3://...`), then it is copied once to this machine, below
            `$TORCH_HOME` (or `~/.cache/torch`), and `self.path` is the copy.

    Raises:
        TargetError: If there is no complete store at `path`, or it is of another format; when rows are read, if they
            are not what was written, or others were built at `path` since it was opened.

    Example:
        >>> store = TargetStore("targets/clip-b16")  # doctest: +SKIP
        >>> store[torch.tensor([0, 5])].shape  # doctest: +SKIP
        torch.Size([2, 512])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local_copy(str(path)) if is_url(path) else Path(path).expanduser()
        self.manifest: dict[str, Any] = read_manifest(self.path)
        self._opened = Opened.of(self.path, self.manifest)
        shape = (len(self), 1 + self.views)
        self._reader = RowReader(self._opened, shape, self.dim, self.settings["storage_dtype"])
        self._keys = KeyTable(self._opened) if self.keyed else None
        self._warned = False

    def __len__(self) -> int:
        return int(self.manifest["length"])

    def __repr__(self) -> str:
        shape = f"length={len(self)}, views={self.views}, dim={self.dim}"
        return f"TargetStore({str(self.path)!r}, {shape}, prior={self.manifest['prior']!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "projection"}

    @property
    def dim(self) -> int:
        """Width D of the targets."""
        return int(self.manifest["dim"])

    @property
    def views(self) -> int:
        """Crops K of each image beside the whole image."""
        return int(self.manifest["views"])

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

    @property
    def keyed(self) -> bool:
        """Whether rows are found by the key of a sample: targets of a stream."""
        return self.settings.get("lookup") == "key"

    @cached_property
    def directions(self) -> float:
        """Directions that the prior's features fill, at least 1; how many of them became columns makes no difference.

        `exp(-sum_k p_k log p_k)`, p_k the share of component k in the variance of all components. On small photographs
        an untrained network and one that learnt to read digits had 5, one that learnt Fashion-MNIST 12, one that
        learnt ImageNet more than 200.
        """
        return directions_of(torch.tensor(self.manifest["explained_variance"], dtype=torch.float64))

    def rows_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The row of each sample of a stream, int64 `[n]`.

        Args:
            keys: Of the samples.

        Raises:
            TargetError: If a key was not labelled, with the number of such keys and the first of them; or if these
                are not targets of a stream.
        """
        if self._keys is None:
            raise TargetError("These targets are found by the number of a row, and have no keys.", found=self.path)
        return self._keys.rows(keys)

    @cached_property
    def projection(self) -> Projection:
        """The map from the prior's features to these targets, for `rela_lightning.targets.project`."""
        found = Projection(**load_file(self.path / PROJECTION))
        self._opened.check()
        return found

    def __getitem__(self, index: Any) -> Tensor:
        """Targets of whole images (view 0).

        Args:
            index: Int64 tensor `[B]` of data set indices, a sequence of ints, or one int.

        Returns:
            Float32 `[B, dim]` on the CPU, or `[dim]` for one int.

        Raises:
            TargetError: If an index is not an integer of 0 to `len(self) - 1` (an IndexError too).
        """
        rows = self._checked(index)
        targets = torch.from_numpy(self._reader.read(rows.reshape(-1), np.zeros((rows.size, 1), np.int64)).targets)
        return targets[:, 0] if rows.ndim else targets[0, 0]

    def read(self, index: Any, views: Any = None) -> StoredRows:
        """Targets, crops and image sizes.

        Args:
            index: Int64 tensor or array `[B]` of data set indices.
            views: Views of each row, integers `[B, n]`: 0 is the whole image, 1 to `self.views` are crops; None for
                all.

        Returns:
            Numpy arrays, see `rela_lightning.targets.reader.StoredRows`.

        Raises:
            TargetError: If an index or view does not exist (an IndexError too), or a row is not what was written.
        """
        rows = self._checked(index).reshape(-1)
        chosen = np.arange(1 + self.views)[None].repeat(len(rows), 0) if views is None else np.asarray(views)
        if chosen.size and not (chosen.min() >= 0 and chosen.max() <= self.views):
            raise _RowError("There are no such views.", expected=f"0 to {self.views}", found=np.unique(chosen)[:10])
        return self._reader.read(rows, chosen)

    def _checked(self, index: Any) -> NDArray[Any]:
        """Indices as an array of 0 or 1 dimensions, all of them rows of this store."""
        rows = index.cpu().numpy() if isinstance(index, Tensor) else np.asarray(index)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        if rows.dtype.kind not in "iu" or rows.ndim > 1:
            raise _RowError(
                "Targets are read by data set index.",
                expected="an int64 tensor [B]",
                found=f"{rows.dtype} {list(rows.shape)}",
            )
        flat = rows.reshape(-1)
        outside = flat[(flat < 0) | (flat >= len(self))]
        if outside.size:
            raise _RowError(
                "There are no targets for these samples.",
                expected=f"indices 0 to {len(self) - 1}",
                found=outside[:10].tolist(),
                do="build targets for the data set you train on",
            )
        return rows

    def crops_of(self, image: Any, row: int) -> list[Crop]:
        """The whole image and the crops that belong to the targets of a row, to make them again from its image.

        Raises:
            DataError: If the image has another size than the labelled one.
        """
        kept = self.read([row])
        check_size(image, kept.sizes[0].tolist(), row)
        return [(top, left, height, width, mirrored) for top, left, height, width, mirrored in kept.crops[0].tolist()]

    def verify(self, dataset: Any, prior: Prior | None = None, num_samples: int = 16) -> None:
        """Check that these are the targets of a data set.

        The number of rows must agree, always. The order of all rows is compared where both data sets tell it
        (file names, labels, indices, images in memory), and the raw pixels of some rows where they can be read
        without the `transform`, whatever the class. What could not be compared is said in one warning, and in another
        what `build_targets(check_images=...)` had found. Of a stream the first samples must have targets.
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
        doubts = [f"{each['name']}: {each['found']} Hint: {each['do']}" for each in self.manifest.get("findings", [])]
        if doubts:
            doubts = [f"When these targets were made ({self.path}), something looked wrong. {' '.join(doubts)}"]
        for text in [unchecked, *doubts]:
            if text and not self._warned:
                warnings.warn(text, UserWarning, stacklevel=2)
        self._warned = self._warned or bool(unchecked or doubts)


class _RowError(TargetError, IndexError):
    """Also ends `for row in store`."""
