"""Linear evaluation on features that are already there: plain tensors, no Trainer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.errors import ConfigError
from rela_lightning.probe.accuracy import accuracies, topk_counts, topk_names
from rela_lightning.probe.checks import check_widths, labelled_rows
from rela_lightning.probe.solvers import fit_adam, fit_logistic

Solver = Literal["adam", "lbfgs"]
SOLVERS: tuple[str, ...] = ("adam", "lbfgs")


def linear_evaluation(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int | None = None,
    solver: Solver = "adam",
    epochs: int = 100,
    lr: float = 3e-4,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    l2: float = 1.0,
    standardise: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Accuracy of a linear classifier on frozen features. The same arguments give the same numbers.

    `solver="adam"` is the authors' protocol of arXiv 2405.14669. `solver="lbfgs"` solves the convex problem
    exactly: nothing to tune but `l2`, fixed beforehand, and quick on small data. Nothing is chosen by looking
    at the test set.

    Args:
        train_features: `[N, F]`, a tensor or numpy array, as all four.
        train_labels: Integer `[N]` below C; rows with a negative label are left out.
        test_features: `[M, F]`.
        test_labels: Integer `[M]`; likewise.
        num_classes: Number of classes C; None takes the highest label plus one.
        solver: `adam` or `lbfgs`.
        epochs: Passes over the features (adam).
        lr: Learning rate (adam).
        weight_decay: Weight decay (adam).
        batch_size: Rows per step (adam).
        l2: Penalty `l2 / 2 ||W||²` beside the summed cross-entropy (lbfgs); scikit-learn's `1 / C`.
        standardise: Whether to bring each dimension to mean 0 and standard deviation 1, by the training
            features' statistics.
        seed: Seed of the order of rows (adam).

    Returns:
        `top1` and, above five classes, `top5`, in `[0, 1]`.

    Raises:
        ConfigError: For an unknown solver or values out of range.
        DataError: If features and labels do not pair up, features are not finite, or a label is out of range.

    Example:
        >>> import torch
        >>> labels = torch.arange(60) % 3
        >>> features = torch.eye(3)[labels] + 0.1 * torch.rand(60, 3)
        >>> scores = linear_evaluation(features, labels, features, labels, solver="lbfgs")
        >>> scores["top1"]
        1.0
    """
    if solver not in SOLVERS:
        raise ConfigError("Unknown solver.", expected="one of the names below", found=solver, exists=SOLVERS)
    if epochs < 1 or batch_size < 1 or l2 <= 0:
        raise ConfigError(
            "The probe's settings cannot work.",
            expected="epochs >= 1, batch_size >= 1, l2 > 0",
            found=f"epochs={epochs}, batch_size={batch_size}, l2={l2}",
        )
    train, train_labels = labelled_rows(train_features, train_labels, "training", num_classes)
    test, test_labels = labelled_rows(test_features, test_labels, "test", num_classes)
    check_widths(train, test, ("training", "test"))
    classes = num_classes or int(max(train_labels.max(), test_labels.max())) + 1
    if standardise:
        mean, scale = _statistics(train)
        train, test = (train - mean) / scale, (test - mean) / scale
    if solver == "lbfgs":
        weight, bias = fit_logistic(train, train_labels, classes, l2=l2)
    else:
        weight, bias = fit_adam(
            train, train_labels, classes,
            epochs=epochs, lr=lr, weight_decay=weight_decay, batch_size=batch_size, seed=seed,
        )  # fmt: skip
    names = topk_names(classes, "")
    scores = F.linear(test.to(weight.dtype), weight, bias)
    counts = topk_counts(scores, test_labels.to(scores.device), tuple(names.values()))
    return dict(zip(names, accuracies(counts), strict=True))


def few_label_evaluation(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    labels_per_class: int = 10,
    folds: int = 5,
    num_classes: int | None = None,
    solver: Solver = "lbfgs",
    l2: float = 1.0,
    standardise: bool = True,
    seed: int = 0,
) -> dict[str, float | list[float]]:
    """Accuracy with only a few labels per class, over several fixed draws of them.

    Fold f labels `labels_per_class` random training rows of each class; the draw depends on `seed` and f only,
    so that two backbones are compared on the same rows. Standardisation uses all training features (no
    labels).

    Args:
        features: Training features `[N, F]`.
        labels: Integer `[N]` below C; rows with a negative label are left out, here and in `test_labels`.
        test_features: `[M, F]`.
        test_labels: Integer `[M]`.
        labels_per_class: Labelled rows per class.
        folds: Number of draws.
        num_classes: Number of classes C; None takes the highest label plus one.
        solver: `lbfgs` or `adam`, as in `linear_evaluation`.
        l2: Penalty of `lbfgs`.
        standardise: Whether to bring each dimension to mean 0 and standard deviation 1.
        seed: Seed of the draws.

    Returns:
        `top1_mean`, `top1_std` (over folds, n - 1; 0 for one fold) and `top1_folds`, in `[0, 1]`.

    Raises:
        ConfigError: If a class has fewer rows than `labels_per_class`, or `folds` is below 1.
        DataError: As `linear_evaluation`.

    Example:
        >>> import torch
        >>> labels = torch.arange(4).repeat(10)
        >>> features = torch.eye(4)[labels]
        >>> few_label_evaluation(features, labels, features, labels, labels_per_class=2)["top1_mean"]
        1.0
    """
    features, labels = labelled_rows(features, labels, "training", num_classes)
    test_features, test_labels = labelled_rows(test_features, test_labels, "test", num_classes)
    check_widths(features, test_features, ("training", "test"))
    classes = num_classes or int(max(labels.max(), test_labels.max())) + 1
    smallest = int(torch.bincount(labels, minlength=classes).min())
    if folds < 1 or not 1 <= labels_per_class <= smallest:
        raise ConfigError(
            "So few labels cannot be drawn.",
            expected=f"folds >= 1 and 1 <= labels_per_class <= {smallest}, the rows of the smallest class",
            found=f"folds={folds}, labels_per_class={labels_per_class}",
        )
    mean, scale = _statistics(features) if standardise else (0.0, 1.0)
    train, test = (features - mean) / scale, (test_features - mean) / scale
    top1 = []
    for fold in range(folds):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + fold)
        order = torch.randperm(len(labels), generator=generator)
        rows = torch.cat([order[labels.cpu()[order] == c][:labels_per_class] for c in range(classes)])
        rows = rows.to(labels.device)
        result = linear_evaluation(
            train[rows], labels[rows], test, test_labels, num_classes=classes, solver=solver, l2=l2, seed=fold
        )
        top1.append(result["top1"])
    over_folds = torch.tensor(top1, dtype=torch.float64)
    std = over_folds.std().item() if folds > 1 else 0.0
    return {"top1_mean": over_folds.mean().item(), "top1_std": std, "top1_folds": top1}


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per dimension `[F]`; a constant dimension gets scale 1."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, torch.ones_like(std))
