"""Where the key of a sample is: the text by which the targets of a stream are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rela_lightning.batches import Path, walk
from rela_lightning.data.find_image import part_at
from rela_lightning.errors import DataError

_NAMES = ("__key__", "key")


def find_key(sample: Any, where: str | None = None) -> str:
    """The key of one sample.

    Args:
        sample: What a data set gave: a tuple, list, dict or dataclass.
        where: Path of the key, keys and positions with dots between: `__key__`, `2`, `meta.id`. None takes the entry
            `__key__` or `key` of a dict, else the only text at a position of a tuple.

    Raises:
        DataError: If there is none, or several could be meant, naming what the sample holds.
    """
    found = _found(sample, where)
    if isinstance(found, str):
        return found
    raise DataError(
        "The key of a sample is a list of texts.",
        expected="one text: a stream of single samples",
        found=f"{len(found)} texts",
        do="leave out the batching of the stream, or say with `key` where the sample's own key is",
    )


def find_keys(samples: Any, where: str | None = None, *, batched: bool = False) -> list[str]:
    """The keys of some samples, in order.

    Args:
        samples: A list of samples; or, if `batched`, one sample or a batch that the stream itself has put together.
        where: See `find_key`.
        batched: Whether `samples` is what the stream gave at once.

    Raises:
        DataError: See `find_key`.
    """
    if not batched:
        return [find_key(sample, where) for sample in samples]
    found = _found(samples, where)
    return [found] if isinstance(found, str) else list(found)


def _found(sample: Any, where: str | None) -> str | Sequence[str]:
    texts = [(path, value) for path, value in walk(sample, lambda item, _: _is_text(item)) if _is_text(value)]
    if where is not None:
        try:
            found = part_at(sample, where.split("."))
        except LookupError:
            found = None
        if not _is_text(found):
            raise _no_key(f"A sample has no text at key={where!r}.", texts, sample)
        return found  # type: ignore[no-any-return]
    for name in _NAMES:
        named = [value for path, value in texts if path and path[-1] == name]
        if len(named) == 1:
            return named[0]  # type: ignore[no-any-return]
    placed = [value for path, value in texts if path and path[-1].isdigit()]
    if len(placed) != 1:
        raise _no_key("The samples carry no key by which targets could be found.", texts, sample)
    return placed[0]  # type: ignore[no-any-return]


def _is_text(item: Any) -> bool:
    listed = isinstance(item, (list, tuple)) and bool(item) and all(isinstance(part, str) for part in item)
    return isinstance(item, str) or listed


def _no_key(problem: str, texts: Sequence[tuple[Path, Any]], sample: Any) -> DataError:
    listed = [f"{'.'.join(path)}: {value!r:.40}" for path, value in texts[:8]]
    return DataError(
        problem,
        expected="a text that no other sample has: the entry __key__, or the only text of a tuple",
        found=f"{', '.join(listed) or 'no text'} in {type(sample).__name__}",
        do='say where it is, for example key="2" or key="meta.id"; without keys train from a data set with '
        "len(dataset) and dataset[i], or compute targets on the fly: ReLACallback(prior=...)",
    )
