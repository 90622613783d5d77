"""Wrong uses of streams, of data sets and places elsewhere, and of rates that follow the length of a run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from rela_lightning import ReLACallback, build_targets
from rela_lightning.data.hugging_face import image_column, label_column
from rela_lightning.methods import BYOL
from rela_lightning.optim import WarmupCosine
from tests.parts import TwoViews, make_digits
from tests.streams import key_of
from tests.wrong_uses.place import Place
from tests.wrong_uses.place import WrongUse as Use


class Keyed(IterableDataset):
    """Digits by key, as a stream.

    Args:
        count: How many.
        key: A key for all of them; None gives each its own.
        sample: Makes a sample of a key and an image; None a dictionary of both.
    """

    def __init__(self, count: int = 16, key: str | None = None, sample: Any = None) -> None:
        self.count, self.key, self.sample = count, key, sample or _as_dict

    def __iter__(self) -> Any:
        digits = make_digits(64)
        return (self.sample(self.key or key_of(row), digits[row][0]) for row in range(self.count))


def _as_dict(key: str, image: Any) -> Any:
    return {"__key__": key, "png": image}


def _views(key: str, image: Any) -> Any:
    return {"__key__": key, "views": TwoViews()(image)}


def by_key(place: Place) -> Path:
    """Targets of a stream of 16 digits."""
    return build_targets(place.prior, Keyed(), place.folder / "by_key").path


def stream(count: int = 16, sample: Any = _views) -> DataLoader:
    """Batches of 8 of the views of digits."""
    return DataLoader(Keyed(count, sample=sample), batch_size=8)


def endless(place: Place) -> None:
    """A cosine over a run without an end."""
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    module = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.125}, optimizer=optimizer, lr_scheduler=WarmupCosine)
    place.fit(module=module, max_epochs=-1)


class Columns(dict):  # type: ignore[type-arg]
    """Columns of a data set, told by the names of their types."""

    def __init__(self, **kinds: str) -> None:
        super().__init__({name: type(kind, (), {})() for name, kind in kinds.items()})


ELSEWHERE = [
    Use("a stream with one key for all samples", lambda p: build_targets(p.prior, Keyed(key="same"), "t")),
    Use("a stream without samples", lambda p: build_targets(p.prior, Keyed(0), "t")),
    Use("a stream with samples that were not labelled", lambda p: p.fit(ReLACallback(by_key(p)), data=stream(20))),
    Use(
        "training samples of a stream without their keys",
        lambda p: p.fit(ReLACallback(by_key(p)), data=stream(sample=lambda key, image: (TwoViews()(image), 3))),
    ),
    Use("a share of a stream", lambda p: p.fit(ReLACallback(by_key(p), data_ratio=0.5), data=stream())),
    Use("a URL of a protocol that nothing opens", lambda p: build_targets(p.prior, p.images, "no-such://bucket/t")),
    Use("a data set with two columns of images", lambda p: image_column(Columns(left="Image", right="Image"))),
    Use("a column of labels that is not there", lambda p: label_column(Columns(label="ClassLabel"), "lable")),
    Use("a cosine over a run without an end", endless),
]
