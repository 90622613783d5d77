"""One way of probing frozen features, once or over several seeds and folds; and what is measured without labels."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rela_lightning.diagnostics.spread import effective_rank, feature_deviation, uniformity
from rela_lightning.errors import ConfigError, check_positive
from rela_lightning.probe.checks import Labelled, finite_features
from rela_lightning.probe.knn import knn_predict
from rela_lightning.probe.offline import Solver, few_label_evaluation, linear_evaluation

_MOST_PAIRED = 10_000  # rows whose distances to each other are taken


@dataclass(frozen=True)
class Protocol:
    """How features are probed; the options of `rela probe`.

    Args:
        solver: `adam` or `lbfgs`, see `linear_evaluation`.
        epochs: Passes over the features (adam).
        lr: Learning rate (adam).
        l2: Penalty (lbfgs, and few labels).
        standardise: Bring each dimension to mean 0 and standard deviation 1.
        k: Neighbours.
        temperature: Of their votes.
        labels_per_class: Measure with so few labels too; None for all alone.
        folds: Draws of few labels.
        cross_folds: Parts of a cross-validation on the training images; None for the validation images.
        seed: Of the first classifier, of the draws and of the parts.
        seeds: Classifiers, with one seed after the other.
    """

    solver: Solver = "adam"
    epochs: int = 100
    lr: float = 3e-4
    l2: float = 1.0
    standardise: bool = True
    k: int = 20
    temperature: float = 0.07
    labels_per_class: int | None = None
    folds: int = 5
    cross_folds: int | None = None
    seed: int = 0
    seeds: int = 1

    def check(self) -> None:
        """Refuse what cannot work, before features are computed.

        Raises:
            ConfigError: Naming the option.
        """
        check_positive(epochs=self.epochs, lr=self.lr, l2=self.l2, k=self.k, temperature=self.temperature)
        check_positive(labels_per_class=self.labels_per_class, folds=self.folds, seeds=self.seeds)
        if self.cross_folds is not None and not self.cross_folds > 1:
            raise ConfigError("`cross_folds` is out of range.", expected="a number above 1", found=self.cross_folds)
        if self.cross_folds is not None and self.labels_per_class is not None:
            raise ConfigError(
                "Few labels are measured on validation images, a cross-validation has none.",
                expected="labels_per_class or cross_folds",
                found="both",
            )

    def in_words(self, rows: int) -> dict[str, Any]:
        """What a record keeps of it, for so many training rows."""
        learnt = {"epochs": self.epochs, "lr": self.lr, "seed": self.seed}
        settings = learnt if self.solver == "adam" else {"l2": self.l2}
        said: dict[str, Any] = {
            "linear": {"solver": self.solver, "standardise": self.standardise, **settings},
            "knn": {"k": min(self.k, rows), "temperature": self.temperature},
        }
        if self.seeds > 1:
            said["seeds"] = self.seeds
        if self.cross_folds is not None:
            said["cross_folds"] = {"folds": self.cross_folds, "seed": self.seed}
        if self.labels_per_class is not None:
            few = {"labels_per_class": self.labels_per_class, "folds": self.folds, "l2": self.l2, "seed": self.seed}
            said["few_labels"] = few
        return said


def measure(asked: Protocol, train: Labelled, test: Labelled | None, classes: int) -> dict[str, Any]:
    """Accuracies by a protocol, means where it repeats.

    Args:
        asked: The protocol.
        train: Rows to learn from.
        test: Rows to measure on; None with `cross_folds`, which takes parts of `train`.
        classes: Number of classes.

    Returns:
        `linear_top1`, above five classes `linear_top5`, `knn_top1`, all in `[0, 1]`; `spread`, the standard deviation
        of each over seeds and folds, where there are several; `few_label_top1` as `{"mean", "std"}`, where asked for.
    """
    pairs = [(train, test)] if test is not None else list(cross_pairs(train, asked.cross_folds or 0, asked.seed))
    seeds = range(asked.seed, asked.seed + asked.seeds)
    found = [_once(asked, *pair, classes, seed) for pair in pairs for seed in seeds]
    result: dict[str, Any] = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
    if len(found) > 1:
        result["spread"] = {name: statistics.stdev(one[name] for one in found) for name in found[0]}
    if asked.labels_per_class is not None and test is not None:
        few = few_label_evaluation(
            *train, *test,
            labels_per_class=asked.labels_per_class, folds=asked.folds, num_classes=classes, l2=asked.l2,
            standardise=asked.standardise, seed=asked.seed,
        )  # fmt: skip
        result["few_label_top1"] = {"mean": few["top1_mean"], "std": few["top1_std"]}
    return result


def _once(asked: Protocol, train: Labelled, test: Labelled, classes: int, seed: int) -> dict[str, float]:
    linear = linear_evaluation(
        *train, *test,
        num_classes=classes, solver=asked.solver, epochs=asked.epochs, lr=asked.lr, l2=asked.l2,
        standardise=asked.standardise, seed=seed,
    )  # fmt: skip
    near = min(asked.k, len(train.features))
    voted = knn_predict(*train, test.features, k=near, temperature=asked.temperature, num_classes=classes)
    found = {f"linear_{name}": value for name, value in linear.items()}
    return {**found, "knn_top1": float((voted == test.labels).double().mean())}


def cross_pairs(rows: Labelled, folds: int, seed: int) -> Iterator[tuple[Labelled, Labelled]]:
    """Each part of the rows in turn to measure on, the others to learn from; every class spread over all parts.

    Args:
        rows: All rows.
        folds: Parts, from 2 to the rows of the smallest class.
        seed: Of the parts.

    Raises:
        ConfigError: If a class has fewer rows than there are parts.
    """
    counts = torch.bincount(rows.labels)
    smallest = int(counts[counts > 0].min())
    if not 2 <= folds <= smallest:
        raise ConfigError(
            "The rows cannot be cut into so many parts.",
            expected=f"2 to {smallest} parts, the rows of the smallest class",
            found=folds,
        )
    order = torch.randperm(len(rows.labels), generator=torch.Generator().manual_seed(seed))
    order = order[rows.labels.cpu()[order].argsort(stable=True)]
    part = torch.empty(len(order), dtype=torch.long)
    part[order] = torch.arange(len(order)) % folds  # class after class: each is dealt out evenly
    for held in range(folds):
        out = (part == held).to(rows.labels.device)
        yield Labelled(rows.features[~out], rows.labels[~out]), Labelled(rows.features[out], rows.labels[out])


def without_labels(features: Tensor) -> dict[str, float]:
    """How features are spread, where there are no labels to measure them by.

    Args:
        features: `[N, F]`.

    Returns:
        `effective_rank`, `feature_deviation` and `uniformity` of `rela_lightning.diagnostics`; the last of 10,000 rows,
        evenly spaced, at most.
    """
    rows = finite_features(features, "training")
    some = rows[:: -(-len(rows) // _MOST_PAIRED)]
    return {
        "effective_rank": effective_rank(rows),
        "feature_deviation": feature_deviation(rows),
        "uniformity": uniformity(some),
    }
