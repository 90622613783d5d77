"""Use a data set under another `transform` for a moment, without touching its files or its class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from rela_lightning.data.copies import copied

Transform = Callable[[Any], Any]
_CLASS_LEVEL = object()


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
    before = [(owner, vars(owner).get("transform", _CLASS_LEVEL), owner.transform) for owner in owners]
    try:
        for owner in owners:
            owner.transform = transform
        yield
    finally:
        for owner, own, seen in before:
            if own is not _CLASS_LEVEL or isinstance(getattr(type(owner), "transform", None), property):
                owner.transform = seen
            else:  # a method of that name: ours is taken off the instance
                vars(owner).pop("transform", None)


def with_transform(dataset: Any, transform: Transform) -> Any:
    """A copy of a data set that hands out its rows under another transform, where it has one that can be set.

    The data set stays as it is: a data module may hand out the same one again.
    """
    made = copied(dataset)
    for owner in transform_owners(made):
        owner.transform = transform
    return made


class Call(NamedTuple):
    """One call of a data set's own transform.

    Attributes:
        owner: The object that holds the transform.
        own: The transform; None where the owner has none.
        image: What it was given.
        output: What it returned.
    """

    owner: Any
    own: Transform | None
    image: Any
    output: Any


def observed_calls(dataset: Any, rows: Iterable[int]) -> list[Call] | None:
    """What the transforms of a (nested) data set are given, and return, when some rows are read.

    Each row is read twice, and the second time counts: a data set that keeps what its transform returned is then seen
    to call none, and it would keep what another returns. A copy of the data set is read.

    Returns:
        The calls, by owners without a transform too: they return the image. None if one takes anything but one image,
        or the data set cannot do with any other transform than its own, as where that is read-only, or a list of parts.
    """
    dataset, rows = copied(dataset), list(rows)
    _observed(dataset, rows)
    return _observed(dataset, rows)


def calling(dataset: Any) -> tuple[int, int]:
    """How many objects in a data set call their transform for rows that were read before, and how many have one.

    Those that do not keep what it returned. A data set that cannot be observed is said to call all.
    """
    owners = sum(owner.transform is not None for owner in transform_owners(dataset))
    calls = observed_calls(dataset, rows_of_all_parts(dataset)) if owners and len(dataset) else None
    return (owners if calls is None else len({id(call.owner) for call in calls if call.own is not None})), owners


def _observed(dataset: Any, rows: Sequence[int]) -> list[Call] | None:
    calls: list[Call] = []
    odd: list[bool] = []

    def recording(owner: Any, own: Transform | None) -> Transform:
        def call(*args: Any, **kwargs: Any) -> Any:
            output = own(*args, **kwargs) if own is not None else args[0]
            odd.append(len(args) != 1 or bool(kwargs))
            calls.append(Call(owner, own, args[0] if args else None, output))
            return output

        return call

    try:
        with ExitStack() as stack:
            for owner in transform_owners(dataset):
                stack.enter_context(swapped_transform(owner, recording(owner, owner.transform)))
            for row in rows:
                dataset[row]
    except Exception:  # whatever a foreign class makes of a stand-in
        return None
    return None if any(odd) else calls


def makes_batches(dataset: Any, transform: Transform | None, collate: Callable[[Any], Any]) -> bool:
    """Whether two rows under another transform go into one batch, or would not under the data set's own either.

    A copy of the data set is read.

    Args:
        dataset: Map-style, with at least one row.
        transform: Set on every owner inside of the data set.
        collate: Makes a batch of a list of samples.
    """
    dataset, rows = copied(dataset), [0, min(1, len(dataset) - 1)]

    def batch() -> bool:
        try:
            collate([dataset[row] for row in rows])
        except Exception:  # whatever a foreign class or function raises
            return False
        return True

    with swapped_transform(dataset, transform):
        made = batch()
    return made or not batch()


def rows_of_all_parts(dataset: Any, count: int = 8) -> list[int]:
    """Some rows spread over a map-style data set, and the first and the last of each part of a `ConcatDataset`."""
    length = len(dataset)
    starts = [0, *getattr(dataset, "cumulative_sizes", ())]
    ends = [row for start in starts for row in (start - 1, start)]
    spread = [round(place * (length - 1) / max(1, count - 1)) for place in range(count)]
    return sorted({row for row in (*spread, *ends) if 0 <= row < length})


def takes_one_image(dataset: Any) -> bool:
    """Whether the data set's `transform` works: it can be set, and one image alone goes through it.

    False for torchvision's `VOCDetection`, which applies `transforms`, and for transforms called with keywords
    or several arguments. One sample is read.
    """
    return bool(transform_owners(dataset)) and bool(observed_calls(dataset, [0]))


def has_rows(dataset: Any) -> bool:
    """Whether a data set is map-style: torch's streams inherit a `__getitem__`, and may have a length."""
    rows = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return rows and not isinstance(dataset, IterableDataset)
