"""A stream as labelling sees it: single samples, each with a key, its images before its own `transform`."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from rela_lightning.data.find_image import image_in
from rela_lightning.data.find_key import find_key
from rela_lightning.data.raw import checked_image, pixels, unchanged
from rela_lightning.data.swap import swapped_transform
from rela_lightning.errors import DataError
from rela_lightning.targets.keys import KeyLine, hashes_of, places
from rela_lightning.targets.label_view import CropsOf, LabelItem, label_item

SAMPLED = 16


class Sample(NamedTuple):
    """One sample of a stream.

    Attributes:
        key: Its key.
        image: Its raw image.
    """

    key: str
    image: Any

    @property
    def number(self) -> int:
        """Hash of the key as a signed integer: what stands for the row while a pass is under way."""
        return int(hashes_of([self.key]).view(np.int64)[0])

    @property
    def line(self) -> KeyLine:
        """What the pass notes of it."""
        array = pixels(self.image)
        digest = hashlib.blake2b(f"{array.shape}{array.dtype}".encode() + array.tobytes(), digest_size=8)
        return KeyLine(digest.hexdigest(), self.key)


@dataclass(frozen=True)
class Stream:
    """A data set that is iterated, and where image and key are in its samples.

    Attributes:
        dataset: The user's; nothing in it is changed.
        key: See `rela_lightning.data.find_key`.
        image: See `rela_lightning.data.find_image`.
    """

    dataset: Any
    key: str | None = None
    image: str | None = None

    def __iter__(self) -> Generator[Sample, None, None]:
        """Go over the samples, the stream's own `transform` set aside.

        Raises:
            DataError: For a sample without a key or a raw image.
        """
        with swapped_transform(self.dataset, unchanged):
            for sample in self.dataset:
                key = find_key(sample, self.key)
                name = f"The sample {key!r}"
                yield Sample(key, checked_image(image_in(sample, self.image, name), sample, name))

    def first(self, count: int = SAMPLED) -> list[Sample]:
        """The first samples."""
        with contextlib.closing(iter(self)) as samples:
            return list(itertools.islice(samples, count))


class LabelStream(IterableDataset[LabelItem]):
    """Preprocessed views of the samples that a pass has not embedded yet.

    Args:
        stream: The stream. How it is shared among processes is its own matter.
        preprocess: The prior's preprocessing.
        crops: Crops of an image, from it and the hash of its key.
        held: Sorted hashes of the lines of the samples that are done, uint64. A key that comes with another image is
            embedded as well, so that the pass can refuse it.
    """

    def __init__(self, stream: Stream, preprocess: Any, crops: CropsOf, held: NDArray[np.uint64]) -> None:
        self.stream, self.preprocess, self.crops, self.held = stream, preprocess, crops, held

    def __iter__(self) -> Iterator[LabelItem]:
        for sample in self.stream:
            line = sample.line.text()
            if places(self.held, hashes_of([line]))[0] < 0:
                item = label_item(sample.image, sample.number, self.preprocess, self.crops)
                yield item._replace(line=line)


def refuse_changing(stream: Stream) -> list[KeyLine]:
    """Read the first samples twice; what was read.

    Raises:
        DataError: If there is none, or an image is another one at the second reading.
    """
    lines = [sample.line for sample in stream.first()]
    if not lines:
        raise DataError(
            "The stream is empty.",
            expected="at least 2 samples",
            found=f"none in {type(stream.dataset).__name__}",
            do="check its path and shards",
        )
    again = {sample.line for sample in stream.first()}
    seen = {line.key for line in again}
    changing = [line.key for line in lines if line.key in seen and line not in again]
    if changing:
        raise DataError(
            f"The sample {changing[0]!r} of the stream has other pixels each time it is read.",
            expected="images without random augmentation",
            found=f"{type(stream.dataset).__name__}, which augments in a place other than `transform`",
            do="label the same stream built without its augmentation; training finds targets by the key",
        )
    return lines
