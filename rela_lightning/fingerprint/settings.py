"""What decides targets, field by field: the fingerprint, and what differs between two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.dataset import Sample, compare_samples
from rela_lightning.fingerprint.order import IN_MEMORY, compare_order, order_of
from rela_lightning.fingerprint.prior import Observed, what_differs

if TYPE_CHECKING:
    from rela_lightning.priors.base import Prior

FORMAT = 2
"""Version of the layout of a store: rows by image and view. Format 1 held whole images, unchecked."""
_NAMES = {
    "dataset_length": "data set length",
    "views": "number of views",
    "mirrored_crops": "choice of mirrored crops,",
    "format_version": "format version",
    "lookup": "way to find rows, by",
}
_UNSAID = {"lookup": "row", "mirrored_crops": True}
_OUTPUT = ("target_dim", "standardise", "storage_dtype")
_SEEN_OTHERWISE = ("prior_identity", "prior_function", "preprocessing", "dataset_order", "dataset_content")


def prior_fields(prior: Prior) -> dict[str, Any]:
    """The fields that decide the targets whatever the data set."""
    observed = prior.observed
    return {
        "format_version": FORMAT,
        "prior_identity": observed.identity(),
        "prior_function": observed._asdict(),
        "preprocessing": prior.description,
    }


def fields_of(prior: Prior, dataset: Any, sample: Sample, length: int, **output: Any) -> dict[str, Any]:
    """Every field that decides the targets; `output` is target_dim, standardise, storage_dtype and the like."""
    return {
        **prior_fields(prior),
        "dataset_length": length,
        "dataset_order": order_of(dataset, sample.rows[:: max(1, len(sample.rows) // 8)]),
        "dataset_content": hashlib.sha256("".join(sample.hashes).encode()).hexdigest(),
        **output,
    }


def feature_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide the features, from which targets are made."""
    return {key: value for key, value in fields.items() if key not in (*_OUTPUT, "prior_function")}


def fingerprint(fields: dict[str, Any]) -> str:
    """SHA-256 of all fields (of the prior its identity), 64 hexadecimal digits."""
    decisive = {key: value for key, value in fields.items() if key != "prior_function"}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def other_prior(stored: Mapping[str, Any], observed: Observed) -> list[str]:
    """What a prior differs in from the one behind some settings, in words; empty if it is the same.

    The identity is enough to agree; where it does not, numbers may be apart by what machines differ in.
    """
    return [] if stored["prior_identity"] == observed.identity() else what_differs(stored["prior_function"], observed)


Differences = dict[str, tuple[Any, Any]]
"""What differs, in words, with both values."""


def both_priors(manifest: Mapping[str, Any], prior: Prior) -> tuple[str, str]:
    """The prior behind some targets and another, in words: names and options; their identities where these are one."""
    old = ", ".join(filter(None, (manifest["prior"], manifest.get("prior_options"))))
    new = ", ".join(filter(None, (prior.name, prior.options)))
    if old != new:
        return old, new
    return f"{old} ({manifest['settings']['prior_identity'][:8]})", f"{new} ({prior.identity[:8]})"


def differences(manifest: Mapping[str, Any], wanted: dict[str, Any], prior: Prior, *unknown: str) -> Differences:
    """How targets that exist differ from those that are wanted, their data set's order and content aside.

    Args:
        manifest: Of the targets.
        wanted: `fields_of` the prior, the data set and the options.
        prior: That is wanted.
        unknown: Fields that are not known yet.
    """
    stored, wanted = ({**_UNSAID, **fields} for fields in (manifest["settings"], wanted))
    plain = [key for key in wanted if key not in (*_SEEN_OTHERWISE, *unknown) and stored.get(key) != wanted[key]]
    differ: Differences = {_NAMES.get(key, key): (stored.get(key), wanted[key]) for key in plain}
    if other_prior(stored, Observed(**wanted["prior_function"])):
        same = stored["preprocessing"] == wanted["preprocessing"]
        named = zip(both_priors(manifest, prior), (stored, wanted), strict=True)
        old, new = (f"{name}{'' if same else ', ' + of['preprocessing']}" for name, of in named)
        differ["prior"] = (old, new)
    return differ


def order_differences(manifest: Mapping[str, Any], wanted: dict[str, Any], sample: Sample) -> Differences:
    """How the rows of the data set differ from those that were labelled, as far as they can be compared.

    Args:
        manifest: Of the targets.
        wanted: `fields_of` the prior, the data set and the options.
        sample: Of the data set.
    """
    stored, differ = manifest["settings"], Differences()
    if stored["dataset_length"] != wanted["dataset_length"] or "lookup" in stored:
        return differ
    order, _ = compare_order(stored["dataset_order"], wanted["dataset_order"])
    moved = [name for name in order if not name.startswith(IN_MEMORY)]
    if moved:
        differ["data set order"] = (f"the {' and '.join(moved)} that were labelled", "others, or in another order")
    rows = compare_samples(manifest["sample"], sample, exact=order != moved)
    if any(rows) or (order and not moved):
        where = f"in rows {sorted(rows.other + rows.resized)}" if any(rows) else "between the sampled rows"
        differ["data set content"] = ("the pixels that were labelled", f"other pixels {where}")
    return differ


def refuse(path: Path, differ: Differences) -> None:
    """Do nothing if there is no difference.

    Raises:
        TargetError: Naming each field that differs, with both values.
    """
    if differ:
        raise TargetError(
            f"The targets at {path} were built with another {', another '.join(differ)}.",
            expected="; ".join(f"{name} {old}" for name, (old, _) in differ.items()),
            found="; ".join(f"{name} {new}" for name, (_, new) in differ.items()),
            do="pass overwrite=True to build them again, or give another path",
        )
