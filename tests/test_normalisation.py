"""The scale of a data set's views is observed on black and white, in every part; what cannot be told is left alone."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.transforms import BYOLTransform, SimCLRTransform
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import transforms as v1
from torchvision.transforms import v2

from rela_lightning import ReLACallback, load_prior
from rela_lightning.data.normalisation import stated_scale
from rela_lightning.data.transforms import common_scale, default_transport_transform
from rela_lightning.errors import DataError
from tests.image_files import crop
from tests.modules import byol
from tests.parts import TwoViews, make_digits
from tests.test_callback import fit, seeded


class Photos(Dataset[Any]):
    """Photos under a transform; the first may be a light page."""

    def __init__(self, transform: Any, count: int = 24, *, light: bool = False) -> None:
        self.transform, self.count, self.light = transform, count, light

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        image = crop(row, row)
        if self.light and row == 0:
            image = Image.fromarray(255 - np.asarray(image) // 3)
        return self.transform(image), row


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CROP = v1.Compose([v1.RandomResizedCrop(32), v1.ToTensor()])
JITTER = v1.ColorJitter(0.8, 0.8, 0.8, 0.2)


def standardised(image: Any) -> torch.Tensor:
    """By the mean and deviation of the view itself."""
    view = CROP(image)
    return (view - view.mean()) / view.std().clamp(min=1e-6)


TRANSFORMS = {
    "in code": (lambda image: [(CROP(image) - 0.5) / 0.5, (CROP(image) - 0.5) / 0.5], [0.5] * 3, [0.5] * 3),
    "plain": (CROP, [0.0] * 3, [1.0] * 3),
    "twice": (v1.Compose([CROP, v1.Normalize([0.5] * 3, [0.5] * 3), v1.Normalize(MEAN, STD)]),
              [0.5 + m / 2 for m in MEAN], [s / 2 for s in STD]),
    "0 to 255": (lambda image: CROP(image) * 255, [0.0] * 3, [1 / 255] * 3),
    "one for all": (v1.Compose([JITTER, CROP, v1.Normalize(0.3, 0.4)]), [0.3] * 3, [0.4] * 3),
    "padded": (v1.Compose([v1.RandomCrop(48, padding=6), v1.ToTensor(), v1.Normalize(MEAN, STD)]), MEAN, STD),
    "erased": (v1.Compose([CROP, v1.Normalize(MEAN, STD), v1.RandomErasing(1.0, value="random")]), None, None),
    "solarised": (v1.Compose([v1.RandomSolarize(128, 0.5), JITTER, CROP, v1.Normalize(MEAN, STD)]), MEAN, STD),
    "lightly": (SimCLRTransform(input_size=32, gaussian_blur=0.0), MEAN, STD),
    "BYOL": (BYOLTransform(), MEAN, STD),
    "by its own mean": (standardised, None, None),
    "v2": (v2.Compose([v2.ToImage(), v2.RandomResizedCrop(24), v2.ToDtype(torch.float32, True), v2.ToPureTensor(),
                       v2.Normalize(MEAN, STD)]), MEAN, STD),
}  # fmt: skip


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_scale_is_what_the_transform_does(name: str, light: bool) -> None:
    transform, mean, std = TRANSFORMS[name]
    views = default_transport_transform(Photos(transform, light=light), 2)
    if mean is None:
        assert views is None
        return
    assert views is not None
    scale = stated_scale(views)
    assert (scale is None) == (name == "plain")
    if scale is not None:
        np.testing.assert_allclose(scale, [mean, std], rtol=1e-4)
        white, black = (views.colour(v2.functional.to_image(Image.new("RGB", (8, 8), c))) for c in ("white", "black"))
        np.testing.assert_allclose(black[:, 0, 0], -np.array(mean) / std, rtol=1e-4, atol=1e-5)
        assert (white <= torch.tensor((1 - np.array(mean)) / std)[:, None, None] + 1e-4).all()


@given(
    mean=st.lists(st.floats(-0.5, 1.5), min_size=3, max_size=3),
    std=st.lists(st.floats(0.01, 4), min_size=3, max_size=3),
)
def test_any_affine_scale_is_found(mean: list[float], std: list[float]) -> None:
    a, b = (torch.tensor(values)[:, None, None] for values in (mean, std))
    scale = common_scale(Photos(lambda image: (CROP(image) - a) / b, 4))
    np.testing.assert_allclose(scale.mean, mean, atol=2e-4)
    np.testing.assert_allclose(scale.std, std, rtol=1e-3)


def test_an_image_beside_a_map_keeps_its_own_views() -> None:
    """Their numbers of channels differ, so that there is no one scale."""
    photos = Photos(lambda image: (CROP(image), torch.ones(1, 8, 8)))
    assert common_scale(photos) is None
    assert default_transport_transform(photos, 2) is None


def test_parts_must_agree() -> None:
    one, same = (Photos(v1.Compose([CROP, v1.Normalize(MEAN, STD)])) for _ in range(2))
    other = Photos(v1.Compose([CROP, v1.Normalize([0.5] * 3, [0.5] * 3)]))
    larger = Photos(v1.Compose([v1.RandomResizedCrop(40), v1.ToTensor(), v1.Normalize(MEAN, STD)]))
    assert default_transport_transform(ConcatDataset([one, Subset(same, range(3))]), 2) is not None
    for parts in ([one, other], [one, larger], [one, Photos(lambda image: [CROP(image)])], [one, Photos(None)]):
        with torch.random.fork_rng():
            assert default_transport_transform(ConcatDataset(parts), 2) is None


class Unmarked(Dataset[Any]):
    """Views normalised in the data set itself, out of reach of any observation."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> Any:
        return [(CROP(crop(row, row)) - 0.5) / 0.1 for _ in range(2)], 0


def test_on_the_fly_a_scale_that_cannot_be_told_is_refused(tmp_path: Any) -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
    with pytest.raises(DataError, match=r"(?s)could not be told.*found:    pixels from -"):
        fit(seeded(byol), ReLACallback(prior=prior), data=DataLoader(Unmarked(), batch_size=16))


def test_on_the_fly_the_prior_sees_the_pixels_of_views_normalised_in_code(monkeypatch: Any) -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
    seen: list[torch.Tensor] = []
    own = prior.forward
    monkeypatch.setattr(prior, "forward", lambda images: (seen.append(images * 0.5 + 0.5), own(images))[1])

    class Keep(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.view = batch[0][0]

    keep, data = Keep(), Photos(lambda image: [(CROP(image) - 0.4) / 0.2 for _ in range(2)], 64)
    callback = ReLACallback(prior=prior, transform=None)
    fit(seeded(byol), callback, keep, data=DataLoader(data, batch_size=16), max_steps=1, max_epochs=1)
    torch.testing.assert_close(seen[-1], keep.view * 0.2 + 0.4, atol=1e-4, rtol=0)


def test_views_normalised_out_of_sight_give_views_of_their_scale() -> None:
    view = TwoViews()
    found = default_transport_transform(make_digits(8, lambda image: [2 * v - 3 for v in view(image)]), 2)
    scale = stated_scale(found)
    assert scale.mean == pytest.approx([0.9] * 3) and scale.std == pytest.approx([0.2] * 3)
