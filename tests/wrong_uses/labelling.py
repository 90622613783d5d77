"""Wrong uses of priors and targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from rela_lightning import TargetStore, build_targets, load_prior
from tests.parts import TwoViews, make_digits
from tests.wrong_uses.place import RANDOM, Place
from tests.wrong_uses.place import WrongUse as Use


class Stream(IterableDataset):
    """No length, no index."""

    def __iter__(self) -> Any:
        return iter(make_digits(4))


class Items(Dataset):
    """Whatever is given, 16 times."""

    def __init__(self, item: Any, count: int = 16) -> None:
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        return self.item() if callable(self.item) else self.item


def text_file(place: Place) -> Path:
    """A file that holds no weights."""
    path = place.folder / "weights.pth"
    path.write_text("not weights")
    return path


def foreign_folder(place: Place) -> Path:
    """A folder with something of the user's."""
    path = place.folder / "photos"
    path.mkdir()
    (path / "mine.txt").write_text("mine")
    return path


def changed(place: Place, **settings: Any) -> Path:
    """Targets whose manifest somebody wrote in."""
    path = place.folder / "changed"
    build_targets(place.prior, place.images, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["settings"] |= settings
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def cut_short(place: Place) -> Path:
    """Targets with half of their rows."""
    path = place.folder / "short"
    build_targets(place.prior, place.images, path)
    rows = (path / "targets.npy").read_bytes()
    (path / "targets.npy").write_bytes(rows[: len(rows) // 2])
    return path


def built_again(place: Place, data: Any = None, **options: Any) -> Any:
    """Build where targets are already."""
    return build_targets(place.prior, place.images if data is None else data, place.targets, **options)


LABELLING = [
    Use("a prior that nobody knows", lambda p: load_prior("resnet50")),
    Use("a misspelt kind of prior", lambda p: load_prior("timmm:resnet50")),
    Use("a model that timm does not have", lambda p: load_prior("timm:resnet51")),
    Use("a model that torchvision does not have", lambda p: load_prior("torchvision:resnet51")),
    Use("a weights file that is not there", lambda p: load_prior("checkpoint:none.pth", arch="torchvision:resnet18")),
    Use(
        "a weights file that is a text file",
        lambda p: load_prior(f"checkpoint:{text_file(p)}", arch="torchvision:resnet18"),
    ),
    Use("an option that a prior does not have", lambda p: load_prior("random:lightly:resnet-9", widht=0.125)),
    Use("a network of one's own without image size and normalisation", lambda p: load_prior(nn.Flatten())),
    Use(
        "a prior that gives one number for a batch",
        lambda p: load_prior(nn.Sequential(nn.Flatten(0), nn.LazyLinear(1)), image_size=8, mean=0.5, std=0.5),
    ),
    Use("a standard deviation of zero", lambda p: load_prior("random:lightly:resnet-9", **{**RANDOM, "std": 0.0})),
    Use("a stream whose samples have no key", lambda p: build_targets(p.prior, Stream(), "t")),
    Use("an empty data set", lambda p: build_targets(p.prior, Items(0, 0), "t")),
    Use("a single image", lambda p: build_targets(p.prior, make_digits(1), "t")),
    Use("samples without an image", lambda p: build_targets(p.prior, Items(("a", 3)), "t")),
    Use("images that are normalised already", lambda p: build_targets(p.prior, Items(torch.ones(3, 8, 8) * 2.5), "t")),
    Use("images with their channels last", lambda p: build_targets(p.prior, Items(torch.ones(8, 8, 3)), "t")),
    Use(
        "images augmented out of reach",
        lambda p: build_targets(p.prior, Items(lambda: torch.rand(3, 32, 32)), "t"),
    ),
    Use(
        "the same image again and again",
        lambda p: build_targets(p.prior, Items(Image.new("RGB", (32, 32), "red")), "t"),
    ),
    Use("more columns than the prior has", lambda p: build_targets(p.prior, p.images, "t", target_dim=4096)),
    Use("a standardisation that does not exist", lambda p: build_targets(p.prior, p.images, "t", standardise="white")),
    Use(
        "a type that targets are not kept in",
        lambda p: build_targets(p.prior, p.images, "t", storage_dtype=torch.int16),
    ),
    Use("crops below none", lambda p: build_targets(p.prior, p.images, "t", views=-1)),
    Use("a batch of no images", lambda p: build_targets(p.prior, p.images, "t", batch_size=0)),
    Use("a folder with files of the user's", lambda p: build_targets(p.prior, p.images, foreign_folder(p))),
    Use(
        "the same folder, to be written over",
        lambda p: build_targets(p.prior, p.images, p.folder / "photos", overwrite=True),
    ),
    Use(
        "targets that are there, with another prior",
        lambda p: build_targets(load_prior("random:lightly:resnet-9", **RANDOM, seed=5), p.images, p.targets),
    ),
    Use("targets that are there, of other images", lambda p: built_again(p, make_digits(48))),
    Use("targets that are there, with other options", lambda p: built_again(p, standardise="isotropic")),
    Use("opening a folder without targets", lambda p: TargetStore(p.folder)),
    Use("opening targets of another format", lambda p: TargetStore(changed(p, format_version=99))),
    Use("opening targets whose rows were cut short", lambda p: TargetStore(cut_short(p))),
    Use("a row that targets do not have", lambda p: p.store()[64]),
    Use("comparing targets with other images", lambda p: p.store().verify(make_digits(64, TwoViews()).dataset)),
]
