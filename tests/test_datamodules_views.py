"""Named views: how many, how large, normalised, blurred or mirrored or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rela_lightning.data import build_views, probe_view
from rela_lightning.data.views import VIEWS, small_crop_size
from rela_lightning.errors import ConfigError
from tests.image_files import crop

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def views(name: str, size: int, **options: Any) -> Any:
    flip = options.pop("flip", True)
    return build_views(name, size, mean=MEAN, std=STD, flip=flip, options=options)


def sizes(made: Any) -> list[tuple[int, ...]]:
    return [tuple(view.shape) for view in (made if isinstance(made, list) else [made])]


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("name", VIEWS)
def test_number_and_size(name: str, size: int) -> None:
    made = views(name, size)(crop(0, 1))
    crop_size = small_crop_size(size)
    small = [(3, crop_size, crop_size)] * 6 if name in ("dino", "swav") else []
    if name == "one":
        assert isinstance(made, torch.Tensor) and made.shape == (3, size, size)
    else:
        assert isinstance(made, list) and sizes(made) == [(3, size, size)] * 2 + small
    assert all(view.dtype == torch.float32 for view in (made if isinstance(made, list) else [made]))


def test_small_crops_are_the_papers_at_224_and_never_tiny() -> None:
    assert [small_crop_size(size) for size in (224, 96, 64, 32, 28, 8)] == [96, 40, 24, 16, 16, 8]


@pytest.mark.parametrize("name", VIEWS)
def test_normalisation(name: str) -> None:
    colour = (51, 204, 102)
    solarise = {"byol": "solarization_prob", "barlow_twins": "solarization_prob", "dino": "solarization_prob"}
    off: dict[str, Any] = {"cj_prob": 0.0, "random_gray_scale": 0.0}
    off |= {solarise[name]: 0.0} if name in solarise else {"solarize_prob": 0.0} if name == "vicreg" else {}
    made = views(name, 32, **off)(Image.new("RGB", (48, 40), colour))
    expected = (np.asarray(colour) / 255 - MEAN) / STD
    for view in made if isinstance(made, list) else [made]:
        assert np.abs(np.asarray(view) - expected[:, None, None]).max() < 1e-5


@pytest.mark.parametrize("name", VIEWS)
def test_small_images_are_not_blurred(name: str, monkeypatch: Any) -> None:
    calls = []
    original = Image.Image.filter
    monkeypatch.setattr(Image.Image, "filter", lambda self, kernel: calls.append(1) or original(self, kernel))
    small, large = views(name, 64), views(name, 65)
    for number in range(12):
        small(crop(0, number))
    assert not calls
    for number in range(12):
        large(crop(0, number))
    assert bool(calls) == (name != "one"), "above that size the methods' own blur is there"
    calls.clear()
    if name not in ("dino", "one"):
        views(name, 32, gaussian_blur=1.0)(crop(0, 1))
        assert calls, "an option goes before the rule"


@pytest.mark.parametrize("name", ["one", "simclr", "moco", "simsiam", "swav"])
def test_mirroring(name: str) -> None:
    step = Image.fromarray(np.repeat(np.linspace(0, 255, 40).astype(np.uint8)[None], 40, axis=0)).convert("RGB")

    def rising(flip: bool) -> set[bool]:
        transform = views(name, 32, flip=flip)
        made = [transform(step) for _ in range(12)]
        flat = [view for item in made for view in (item[:2] if isinstance(item, list) else [item])]
        return {bool(view[..., 16:].mean() > view[..., :16].mean()) for view in flat}

    assert rising(flip=False) == {True} and rising(flip=True) == {True, False}


def test_the_two_views_of_byol_differ_in_solarisation() -> None:
    white = Image.new("RGB", (40, 40), (250, 250, 250))
    transform = views("byol", 32, cj_prob=0.0)
    made = [transform(white) for _ in range(60)]
    darkened = [sum(float(item[view].mean()) < 0 for item in made) for view in range(2)]
    assert darkened[0] == 0 < darkened[1] < 60


def test_options_reach_lightly() -> None:
    assert sizes(views("dino", 32, n_local_views=1)(crop(0, 1))) == [(3, 32, 32)] * 2 + [(3, 16, 16)]
    assert sizes(views("swav", 32, crop_counts=[2, 3], crop_sizes=[32, 24])(crop(0, 1))) == (
        [(3, 32, 32)] * 2 + [(3, 24, 24)] * 3
    )


@pytest.mark.parametrize("name", VIEWS)
def test_unknown_options_are_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no such option.*found: +blurr\n.*available:.*hf_prob"):
        views(name, 32, blurr=0.3)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)Unknown views.*found: +moco_v3\n.*simclr"):
        views("moco_v3", 32)


def test_probe_view_of_an_image_of_that_size_is_the_image() -> None:
    image = crop(1, 4, 32)
    expected = (np.asarray(image).transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    made = probe_view(32, mean=MEAN, std=STD)(image)
    assert type(made) is torch.Tensor
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)


def test_probe_view_of_a_large_image_is_its_centre() -> None:
    image = Image.fromarray(np.asarray(crop(0, 0, 400))[:320])  # 400 wide, 320 high
    resized = image.resize((320, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((48, 16, 272, 240))).transpose(2, 0, 1) / 255
    made = probe_view(224, mean=[0, 0, 0], std=[1, 1, 1])(image)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-5)
