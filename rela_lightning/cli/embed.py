"""`rela embed`: features of images with their file names, to use elsewhere."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.cli.images import probe_images, say_other_view
from rela_lightning.devices import device_of
from rela_lightning.errors import ConfigError, check_positive
from rela_lightning.files import check_free, write_whole
from rela_lightning.fingerprint.order import names_of
from rela_lightning.probe import extract_features
from rela_lightning.probe.extract import Precision
from rela_lightning.runs.rebuild import find_subject

ENDINGS = (".npy", ".parquet")


def embed(
    run: str,
    path: str,
    *,
    data: LightningDataModule | None = None,
    split: Literal["train", "val"] = "train",
    backbone: str = "auto",
    prior_kwargs: dict[str, Any] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "32-true",
    overwrite: bool = False,
) -> None:
    """Write the features of a data set's images, under the plain probe view, in the order of the data set.

    `features.npy` holds float32 `[N, F]`, and `features.csv` beside it row, file and label (-1 without); names of files
    are paths below the deepest folder that holds them all, and empty where the data set tells none.
    `features.parquet` holds all of it in one table, and needs pyarrow (the extra `parquet`).

    Args:
        run: Folder of a run, a checkpoint in one, or a prior: `timm:<model>`, `checkpoint:<file>`, ... A run's folder
            is code: classes that its `config.yaml` names are imported and built. Embed with those that you trust.
        path: File to write, `.npy` or `.parquet`.
        data: Data module, with or without labels; null takes the run's own. A prior needs one, and sees its images
            through its own preprocessing.
        split: Which of its images.
        backbone: Dotted path of the network in the run's module; `auto` tries the usual names.
        prior_kwargs: Options of `load_prior`, for a prior.
        batch_size: Images in one forward of the backbone.
        num_workers: Processes that read images.
        device: Where the backbone runs; `auto` takes the accelerator if there is one.
        precision: Of its forward; the mixed ones are quicker on a GPU, and round the features.
        overwrite: Replace what is at `path`.

    Raises:
        ConfigError: If there is no such run, the file's ending is another, or something is at `path`.
        DataError: If there are no such images.
        PriorError: If there is no such prior.
    """
    out = Path(path).expanduser()
    if out.suffix not in ENDINGS:
        raise ConfigError(
            "The file's ending names no format for features.", expected=" or ".join(ENDINGS), found=out.name
        )
    check_positive(batch_size=batch_size)
    device_of(device)
    table = out.with_suffix(".csv")
    check_free([out, table] if out.suffix == ".npy" else [out], overwrite=overwrite)
    if out.suffix == ".parquet":
        import pyarrow  # noqa: F401  # missing packages are told before any work
    subject = find_subject(run, backbone=backbone, prior_kwargs=prior_kwargs)
    say_other_view(data, subject.data, "embedded")
    images = probe_images(data if data is not None else subject.data, split, subject)
    found, labels = extract_features(
        subject.network, images,
        progress="images", batch_size=batch_size, num_workers=num_workers, device=device, precision=precision,
    )  # fmt: skip
    names = names_of(images) or [""] * len(found)
    features, numbers = found.numpy(), labels.tolist()
    if out.suffix == ".npy":
        write_whole(out, lambda file: np.save(file, features))
        write_whole(table, lambda file: _write_table(file, names, numbers))
        written = f"{out}, {table}"
    else:
        write_whole(out, lambda file: _write_parquet(file, features, names, numbers))
        written = str(out)
    sys.stdout.write(f"{len(features):,} images, {features.shape[1]} features each: {written}\n")


def _write_table(file: Path, names: Sequence[str], labels: Sequence[int]) -> None:
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as to:
        rows = csv.writer(to)
        rows.writerow(["row", "file", "label"])
        rows.writerows(zip(range(len(names)), names, labels, strict=True))


def _write_parquet(file: Path, features: NDArray[np.float32], names: Sequence[str], labels: Sequence[int]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    columns = {"row": pa.array(range(len(names)), pa.int64()), "file": pa.array(names), "label": pa.array(labels)}
    parquet.write_table(pa.table({**columns, "features": vectors}), file)
