"""What cannot be labelled is refused before work is lost, and named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset
from torchvision.datasets import VisionDataset
from torchvision.transforms import v2

from rela_lightning import build_targets, load_prior
from rela_lightning.errors import ConfigError, DataError, TargetError
from rela_lightning.targets.estimate import estimate_targets
from tests.test_targets import DIGITS, Bare, Digits, Pixels, pixel_prior


@pytest.fixture(scope="module")
def prior():
    return pixel_prior()


class Stream(IterableDataset):
    """No length, no index."""

    def __iter__(self):
        return iter(Digits())


def noisy(row):
    return torch.rand(1, 8, 8)


BAD_DATA = {
    "iterable": (Stream(), DataError, r"carry no key[\s\S]*len\(dataset\) and dataset\[i\][\s\S]*prior="),
    "empty": (Bare(0, lambda row: None), DataError, "is empty"),
    "one row": (Digits(1), DataError, "at least 2 rows"),
    "labels": (Bare(9, lambda row: ("a", 3)), DataError, r"Row 0[\s\S]*found:    tuple of str, int"),
    "normalised": (Bare(9, lambda row: torch.ones(3, 8, 8) * 2.5), DataError, r"values 2.5 to 2.5[\s\S]*before normal"),
    "channels last": (Bare(9, lambda row: torch.ones(8, 8, 3, dtype=torch.uint8)), DataError, "channels first"),
    "late": (Bare(9, lambda row: Image.fromarray(DIGITS[row]) if row < 8 else None), DataError, "Row 8"),
    "random": (Bare(9, noisy), DataError, "other pixels each time"),
    "constant": (Bare(9, lambda row: torch.ones(1, 8, 8)), TargetError, "every image the same features"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_data_that_cannot_be_labelled_is_refused(tmp_path, prior, name):
    dataset, kind, message = BAD_DATA[name]
    with pytest.raises(kind, match=message):
        build_targets(prior, dataset, tmp_path / "t")
    assert not (tmp_path / "t").exists()


class Sometimes(Pixels):
    """Not a number where an image is bright."""

    def forward(self, images):
        return torch.where(images.amax((1, 2, 3)).gt(0.999)[:, None], torch.nan, super().forward(images))


def test_features_that_are_not_finite_are_refused_by_row(tmp_path):
    images = np.minimum(DIGITS[:40], 200)
    images[23, 0, 0] = 255
    dataset = Digits()
    dataset.images = images
    prior = load_prior(Sometimes(), image_size=8, mean=[0.0], std=[1.0])
    with pytest.raises(TargetError, match=r"NaN or infinite[\s\S]*rows \[23\] of the data set"):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16)


class Stacked(Digits):
    """Stacks two views, which no image but a tensor allows."""

    def __getitem__(self, row):
        return torch.stack([super(Stacked, self).__getitem__(row)[0] for _ in range(2)]), 0


class Listed(Digits):
    """Its transform is a list of parts."""

    def __getitem__(self, row):
        first, second = self.transform
        return second(first(Image.fromarray(self.images[row])))


def test_the_image_is_what_the_transform_was_given_where_a_sample_is_made_of_what_it_returns(tmp_path, prior):
    plain, stacked = Digits(), Stacked(transform=v2.Compose([v2.RandomCrop(6), v2.ToImage()]))
    store = build_targets(prior, stacked, tmp_path / "t")
    rows = torch.arange(40)
    assert torch.equal(store[rows], build_targets(prior, plain, tmp_path / "plain")[rows])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of what was not compared
        store.verify(plain)
        store.verify(stacked)


def test_a_data_set_that_needs_its_own_transform_is_told_apart_from_a_broken_one(tmp_path, prior):
    listed = Listed(transform=[v2.RandomCrop(6), v2.ToImage()])
    with pytest.raises(DataError, match=r"while its `transform` is set aside[\s\S]*built without its augmentation"):
        build_targets(prior, listed, tmp_path / "t")
    listed.transform = [None, None]
    with pytest.raises(TypeError, match="unpack"):
        build_targets(prior, listed, tmp_path / "t")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_dim": 21}, r"expected: 1 to 20[\s\S]*found:    21"),
        ({"target_dim": 21.0}, r"expected: 1 to 20[\s\S]*found:    21$"),
        ({"target_dim": 1.5}, "more than the prior gives"),
        ({"target_dim": 0}, "not a width"),
        ({"target_dim": 1.0}, r"not a width[\s\S]*a share in \(0, 1\)"),
        ({"standardise": "white"}, "per_dim, isotropic, none"),
        ({"storage_dtype": torch.int16}, "available: float16, float32, int8"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_read(tmp_path, prior, options, message):
    dataset = Digits()
    with pytest.raises(ConfigError, match=message):
        build_targets(prior, dataset, tmp_path / "t", **options)
    assert not dataset.reads and not list(Path(tmp_path).iterdir())


def test_a_width_may_come_as_a_float_from_a_parser(tmp_path, prior):
    store = build_targets(prior, Digits(), tmp_path / "t", target_dim=7.0)
    assert store.dim == 7
    assert build_targets(prior, Digits(), tmp_path / "t", target_dim=7).path == store.path  # the same settings
    one, two = (estimate_targets(prior, Digits(), target_dim=width) for width in (7.0, 7))
    assert one.store_bytes == two.store_bytes


def test_targets_too_large_for_half_precision_are_refused(tmp_path):
    prior = pixel_prior()
    with torch.no_grad():
        prior.network.map.weight *= 1e6
    with pytest.raises(TargetError, match=r"storage_dtype=torch\.float32"):
        build_targets(prior, Digits(), tmp_path / "t", standardise="none")
    assert build_targets(prior, Digits(), tmp_path / "t").dim == 20


class Joint(VisionDataset):
    """As torchvision's VOC: it has a `transform`, and applies another."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, row: int) -> Any:
        return self.transforms(torch.full((3, 8, 8), row / 9), row)


@pytest.mark.parametrize("image", [None, "0"])
def test_an_error_names_the_users_own_class(image: str | None, tmp_path: Path) -> None:
    dataset = Joint(tmp_path, transform=lambda tensor: (tensor + torch.rand(())).clamp(max=1))
    with pytest.raises(DataError, match=r"found: +Joint, which augments in a place other than"):
        build_targets(pixel_prior(), dataset, tmp_path / "t", image=image)
