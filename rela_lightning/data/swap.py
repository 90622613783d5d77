"""Use a data set under another `transform` for a moment, without touching its files or its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Transform = Callable[[Any], Any]


def transform_owners(dataset: Any) -> list[Any]:
    """The objects in a (nested) data set that hold a `transform` attribute, outermost first found.

    Wrappers such as `Subset`, `ConcatDataset` or lightly's `LightlyDataset` are followed through
    `dataset` and `datasets`. A wrapper with a `transform` of its own ends the search on its branch.
    """
    owners: list[Any] = []
    pending, seen = [dataset], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if hasattr(node, "transform"):
            owners.append(node)
            continue
        pending.append(getattr(node, "dataset", None))
        inner = getattr(node, "datasets", None)
        if isinstance(inner, (list, tuple)):
            pending.extend(inner)
    return owners


@contextmanager
def swapped_transform(dataset: Any, transform: Transform | None) -> Iterator[None]:
    """Set `transform` on every owner inside `dataset` and put the old ones back at the end."""
    owners = transform_owners(dataset)
    before = [owner.transform for owner in owners]
    try:
        for owner in owners:
            owner.transform = transform
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            owner.transform = old


def swap_has_effect(dataset: Any, index: int = 0) -> bool:
    """Whether replacing `transform` changes what `dataset[index]` does.

    False for a data set without a working `transform`, such as torchvision's `VOCDetection`, which
    applies `transforms`. One sample is read.
    """
    owners = transform_owners(dataset)
    if not owners:
        return False
    calls = 0
    keep = owners[0].transform

    def counting(image: Any) -> Any:
        nonlocal calls
        calls += 1
        return keep(image) if keep is not None else image

    with swapped_transform(dataset, counting):
        dataset[index]
    return calls > 0
