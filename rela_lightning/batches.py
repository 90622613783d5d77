"""The tensors inside a batch of any shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def leaves(batch: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch with their dotted paths (`"0.1"`, `"image"`), in order."""
    if isinstance(batch, Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(batch, (list, tuple)):
        for position, value in enumerate(batch):
            yield from leaves(value, f"{path}.{position}".lstrip("."))
    elif hasattr(batch, "__dataclass_fields__"):
        yield from leaves(vars(batch), path)


def describe(batch: Any) -> list[str]:
    """One line per tensor of a batch: path, dtype, shape."""
    return [f"{path or 'batch'}: {leaf.dtype} {list(leaf.shape)}" for path, leaf in leaves(batch)]
