"""Views made for a batch on the device are those of the transforms they stand for: same boxes, colours, blur, flips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from rela_lightning.data import DeviceViews, build_views
from rela_lightning.data.device.resample import resample
from rela_lightning.data.transforms import TransportViews
from rela_lightning.data.views import VIEWS
from tests.image_files import crop

UNIT = {"mean": [0.0] * 3, "std": [1.0] * 3}
PLAIN = {"cj_prob": 0.0, "random_gray_scale": 0.0}
UNBLURRED: dict[str, Any] = {"dino": {"gaussian_blur": (0.0,) * 3}, "one": {}}
SOLARISED = {"byol": "solarization_prob", "barlow_twins": "solarization_prob", "dino": "solarization_prob",
             "vicreg": "solarize_prob"}  # fmt: skip


def views(name: str, size: int, **options: Any) -> Callable[[Any], Any]:
    return build_views(name, size, **UNIT, options=options)


def geometry(name: str, size: int, **options: Any) -> Callable[[Any], Any]:
    """Crops and flips alone."""
    off = UNBLURRED.get(name, {"gaussian_blur": 0.0}) | ({SOLARISED[name]: 0.0} if name in SOLARISED else {})
    return views(name, size, **PLAIN, **off, **options)


def listed(made: Any) -> list[Tensor]:
    return made if isinstance(made, list) else [made]


def both(transform: Any, image: Any, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """`count` draws of each view, `[count, C, H, W]`: by the transform, one at a time, and for a batch."""
    torch.manual_seed(0)
    np.random.seed(0)
    one_by_one = [listed(transform(image)) for _ in range(count)]
    deferred = DeviceViews(transform)
    together = deferred.on_device(default_collate([deferred(image) for _ in range(count)]), "cpu", epoch=0)
    return [torch.stack(place) for place in zip(*one_by_one, strict=True)], listed(together)


def agree(ours: Any, theirs: Any, step: float = 0.01) -> None:
    """Two samples of one distribution, by the Kolmogorov-Smirnov test; theirs have 8-bit steps, so both are rounded."""
    one, other = ((np.asarray(values) / step).round() for values in (ours, theirs))
    assert stats.ks_2samp(one, other).pvalue > 1e-5  # there are hundreds of comparisons


def ramps(height: int, width: int) -> Image.Image:
    """Red says where a pixel is from left to right, green from top to bottom."""
    y, x = np.mgrid[:height, :width]
    values = np.stack([x * 255 / (width - 1), y * 255 / (height - 1), np.full_like(x, 128)], axis=2)
    return Image.fromarray(values.round().astype(np.uint8))


# ---- crops ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 12), (40, 25), (90, 70)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_box_is_cut_out_and_resized_as_by_torchvision(mode: str, size: tuple[int, int]) -> None:
    boxes = [(0, 0, 48, 64, 0), (3, 5, 17, 40, 1), (10, 0, 38, 20, 0), (47, 63, 1, 1, 1), (20, 10, 7, 50, 0)]
    images = torch.stack([F.pil_to_tensor(crop(0, number).resize((64, 48))) for number in range(len(boxes))])
    numbers = torch.tensor([(*box, 0) for box in boxes])
    made = resample(images, torch.tensor([[48, 64]] * len(boxes)), numbers, size, bicubic=mode == "bicubic")
    for image, (top, left, height, width, mirrored), ours in zip(images, boxes, made, strict=True):
        part = image[:, top : top + height, left : left + width].float() / 255
        theirs = F.resize(part, list(size), interpolation=InterpolationMode(mode), antialias=True).clamp(0, 1)
        assert torch.allclose(ours, theirs.flip(-1) if mirrored else theirs, atol=2e-3)


def test_a_box_in_an_image_that_was_resized_shows_the_same_part() -> None:
    image, size = ramps(60, 120), (16, 16)
    small = F.pil_to_tensor(image.resize((40, 40)))
    for box in ((0, 0, 60, 120, 0), (10, 30, 40, 50, 1)):
        top, left, height, width, mirrored = box
        made = resample(small[None], torch.tensor([[60, 120]]), torch.tensor([[*box, 0]]), size)[0]
        part = F.resize(F.pil_to_tensor(image)[:, top : top + height, left : left + width].float() / 255, list(size))
        assert torch.allclose(made, part.flip(-1) if mirrored else part, atol=0.03)


def _boxes(made: Tensor) -> dict[str, Any]:
    """Where crops of the ramps begin and end, from 0 to 1, and whether they are mirrored."""
    x, y = made[:, 0].mean(dim=1), made[:, 1].mean(dim=2)
    return {
        "left": x.amin(1), "right": x.amax(1), "top": y.amin(1), "bottom": y.amax(1),
        "area": (x.amax(1) - x.amin(1)) * (y.amax(1) - y.amin(1)),
        "ratio": (x.amax(1) - x.amin(1)) / (y.amax(1) - y.amin(1)),
        "mirrored": (x[:, 0] > x[:, -1]).float(), "upside down": (y[:, 0] > y[:, -1]).float(),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (40, 90)])
@pytest.mark.parametrize("name", ["byol", "simclr", "moco", "dino", "swav", "one"])
def test_crops_and_flips_are_distributed_as_before(name: str, size: tuple[int, int]) -> None:
    one_by_one, together = both(geometry(name, 32, hf_prob=0.3), ramps(*size), 400)
    assert [view.shape for view in one_by_one] == [view.shape for view in together]
    for theirs, ours in list(zip(one_by_one, together, strict=True))[:3]:
        expected, found = _boxes(theirs), _boxes(ours)
        for part in ("left", "right", "top", "bottom", "area", "ratio"):
            agree(found[part], expected[part], step=0.05)
        assert float(found["mirrored"].mean()) == pytest.approx(0.3, abs=0.08) and not found["upside down"].any()


@pytest.mark.slow
def test_a_thin_image_gets_the_middle_where_no_crop_fits() -> None:
    transform = v2.Compose([v2.RandomResizedCrop(16, scale=(1.0, 1.0)), v2.ToImage(), v2.ToDtype(torch.float32, True)])
    for size in ((20, 80), (80, 20)):
        one_by_one, together = both(transform, ramps(*size), 20)
        assert torch.allclose(together[0], one_by_one[0], atol=0.01)
    shaken = geometry("simclr", 16, vf_prob=0.4, min_scale=0.5)
    assert float(_boxes(both(shaken, ramps(32, 32), 400)[1][0])["upside down"].mean()) == pytest.approx(0.4, abs=0.08)


# ---- colours -------------------------------------------------------------------------------------------


def statistics(made: Tensor) -> dict[str, Any]:
    """Brightness, contrast, saturation and hue of each view."""
    red, green, blue = made.double().mean(dim=(2, 3)).unbind(1)
    grey = 0.299 * made[:, 0] + 0.587 * made[:, 1] + 0.114 * made[:, 2]
    hue = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)
    return {"brightness": grey.mean(dim=(1, 2)), "contrast": grey.std(dim=(1, 2)),
            "saturation": (made.amax(1) - made.amin(1)).mean(dim=(1, 2)), "hue": hue}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", ["cj_bright", "cj_contrast", "cj_sat", "cj_hue", "all"])
def test_colours_are_distributed_as_before(part: str) -> None:
    options = dict.fromkeys(("cj_bright", "cj_contrast", "cj_sat", "cj_hue"), 0.0)
    options |= {"cj_bright": 0.8, "cj_contrast": 0.8, "cj_sat": 0.8, "cj_hue": 0.2} if part == "all" else {part: 0.3}
    transform = views("simclr", 16, random_gray_scale=0.0, hf_prob=0.0, min_scale=1.0, cj_strength=1.0, **options)
    image = Image.blend(crop(0, 3).resize((16, 16)), Image.new("RGB", (16, 16), (150, 90, 60)), 0.5)
    one_by_one, together = both(transform, image, 500)
    expected, found = statistics(one_by_one[0]), statistics(together[0])
    plain = F.pil_to_tensor(image) / 255
    untouched = (together[0] - plain).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert 0.12 < float(untouched.double().mean()) < 0.28, "a fifth is left as it is"
    for name in expected:
        at = np.linspace(0.05, 0.95, 19)
        ours, theirs = np.quantile(found[name], at), np.quantile(expected[name], at)
        assert np.abs(ours - theirs).max() < 0.12 * max(0.1, np.ptp(theirs)) + 0.02, name


def test_parts_of_the_jitter_come_in_any_order() -> None:
    """Brightness clips, so that contrast after it is not contrast before it: both orders are there."""
    jitter = v2.ColorJitter(brightness=(3.0, 3.0), contrast=(0.2, 0.2))
    transform = v2.Compose([jitter, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    one_by_one, together = (made[0].mean(dim=(1, 2, 3)) for made in both(transform, ramps(16, 16), 300))
    orders = one_by_one.unique()
    assert len(orders) == 2
    near = (together[:, None] - orders).abs().argmin(dim=1)
    assert ((together - orders[near]).abs() < 0.01).all() and 0.4 < float(near.double().mean()) < 0.6


def test_each_part_does_what_torchvision_does() -> None:
    image = crop(0, 5).resize((24, 24))
    for options in ({"brightness": (0.4, 0.4)}, {"brightness": (1.7, 1.7)}, {"contrast": (0.3, 0.3)},
                    {"contrast": (1.8, 1.8)}, {"saturation": (0.2, 0.2)}, {"saturation": (1.9, 1.9)},
                    {"hue": (0.1, 0.1)}, {"hue": (-0.3, -0.3)}):  # fmt: skip
        transform = v2.Compose([v2.ToImage(), v2.ColorJitter(**options), v2.ToDtype(torch.float32, scale=True)])
        one_by_one, together = both(transform, image, 3)
        assert float((one_by_one[0] - together[0]).abs().max()) < 0.02, options


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byol", "simclr", "dino"])
def test_a_share_is_grey(name: str) -> None:
    transform = views(name, 16, cj_prob=0.0, random_gray_scale=0.3)
    one_by_one, together = both(transform, crop(0, 4), 500)
    for theirs, ours in zip(one_by_one, together, strict=True):
        grey = ours.std(dim=1).amax(dim=(1, 2)) < 1e-3
        assert float(grey.double().mean()) == pytest.approx(0.3, abs=0.07)
        same = theirs[theirs.std(dim=1).amax(dim=(1, 2)) < 1e-3]
        agree(ours[grey].mean(dim=(1, 2, 3)), same.mean(dim=(1, 2, 3)))


def test_grey_views_may_be_blurred() -> None:
    _, together = both(views("simclr", 16, random_gray_scale=1.0, gaussian_blur=0.5), crop(0, 4), 16)
    assert all(float(view.std(dim=1).max()) < 1e-3 for view in together)


@pytest.mark.slow
def test_a_share_of_byols_second_view_is_solarised() -> None:
    off = {**PLAIN, "min_scale": 1.0, "hf_prob": 0.0}
    image = Image.fromarray(np.full((32, 32, 3), (255, 200, 40), np.uint8))
    _, (first, second) = both(views("byol", 32, **off, solarization_prob=0.4), image, 500)
    for made in (first, second):
        turned = made[:, 0].amax(dim=(1, 2)) < 0.5
        assert float(turned.double().mean()) == pytest.approx(0.4, abs=0.08)
        assert np.allclose(made[turned][0, :, 0, 0], [0.0, 55 / 255, 40 / 255], atol=1e-3)
    _, (first, second) = both(views("byol", 32, **off), image, 300)
    assert (first[:, 0].amax(dim=(1, 2)) > 0.5).all(), "only the second view is, unless told otherwise"
    assert float((second[:, 0].amax(dim=(1, 2)) < 0.5).double().mean()) == pytest.approx(0.2, abs=0.08)


@pytest.mark.slow
def test_blur_is_as_strong_and_as_frequent() -> None:
    image = Image.fromarray((np.indices((40, 40)).sum(0) // 5 % 2 * 255).astype(np.uint8)).convert("RGB")
    transform = views("simclr", 40, **PLAIN, min_scale=1.0, hf_prob=0.0, gaussian_blur=0.6)
    one_by_one, together = both(transform, image, 400)
    theirs, ours = (made[0][:, 0].std(dim=(1, 2)).numpy() for made in (one_by_one, together))
    sharp = ours > 0.99 * ours.max()
    assert (~sharp).mean() == pytest.approx(0.6 * 0.9, abs=0.1), "a sigma near 0.1 changes nothing"
    at = np.linspace(0.05, 0.95, 19)
    assert np.abs(np.quantile(ours, at) - np.quantile(theirs, at)).max() < 0.05


def test_blur_is_a_gaussian_of_each_images_own_sigma() -> None:
    transform = views("simclr", 40, **PLAIN, min_scale=1.0, hf_prob=0.0, gaussian_blur=1.0, sigmas=(0.5, 2.0))
    image = crop(0, 2).resize((40, 40))
    _, (made, _) = both(transform, image, 12)
    exact = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255
    blurred = {s: np.stack([ndimage.gaussian_filter(c, s, mode="nearest") for c in exact])
               for s in np.linspace(0.5, 2.0, 61)}  # fmt: skip
    nearest = [min(blurred, key=lambda s, one=one: np.abs(blurred[s] - one).mean()) for one in made.numpy()]
    assert len(set(nearest)) > 8
    assert all(np.abs(blurred[s] - one).max() < 0.02 for s, one in zip(nearest, made.numpy(), strict=True))


# ---- whole views ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_every_method_have_the_moments_of_lightlys(name: str) -> None:
    transform = build_views(name, 66, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    one_by_one, together = both(transform, crop(0, 1).resize((70, 66)), 120)
    assert [view.shape for view in one_by_one] == [view.shape for view in together]
    for theirs, ours in list(zip(one_by_one, together, strict=True))[:3]:
        assert ours.dtype == torch.float32
        for measure in (
            lambda v: v.mean(dim=(1, 2, 3)),
            lambda v: v.std(dim=(1, 2, 3)),
            lambda v: v[:, 0].mean(dim=(1, 2)),
            lambda v: v.diff(dim=3).abs().mean(dim=(1, 2, 3)),
        ):
            agree(measure(ours), measure(theirs))


@pytest.mark.slow
def test_views_of_the_transport_phase_have_those_of_the_transform() -> None:
    transform = TransportViews((32, 32), num_views=3, distinct=2, mean=[0.4] * 3, std=[0.2] * 3)
    one_by_one, together = both(transform, crop(0, 1), 200)
    assert len(together) == 3 and torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    for measure in (lambda v: v.mean(dim=(1, 2, 3)), lambda v: v.std(dim=(1, 2, 3))):
        agree(measure(together[0]), measure(one_by_one[0]))
    single = DeviceViews(TransportViews((16, 16), num_views=0, channels=1))
    made = single.on_device(default_collate([single(crop(0, 1))] * 3), "cpu", epoch=0)
    assert isinstance(made, Tensor) and made.shape == (3, 1, 16, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("name", VIEWS)
def test_views_on_a_gpu_are_those_on_a_cpu(name: str) -> None:
    views = DeviceViews(build_views(name, 66, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3]))
    batch = default_collate([views(crop(0, number)) for number in range(8)])
    batch = batch._replace(row=torch.arange(8))
    for ours, theirs in zip(*(listed(views.on_device(batch, d, epoch=1)) for d in ("cuda", "cpu")), strict=True):
        assert ours.is_cuda and torch.allclose(ours.cpu(), theirs, atol=0.05)
