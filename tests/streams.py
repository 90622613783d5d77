"""Shards of real images, and streams over them as users write them."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from tests.parts import make_digits


def key_of(number: int) -> str:
    """The key of the image of a row."""
    return f"digits/{number:05d}"


def write_shards(folder: Path, count: int = 64, shards: int = 4) -> list[str]:
    """Tar files with the first training digits, `<key>.png` each."""
    digits, paths = make_digits(count), []
    for shard in range(shards):
        path = folder / f"{shard:03d}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(shard, count, shards):
                file = io.BytesIO()
                digits[number][0].save(file, "png")
                entry = tarfile.TarInfo(f"{key_of(number)}.png")
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)
        paths.append(str(path))
    return paths


class Shards(IterableDataset):
    """Samples of tar files; each process reads the shards that are its own.

    Args:
        paths: The shards.
        sample: Makes a sample of a key and an image.
        shuffle: Whether shards and the samples of each come in another order at every reading.
        split: Whether processes share the shards.
    """

    def __init__(self, paths: list[str], sample: Any = None, *, shuffle: bool = False, split: bool = True) -> None:
        self.paths, self.sample, self.shuffle, self.split = paths, sample or as_dict, shuffle, split
        self.fail_at: int | None = None
        self.read = 0

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        paths = self.paths[rank * workers + number :: ranks * workers] if self.split else list(self.paths)
        if self.shuffle:
            random.shuffle(paths)
        for path in paths:
            with tarfile.open(path) as tar:
                entries = tar.getmembers()
                if self.shuffle:
                    random.shuffle(entries)
                for entry in entries:
                    self.read += 1
                    if self.read == self.fail_at:
                        raise OSError("the network went away")
                    image = Image.open(io.BytesIO(tar.extractfile(entry).read()))
                    image.load()
                    yield self.sample(entry.name.removesuffix(".png"), image)


def as_dict(key: str, image: Any) -> dict[str, Any]:
    """A sample in the form of WebDataset."""
    return {"__key__": key, "__url__": "a.tar", "png": image, "cls": int(key[-5:])}


class Training:
    """A training sample: views, the number of the image, the key."""

    def __init__(self, views: Any) -> None:
        self.views = views

    def __call__(self, key: str, image: Any) -> Any:
        return self.views(image), int(key[-5:]), key
