"""`rela similarity`: how similar what runs, checkpoints and priors see is, each to each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.cli.images import has_no_labels, probe_images
from rela_lightning.data.swap import with_transform
from rela_lightning.devices import device_of
from rela_lightning.diagnostics.similarity_map import Measure, draw_map, similarity_map
from rela_lightning.errors import ConfigError, check_positive
from rela_lightning.files import check_free, write_json
from rela_lightning.fingerprint.dataset import sampled_rows
from rela_lightning.naming import distinct
from rela_lightning.networks.run import probe_preprocess
from rela_lightning.probe import extract_features
from rela_lightning.runs.names import SIMILARITY
from rela_lightning.runs.rebuild import Subject, find_subject

LEAST_IMAGES = 4  # as debiased CKA needs


def similarity(
    models: list[str],
    *,
    data: LightningDataModule | None = None,
    num_samples: int = 1000,
    measure: Measure = "transport",
    backbone: str = "auto",
    prior_kwargs: dict[str, Any] | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    out: str = "similarity",
    overwrite: bool = False,
) -> None:
    """Compare what models see in the same images: prints a matrix, writes `similarity.json` and `similarity.png`.

    Priors, students and the epochs of a run side by side: how well a linear map takes the features of the row to those
    of the column, on images that it was not fitted to (the paper's Figure 4a). Each model sees the images through its
    own preprocessing; no label is read.

    Args:
        models: Two or more: folders of runs, checkpoints in them (`runs/byol/checkpoints/epoch=3.ckpt`), or priors
            (`timm:<model>`, ...). A run's folder is code: classes that its `config.yaml` names are imported and built.
        data: Data module whose images are compared by: those of validation, or of training where there are none; null
            takes the data of the first run.
        num_samples: Images, evenly spaced, at least 4; many more than features make good maps.
        measure: `transport`, which is directed, or `cka` or `mutual_knn`, which are not.
        backbone: Dotted path of the network in a run's module; `auto` tries the usual names.
        prior_kwargs: Options of `load_prior`, for each of the priors.
        batch_size: Images in one forward.
        num_workers: Processes that read images.
        device: Where the models run; `auto` takes the accelerator if there is one.
        out: Folder to write.
        overwrite: Replace the files in that folder.

    Raises:
        ConfigError: If there are fewer than two models, one is no run, or there are files already.
        DataError: If there are no such images.
        PriorError: If there is no such prior.
    """
    check_positive(batch_size=batch_size, num_samples=num_samples)
    device_of(device)
    if num_samples < LEAST_IMAGES:
        raise ConfigError("`num_samples` is out of range.", expected=f"at least {LEAST_IMAGES}", found=num_samples)
    files = [Path(out).expanduser() / name for name in SIMILARITY]
    check_free(files, overwrite=overwrite)
    if len(models) < 2:
        raise ConfigError("A comparison needs models.", expected="two or more", found=", ".join(models) or "none")
    subjects = [_found(model, backbone, prior_kwargs) for model in models]
    own = next((subject.data for subject in subjects if subject.data is not None), None)
    images = data if data is not None else own
    features = {}
    for name, subject in zip(distinct([subject.name for subject in subjects]), subjects, strict=True):
        seen = _sample(images, subject, num_samples)
        features[name], _ = extract_features(
            subject.network, seen, progress=name, batch_size=batch_size, num_workers=num_workers, device=device
        )
    found = similarity_map(features, measure=measure)
    names = list(features)
    content = {"measure": measure, "images": len(seen), "names": names, "similarity": found.round(4).tolist()}
    write_json(files[0], content)
    drawn = draw_map(found, names, files[1], measure=measure)
    _show(names, found)
    sys.stdout.write(f"Result: {files[1] if drawn else files[0]}\n")


def _found(model: str, backbone: str, prior_kwargs: dict[str, Any] | None) -> Subject:
    """What a name stands for, with a name that tells the checkpoints of a run apart."""
    subject = find_subject(model, backbone=backbone, prior_kwargs=prior_kwargs)
    if subject.checkpoint is not None and Path(model).expanduser().is_file():
        return subject._replace(name=f"{subject.name} {subject.checkpoint.stem}")
    return subject


def _sample(data: Any, subject: Subject, count: int) -> Any:
    """Evenly spaced images under the view that a model takes."""
    from torch.utils.data import Subset

    split: Any = "train" if has_no_labels(data) else "val"
    images = probe_images(data, split, subject)
    own = None if subject.preprocess is not None else probe_preprocess(subject.data)
    if own is not None:  # of the run's own size and normalisation
        images = with_transform(images, own)
    return Subset(images, sampled_rows(len(images), count))


def _show(names: list[str], found: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("from, down; to, across")
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right")
    for number, (name, row) in enumerate(zip(names, found, strict=True), 1):
        table.add_row(Text(f"{number} {name}"), *(f"{value:.2f}" for value in row))
    Console().print(table)
