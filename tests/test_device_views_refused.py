"""What `DeviceViews` and `decode` do not take is named, in place of wrong views or an error of torch or kornia."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode, v2

from rela_lightning.data import CIFAR10Data, DeviceViews, Digits, RGBImages, build_views, decode
from rela_lightning.data.device import memory
from rela_lightning.errors import ConfigError, DataError, ReLAError
from tests.test_device_views import Photos, Pieces, fit, small

pytest.importorskip("kornia")
SIMCLR = build_views("simclr", 32, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (torch.rand(3, 40, 40), r"tensor \[3, 40, 40\], torch.float32"),
        (torch.zeros(4, 40, 40, dtype=torch.uint8), r"\[4, 40, 40\]"),
        (torch.zeros(40, 40, dtype=torch.uint8), r"\[40, 40\]"),
        (Image.new("L", (40, 40)), "mode L"),
        (Image.new("RGBA", (40, 40)), "mode RGBA"),
        (Image.new("YCbCr", (40, 40)), "mode YCbCr"),
        (Image.new("I;16", (40, 40)), "mode I;16"),
        (np.zeros((40, 40, 3), np.uint8), "ndarray"),
    ],
)
def test_images_that_are_not_rgb_of_eight_bits(image: Any, found: str) -> None:
    with pytest.raises(DataError, match=found):
        DeviceViews(SIMCLR)(image)


def test_grey_images_become_rgb_as_the_hint_says() -> None:
    views = DeviceViews(SIMCLR)
    images = RGBImages([(Image.fromarray(np.full((40, 40), level, np.uint8)), 0) for level in (0, 255)], views)
    made = views.on_device(default_collate([images[0], images[1]]), "cpu", epoch=0)
    assert [tuple(view.shape) for view in made[0]] == [(2, 3, 32, 32)] * 2
    assert float(made[0][0][0].mean()) == pytest.approx(-1) and made[0][0].isfinite().all()


PHOTO = Image.new("RGB", (40, 40))


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (PHOTO, "row 0: Image$"),
        ((PHOTO, None), "row 0: tuple of Image, NoneType$"),
        ((PHOTO, "cat"), "row 0: tuple of Image, 'cat'$"),
        ((PHOTO, 1, 2), "row 0: tuple of Image, int, int$"),
        ({"image": PHOTO, "label": 1}, "row 0: dict of 'image', 'label'$"),
    ],
)
def test_rows_that_are_not_an_image_and_a_label(row: Any, found: str) -> None:
    for read in (lambda: RGBImages([row])[0], lambda: decode([row], 32)):
        with pytest.raises(DataError, match=r"(?m)" + found):
            read()


def test_settings_out_of_range() -> None:
    with pytest.raises(ConfigError, match="`seed`"):
        DeviceViews(SIMCLR, seed=-1)
    for options in ({"most": 0}, {"num_workers": -1}, {"processes": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            decode(Digits("test"), **{"most": 32, **options})
    with pytest.raises(DataError, match="no images"):
        decode([], 32)


def test_a_flip_inside_random_apply_says_where_it_may_be() -> None:
    inside = v2.Compose([v2.RandomResizedCrop(32), v2.RandomApply([v2.RandomHorizontalFlip()]), v2.ToImage()])
    with pytest.raises(ConfigError, match="outside RandomApply"):
        DeviceViews(inside)


def test_images_that_do_not_fit_are_refused_with_the_number(monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 100 << 10)
    with pytest.raises(DataError, match=r"do not fit(.|\n)*48 of 32 x 32 px: 144 KiB(.|\n)*stored_size"):
        fit(small("BYOL"), Photos(), max_epochs=1)
    fit(small("BYOL"), Photos(stored_size=16), max_epochs=1)
    with pytest.raises(DataError, match="in each of 2 processes"):
        decode(Pieces(), 20, processes=2)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    fit(small("BYOL"), Photos(), max_epochs=1)


def test_views_that_have_no_form_for_batches_are_refused_before_training() -> None:
    def rotated() -> Any:
        return Photos(views="byol", views_kwargs={"rr_prob": 0.5})

    foreign = v2.Compose([v2.RandomResizedCrop(32), v2.RandomPerspective(), v2.ToImage()])
    for make, found in (
        (rotated, "RandomRotate"),
        (lambda: Photos(views="byol", views_kwargs={"rr_prob": 0.5, "rr_degrees": 10.0}), "RandomRotation"),
        (lambda: Photos(views=foreign), "RandomPerspective"),
        (lambda: DeviceViews(lambda image: image), "function"),
        (lambda: DeviceViews(v2.Compose([v2.ColorJitter(0.1), v2.RandomResizedCrop(8)])), "RandomResizedCrop"),
        (lambda: DeviceViews(v2.RandomResizedCrop(8, interpolation=InterpolationMode.NEAREST)), "nearest"),
        (lambda: DeviceViews(v2.GaussianBlur(3)), "GaussianBlur"),
        (lambda: DeviceViews(v2.ToDtype(torch.float16, scale=True)), "ToDtype"),
        (lambda: Photos(device_views=False, stored_size=32), "device_views=False"),
        (lambda: Photos(stored_size=4), "4"),
    ):
        with pytest.raises(ConfigError, match=found):
            make()
    with pytest.raises(ReLAError, match="RandomRotate"):
        fit(small("BYOL"), Photos(views_kwargs={"rr_prob": 0.5}), max_epochs=1)


def test_without_kornia_its_extra_is_named(monkeypatch: Any) -> None:
    monkeypatch.setattr("rela_lightning.data.device.views.find_spec", lambda name: None)
    for make in (Photos, lambda: CIFAR10Data(device_views=True), lambda: DeviceViews(v2.Identity())):
        with pytest.raises(ConfigError, match=r"rela-lightning\[gpu\]"):
            make()
