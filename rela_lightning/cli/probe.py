"""`rela probe`: how good are the features of a run, a checkpoint or a prior?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.fingerprint.dataset import row_hashes, sampled_rows
from rela_lightning.probe import extract_features, few_label_evaluation, knn_predict, linear_evaluation
from rela_lightning.probe.checks import labelled_rows
from rela_lightning.runs.read import find_checkpoint
from rela_lightning.runs.rebuild import Subject, find_subject
from rela_lightning.runs.record import data_facts
from rela_lightning.runs.report import in_percent, versions
from rela_lightning.runs.scores import Written, named_after, write_beside, write_of_run


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
    labels_per_class: int | None = None,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Measure frozen features by a linear classifier and by nearest neighbours.

    Prints a table and writes the result as JSON. In a run's folder that is `probe.json`, and `run.json` gets
    `linear_top1` and `knn_top1` too. What the run was not first probed by lies beside, and leaves both as they are:
    `probe-<data>-<hash>.json` for other data or another protocol, `probe-<checkpoint>.json` for an earlier checkpoint.
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
        labels_per_class: Measure with so few labels of each class too: a linear classifier (lbfgs), mean and standard
            deviation over `folds` draws.
        folds: Draws of few labels.
        seed: Seed of the order of rows (adam), and of the draws.
        batch_size: Images in one forward of the backbone.
        num_workers: Processes that read images.
        device: Where the backbone runs; `auto` takes the accelerator if there is one.
        out: Folder for `probe.json`, which then is all that is written; null takes the run's, or for a prior
            `probe-<prior>.json` in the current one.
        overwrite: Take this protocol for the run's own from now on.

    Raises:
        ConfigError: If there is no such run, or a value is out of range.
        DataError: If there are no labelled images.
        PriorError: If there is no such prior.
    """
    positive = {"epochs": epochs, "lr": lr, "l2": l2, "k": k, "temperature": temperature, "batch_size": batch_size}
    positive |= {"folds": folds, "labels_per_class": 1 if labels_per_class is None else labels_per_class}
    check_options(positive, device)
    subject = find_subject(run, backbone=backbone, prior_kwargs=prior_kwargs)
    other_data = data is not None and subject.data is not None and data_facts(data) != data_facts(subject.data)
    if data is not None:
        _say_other_size(data, subject)
    data = data if data is not None else subject.data
    train, validation = (images_of(data, split, subject) for split in ("train", "val"))
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
    found: dict[str, Any] = {f"linear_{name}": value for name, value in linear.items()}
    found["knn_top1"] = float((voted == test_labels).double().mean())
    asked: dict[str, Any] = {}
    if labels_per_class is not None:
        asked = {"few_labels": {"labels_per_class": labels_per_class, "folds": folds, "l2": l2, "seed": seed}}
        few = few_label_evaluation(
            x, labels, test_x, test_labels,
            labels_per_class=labels_per_class, folds=folds, num_classes=classes, l2=l2, standardise=standardise,
            seed=seed,
        )  # fmt: skip
        found["few_label_top1"] = {"mean": few["top1_mean"], "std": few["top1_std"]}
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
            **asked,
        },
        "checkpoint": str(subject.checkpoint) if subject.checkpoint is not None else None,
        "versions": versions(),
    }
    if out is not None:
        written = write_beside(result, Path(out))
    elif subject.folder is None:
        written = write_beside(result, Path(), named_after(subject.name))
    else:
        checkpoint = subject.checkpoint
        last = checkpoint is None or find_checkpoint(subject.folder).samefile(checkpoint)
        earlier = None if last or checkpoint is None else checkpoint.stem
        written = write_of_run(result, subject.folder, earlier=earlier, other_data=other_data, overwrite=overwrite)
    _show(result, written)


def check_options(positive: dict[str, float], device: str) -> None:
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


def images_of(data: Any, split: Literal["train", "val"], subject: Subject) -> Any:
    """A data module's images under the probe view, or a prior's own preprocessing.

    Raises:
        ConfigError: If there is no data module.
        DataError: If it gives no images under a probe view.
    """
    if data is None:
        raise ConfigError(
            "There are no images.",
            expected="a data module",
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


def _say_other_size(data: Any, subject: Subject) -> None:
    """Say so where the images are of another size than those the run was trained on."""
    given, own = (getattr(one, "image_size", None) for one in (data, subject.data))
    if None not in (given, own) and given != own:
        rank_zero_warn(
            f"The run was trained at {own} px, and is probed at {given} px; --data.image_size {own} keeps its size."
        )


def _show(result: dict[str, Any], written: Written) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = [name for name in result if "_top" in name]
    for heading in ("", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row(result["name"], *(in_percent(result[name]) for name in names))
    Console().print(table)
    if written.differences:
        Console(stderr=True).print(
            f"The run's own result, of another protocol ({', '.join(written.differences)}), is left as it is; "
            "--overwrite true puts this one in its place.",
            style="dim", soft_wrap=True,
        )  # fmt: skip
    Console().print(f"Result: {written.file}", soft_wrap=True)
