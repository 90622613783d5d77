"""`rela probe`: how good are the features of a run, a checkpoint or a prior?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.fingerprint.dataset import row_hashes, sampled_rows
from rela_lightning.probe import extract_features, knn_predict, linear_evaluation
from rela_lightning.probe.checks import labelled_rows
from rela_lightning.runs.names import RECORD
from rela_lightning.runs.read import find_checkpoint, read_run
from rela_lightning.runs.rebuild import Subject, find_subject
from rela_lightning.runs.record import write_record
from rela_lightning.runs.report import versions

PROBED = "probe.json"


def probe(
    run: str,
    *,
    data: LightningDataModule | None = None,
    backbone: str = "auto",
    prior_kwargs: dict[str, Any] | None = None,
    solver: Literal["adam", "lbfgs"] = "adam",
    epochs: int = 100,
    lr: float = 3e-4,
    l2: float = 1.0,
    standardise: bool = True,
    k: int = 20,
    temperature: float = 0.07,
    seed: int = 0,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    out: str | None = None,
) -> None:
    """Measure frozen features by a linear classifier and by nearest neighbours.

    Prints a table and writes `probe.json`. In a run's folder `run.json` gets `linear_top1` and `knn_top1` too, for its
    last checkpoint; of an earlier one, `probe-<checkpoint>.json` holds them, as its steps and seconds are others.
    Classifiers learn from training images under the plain probe view and are measured on validation images.

    Args:
        run: Folder of a run, a checkpoint in one, or a prior: `timm:<model>`, `checkpoint:<file>`, ... A run's folder
            is code: classes that its `config.yaml` names are imported and built. Probe those that you trust.
        data: Data module with labels; null takes the run's own. A prior needs one, and sees its images through its
            own preprocessing.
        backbone: Dotted path of the network in the run's module; `auto` tries the usual names.
        prior_kwargs: Options of `load_prior`, for a prior.
        solver: `adam`: the linear evaluation of the authors' code of arXiv 2405.14669. `lbfgs`: logistic regression
            solved to its optimum, for small data.
        epochs: Passes over the features (adam).
        lr: Learning rate (adam).
        l2: Penalty beside the summed cross-entropy (lbfgs).
        standardise: Bring each dimension to mean 0 and standard deviation 1 first, so that the scale of features does
            not matter; the authors do not.
        k: Neighbours; fewer where there are not so many training images.
        temperature: Of the neighbours' votes `exp(cosine / temperature)`.
        seed: Seed of the order of rows (adam).
        batch_size: Images in one forward of the backbone.
        num_workers: Processes that read images.
        device: Where the backbone runs; `auto` takes the accelerator if there is one.
        out: Folder for `probe.json`; null takes the run's, or the current one for a prior.

    Raises:
        ConfigError: If there is no such run, or a value is out of range.
        DataError: If there are no labelled images.
        PriorError: If there is no such prior.
    """
    _check_options(
        {"epochs": epochs, "lr": lr, "l2": l2, "k": k, "temperature": temperature, "batch_size": batch_size}, device
    )
    subject = find_subject(run, backbone=backbone, prior_kwargs=prior_kwargs)
    data = data if data is not None else subject.data
    train, validation = (_images(data, split, subject) for split in ("train", "val"))
    images = _fingerprint(train, validation)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "device": device}
    x, labels = labelled_rows(
        *extract_features(subject.network, train, progress="training images", **options), "training"
    )
    test_x, test_labels = labelled_rows(
        *extract_features(subject.network, validation, progress="validation images", **options), "validation"
    )
    classes = int(getattr(data, "num_classes", None) or labels.max() + 1)
    linear = linear_evaluation(
        x, labels, test_x, test_labels,
        num_classes=classes, solver=solver, epochs=epochs, lr=lr, l2=l2, standardise=standardise, seed=seed,
    )  # fmt: skip
    near = min(k, len(x))
    voted = knn_predict(x, labels, test_x, k=near, temperature=temperature, num_classes=classes)
    found = {f"linear_{name}": value for name, value in linear.items()}
    found["knn_top1"] = float((voted == test_labels).double().mean())
    settings = {"epochs": epochs, "lr": lr, "seed": seed} if solver == "adam" else {"l2": l2}
    result = {
        "name": subject.name,
        **found,
        "protocol": {
            "data": type(data).__name__,
            "images": images,
            "image_size": getattr(data, "image_size", None),
            "train_images": len(x),
            "validation_images": len(test_x),
            "features": x.shape[1],
            "linear": {"solver": solver, "standardise": standardise, **settings},
            "knn": {"k": near, "temperature": temperature},
        },
        "checkpoint": str(subject.checkpoint) if subject.checkpoint is not None else None,
        "versions": versions(),
    }
    _write(result, subject, Path(out) if out is not None else subject.folder or Path())
    _show(result)


def _check_options(positive: dict[str, float], device: str) -> None:
    """Refuse what cannot work before features are computed."""
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"`{name}` is out of range.", expected="a number above 0", found=value)
    try:
        _ = device == "auto" or torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "There is no such device.", expected="auto, cpu, cuda, cuda:1, mps, ...", found=f"{device} ({error})"[:200]
        ) from error


def _images(data: Any, split: Literal["train", "val"], subject: Subject) -> Any:
    if data is None:
        raise ConfigError(
            "There are no images to probe on.",
            expected="a data module with labels",
            found="none in the run's config" if subject.folder is not None else "a prior alone",
            do="pass for example --data CIFAR10Data --data.root DIR",
        )
    if not callable(getattr(data, "dataset", None)):
        raise DataError(
            f"{type(data).__name__} does not give images under a probe view.",
            expected='a data module with `dataset(split, "probe")`, as those of rela_lightning.data',
            do="pass one by --data",
        )
    if split == "train":
        data.prepare_data()
    images = data.dataset(split, "probe")
    if subject.preprocess is not None:
        images.transform = subject.preprocess
    return images


def _fingerprint(*datasets: Any) -> str | None:
    """A short hash of some images of each data set, which tells data of one name and size apart.

    None for data that hand out no raw images, such as tensors that are normalised already.
    """
    try:
        hashes = [row_hashes(dataset, sampled_rows(len(dataset))) for dataset in datasets]
    except Exception:  # of the user's data set: it is probed without
        return None
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]


def _write(result: dict[str, Any], subject: Subject, folder: Path) -> None:
    whole = subject.folder is None or subject.checkpoint is None or _same(subject.checkpoint, subject.folder)
    name = PROBED if whole else f"{Path(PROBED).stem}-{subject.checkpoint.stem}.json"  # type: ignore[union-attr]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if not whole or subject.folder is None or not (subject.folder / RECORD).is_file():
        return
    record = read_run(subject.folder)
    scores = {name: result[name] for name in ("linear_top1", "knn_top1")}
    write_record(subject.folder, {**record, **scores, "protocol": result["protocol"]})


def _same(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is a run's last."""
    return find_checkpoint(folder).samefile(checkpoint)


def _show(result: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = [name for name in result if "_top" in name]
    for heading in ("", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(result["name"], *(f"{100 * result[name]:.1f}" for name in names))
    Console().print(table)
