"""Whether targets belong to a data set and a prior: refuse what differs, say what could not be checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import default_collate

from rela_lightning.errors import DataError, TargetError
from rela_lightning.fingerprint.dataset import dataset_type, row_hashes, sampled_rows
from rela_lightning.priors.base import Prior
from rela_lightning.targets.images import LabelView, embed, has_transform
from rela_lightning.targets.rng import preserved_rng

if TYPE_CHECKING:
    from rela_lightning.targets.store import TargetStore

MIN_COSINE = 0.95
"""Least cosine between a stored row and the same image embedded again, both in the space of the
principal components: mixed precision stays above .99, other images fall far below."""
_UNREADABLE = "its images cannot be read as they were before augmentation."


def verify(store: TargetStore, dataset: Any, prior: Prior | None, num_samples: int) -> str:
    """See `TargetStore.verify`.

    Returns:
        One line on what could not be checked, or an empty text.
    """
    _verify_length(store, dataset)
    if prior is not None and prior.identity != store.prior_identity:
        raise TargetError(
            "These targets were made by another prior.",
            expected=f"{store.manifest['prior']}, {store.prior_identity}",
            found=f"{prior.name}, {prior.identity}",
            do="load that prior with the same preprocessing, or build the targets again",
        )
    if num_samples < 1:
        return ""
    with preserved_rng():
        problem = _verify_pixels(store, dataset, num_samples)
        if prior is not None and problem != _UNREADABLE:
            _verify_features(store, dataset, prior, num_samples)
            return ""
    if not problem:
        return ""
    return f"Only the length ({len(store)} rows) of the targets at {store.path} could be checked: {problem}"


def _verify_length(store: TargetStore, dataset: Any) -> None:
    length = len(dataset) if hasattr(dataset, "__len__") else None
    if length != len(store):
        raise TargetError(
            "The targets are not of this data set: the lengths differ.",
            expected=f"{len(store)} rows (targets at {store.path})",
            found=f"{length} rows ({type(dataset).__name__})" if length is not None else "no length",
            do="build targets for this data set, or train on the one that was labelled",
        )


def _verify_pixels(store: TargetStore, dataset: Any, num_samples: int) -> str:
    """Compare raw pixels; why they cannot be compared, or an empty text."""
    if dataset_type(dataset) != store.settings["dataset_type"]:
        return f"the data set is a {dataset_type(dataset)}, the labelled one a {store.settings['dataset_type']}."
    sample = store.manifest["sample"]
    picked = sampled_rows(len(sample["rows"]), num_samples)
    rows, expected = ([sample[key][i] for i in picked] for key in ("rows", "hashes"))
    try:
        transform = has_transform(dataset)
        found = row_hashes(dataset, rows)
        repeatable = found == row_hashes(dataset, rows)
    except DataError:
        return _UNREADABLE
    differ = [row for row, old, new in zip(rows, expected, found, strict=True) if old != new]
    if not differ:
        return ""
    if transform != sample["transform"] or not repeatable:
        return _UNREADABLE
    raise TargetError(
        "The targets are not of this data set: the images differ.",
        expected=f"the pixels that were labelled, in their order, in {len(rows)} sampled rows",
        found=f"other pixels in rows {differ}",
        do="build targets for this data set; where it only shows the same images differently, set verify_targets=0",
    )


def _verify_features(store: TargetStore, dataset: Any, prior: Prior, num_samples: int) -> None:
    rows = sampled_rows(len(store), num_samples)
    view = LabelView(dataset, prior.preprocess, np.asarray(rows), store.crops_of)
    item = default_collate([view[i] for i in range(len(view))])
    device = next((p.device for p in prior.parameters()), torch.device("cpu"))
    images = [i.to(device) for i in item.images] if isinstance(item.images, list) else item.images.to(device)
    mean, components, scales = store.projection
    again = (embed(prior, images).cpu().double() - mean) @ components
    stored = torch.from_numpy(store.read(item.row).targets).double()
    cosine = F.cosine_similarity(again, stored / scales, dim=2).amin(dim=1)
    differ = [row for row, value in zip(rows, cosine.tolist(), strict=True) if not value >= MIN_COSINE]
    if differ:
        raise TargetError(
            "The targets are not of this data set: the prior sees other images there.",
            expected=f"a cosine of at least {MIN_COSINE} with the stored targets",
            found=f"less in rows {differ}; the least is {min(cosine.tolist()):.3f}",
            do="build targets for this data set",
        )
