"""Real images in the file layouts that data modules read: JPEG folders, idx, CIFAR pickles, STL-10 binaries."""

from __future__ import annotations

import hashlib
import pickle
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images


@cache
def photos() -> tuple[np.ndarray, ...]:
    """The temple and the flower of scikit-learn, uint8 `[427, 640, 3]`."""
    return tuple(np.asarray(image) for image in load_sample_images().images)


def crop(kind: int, number: int, size: int = 48) -> Image.Image:
    """A square piece of a photo; pieces of other numbers are elsewhere in it."""
    top, left = 53 * number % (427 - size), 97 * number % (640 - size)
    return Image.fromarray(photos()[kind % 2][top : top + size, left : left + size])


def write_classes(root: Path, count: int, classes: tuple[str, ...] = ("flower", "temple"), suffix: str = "jpg") -> Path:
    """`root/<class>/<number>.jpg`, `count` of each class."""
    for kind, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            crop(kind, number + 31 * kind).save(root / name / f"{number:02d}.{suffix}")
    return root


def write_flat(root: Path, count: int) -> Path:
    """`root/<number>.jpg`."""
    root.mkdir(parents=True)
    for number in range(count):
        crop(number, number).save(root / f"{number:02d}.jpg")
    return root


def digit_arrays(size: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Digits as uint8 `[N, size, size]`, nearest enlargement, and their labels."""
    bunch = load_digits()
    images = [
        np.asarray(Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8)).resize((size, size), Image.NEAREST))
        for image in bunch.images[rows]
    ]
    return np.stack(images), bunch.target[rows]


def write_fashion(root: Path, train: int = 96, test: int = 32) -> Path:
    """Digits as Fashion-MNIST's idx files."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, rows in (("train", slice(0, train)), ("t10k", slice(train, train + test))):
        images, labels = digit_arrays(28, rows)
        header = struct.pack(">IIII", 2051, len(images), 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, len(labels)) + labels.astype(np.uint8).tobytes()
        )
    return root


def write_cifar10(root: Path, monkeypatch: Any, each: int = 20) -> Path:
    """Photo pieces as CIFAR-10's pickles; torchvision is told their checksums."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: Any) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name: str, first: int) -> list[str]:
        rows = [np.asarray(crop(n, first + n, 32)).transpose(2, 0, 1).ravel() for n in range(each)]
        return write(name, {"data": np.stack(rows), "labels": [n % 10 for n in range(each)]})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{n}", (n - 1) * each) for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 5 * each)])
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    _, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return root


def write_stl10(root: Path, monkeypatch: Any, labelled: int = 10, unlabelled: int = 20, test: int = 10) -> Path:
    """Photo pieces as STL-10's binaries (columns first, labels from 1)."""
    from torchvision.datasets import STL10

    folder = root / STL10.base_folder
    folder.mkdir(parents=True)
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)  # the real files' checksums
    first = 0
    for name, count in (("train", labelled), ("unlabeled", unlabelled), ("test", test)):
        images = np.stack([np.asarray(crop(n, first + n, 96)) for n in range(count)])
        (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(np.arange(1, count + 1, dtype=np.uint8).tobytes())
        first += count
    return root
