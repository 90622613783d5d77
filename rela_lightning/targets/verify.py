"""Whether targets belong to a data set and a prior: refuse what differs, say what could not be checked."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import default_collate

from rela_lightning.data.device.memory import originals
from rela_lightning.data.find_key import find_key
from rela_lightning.data.raw import own_class
from rela_lightning.data.swap import has_rows
from rela_lightning.devices import home_of
from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.dataset import changing_rows, compare_samples, read_sample, sampled_rows
from rela_lightning.fingerprint.order import IN_MEMORY, compare_order, order_of
from rela_lightning.fingerprint.settings import both_priors, other_prior
from rela_lightning.priors.base import Prior
from rela_lightning.rng import preserved_rng
from rela_lightning.targets.label_stream import Sample, Stream
from rela_lightning.targets.label_view import LabelItem, LabelView, embed, label_item
from rela_lightning.targets.reduce import project
from rela_lightning.targets.rounding import exactly

if TYPE_CHECKING:
    from rela_lightning.targets.store import TargetStore

MIN_COSINE = 0.95
"""Least cosine between a stored target and that of the same image embedded again: mixed precision stays above .98
(see `MAX_ROUNDING`), other images fall far below."""
_OTHER_VIEWS = "its images may be shown otherwise than before augmentation."
_UNREADABLE = "its images cannot be read as they were before augmentation."


def verify(store: TargetStore, dataset: Any, prior: Prior | None, num_samples: int) -> str:
    """See `TargetStore.verify`.

    Returns:
        One line on what could not be checked, or an empty text.
    """
    if store.keyed:
        return _verify_stream(store, dataset, prior, num_samples)
    _verify_length(store, dataset)
    dataset = originals(dataset, store.settings.get("image"))
    if prior is not None:
        verify_prior(store, prior)
    if num_samples < 1:
        return ""
    with preserved_rng():
        labelled = store.manifest["sample"]["rows"]
        rows = [labelled[i] for i in sampled_rows(len(labelled), num_samples)]
        order = order_of(dataset, rows[:: max(1, len(rows) // 8)])
        moved, uncertain = compare_order(store.settings["dataset_order"], order)
        other, unseen = _compare_pixels(store, dataset, rows, moved)
        if moved or other:
            raise _of_other_data(dataset, moved, other, len(rows))
        if prior is not None and unseen != _UNREADABLE:
            _verify_features(store, dataset, prior, num_samples)
            unseen = ""
    return _unchecked(store, len(rows), uncertain, unseen)


def _verify_stream(store: TargetStore, dataset: Any, prior: Prior | None, num_samples: int) -> str:
    """The same for targets by key: those of the first samples must be known."""
    if has_rows(dataset):
        raise TargetError(
            "These targets are found by the keys of samples, and this data set goes by row.",
            expected=f"a stream of the samples that were labelled (targets at {store.path})",
            found=type(dataset).__name__,
            do="pass the stream, or build targets for this data set",
        )
    if prior is not None:
        verify_prior(store, prior)
    if num_samples < 1:
        return ""
    with preserved_rng():
        where = store.settings.get("key")
        if prior is not None:
            verify_samples(store, Stream(dataset, where, store.settings.get("image")).first(num_samples), prior)
            return ""
        store.rows_of([find_key(sample, where) for sample in itertools.islice(dataset, num_samples)])
    return f"Targets at {store.path}: the first samples have targets, but their images were not compared."


def verify_samples(store: TargetStore, samples: Sequence[Sample], prior: Prior) -> None:
    """Refuse samples of a stream that have no targets, or in which the prior sees other images.

    Raises:
        TargetError: Naming keys, or rows.
    """
    rows = store.rows_of([sample.key for sample in samples]).tolist()
    pairs = zip(samples, rows, strict=True)
    _compare_features(
        store, [label_item(sample.image, row, prior.preprocess, store.crops_of) for sample, row in pairs], prior
    )


def verify_prior(store: TargetStore, prior: Prior) -> None:
    """Refuse a prior that did not make the targets.

    Raises:
        TargetError: Naming both.
    """
    observed = prior.observed
    differ = other_prior(store.settings, observed)
    if differ:
        old, new = both_priors(store.manifest, prior)
        raise TargetError(
            "These targets were made by another prior.",
            expected=old,
            found=f"{new}, with other {' and '.join(differ)}",
            do="load that prior with the same preprocessing, or build the targets again",
        )


def _unchecked(store: TargetStore, sampled: int, uncertain: str, unseen: str) -> str:
    """One line on what was not compared."""
    if unseen and uncertain:
        problem = f"Only the length ({len(store)} rows) could be checked: {unseen[:-1]}, and {uncertain}."
    elif unseen:
        problem = f"The order of all {len(store)} rows agrees, but no pixels could be compared: {unseen}"
    elif uncertain:
        checked = f"The order of the {len(store)} rows could not be checked beyond {sampled} sampled images"
        problem = f"{checked}: {uncertain}."
    else:
        return ""
    return f"Targets at {store.path}: {problem}"


def _verify_length(store: TargetStore, dataset: Any) -> None:
    length = len(dataset) if hasattr(dataset, "__len__") else None
    if length != len(store):
        raise TargetError(
            "The targets are not of this data set: the lengths differ.",
            expected=f"{len(store)} rows (targets at {store.path})",
            found=f"{length} rows ({own_class(dataset)})" if length is not None else "no length",
            do="build targets for this data set, or train on the one that was labelled",
        )


def _compare_pixels(store: TargetStore, dataset: Any, rows: list[int], moved: list[str]) -> tuple[list[int], str]:
    """Rows with other raw pixels, and why pixels cannot be compared (or an empty text)."""
    stored = store.manifest["sample"]
    try:
        found = read_sample(dataset, rows)
    except Exception:  # a class that cannot do without its transform may fail in any way; training reads it with it
        return [], _UNREADABLE
    in_memory = any(name.startswith(IN_MEMORY) for name in moved)
    other, resized = compare_samples(stored, found, exact=in_memory)
    if not other and not resized:
        return [], ""
    raw = found.transform or not stored["transform"] or in_memory
    if changing_rows(dataset, found, len(rows)):
        return [], _UNREADABLE
    if not raw:
        return [], _OTHER_VIEWS
    if other:
        return other, ""
    size = " x ".join(map(str, found.sizes[found.rows.index(resized[0])]))
    return [], f"it shows the images in another size ({size} in row {resized[0]})."


def _of_other_data(dataset: Any, moved: list[str], other: list[int], sampled: int) -> TargetError:
    found = [f"other {name}" for name in moved if not name.startswith(IN_MEMORY)]
    problem, do = "the images differ", "; where it only shows the same images differently, set verify_targets=0"
    if found:  # which no option sets aside: a row's target would be that of another image
        problem, do = "its rows are others, or in another order", ", or train on the labelled rows in their order"
    if other:
        found.append(f"other pixels in rows {other}")
    return TargetError(
        f"The targets are not of this data set: {problem}.",
        expected=f"the images that were labelled, in their order ({sampled} rows are compared by their pixels)",
        found=f"{' and '.join(found) or 'other pixels between the sampled rows'}, in {own_class(dataset)}",
        do=f"build targets for this data set{do}",
    )


def _verify_features(store: TargetStore, dataset: Any, prior: Prior, num_samples: int) -> None:
    rows = np.asarray(sampled_rows(len(store), num_samples))
    _compare_features(store, list(LabelView(dataset, prior.preprocess, rows, store.crops_of)), prior)


def _compare_features(store: TargetStore, items: list[LabelItem], prior: Prior) -> None:
    item = default_collate(items)
    images = move_data_to_device(item.images, home_of(prior))
    again = project(embed(functools.partial(exactly, prior), images).cpu().double(), store.projection)
    stored = torch.from_numpy(store.read(item.row).targets).double()
    cosine = F.cosine_similarity(again, stored, dim=2).amin(dim=1)
    differ = [row for row, value in zip(item.row.tolist(), cosine.tolist(), strict=True) if not value >= MIN_COSINE]
    if differ:
        raise TargetError(
            "The targets are not of this data set: the prior sees other images there.",
            expected=f"a cosine of at least {MIN_COSINE} with the stored targets",
            found=f"less in rows {differ}; the least is {min(cosine.tolist()):.3f}",
            do="build targets for this data set",
        )
