"""The index of each sample rides along with it, from the data set to the training step.

The loader that Lightning is about to iterate is replaced by a shallow copy whose data set tags every
sample with its index and whose collate function gathers the tags beside the user's own batch. The
user's loader, data set and batch stay as they are; user code never sees the tags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawValue
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from rela_lightning.compat import copied_loader
from rela_lightning.data.crops import check_size
from rela_lightning.data.swap import Transform, swapped_transform
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.injection.alignment import check_order
from rela_lightning.targets.lookup import Plan, TargetLookup

USER_VIEWS, TRANSPORT_VIEWS = 0, 1


class IndexedBatch(NamedTuple):
    """A user's batch with the rows it came from. A NamedTuple, so that Lightning and torch recurse."""

    batch: Any
    indices: Tensor  # int64 [B], data set rows
    views: Tensor  # int64 [B], USER_VIEWS or TRANSPORT_VIEWS: the transform each sample was made with
    targets: Tensor | None  # int32 [B, n, D], the bits of float32: nobody's precision settings may round them


class Wanted(NamedTuple):
    """What the next batches shall hold: integers shared with workers, persistent ones too, and read at each batch.

    No tensors: beside a step of a millisecond, reading one costs as much as all else that is left after the switch.
    """

    transport_views: Any  # USER_VIEWS or TRANSPORT_VIEWS
    targets: Any  # whether targets are looked up
    epoch: Any  # number of the epoch; -1 where an epoch may see an image many times
    rows: Any  # whether batches say what they hold; if not, they are the user's own and nothing else

    @classmethod
    def shared(cls) -> Wanted:
        """The user's views and no targets."""
        return cls(*(RawValue("q", start) for start in (USER_VIEWS, 0, 0, 1)))


class _Tagged(NamedTuple):
    sample: Any
    index: Any
    views: int
    targets: NDArray[np.float32] | None  # [n, D]


class IndexedDataset(Dataset[_Tagged]):
    """The user's data set, every sample tagged; all other attributes are the user's data set's.

    Args:
        dataset: The user's map-style data set.
        transport_transform: The transform of the transport phase, or None to keep the data set's own.
        wanted: What to make.
        lookup: Looks up targets, and draws the crops that belong to them; None for targets that are made on the fly.
    """

    def __init__(
        self, dataset: Any, transport_transform: Transform | None, wanted: Wanted, lookup: TargetLookup | None
    ) -> None:
        self.__dict__.update(dataset=dataset, transport_transform=transport_transform, wanted=wanted, lookup=lookup)

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
        return int(self.wanted.transport_views.value) if self.transport_transform is not None else USER_VIEWS

    def __getitem__(self, index: Any) -> Any:
        if not self.wanted.rows.value:
            return self.dataset[index]
        if isinstance(index, (int, np.integer)):
            return self.__getitems__([int(index)])[0]
        views = self._views()  # the sampler yields whole batches, and the data set takes them
        return _Tagged(self._read(views, lambda: self.dataset[index]), index, views, self._of_images(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        inner = getattr(self.dataset, "__getitems__", None)
        if not self.wanted.rows.value:
            return inner(indices) if inner else [self.dataset[i] for i in indices]
        views = self._views()  # once a batch: a batch never mixes two kinds of views
        if views == TRANSPORT_VIEWS and self.lookup is not None and self.lookup.plans and self._takes_crops:
            epoch = int(self.wanted.epoch.value)
            return self._planned(indices, self.lookup.plan(np.asarray(indices), epoch if epoch >= 0 else None))
        samples = self._read(views, lambda: inner(indices) if inner else [self.dataset[i] for i in indices])
        targets = self._of_images(indices)
        each = [None] * len(samples) if targets is None else targets
        return [_Tagged(*one) for one in zip(samples, indices, [views] * len(samples), each, strict=True)]

    @property
    def _takes_crops(self) -> bool:
        return bool(getattr(self.transport_transform, "takes_crops", False))

    def _of_images(self, indices: Any) -> NDArray[np.float32] | None:
        wanted = self.lookup is not None and bool(self.wanted.targets.value)
        return self.lookup.of_images(np.asarray(indices).reshape(-1)) if wanted else None

    def _planned(self, indices: Sequence[int], plan: Plan) -> list[_Tagged]:
        """Samples that show exactly the crops of a plan."""
        tagged = []
        for index, size, crops, targets in zip(indices, *plan, strict=True):

            def cropped(image: Any, row: int = index, size: Any = size, crops: Any = crops) -> Any:
                check_size(image, size.tolist(), row)
                return self.transport_transform(image, crops=crops.tolist())

            with swapped_transform(self.dataset, cropped):
                tagged.append(_Tagged(self.dataset[index], index, TRANSPORT_VIEWS, targets))
        return tagged


class IndexedCollate:
    """The user's collate function on the samples; the tags are gathered beside it.

    The first batches (of each worker) are checked: row i must hold the image of sample i.

    Args:
        collate: The user's collate function.
        checks: Batches to check.
    """

    def __init__(self, collate: Callable[[Any], Any], checks: int = 2) -> None:
        self.collate, self.checks = collate, checks

    def __call__(self, tagged: Any) -> Any:
        """Collate a list of tagged samples, or one that is a whole batch; what has no tags as the user does."""
        if isinstance(tagged, _Tagged):  # batch_size=None: the sampler yields whole batches
            index = torch.as_tensor(tagged.index, dtype=torch.int64).reshape(-1)
            views = torch.full_like(index, tagged.views)
            return IndexedBatch(self.collate(tagged.sample), index, views, bits(tagged.targets))
        if not (isinstance(tagged, list) and tagged and isinstance(tagged[0], _Tagged)):
            return self.collate(tagged)
        index = torch.tensor([int(item.index) for item in tagged], dtype=torch.int64)
        views = torch.tensor([item.views for item in tagged], dtype=torch.int64)
        samples = [item.sample for item in tagged]
        batch = self.collate(samples)
        if self.checks:
            self.checks -= 1
            check_order(samples, batch)
        targets = None if tagged[0].targets is None else np.stack([item.targets for item in tagged])
        return IndexedBatch(batch, index, views, bits(targets))


def bits(targets: NDArray[np.float32] | None) -> Tensor | None:
    """Targets as the integers of `IndexedBatch.targets`."""
    return None if targets is None else torch.from_numpy(targets).view(torch.int32)


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
        do="train from a map-style data set; or give samples a key and label the stream itself, build_targets(prior, "
        "stream, path); or pass ReLACallback(prior=...) instead of targets: it embeds on the fly",
    )


def tagged_loader(
    loader: DataLoader[Any],
    transform: Transform | None,
    wanted: Wanted,
    *,
    lookup: TargetLookup | None = None,
) -> DataLoader[Any]:
    """A copy of `loader` that yields `IndexedBatch`.

    Args:
        loader: The loader Lightning would iterate, its sampler already injected.
        transform: Transform of the transport phase; None keeps the data set's own.
        wanted: What to make, see `IndexedDataset`.
        lookup: Looks up targets; None for targets that are made on the fly.

    Returns:
        A shallow copy; `loader` itself is not changed.
    """
    dataset = IndexedDataset(loader.dataset, transform, wanted, lookup)
    return copied_loader(loader, dataset=dataset, collate_fn=IndexedCollate(loader.collate_fn))


def resampled_loader(loader: DataLoader[Any], sampler: Sampler[int]) -> DataLoader[Any]:
    """A shallow copy of `loader` that draws its samples by another sampler, in batches of the same size."""
    batches = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
    return copied_loader(loader, sampler=sampler, batch_sampler=batches)


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
    split = num_replicas == 1 or type(sampler) is DistributedSampler
    if type(loader.batch_sampler) is BatchSampler and type(sampler) in _PLAIN and split:
        all_rows = len(sampler) >= len(loader.dataset) // num_replicas  # type: ignore[arg-type]
        if all_rows and not getattr(sampler, "replacement", False):
            return
    raise ConfigError(
        "`data_ratio` draws its own subset each epoch and would replace your sampler.",
        expected="a loader with shuffle=True or shuffle=False",
        found=f"sampler {type(loader.sampler).__name__}, batch sampler {type(loader.batch_sampler).__name__}",
        do="leave `data_ratio` at 1.0, or let your sampler draw the subset (see BudgetSampler)",
    )
