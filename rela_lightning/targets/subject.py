"""What a labelling pass goes over: a data set whose rows have numbers, or a stream whose samples have keys."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rela_lightning.data.copies import copied
from rela_lightning.data.device.memory import originals
from rela_lightning.data.raw import check_length
from rela_lightning.data.swap import has_rows
from rela_lightning.errors import ConfigError, DataError, TargetError
from rela_lightning.fingerprint.dataset import Sample, take_sample
from rela_lightning.fingerprint.settings import differences, fields_of, order_differences, prior_fields, refuse
from rela_lightning.priors.base import Prior
from rela_lightning.targets.keys import KeyLine, hashes_of, places, refuse_ambiguous
from rela_lightning.targets.label_stream import Stream, refuse_changing
from rela_lightning.targets.label_view import DrawnCrops, LabelItem, LabelView, label_item
from rela_lightning.targets.partial import clear
from rela_lightning.targets.rounding import sampled
from rela_lightning.targets.shards import Shape, held_indices, missing_rows
from rela_lightning.targets.store import TargetStore
from rela_lightning.targets.verify import verify_samples

log = logging.getLogger("rela_lightning")


class Whole(NamedTuple):
    """What a finished pass has embedded.

    Attributes:
        length: Number of rows.
        keys: Sorted hashes of the keys of a stream, uint64 `[length]`; None for rows with numbers.
        fields: Fields that are only known now.
    """

    length: int
    keys: NDArray[np.uint64] | None
    fields: dict[str, Any]


class Subject(Protocol):
    """What is labelled."""

    @property
    def dataset(self) -> Any:
        """What the pass reads."""

    @property
    def length(self) -> int | None:
        """Number of rows; None where nobody has counted them."""

    def fields(self, prior: Prior, output: dict[str, Any]) -> dict[str, Any]:
        """Every field that decides the targets, as far as it is known before the pass."""

    def refuse_other(self, store: TargetStore, fields: dict[str, Any], prior: Prior) -> None:
        """Do nothing if the targets that exist are those that are wanted; else a TargetError names what differs."""

    def whole(self, folder: Path, shape: Shape) -> Whole:
        """What the pass in a folder has embedded; a TargetError where something is missing or ambiguous."""

    def again(self, prior: Prior, whole: Whole, crops: DrawnCrops) -> Iterable[LabelItem]:
        """Some images to embed once more, with their rows and the same crops."""

    def remembered(self) -> dict[str, Any]:
        """What the manifest keeps of some samples."""


def subject_of(dataset: Any, *, image: str | None, key: str | None) -> Subject:
    """What is labelled of a data set; some samples are read.

    Raises:
        DataError: If it cannot be labelled.
        ConfigError: If `key` is given for a data set whose rows have numbers.
    """
    if has_rows(dataset) or not hasattr(dataset, "__iter__"):
        if key is not None:
            raise ConfigError(
                "`key` is for streams: the rows of this data set are found by their number.",
                expected="an iterable data set without indices",
                found=type(dataset).__name__,
                do="leave `key` out, or iterate the data set in an IterableDataset",
            )
        length = check_length(dataset)
        rows = originals(dataset, image)
        return Numbered(rows, length, take_sample(rows, length))
    stream = Stream(dataset, key, image)
    return Keyed(stream, refuse_changing(stream))


@dataclass(frozen=True)
class Numbered:
    """A map-style data set: row i is its i-th sample."""

    dataset: Any
    length: int
    sample: Sample

    def fields(self, prior: Prior, output: dict[str, Any]) -> dict[str, Any]:
        """See `Subject`."""
        return fields_of(prior, self.dataset, self.sample, self.length, **output)

    def refuse_other(self, store: TargetStore, fields: dict[str, Any], prior: Prior) -> None:
        """See `Subject`."""
        differ = differences(store.manifest, fields, prior)
        refuse(store.path, differ | order_differences(store.manifest, fields, self.sample))

    def whole(self, folder: Path, shape: Shape) -> Whole:
        """See `Subject`."""
        missing = missing_rows(folder, self.length, shape)
        if len(missing):
            raise _ended_early(
                f"{self.length} rows", f"{self.length - len(missing)}; the first missing row is {missing[0]}"
            )
        return Whole(self.length, None, {})

    def again(self, prior: Prior, whole: Whole, crops: DrawnCrops) -> Iterable[LabelItem]:
        """See `Subject`."""
        rows = np.asarray(sampled(whole.length, 1 + crops.views))
        return LabelView(copied(self.dataset), prior.preprocess, rows, crops)

    def remembered(self) -> dict[str, Any]:
        """See `Subject`."""
        return self.sample._asdict()


@dataclass(frozen=True)
class Keyed:
    """A stream: rows are in the order of the hashes of the samples' keys."""

    dataset: Stream
    lines: list[KeyLine]
    length: int | None = field(default=None, init=False)

    def fields(self, prior: Prior, output: dict[str, Any]) -> dict[str, Any]:
        """See `Subject`. Before the pass, the first samples say which stream it is."""
        text = "\n".join(line.text() for line in self.lines)
        return {
            **prior_fields(prior),
            "lookup": "key",
            "dataset_length": None,
            "dataset_order": {},
            "dataset_content": hashlib.sha256(text.encode()).hexdigest(),
            **output,
            **({} if self.dataset.key is None else {"key": self.dataset.key}),
        }

    def refuse_other(self, store: TargetStore, fields: dict[str, Any], prior: Prior) -> None:
        """See `Subject`. The keys of the first samples must be known, and the prior see the same in them."""
        refuse(store.path, differences(store.manifest, fields, prior, "dataset_length"))
        verify_samples(store, self.dataset.first(), prior)

    def whole(self, folder: Path, shape: Shape) -> Whole:
        """See `Subject`. A sample that came several times counts once, if it was the same each time."""
        held = held_indices(folder, shape).astype(np.uint64)
        keys, counts = np.unique(held, return_counts=True)
        if len(keys) < len(held):
            try:
                refuse_ambiguous(folder, keys[counts > 1])
            except TargetError:
                clear(folder)  # nobody can tell which of the rows is meant
                raise
            log.warning(
                "%d samples of the stream came more than once, and each was labelled again: a stream shares its "
                "samples among the worker processes and devices itself",
                len(held) - len(keys),
            )
        if len(keys) < 2:
            raise DataError(
                "One sample has no variance to learn a projection from.",
                expected="at least 2 samples",
                found=f"{len(keys)} in {type(self.dataset.dataset).__name__}",
                do="check its path and shards",
            )
        content = hashlib.sha256(keys.astype("<u8").tobytes()).hexdigest()
        return Whole(len(keys), keys, {"dataset_length": len(keys), "dataset_content": content})

    def again(self, prior: Prior, whole: Whole, crops: DrawnCrops) -> Iterable[LabelItem]:
        """See `Subject`. The first samples: a stream has no others at hand."""
        wanted = len(sampled(whole.length, 1 + crops.views))
        for sample in self.dataset.first(wanted):
            row = -1 if whole.keys is None else int(places(whole.keys, hashes_of([sample.key]))[0])
            if row >= 0:
                yield label_item(sample.image, sample.number, prior.preprocess, crops)._replace(row=row)

    def remembered(self) -> dict[str, Any]:
        """See `Subject`."""
        return {"keys": [line.key for line in self.lines], "pixels": [line.pixels for line in self.lines]}


def refuse_limits(trainer: Any) -> None:
    """Refuse to label a part of a stream, which nobody could tell from the whole.

    Raises:
        TargetError: For a trainer with `limit_predict_batches` or `fast_dev_run`.
    """
    limit = getattr(trainer, "limit_predict_batches", 1.0)
    if isinstance(limit, int) or limit != 1.0:
        raise _ended_early("the whole stream", f"a trainer with limit_predict_batches={limit}")


def _ended_early(expected: str, found: str) -> TargetError:
    return TargetError(
        "The labelling pass ended early.",
        expected=expected,
        found=found,
        do="remove limits such as limit_predict_batches or fast_dev_run from the trainer and call again: the rows so "
        "far are kept",
    )
