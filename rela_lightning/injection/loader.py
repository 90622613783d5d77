"""From the loader Lightning is about to iterate to the rows of the step: one object, undone at the end."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from rela_lightning.compat import show_loaders, training_loaders
from rela_lightning.data.sampler import BudgetSampler
from rela_lightning.data.swap import Transform, takes_one_image
from rela_lightning.data.transforms import default_transport_transform, taking_images_of
from rela_lightning.errors import ConfigError, DataError, InjectionError
from rela_lightning.injection.keyed import check_keyed, keyed_loader
from rela_lightning.injection.passes import batch_size_of
from rela_lightning.injection.patch import Patches
from rela_lightning.injection.tagging import (
    TRANSPORT_VIEWS,
    USER_VIEWS,
    IndexedBatch,
    Wanted,
    check_loader,
    check_plain_sampler,
    has_index,
    resampled_loader,
    tagged_loader,
)
from rela_lightning.targets.lookup import TargetLookup
from rela_lightning.targets.source import BatchRows


class RowTracker:
    """Tags the training loader, and takes the tags off before user code sees the batch.

    Args:
        check: Called with the training data set before the first batch; raises if targets do not fit.
        lookup: Looks up the targets of a batch where it is made; None where they are made on the fly. Then no index is
            needed, and iterable data and foreign loaders pass as they are.
        key: Where the key of a sample is, for targets of a stream; None to find it.
        transform: `"default"`, None to keep the data set's own, or a transform of one image.
        num_views: Views per image of the default transform.
        data_ratio: Share of the data set drawn each epoch, in `(0, 1]`.
        seed: Seed of that draw.
    """

    def __init__(
        self,
        check: Callable[[Any], None],
        *,
        lookup: TargetLookup | None,
        key: str | None = None,
        transform: Transform | Literal["default"] | None,
        num_views: int,
        data_ratio: float,
        seed: int,
    ) -> None:
        self._lookup, self._key = lookup, key
        self._check, self._transform, self._num_views = check, transform, num_views
        self._data_ratio, self._seed, self._epoch = data_ratio, seed, 0
        self._wanted = Wanted.shared()
        self._current: BatchRows | None = None
        self._replaced: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.in_flight = 1
        """Most batches that can be on their way to the step: the loader's prefetching, and Lightning's one."""
        self._trainer: Any = None
        self._many, self._none_found, self._said = False, False, False
        self._untagged_needed = 0.0  # batches in a row that must come without tags before no other can have some
        self._most_needed = 0.0

    def attach(self, loading: Patches, stepping: Patches, trainer: Any, module: Any) -> None:
        """Wrap what sets the loader up, and the transfer hooks of module and data module."""
        self._trainer = trainer
        loading.wrap(trainer.strategy, "process_dataloader", self._process)
        loading.wrap(trainer.fit_loop, "setup_data", self._set_up)
        for owner in (module, getattr(trainer, "datamodule", None)):
            if owner is not None:
                stepping.wrap(owner, "on_before_batch_transfer", self._unwrap)

    def request(self, transport_views: bool, targets: bool, rows: bool) -> None:
        """Which views to make from now on, and whether targets and rows ride along; prefetched batches keep theirs."""
        self._wanted.transport_views.value = TRANSPORT_VIEWS if transport_views else USER_VIEWS
        self._wanted.targets.value, self._wanted.rows.value = targets, rows
        self._say_whose_views()

    def start_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, before its first batch is fetched."""
        self._wanted.epoch.value = -1 if self._many else epoch

    def resume_at(self, epoch: int) -> None:
        """Set the epoch that a resumed run goes on from."""
        self._epoch = epoch

    @property
    def passed(self) -> bool:
        """Whether no batch with tags can come any more."""
        return self._untagged_needed <= 0

    def take(self) -> BatchRows:
        """The rows of the batch in the current step.

        Raises:
            InjectionError: If the batch arrived without them.
        """
        if self._current is None:
            raise InjectionError(
                "The training batch carries no data set index.",
                expected="a batch from the loader Lightning processed",
                found="a batch that bypassed it",
                do="let Lightning build the loader (fit argument, train_dataloader hook or data module), and "
                "call super() if you override Trainer or strategy methods",
            )
        return self._current

    def detach(self) -> None:
        """Give a CombinedLoader of the user its own loaders back."""
        combined = training_loaders(self._trainer)
        if combined is not None:
            combined.flattened = self._own_loaders(combined)
        self._replaced.clear()

    def _set_up(self, original: Callable[[], None]) -> None:
        """Set the data up; `trainer.train_dataloader` is the user's own loader, with the user's batches in it."""
        original()
        combined = training_loaders(self._trainer)
        if combined is not None:
            show_loaders(combined, self._own_loaders(combined))

    def _own_loaders(self, combined: Any) -> list[Any]:
        """The loaders of the user behind those that are iterated."""
        return [
            self._replaced.get(loader, loader) if isinstance(loader, DataLoader) else loader
            for loader in combined.flattened
        ]

    def _unwrap(self, original: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(batch, IndexedBatch):
            self._current = BatchRows(batch.indices, bool(batch.views.any()), self._on_device(batch.targets))
            self._untagged_needed = self._most_needed
            batch = batch.batch
        elif self._trainer.training:
            self._current = None if self._lookup is not None and self._wanted.rows.value else BatchRows(None, False)
            self._untagged_needed -= 1
            _refuse_several(batch)
        return original(batch, *args, **kwargs)

    def _on_device(self, targets: Tensor | None) -> Tensor | None:
        """Targets on their way to the device, beside the batch that is about to go there."""
        if targets is None:
            return None
        return targets.view(torch.float32).to(self._trainer.strategy.root_device, non_blocking=True)

    def _process(self, original: Callable[[Any], Any], loader: Any) -> Any:
        if not self._trainer.training:
            return original(loader)
        if isinstance(loader, DataLoader):  # a CombinedLoader of the user that is set up again still holds ours
            loader = self._replaced.get(loader, loader)
        if self._lookup is None and not has_index(loader):
            self._check(getattr(loader, "dataset", loader))
            return original(loader)
        by_key = self._lookup is not None and self._lookup.store.keyed
        (check_keyed if by_key else check_loader)(loader)
        with isolate_rng():
            self._check(loader.dataset)
            transform = self._transport_transform(loader, by_key)
        drawn = self._within_budget(loader)
        if self._lookup is not None and by_key:
            tagged = keyed_loader(drawn, self._wanted, self._lookup, self._key)
        else:
            tagged = tagged_loader(drawn, transform, self._wanted, lookup=self._lookup)
        samplers: tuple[Any, ...] = (tagged.sampler, getattr(tagged.batch_sampler, "sampler", None))
        for sampler in samplers:
            # With workers, the first batches are drawn before Lightning sets the epoch of a resumed run.
            if callable(getattr(sampler, "set_epoch", None)):
                sampler.set_epoch(self._epoch)
        self._many = _sees_images_many_times(tagged)
        self.start_epoch(max(self._epoch, self._trainer.current_epoch))
        processed = original(tagged)
        self._replaced[processed] = loader
        self.in_flight = loader.num_workers * ((loader.prefetch_factor or 0) + 1) + 2
        self._most_needed = self.in_flight if getattr(loader, "in_order", True) else math.inf
        self._untagged_needed = self._most_needed if self._wanted.rows.value else 0.0
        self._say_whose_views()
        return processed

    def _say_whose_views(self) -> None:
        """Say once where gentler views were asked for, and the data set keeps its own."""
        if self._none_found and not self._said and self._wanted.transport_views.value == TRANSPORT_VIEWS:
            rank_zero_info("ReLA shows the data set's own views in the transport phase: none like them could be made.")
            self._said = True

    def _transport_transform(self, loader: DataLoader[Any], by_key: bool) -> Transform | None:
        if self._transform is None:
            return None
        dataset = loader.dataset
        if by_key and self._transform != "default":
            raise DataError(
                "`transform` has no effect where targets are found by key: a stream makes its own views.",
                expected="transform left out",
                found=f"transform={self._transform}",
                do="make gentler views in the stream itself",
            )
        if self._transform == "default":
            if by_key:
                return None
            samples = loader.batch_sampler is not None  # else the sampler yields whole batches
            gentler = default_transport_transform(dataset, self._num_views, loader.collate_fn if samples else list)
            self._none_found = gentler is None
            return gentler
        if not takes_one_image(dataset):
            raise DataError(
                "`transform` has no effect on this data set.",
                expected="a data set that applies its `transform` attribute to each image",
                found=type(dataset).__name__,
                do="give the data set a `transform` attribute it applies, or leave `transform` out to keep its views",
            )
        return taking_images_of(dataset, self._transform)

    def _within_budget(self, loader: Any) -> Any:
        """The loader, or a copy that draws `data_ratio` of the data set each epoch."""
        if self._data_ratio == 1.0:
            return loader
        if self._trainer.overfit_batches > 0:
            raise ConfigError("`data_ratio` and `overfit_batches` both choose the samples.", do="use one of them")
        if not has_index(loader):
            raise ConfigError("`data_ratio` draws rows, and a stream has none.", do="read fewer shards instead")
        check_plain_sampler(loader, self._trainer.world_size)
        replicas, rank = getattr(loader.sampler, "num_replicas", 1), getattr(loader.sampler, "rank", 0)
        rows, seed = len(loader.dataset), self._seed
        sampler = BudgetSampler(rows, self._data_ratio, seed=seed, num_replicas=replicas, rank=rank)
        return resampled_loader(loader, sampler)


def _sees_images_many_times(loader: DataLoader[Any]) -> bool:
    """Whether one epoch draws twice as many samples as there are, or more; or nobody knows how many."""
    try:
        samples = len(loader) * (batch_size_of(loader) or 1)
    except (TypeError, NotImplementedError):  # a sampler without a length
        return True
    return samples >= 2 * len(loader.dataset)  # type: ignore[arg-type]


def _refuse_several(batch: Any) -> None:
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    if any(isinstance(part, IndexedBatch) for part in parts):
        raise DataError(
            "Targets belong to one data set, and the training loaders come as a collection (several training loaders).",
            expected="one training loader, given as itself and not in a list or dict",
            found=f"a {type(batch).__name__} of {len(list(parts))}",
            do="train on one loader; torch.utils.data.ConcatDataset joins data sets",
        )
