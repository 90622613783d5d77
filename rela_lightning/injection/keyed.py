"""Targets of a stream ride along with the batch: found by the keys of its samples, where the batch is put together.

Nothing but the collate function of the loader is replaced, in a copy of it: the stream, its order and how it is shared
among workers and ranks are the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from rela_lightning.compat import copied_loader
from rela_lightning.data.find_key import find_keys
from rela_lightning.errors import DataError
from rela_lightning.injection.alignment import check_order
from rela_lightning.injection.tagging import USER_VIEWS, IndexedBatch, Wanted, bits
from rela_lightning.targets.lookup import TargetLookup


class KeyedCollate:
    """The user's collate function; rows and targets of the samples, looked up by their keys, go beside the batch.

    Args:
        collate: The user's collate function.
        wanted: What to make, see `rela_lightning.injection.tagging`.
        lookup: Looks up targets.
        key: Where the key is in a sample; None to find it.
        batched: Whether the stream puts batches together itself (a loader with `batch_size=None`).
        checks: Batches (of each worker) in which row i must hold the image of sample i.
    """

    def __init__(
        self,
        collate: Callable[[Any], Any],
        wanted: Wanted,
        lookup: TargetLookup,
        key: str | None,
        *,
        batched: bool,
        checks: int = 2,
    ) -> None:
        self.collate, self.wanted, self.lookup, self.key = collate, wanted, lookup, key
        self.batched, self.checks = batched, checks

    def __call__(self, samples: Any) -> Any:
        """Collate; refuses samples whose key is not known, by name."""
        if not self.wanted.rows.value:
            return self.collate(samples)
        rows = self.lookup.store.rows_of(find_keys(samples, self.key, batched=self.batched))
        batch = self.collate(samples)
        if self.checks and not self.batched:
            self.checks -= 1
            check_order(samples, batch)
        targets = self.lookup.of_images(rows) if self.wanted.targets.value else None
        index = torch.from_numpy(rows)
        return IndexedBatch(batch, index, torch.full_like(index, USER_VIEWS), bits(targets))


def check_keyed(loader: Any) -> None:
    """Refuse loaders whose samples cannot be seen.

    Raises:
        DataError: For anything but a `torch.utils.data.DataLoader`.
    """
    if not isinstance(loader, DataLoader):
        raise DataError(
            "Targets are found by the keys of samples, and this training loader does not show them.",
            expected="a torch DataLoader over the stream",
            found=type(loader).__name__,
            do="torch.utils.data.DataLoader(stream, batch_size=...), or batch_size=None for a stream of batches",
        )


def keyed_loader(loader: DataLoader[Any], wanted: Wanted, lookup: TargetLookup, key: str | None) -> DataLoader[Any]:
    """A copy of `loader` that yields `IndexedBatch`, rows found by key.

    Args:
        loader: The loader Lightning would iterate.
        wanted: What to make.
        lookup: Looks up targets.
        key: Where the key is in a sample; None for where it was in labelling.

    Returns:
        A shallow copy; `loader` itself is not changed.
    """
    where = lookup.store.settings.get("key") if key is None else key
    batched = loader.batch_sampler is None
    return copied_loader(loader, collate_fn=KeyedCollate(loader.collate_fn, wanted, lookup, where, batched=batched))
