"""The views of the transport phase are mirrored where the data set's own are, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightly.transforms import BYOLTransform, DINOTransform, SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset
from torchvision.transforms import v2

from rela_lightning.data import DeviceViews, build_views
from rela_lightning.data.mirrored import mirrors
from rela_lightning.data.transforms import default_transport_transform
from rela_lightning.data.views import VIEWS

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
