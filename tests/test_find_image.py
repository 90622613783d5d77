"""The image of a sample is found by its name or because nothing else can be one; never by its place."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from rela_lightning import ReLACallback, build_targets
from rela_lightning.cli import main
from rela_lightning.data.find_image import ImageAt, find_image
from rela_lightning.errors import DataError, TargetError
from rela_lightning.schedules import TransportOnly
from tests.image_files import crop
from tests.modules import simclr
from tests.test_callback import fit
from tests.test_targets import pixel_prior

PHOTO, OTHER = crop(0, 3), crop(1, 8)
MASK = torch.randint(0, 2, (48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NOISE = st.one_of(
    st.integers(), st.text(max_size=3), st.none(), st.floats(),
    st.sampled_from([torch.rand(5), torch.rand(3, 4), torch.rand(7, 2), np.zeros((2, 4)), MASK, PHOTO.convert("L")]),
)  # fmt: skip


def names(value: Any) -> Any:
    return st.dictionaries(st.sampled_from(["mask", "depth_map", "id", "boxes", "a", "b"]), value, max_size=3)


NESTED = st.recursive(
    NOISE, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | names(inner), max_leaves=6
)


@st.composite
def around(draw: Any, image: Any) -> Any:
    """An image somewhere inside a sample."""
    sample = image
    for _ in range(draw(st.integers(0, 3))):
        if draw(st.booleans()):
            sample = {**draw(names(NESTED)), draw(st.sampled_from(["photo", "x", "image"])): sample}
        else:
            before, after = draw(st.lists(NESTED, max_size=2)), draw(st.lists(NESTED, max_size=2))
            sample = draw(st.sampled_from([list, tuple]))([*before, sample, *after])
    return sample


@pytest.mark.slow
@given(sample=around(PHOTO))
def test_the_only_photo_is_found_whatever_lies_around_it(sample: Any) -> None:
    assert find_image(sample) is PHOTO


@given(sample=NESTED)
def test_what_holds_no_photo_gives_none_a_lesser_image_or_a_refusal(sample: Any) -> None:
    try:
        found = find_image(sample)
    except DataError as error:
        assert "holds several images" in str(error)
        return
    assert found is None or isinstance(found, (Image.Image, torch.Tensor, np.ndarray))


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        ((MASK, PHOTO), PHOTO),
        ({"depth": OTHER, "rgb": PHOTO}, PHOTO),
        ({"depth": PHOTO.convert("L"), "grey": PHOTO}, PHOTO),
        ({"seg_map": PHOTO.convert("L"), "scan": MASK}, MASK),
        ({"view": OTHER, "image": PHOTO.convert("L")}, "image"),
        ((torch.rand(3, 4), PHOTO), PHOTO),
        ((PHOTO, PHOTO.copy(), 3), PHOTO),
        ({"inputs": {"img": MASK, "mask": PHOTO}}, MASK),
        ((PHOTO, PHOTO.convert("P")), PHOTO),
        ({"flower": PHOTO, "thermal": MASK}, "flower"),  # no `flow`
        ({"normalized": PHOTO, "saliency": MASK}, "normalized"),
        ({"unlabelled": PHOTO, "aux": MASK}, "unlabelled"),
        ({"depthmap": OTHER, "left": PHOTO}, "left"),
        ({"targetMasks": OTHER, "left": PHOTO}, "left"),
        ({"bboxes_3d": OTHER, "left": PHOTO}, "left"),
        (("a", 3, {"b": torch.rand(4)}), None),
    ],
)
def test_names_and_colour_decide(sample: Any, wanted: Any) -> None:
    assert find_image(sample) is (sample[wanted] if isinstance(wanted, str) else wanted)


@pytest.mark.parametrize(
    ("sample", "where"),
    [
        ((PHOTO, OTHER), "0: PIL RGB 48 x 48, 1: PIL RGB 48 x 48"),
        ({"left": PHOTO, "right": OTHER}, "left: PIL RGB 48 x 48, right"),
        ((torch.rand(3, 9, 9), {"normals": 0, "b": torch.rand(3, 9, 9)}), r"0: Tensor \[3, 9, 9\], 1.b: Tensor"),
        ((PHOTO.convert("L"), OTHER.convert("L")), "0: PIL L"),
        ({"image": PHOTO, "img": OTHER}, "image: PIL RGB 48 x 48, img"),
        ((torch.rand(12, 9, 9), torch.rand(1, 9, 9)), r"0: Tensor \[12, 9, 9\], 1"),  # more bands than colours
        ((torch.rand(9, 9, 3), torch.rand(1, 9, 9)), r"0: Tensor \[9, 9, 3\], 1"),
    ],
)
def test_several_that_differ_are_refused_with_their_places(sample: Any, where: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)holds several images.*found:    {where}.*--image"):
        find_image(sample)


def test_views_of_a_transform_out_of_reach_are_told_what_to_label_instead() -> None:
    """Where the hint was followed, the next error said the opposite."""
    hint = "label the same data set built without its augmentation"
    with pytest.raises(DataError, match=hint):
        find_image(([torch.rand(3, 9, 9), torch.rand(3, 9, 9)], 4))
    for others in ((PHOTO, OTHER), (torch.rand(3, 9, 9), torch.rand(3, 8, 8))):  # a stereo pair, two sizes
        with pytest.raises(DataError) as error:
            find_image(others)
        assert hint not in str(error.value)


class Pairs(Dataset[Any]):
    """Photos in pairs, as for stereo or super-resolution."""

    def __init__(self, one: str = "left", two: str = "right") -> None:
        self.one, self.two, self.transform = one, two, None

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> Any:
        left, right = crop(0, row, 8), crop(1, row, 8)
        return {self.one: left if self.transform is None else self.transform(left), "pair": {self.two: right}}


def test_an_option_says_which_and_training_knows_it_from_the_manifest(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"left: PIL RGB 8 x 8, pair\.right"):
        build_targets(pixel_prior(), Pairs(), tmp_path / "t")
    by_name = build_targets(pixel_prior(), Pairs(one="image"), tmp_path / "named")
    left = build_targets(pixel_prior(), Pairs(), tmp_path / "left", image="left")
    right = build_targets(pixel_prior(), Pairs(), tmp_path / "right", image="pair.right")
    rows = torch.arange(24)
    assert torch.equal(left[rows], by_name[rows]) and not torch.equal(left[rows], right[rows])
    assert "image" not in by_name.settings and right.settings["image"] == "pair.right"
    for store in (left, right):
        store.verify(Pairs(), pixel_prior())
    with pytest.raises(TargetError, match="other pixels in rows"):
        left.verify(Swapped())
    with pytest.raises(DataError, match=r"(?s)nothing at `rigth`.*available: left, pair"):
        build_targets(pixel_prior(), Pairs(), tmp_path / "t", image="rigth")


class Stereo(Pairs):
    """Dark on the left, bright on the right."""

    def __getitem__(self, row: int) -> Any:
        shown = super().__getitem__(row)["left"]
        return {"left": shown / 4, "pair": {"right": 1 - shown / 4}}


def test_training_shows_the_image_that_was_labelled(tmp_path: Any) -> None:
    data = Stereo()
    data.transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    build_targets(pixel_prior(), Pairs(), tmp_path / "t", image="pair.right")
    module, shown = simclr(), list[float]()
    module.backbone.register_forward_hook(lambda _, images, output: shown.append(float(images[0].min())))
    callback = ReLACallback(tmp_path / "t", schedule=TransportOnly(), verify_targets=0)
    fit(module, callback, data=DataLoader(data, batch_size=8))
    assert len(shown) == 6 and min(shown) >= 0.75


class Swapped(Pairs):
    """The other photo under the same name."""

    def __getitem__(self, row: int) -> Any:
        found = super().__getitem__(row)
        return {"left": found["pair"]["right"], "pair": {"right": found["left"]}}


def test_the_command_has_the_option(tmp_path: Any, capsys: Any) -> None:
    assert main(["targets", "--help"]) == 0
    assert "--image " in capsys.readouterr().out


def test_a_part_of_each_sample() -> None:
    data = [{"a": [1, {"b": row}]} for row in range(3)]
    assert [ImageAt(data, "a.1.b")[row] for row in range(3)] == [0, 1, 2] and len(ImageAt(data, "a")) == 3
    for where in ("a.2", "a.x", "b", "a.0.c"):
        with pytest.raises(DataError, match="nothing at"):
            ImageAt(data, where)[0]


@dataclasses.dataclass(slots=True)
class Pair:
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("sample", "where"),
    [
        (Pair(PHOTO, OTHER), "left"),
        ({"left.jpg": PHOTO, "right.jpg": OTHER}, "left.jpg"),
        ({"views": {"a.b": [OTHER, PHOTO]}}, "views.a.b.1"),
        ({0: PHOTO, 1: OTHER}, "0"),
    ],
)
def test_the_place_that_a_refusal_names_is_one_that_can_be_given(sample: Any, where: str) -> None:
    with pytest.raises(DataError, match=f"(?s)holds several images.*{where}: PIL"):
        find_image(sample)
    assert ImageAt([sample], where)[0] is PHOTO
