"""What decides targets, field by field: the fingerprint, and what differs between two."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.dataset import check_repeatable, dataset_type, order_hash, row_hashes, sampled_rows

if TYPE_CHECKING:
    from rela_lightning.priors.base import Prior

FORMAT = 2
"""Version of the layout of a store: rows by image and view. Format 1 held whole images, unchecked."""
_NAMES = {
    "prior_identity": "prior",
    "preprocessing": "preprocessing",
    "dataset_length": "data set length",
    "dataset_type": "data set type",
    "dataset_order": "data set order",
    "dataset_content": "data set content (pixels of sampled rows)",
    "views": "number of views",
    "target_dim": "target_dim",
    "standardise": "standardise",
    "storage_dtype": "storage_dtype",
    "format_version": "format version",
}
_OUTPUT = ("target_dim", "standardise", "storage_dtype")


class Sample(NamedTuple):
    """Some rows of a data set: their indices, hashes of their pixels, whether a transform was set aside."""

    rows: list[int]
    hashes: list[str]
    transform: bool


def take_sample(dataset: Any, length: int) -> Sample:
    """Read the sampled rows, which also shows that they are images and the same each time.

    Raises:
        DataError: If they are not.
    """
    from rela_lightning.targets.images import has_transform  # `targets` imports this module

    rows = sampled_rows(length)
    hashes = row_hashes(dataset, rows)
    check_repeatable(dataset, rows[:8], hashes[:8])
    return Sample(rows, hashes, has_transform(dataset))


def fields_of(prior: Prior, dataset: Any, sample: Sample, length: int, **output: Any) -> dict[str, Any]:
    """Every field that decides the targets; `output` is target_dim, standardise and storage_dtype."""
    return {
        "format_version": FORMAT,
        "prior_identity": prior.identity,
        "preprocessing": prior.description,
        "dataset_length": length,
        "dataset_type": dataset_type(dataset),
        "dataset_order": order_hash(dataset),
        "dataset_content": hashlib.sha256("".join(sample.hashes).encode()).hexdigest(),
        **output,
    }


def feature_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide the features, from which targets are made."""
    return {key: value for key, value in fields.items() if key not in _OUTPUT}


def fingerprint(fields: dict[str, Any]) -> str:
    """SHA-256 of all fields, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def refuse_difference(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Do nothing if the fields agree.

    Raises:
        TargetError: Naming each field that differs, with both values.
    """
    differ = [key for key in wanted if stored.get(key) != wanted[key]]
    if not differ:
        return
    raise TargetError(
        f"The targets at {path} were built with another {', another '.join(_NAMES[key] for key in differ)}.",
        expected="; ".join(f"{_NAMES[key]} {stored.get(key)}" for key in differ),
        found="; ".join(f"{_NAMES[key]} {wanted[key]}" for key in differ),
        do="pass overwrite=True to build them again, or give another path",
    )
