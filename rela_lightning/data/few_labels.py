"""A training set with a few labelled images of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from rela_lightning.errors import DataError


class FewLabels(Subset[Any]):
    """As many images of each class, drawn once, in the order of the data set; images without a label are left out.

    Args:
        dataset: Map-style, `(image, label)`; must tell its labels without opening images.
        labels_per_class: Images of each class.
        seed: Seed of the draw; a class's draw does not depend on the other classes.

    Attributes:
        classes: Names of the classes, as the data set has them; None where it has none.
        targets: Labels of its rows.

    Raises:
        DataError: If the labels are not told, or a class has fewer images.
    """

    def __init__(self, dataset: Any, labels_per_class: int, seed: int = 0) -> None:
        from rela_lightning.fingerprint.order import labels_of  # which reads images as this folder gives them

        told = labels_of(dataset)
        labels = np.asarray(told if told is not None else [], np.int64)
        counts = np.bincount(labels[labels >= 0])
        if not len(counts):
            raise DataError(
                "Few labels cannot be drawn where there are none.",
                expected="a data set that tells its labels without opening images (`targets`, `labels`, `samples`)",
                found=type(dataset).__name__,
                do="leave labels_per_class out, and hand over a Subset of your own",
            )
        smallest = int(counts.min())
        if smallest < labels_per_class:
            raise DataError(
                "A class has too few images for so many labels.",
                expected=f"labels_per_class <= {smallest}, the images of class {int(counts.argmin())}",
                found=labels_per_class,
            )
        chosen = []
        for label in range(len(counts)):
            rows = np.flatnonzero(labels == label)
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1_000_003 * seed + label))
            chosen.append(rows[order[:labels_per_class].numpy()])
        super().__init__(dataset, np.sort(np.concatenate(chosen)).tolist())
        self.classes: list[str] | None = getattr(dataset, "classes", None)
        self.targets: list[int] = labels[self.indices].tolist()
