"""Copies of data sets to look at: what reading a row leaves in one, such as an open file, is not left in the user's."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

from torch.utils.data import ConcatDataset, Dataset


def copied(dataset: Any, _seen: dict[int, Any] | None = None) -> Any:
    """A shallow copy of a data set, with copies of the data sets inside of it, at any depth.

    A file that is opened when the first row is read must not be open when worker processes start: they would share its
    position, and read each other's rows.

    Args:
        dataset: Map-style.

    Returns:
        The copy; the data set itself where it cannot be copied.
    """
    seen = {} if _seen is None else _seen
    if id(dataset) in seen:
        return seen[id(dataset)]
    try:
        made = copy.copy(dataset)
    except Exception:  # whatever a foreign class raises
        made = dataset
    seen[id(dataset)] = made
    if made is not dataset:
        held = getattr(made, "__dict__", {})
        held.update({name: _copied_inside(name, value, seen) for name, value in held.items()})
    return made


def rebuilt(dataset: Any, change: Callable[[Any], Any]) -> Any:
    """A data set with others in place of those right inside of it; itself where `change` returns what it is given.

    Args:
        dataset: Map-style; a `ConcatDataset`, or a wrapper with its data set as `dataset`.
        change: From a data set inside to the one in its place, of as many rows.
    """
    held = dataset.datasets if isinstance(dataset, ConcatDataset) else [getattr(dataset, "dataset", None)]
    inside = [None if part is None else change(part) for part in held]
    if all(map(operator.is_, inside, held)):
        return dataset
    outside = copy.copy(dataset)
    if isinstance(dataset, ConcatDataset):
        outside.datasets = inside
    else:
        outside.dataset = inside[0]
    return outside


def _copied_inside(name: str, value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, Dataset) or (name == "dataset" and hasattr(value, "__dict__")):
        return copied(value, seen)
    if type(value) in (list, tuple) and value and isinstance(value[0], Dataset):
        return type(value)(copied(part, seen) for part in value)
    return value
