"""`rela probe`: how good are the features of a run, a checkpoint or a prior?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn

import rela_lightning.data.modules  # noqa: F401  # for the short names of --data
from rela_lightning.cli.images import has_no_labels, probe_images, say_other_view
from rela_lightning.devices import device_of
from rela_lightning.errors import check_positive
from rela_lightning.fingerprint.dataset import row_hashes, sampled_rows
from rela_lightning.probe import extract_features
from rela_lightning.probe.checks import labelled_rows
from rela_lightning.probe.extract import Precision
from rela_lightning.probe.protocol import Protocol, measure, without_labels
from rela_lightning.runs.measures import LABEL_FREE, in_percent
from rela_lightning.runs.read import find_checkpoint
from rela_lightning.runs.rebuild import Subject, find_subject
from rela_lightning.runs.record import data_facts
from rela_lightning.runs.report import versions
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
    cross_folds: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "32-true",
    untrained: bool = False,
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Measure frozen features by a linear classifier and by nearest neighbours.

    Prints a table and writes the result as JSON. In a run's folder that is `probe.json`, and `run.json` gets
    `linear_top1` and `knn_top1` too. What the run was not first probed by lies beside, and leaves both as they are:
    `probe-<data>-<hash>.json` for other data or another protocol, `probe-<checkpoint>.json` for an earlier checkpoint.
    No result takes the place of another unasked, only of the same, measured again.
    Classifiers learn from training images under the plain probe view and are measured on validation images. Of images
    without labels the spread of features is measured: effective rank, deviation and uniformity.

    Args:
        run: Folder of a run, a checkpoint in one, or a prior: `timm:<model>`, `checkpoint:<file>`, ... A run's folder
            is code: classes that its `config.yaml` names are imported and built. Probe those that you trust.
        data: Data module; null takes the run's own. A prior needs one, and sees its images through its
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
        cross_folds: Cut the training images into so many parts, and measure on each what was learnt from the others;
            means and standard deviations are reported. For data without validation images.
        seed: Seed of the order of rows (adam), of the draws and of the parts.
        seeds: Train so many linear classifiers, with one seed after the other; likewise.
        batch_size: Images in one forward of the backbone.
        num_workers: Processes that read images.
        device: Where the backbone runs; `auto` takes the accelerator if there is one.
        precision: Of its forward; the mixed ones are quicker on a GPU, and round the features.
        untrained: Probe the run's backbone as it was before training, as `probe-untrained.json` in its folder: what
            the run has gained shows beside it.
        out: Folder for `probe.json`, which then is all that is written; null takes the run's, or for a prior
            `probe-<prior>.json` in the current one.
        overwrite: Take this protocol for the run's own from now on; put this result in the place of another.

    Raises:
        ConfigError: If there is no such run, or a value is out of range.
        DataError: If there are no images, or labels without validation images.
        PriorError: If there is no such prior.
    """
    asked = Protocol(
        solver=solver, epochs=epochs, lr=lr, l2=l2, standardise=standardise, k=k, temperature=temperature,
        labels_per_class=labels_per_class, folds=folds, cross_folds=cross_folds, seed=seed, seeds=seeds,
    )  # fmt: skip
    asked.check()
    check_positive(batch_size=batch_size)
    device_of(device)
    subject = find_subject(run, backbone=backbone, prior_kwargs=prior_kwargs, untrained=untrained)
    other_data = data is not None and subject.data is not None and data_facts(data) != data_facts(subject.data)
    say_other_view(data, subject.data, "probed")
    data = data if data is not None else subject.data
    options: dict[str, Any] = {
        "batch_size": batch_size, "num_workers": num_workers, "device": device, "precision": precision,
    }  # fmt: skip
    found, protocol = _measured(asked, subject, data, options)
    no_training = {"seconds": 0.0, "labelling_seconds": 0.0, "steps": 0, "history": []}
    result = {
        "name": subject.name,
        **(no_training if subject.folder is None or not subject.trained else {"probed_steps": subject.steps}),
        **found,
        "protocol": protocol,
        "checkpoint": str(subject.checkpoint) if subject.checkpoint is not None else None,
        **({"prior_kwargs": prior_kwargs} if prior_kwargs and subject.folder is None else {}),
        "versions": versions(),
    }
    if out is not None:
        written = write_beside(result, Path(out), overwrite=overwrite)
    elif subject.folder is not None and not subject.trained:
        written = write_beside(result, subject.folder, "probe-untrained.json", overwrite=overwrite)
    elif subject.folder is None:
        written = write_beside(result, Path(), named_after(subject.name), overwrite=overwrite)
    else:
        checkpoint = subject.checkpoint
        last = checkpoint is None or find_checkpoint(subject.folder).samefile(checkpoint)
        earlier = None if last or checkpoint is None else checkpoint.stem
        written = write_of_run(result, subject.folder, earlier=earlier, other_data=other_data, overwrite=overwrite)
    _show(result, written)


def _measured(
    asked: Protocol, subject: Subject, data: Any, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is measured, and the protocol that a record keeps; without labels, how the features are spread."""
    train, test = probe_images(data, "train", subject), None
    unlabelled = has_no_labels(data)
    if not unlabelled and asked.cross_folds is None:
        test = probe_images(data, "val", subject)
    sets = [images for images in (train, test) if images is not None]
    about: dict[str, Any] = {"data": type(data).__name__, "images": _fingerprint(*sets)}
    about["image_size"] = getattr(data, "image_size", None)
    if options["precision"] != "32-true":
        about["precision"] = options["precision"]
    x, labels = extract_features(subject.network, train, progress="training images", **options)
    if unlabelled:
        rank_zero_warn("The images have no labels: the spread of their features is measured, and no accuracy.")
        return without_labels(x), {**about, "train_images": len(x), "features": x.shape[1]}
    known, held = labelled_rows(x, labels, "training"), None
    if test is not None:
        found = extract_features(subject.network, test, progress="validation images", **options)
        held = labelled_rows(*found, "validation")
    classes = int(getattr(data, "num_classes", None) or known.labels.max() + 1)
    about |= {"train_images": len(known.labels), "validation_images": len((held or known).labels)}
    about["features"] = x.shape[1]
    return measure(asked, known, held, classes), {**about, **asked.in_words(len(known.labels))}


def _fingerprint(*datasets: Any) -> str | None:
    """A short hash of some images of each data set, which tells data of one name and size apart.

    None for data that hand out no raw images, such as tensors that are normalised already.
    """
    try:
        hashes = [row_hashes(dataset, sampled_rows(len(dataset))) for dataset in datasets]
    except Exception:  # of the user's data set: it is probed without
        return None
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:12]


def _show(result: dict[str, Any], written: Written) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = [name for name in result if "_top" in name or name in LABEL_FREE]
    for heading in ("", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right" if heading else "left")
    spread = result.get("spread", {})
    shown = {name: {"mean": result[name], "std": spread[name]} if name in spread else result[name] for name in names}
    table.add_row(
        Text(result["name"]),
        *(f"{value:.4g}" if name in LABEL_FREE else in_percent(value) for name, value in shown.items()),
    )
    Console().print(table)
    if written.differences:
        Console(stderr=True, markup=False).print(
            f"{written.kept} is kept for a result that differs in {', '.join(written.differences)}; "
            "--overwrite true puts this one there.",
            style="dim", soft_wrap=True,
        )  # fmt: skip
    Console(markup=False).print(f"Result: {written.file}", soft_wrap=True)
