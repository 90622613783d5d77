"""The views of the transport phase are mirrored where the data set's own are, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightly.transforms import BYOLTransform, DINOTransform, SimCLRTransform
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset
from torchvision.transforms import v2

from rela_lightning import build_targets, load_prior
from rela_lightning.data import DeviceViews, DigitsData, build_views
from rela_lightning.data.mirrored import mirrors
from rela_lightning.data.transforms import default_transport_transform
from rela_lightning.data.views import VIEWS
from rela_lightning.diagnostics.survey import survey
from rela_lightning.errors import TargetError
from rela_lightning.targets.lookup import TargetLookup

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = [v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]


class Arrows:
    """Images, black on the left and white on the right, under a transform."""

    def __init__(
        self, transform: Callable[[Any], Any], form: Callable[[Image.Image], Any] = lambda image: image
    ) -> None:
        self.transform, self.form = transform, form

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> Any:
        ramp = np.linspace(0, 255, 40).astype(np.uint8)
        image = Image.fromarray(np.repeat(ramp[None, :], 32, axis=0)).convert("RGB")
        return self.transform(self.form(image)), row


def mirrored(views: Callable[[Any], Any], image: Any) -> bool:
    """Whether one of many views of black on the left and white on the right is brighter on the left."""
    drawn: list[Tensor] = [views(image) for _ in range(64)]
    drawn = [part for view in drawn for part in (view if isinstance(view, list) else [view])]
    return any(float(part[..., :8].mean()) > float(part[..., -8:].mean()) + 1e-3 for part in drawn)


def transport_views(transform: Callable[[Any], Any], form: Callable[[Image.Image], Any] = lambda image: image) -> Any:
    found = default_transport_transform(Arrows(transform, form), 2)
    assert found is not None
    return found


def image_of(dataset: Arrows) -> Any:
    kept: list[Any] = []
    Arrows(kept.append, dataset.form)[0]
    return kept[0]


class Shaded(Arrows):
    """Each image darker than the one before."""

    def __getitem__(self, row: int) -> Any:
        own, self.transform = self.transform, lambda image: image
        image, _ = super().__getitem__(row)
        self.transform = own
        return own(image.point(lambda value: value * (10 - row) // 10)), row


class Sides(nn.Module):
    """Brightness of the left half, and of the right half."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([half.mean((1, 2, 3)) for half in images.chunk(2, dim=3)], dim=1)


def sides() -> Any:
    return load_prior(Sides(), image_size=32, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("name", sorted(VIEWS))
def test_transport_follows_every_method_of_ours(name: str, flip: bool) -> None:
    views = build_views(name, 32, mean=MEAN, std=STD, flip=flip)
    assert mirrored(transport_views(views), image_of(Arrows(views))) is flip


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "form",
    [lambda image: image, lambda image: image.convert("L"), v2.functional.pil_to_tensor, np.array,
     lambda image: v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)],
    ids=["pil", "grey", "uint8", "array", "float"],
)  # fmt: skip
def test_transport_follows_a_transform_of_any_kind_of_image(form: Callable[[Any], Any], flip: bool) -> None:
    own = v2.Compose([v2.ToImage(), v2.RandomResizedCrop(24), *([v2.RandomHorizontalFlip()] if flip else []), *PLAIN])
    assert mirrored(transport_views(own, form), image_of(Arrows(own, form))) is flip


@pytest.mark.parametrize("prob", [0.0, 0.5])
@pytest.mark.parametrize("name", [BYOLTransform, SimCLRTransform])
def test_transport_follows_lightlys_solarised_and_blurred_views(name: Any, prob: float) -> None:
    if name is BYOLTransform:
        from lightly.transforms import BYOLView1Transform, BYOLView2Transform

        own = BYOLTransform(BYOLView1Transform(hf_prob=prob), BYOLView2Transform(hf_prob=prob))
    else:
        own = SimCLRTransform(32, hf_prob=prob)
    assert mirrored(transport_views(own), image_of(Arrows(own))) is bool(prob)


def test_one_part_that_mirrors_is_enough() -> None:
    still, turning = (build_views("byol", 32, mean=MEAN, std=STD, flip=flip) for flip in (False, True))
    found = default_transport_transform(ConcatDataset([Arrows(still), Arrows(turning)]), 2)
    assert found is not None
    assert mirrored(found, image_of(Arrows(still)))


@pytest.mark.parametrize("flip", [False, True])
def test_transport_on_the_device_follows_too(flip: bool) -> None:
    own = DeviceViews(build_views("byol", 32, mean=MEAN, std=STD, flip=flip))
    dataset = Arrows(own)
    found = default_transport_transform(dataset, 2)
    assert isinstance(found, DeviceViews)
    batch = torch.utils.data.default_collate([found(image_of(dataset)) for _ in range(64)])
    views = torch.cat(found.on_device(batch, "cpu", epoch=0))
    brighter_left = views[..., :8].mean((1, 2, 3)) > views[..., -8:].mean((1, 2, 3)) + 1e-3
    assert bool(brighter_left.any()) is flip


def test_the_random_state_is_kept_and_what_cannot_be_observed_passes_for_mirrored() -> None:
    state = torch.get_rng_state()
    default_transport_transform(Arrows(DINOTransform(global_crop_size=32, n_local_views=0)), 2)
    assert torch.equal(state, torch.get_rng_state())
    assert mirrors(lambda image: [image], object())


@pytest.mark.parametrize("flip", [False, True])
def test_stored_crops_and_those_between_them_follow_too(flip: bool, tmp_path: Path) -> None:
    dataset = Shaded(build_views("byol", 32, mean=MEAN, std=STD, flip=flip))
    store = build_targets(sides(), dataset, tmp_path / "targets", views=6)
    rows = np.arange(len(dataset))
    assert bool(store.read(rows).crops[..., 4].any()) is flip
    for crops in ("stored", "nearest", "blended"):
        assert bool(TargetLookup(store, crops=crops, num_views=6).plan(rows, 0).crops[..., 4].any()) is flip


def test_crops_of_a_data_set_without_views_of_its_own_are_mirrored(tmp_path: Path) -> None:
    store = build_targets(sides(), Shaded(lambda image: image), tmp_path / "targets", views=6)
    assert store.read(np.arange(8)).crops[..., 4].any()


@pytest.mark.parametrize("flip", [False, True])
def test_targets_whose_crops_are_mirrored_otherwise_are_refused(flip: bool, tmp_path: Path) -> None:
    first, then = (Shaded(build_views("byol", 32, mean=MEAN, std=STD, flip=f)) for f in (flip, not flip))
    store = build_targets(sides(), first, tmp_path / "targets", views=2)
    assert build_targets(sides(), first, tmp_path / "targets", views=2).fingerprint == store.fingerprint
    with pytest.raises(TargetError, match="choice of mirrored crops"):
        build_targets(sides(), then, tmp_path / "targets", views=2)
    whole = build_targets(sides(), first, tmp_path / "whole")
    assert build_targets(sides(), then, tmp_path / "whole").fingerprint == whole.fingerprint, "no crops, no matter"


@pytest.mark.parametrize("flip", [False, True])
def test_views_that_priors_are_compared_on_follow_too(flip: bool) -> None:
    dataset = Arrows(build_views("byol", 32, mean=MEAN, std=STD, flip=flip))
    left, right = survey({"sides": sides()}, dataset, num_samples=8, num_views=8).views["sides"].T
    assert bool((left > right).any()) is flip


def test_priors_are_compared_also_where_the_data_sets_own_views_fail() -> None:
    def fails(image: Any) -> Any:
        raise OSError("no such mask")

    left, right = survey({"sides": sides()}, Arrows(fails), num_samples=8, num_views=8).views["sides"].T
    assert bool((left > right).any())


@pytest.mark.parametrize(("options", "flip"), [({}, False), ({"views_kwargs": {"hf_prob": 0.5}}, True)])
def test_a_data_modules_own_images_say_which_views_training_will_have(
    options: dict[str, Any], flip: bool, tmp_path: Path
) -> None:
    images = torch.utils.data.Subset(DigitsData(**options).dataset("train"), range(16))
    store = build_targets(sides(), images, tmp_path / "targets", views=6)
    assert bool(store.read(np.arange(16)).crops[..., 4].any()) is flip
