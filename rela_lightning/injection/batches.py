"""The index of each sample rides along with it, from the data set to the training step.

The loader that Lightning is about to iterate is replaced by a shallow copy whose data set tags every
sample with its index and whose collate function gathers the tags beside the user's own batch. The
user's loader, data set and batch stay as they are; user code never sees the tags.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from rela_lightning.data.swap import Transform, swapped_transform
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.injection.alignment import check_order

USER_VIEWS, TRANSPORT_VIEWS = 0, 1


class IndexedBatch(NamedTuple):
    """A user's batch with the rows it came from. A NamedTuple, so that Lightning and torch recurse."""

    batch: Any
    indices: Tensor  # int64 [B], data set rows
    views: Tensor  # int64 [B], USER_VIEWS or TRANSPORT_VIEWS: the transform each sample was made with


class _Tagged(NamedTuple):
    sample: Any
    index: Any
    views: int


class IndexedDataset(Dataset[_Tagged]):
    """The user's data set, every sample tagged; all other attributes are the user's data set's.

    Args:
        dataset: The user's map-style data set.
        transport_transform: The transform of the transport phase, or None to keep the data set's own.
        flag: Shared int64 tensor `[1]`: which views to make. Read by workers at each batch, so that a
            change reaches persistent workers too.
    """

    def __init__(self, dataset: Any, transport_transform: Transform | None, flag: Tensor) -> None:
        self.__dict__.update(dataset=dataset, transport_transform=transport_transform, flag=flag)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["dataset"], name, value)

    def _read(self, views: int, read: Callable[[], Any]) -> Any:
        if views == USER_VIEWS:
            return read()
        with swapped_transform(self.dataset, self.transport_transform):
            return read()

    def _views(self) -> int:
        return int(self.flag[0]) if self.transport_transform is not None else USER_VIEWS

    def __getitem__(self, index: Any) -> _Tagged:
        views = self._views()
        return _Tagged(self._read(views, lambda: self.dataset[index]), index, views)

    def __getitems__(self, indices: Sequence[int]) -> list[_Tagged]:
        views = self._views()  # once a batch: a batch never mixes two kinds of views
        inner = getattr(self.dataset, "__getitems__", None)
        samples = self._read(views, lambda: inner(indices) if inner else [self.dataset[i] for i in indices])
        return [_Tagged(sample, index, views) for sample, index in zip(samples, indices, strict=True)]


class IndexedCollate:
    """The user's collate function on the samples; the tags are gathered beside it.

    The first batches (of each worker) are checked: row i must hold the image of sample i.

    Args:
        collate: The user's collate function.
        checks: Batches to check.
    """

    def __init__(self, collate: Callable[[Any], Any], checks: int = 2) -> None:
        self.collate, self.checks = collate, checks

    def __call__(self, tagged: Any) -> IndexedBatch:
        """Collate tagged samples: a list of them, or one that holds a whole batch."""
        if isinstance(tagged, _Tagged):  # batch_size=None: the sampler yields whole batches
            index = torch.as_tensor(tagged.index, dtype=torch.int64).reshape(-1)
            return IndexedBatch(self.collate(tagged.sample), index, torch.full_like(index, tagged.views))
        index = torch.tensor([int(item.index) for item in tagged], dtype=torch.int64)
        views = torch.tensor([item.views for item in tagged], dtype=torch.int64)
        samples = [item.sample for item in tagged]
        batch = self.collate(samples)
        if self.checks:
            self.checks -= 1
            check_order(samples, batch)
        return IndexedBatch(batch, index, views)


def has_index(loader: Any) -> bool:
    """Whether the loader draws from a map-style data set, so that its samples have an index."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def check_loader(loader: Any) -> None:
    """Refuse loaders whose samples cannot be tagged with an index.

    Raises:
        DataError: For anything but a `torch.utils.data.DataLoader` over a map-style data set.
    """
    if has_index(loader):
        return
    found = type(loader).__name__
    if isinstance(loader, DataLoader):
        found += f" over the iterable data set {type(loader.dataset).__name__}"
    raise DataError(
        "Targets are looked up by data set index, and this training loader has none.",
        expected="a torch DataLoader over a map-style data set (one with __getitem__ and __len__)",
        found=found,
        do="train from a map-style data set, or pass ReLACallback(prior=...) instead of targets: it embeds on the fly",
    )


def tagged_loader(
    loader: DataLoader[Any], transform: Transform | None, flag: Tensor, sampler: Any = None
) -> DataLoader[Any]:
    """A copy of `loader` that yields `IndexedBatch`.

    Args:
        loader: The loader Lightning would iterate, its sampler already injected.
        transform: Transform of the transport phase; None keeps the data set's own.
        flag: Shared int64 tensor `[1]`, see `IndexedDataset`.
        sampler: Replaces the loader's sampler (a `BudgetSampler`); None keeps it.

    Returns:
        A shallow copy; `loader` itself is not changed.
    """
    tagged = copy.copy(loader)
    state = vars(tagged)  # DataLoader refuses plain assignment of these names after construction
    state["dataset"] = IndexedDataset(loader.dataset, transform, flag)
    state["collate_fn"] = IndexedCollate(loader.collate_fn)
    state["_iterator"] = None
    if sampler is not None:
        state["sampler"] = sampler
        state["batch_sampler"] = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
    return tagged


_PLAIN = (RandomSampler, SequentialSampler, DistributedSampler)


def check_plain_sampler(loader: DataLoader[Any], num_replicas: int = 1) -> None:
    """Refuse `data_ratio` where the user chose the samples.

    Args:
        loader: The training loader.
        num_replicas: Processes that train.

    Raises:
        ConfigError: For a sampler other than torch's sequential, random or distributed one over all samples.
    """
    sampler: Any = loader.sampler
    all_rows = len(sampler) >= len(loader.dataset) // num_replicas  # type: ignore[arg-type]
    whole = all_rows and not getattr(sampler, "replacement", False)
    split = num_replicas == 1 or type(sampler) is DistributedSampler
    if type(loader.batch_sampler) is BatchSampler and type(sampler) in _PLAIN and whole and split:
        return
    raise ConfigError(
        "`data_ratio` draws its own subset each epoch and would replace your sampler.",
        expected="a loader with shuffle=True or shuffle=False",
        found=f"sampler {type(loader.sampler).__name__}, batch sampler {type(loader.batch_sampler).__name__}",
        do="leave `data_ratio` at 1.0, or let your sampler draw the subset (see BudgetSampler)",
    )
