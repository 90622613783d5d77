"""Image files of every kind, name and place are read as they look, or refused by name."""

from __future__ import annotations

import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from rela_lightning import build_targets
from rela_lightning.data import RGBImages
from rela_lightning.data.folder import FolderImages
from rela_lightning.data.label_map import mapped_labels, read_label_map
from rela_lightning.data.raw import pixels, raw_image
from rela_lightning.data.swap import swapped_transform
from rela_lightning.data.transforms import default_transport_transform
from rela_lightning.data.views import probe_view
from rela_lightning.errors import DataError
from rela_lightning.networks.preprocess import Preprocess
from tests.image_files import crop, write_classes
from tests.test_targets import pixel_prior

GREY = np.asarray(crop(0, 3).convert("L"))
PLAIN = Preprocess((48, 48), (0.0,) * 3, (1.0,) * 3)
PROBE = probe_view(32, mean=[0.4] * 3, std=[0.2] * 3)


class One:
    """A data set of one image."""

    targets = (0,)

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> Any:
        return self.image, 0


def of_palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


def with_alpha(image: Image.Image, mode: str = "RGBA") -> Image.Image:
    changed = image.convert(mode)
    changed.putalpha(Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)))
    return changed


MODES = {
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), "png"),
    "I;16 tiff": (Image.fromarray(GREY.astype(np.uint16) * 257), "tiff"),
    "I": (Image.fromarray(GREY.astype(np.int32) * 257), "tiff"),
    "F": (Image.fromarray(GREY.astype(np.float32) / 255), "tiff"),
    "L": (Image.fromarray(GREY), "png"),
    "LA": (with_alpha(Image.fromarray(GREY), "LA"), "png"),
}


@pytest.mark.parametrize("name", MODES)
def test_grey_of_any_depth_is_the_same_everywhere(tmp_path: Path, name: str) -> None:
    image, suffix = MODES[name]
    image.save(tmp_path / f"a.{suffix}")
    want = np.stack([GREY] * 3)
    read = FolderImages(tmp_path)[0][0]
    for found in (read, RGBImages(One(image))[0][0]):
        assert found.mode == "RGB"
        np.testing.assert_allclose(pixels(found).astype(float), want, atol=1)
    np.testing.assert_allclose(np.broadcast_to(pixels(image), want.shape).astype(float), want, atol=1)
    np.testing.assert_allclose(PLAIN(image).numpy() * 255, want, atol=1)


def test_colour_of_any_mode_is_what_pillow_makes_of_it(tmp_path: Path) -> None:
    photo = crop(0, 3)
    clear = of_palette(photo)
    clear.info["transparency"] = 3
    for image in (
        photo.convert("CMYK"),
        of_palette(photo),
        clear,
        with_alpha(photo),
        photo.convert("1"),
        photo.convert("HSV"),
    ):
        want = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        assert (pixels(image) == want).all() and (pixels(RGBImages(One(image))[0][0]) == want).all(), image.mode
        np.testing.assert_allclose(PLAIN(image).numpy() * 255, want, atol=1e-3)
    with_alpha(photo).save(tmp_path / "a.png")
    assert (pixels(FolderImages(tmp_path)[0][0]) == pixels(photo)).all()


class Own:
    """Photos, the last one in another form, under a transform of the user's that makes them RGB, or grey."""

    def __init__(self, odd: Any, mode: str = "RGB") -> None:
        self.images = [*[crop(row, row) for row in range(30)], odd]
        self.transform = v2.Compose([
            lambda image: image.convert(mode), v2.RandomResizedCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, True)
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        return self.transform(self.images[row]), row


@pytest.mark.parametrize("mode", ["P", "P, clear", "RGBA", "LA", "CMYK", "1", "HSV", "YCbCr", "L"])
def test_the_transport_phase_shows_images_of_any_mode_as_the_prior_saw_them(mode: str) -> None:
    photo = crop(0, 3)
    made = {"P": of_palette(photo), "RGBA": with_alpha(photo), "LA": with_alpha(photo, "LA")}
    made["P, clear"] = made["P"].copy()
    made["P, clear"].info["transparency"] = 3
    odd = made[mode] if mode in made else photo.convert(mode)
    data = Own(odd)
    views = default_transport_transform(data, 2)
    assert views is not None
    seen = raw_image(data, 30)
    with swapped_transform(data, views):
        found = seeded_call(lambda: data[30][0])
    assert found.shape == (3, 32, 32)
    assert torch.equal(found, seeded_call(lambda: views(seen.convert("RGB"))))
    assert default_transport_transform(Own(odd, "L"), 2)(odd).shape == (1, 32, 32)
    assert torch.equal(PROBE(odd), PROBE(odd.convert("RGB")))


def test_alpha_is_dropped_from_tensors_in_the_transport_phase_too() -> None:
    rgba = pil_to_tensor(with_alpha(crop(0, 3)))
    views = default_transport_transform(Own(crop(0, 3)), 2)
    assert torch.equal(seeded_call(lambda: views(rgba)), seeded_call(lambda: views(rgba[:3])))
    array = np.asarray(crop(0, 3))
    assert torch.equal(seeded_call(lambda: views(array)), seeded_call(lambda: views(crop(0, 3))))


def seeded_call(make: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize(
    ("values", "mode"),
    [
        (GREY.astype(np.float32), "F"),
        (GREY.astype(np.float32) / 255 - 0.5, "F"),
        (np.where(GREY > 200, np.nan, 0.5).astype(np.float32), "F"),
        (GREY.astype(np.int32), "I"),
        (GREY.astype(np.uint16), "I;16"),
        (GREY.astype(np.int32) * 65536, "I"),
        (GREY.astype(np.int32) - 300, "I"),
    ],
)
def test_values_that_do_not_say_what_white_is_are_refused_with_the_file(tmp_path: Path, values: Any, mode: str) -> None:
    Image.fromarray(values).save(tmp_path / "scan.tiff")
    Image.fromarray(GREY).save(tmp_path / "xray.png")
    with pytest.raises(DataError, match=rf"(?s)row 0 cannot be read.*scan\.tiff.*PIL mode {mode} has values"):
        FolderImages(tmp_path)[0]
    with pytest.warns(UserWarning, match=r"1 of 2 images.*scan\.tiff"):
        assert len(FolderImages(tmp_path, on_error="skip")) == 1
    with pytest.raises(DataError, match="what white is"):
        RGBImages(One(Image.fromarray(values)))[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_read_upright(tmp_path: Path, orientation: int) -> None:
    photo, exif = crop(1, 4).crop((0, 0, 40, 24)), Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.png", exif=exif)
    array = np.asarray(photo)
    turns = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.transpose(1, 0, 2),
        6: np.rot90(array, -1), 7: np.rot90(array, 2).transpose(1, 0, 2), 8: np.rot90(array),
    }  # fmt: skip
    assert (np.asarray(FolderImages(tmp_path)[0][0]) == turns[orientation]).all()


def test_files_are_images_if_pillow_reads_them_and_others_are_counted(tmp_path: Path) -> None:
    for suffix in ("gif", "jp2", "tga", "JFIF", "PNG", "pbm", "webp", "ico"):
        crop(0, 1).convert("1" if suffix == "pbm" else "RGB").save(tmp_path / f"{suffix}.{suffix.lower()}")
        (tmp_path / f"{suffix}.{suffix.lower()}").rename(tmp_path / f"{suffix}.{suffix}")
    for name in ("phone.heic", "other.heic", "film.mp4", "notes.txt", "README"):
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match=r"left out.*2 \.heic, 1 \.mp4\.$"):
        data = FolderImages(tmp_path)
    assert len(data) == 8 and all(data[row][0].mode == "RGB" for row in range(8))


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "r", 2)
    (root / "flower" / "up").symlink_to("..")
    (root / "latest").symlink_to(".")
    (root / "temple" / "beside").symlink_to("../flower")
    (root / "flower" / "back").symlink_to("../temple")
    (tmp_path / "far").mkdir()
    crop(0, 9).save(tmp_path / "far" / "x.jpg")
    (root / "temple" / "far").symlink_to(tmp_path / "far")
    data = FolderImages(root)
    names = [name for name, _ in data.samples]
    assert data.classes == ["flower", "temple"]
    assert names == [
        "flower/00.jpg", "flower/01.jpg", "flower/back/00.jpg", "flower/back/01.jpg", "flower/back/far/x.jpg",
        "temple/00.jpg", "temple/01.jpg", "temple/beside/00.jpg", "temple/beside/01.jpg", "temple/far/x.jpg",
    ]  # fmt: skip


def test_a_name_in_any_bytes_can_be_labelled_verified_and_looked_over(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "r", 4)
    (root / "flower" / "00.jpg").rename(os.fsdecode(os.fsencode(root / "flower") + b"/caf\xe9.jpg"))
    store = build_targets(pixel_prior(), FolderImages(root), tmp_path / "t")
    store.verify(FolderImages(root))
    assert len(FolderImages(root, on_error="skip")) == 8
    (root / "flower" / "01.jpg").write_text("no image")
    with pytest.warns(UserWarning, match="1 of 8"):
        assert len(FolderImages(root, on_error="skip")) == 7


# ---- lists of labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"\xef\xbb\xbfx.png,flower\n", {"x.png": "flower"}),
        ("x.png,flower\nñ.png,temple\n".encode("latin-1"), {"x.png": "flower", "ñ.png": "temple"}),
        ("x.png,flower\nñ.png,temple\n".encode("utf-16"), {"x.png": "flower", "ñ.png": "temple"}),
        ("x.png,flower\nñ.png,temple\n".encode(), {"x.png": "flower", "ñ.png": "temple"}),
        (b"my photo.png,flower\r\n", {"my photo.png": "flower"}),
        (b"my photo.png flower\n", {"my photo.png": "flower"}),
        (b"name;class\nx.png;golden retriever\n", {"x.png": "golden retriever"}),
        (b'"a, b.png","big, red"\n', {"a, b.png": "big, red"}),
        (b"a/b/x.png\tflower\t1\t2\n", {"a/b/x.png": "flower"}),
        (b"x.png 7\ny.png 8\n", {"x.png": "7", "y.png": "8"}),
    ],
)
def test_a_list_of_labels_as_programs_write_it(tmp_path: Path, raw: bytes, wanted: dict[str, str]) -> None:
    (tmp_path / "map.csv").write_bytes(raw)
    assert read_label_map(tmp_path / "map.csv") == wanted


def test_a_field_without_end_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("x.png,flower\ny.png," + "a" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"cannot be read(?s:.*)line 2"):
        read_label_map(tmp_path / "map.csv")


words = st.text("abcxyzñé_-", min_size=1, max_size=6)
paths = st.lists(words, min_size=1, max_size=3).map("/".join)


@given(
    entries=st.dictionaries(paths, words, min_size=1, max_size=6),
    mark=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "latin-1"]),
    suffix=st.sampled_from([".jpg", ".PNG"]),
)
def test_every_file_gets_the_class_of_its_own_line(
    tmp_path_factory: Any, entries: dict[str, str], mark: str, encoding: str, suffix: str
) -> None:
    file = tmp_path_factory.mktemp("map") / "map.txt"
    file.write_bytes("".join(f"{name}{suffix}{mark}{label}\n" for name, label in entries.items()).encode(encoding))
    names, classes = [f"{name}{suffix}" for name in entries], sorted(set(entries.values()))
    found = mapped_labels(Path(), names, classes, read_label_map(file))
    assert [classes[label] for label in found] == list(entries.values())


def test_a_line_is_for_one_file(tmp_path: Path) -> None:
    both, classes = ["a/x.png", "b/x.png"], ["cat", "dog"]
    assert mapped_labels(tmp_path, both, classes, {"a/x.png": "dog", "b/x.png": "cat"}) == [1, 0]
    assert mapped_labels(tmp_path, both, classes, {"a/x": "dog", "val/b/x.png": "cat"}) == [1, 0]
    with pytest.raises(DataError, match=r"(?s)of one name apart.*one line for a/x\.png, b/x\.png"):
        mapped_labels(tmp_path, both, classes, {"x.png": "dog"})
    with pytest.raises(DataError, match=r"(?s)of one name apart.*lines a/x\.png, b/x\.png"):
        mapped_labels(tmp_path, ["x.png"], classes, {"a/x.png": "dog", "b/x.png": "cat"})
    with pytest.raises(DataError, match=r"missing from the list(?s:.*)1 of 2.*b/x\.png"):
        mapped_labels(tmp_path, both, classes, {"a/x.png": "dog", "c/x.png": "dog"})
    (tmp_path / "map.txt").write_text("x.png cat\nx.png dog\n")
    with pytest.raises(DataError, match=r"two classes in the list(?s:.*)line 2"):
        read_label_map(tmp_path / "map.txt")


@pytest.mark.parametrize(
    ("classes", "labels", "found"),
    [
        ("12345", "12345", [0, 1, 2, 3, 4]),
        ("12345", "54321", [4, 3, 2, 1, 0]),
        (["cat", "dog", "elk"], "021", [0, 2, 1]),
        (["10", "20", "30"], "021", [0, 2, 1]),
        ("12345", "01234", "1, 2, 3, 4: names; 0: numbers alone"),
        (["cat", "dog"], ["cat", "1"], "cat: names; 1: numbers alone"),
    ],
)
def test_a_list_has_names_of_classes_or_numbers(classes: Any, labels: Any, found: Any) -> None:
    names = [f"{number}.png" for number in range(len(labels))]
    label_map = dict(zip(names, labels, strict=True))
    if isinstance(found, list):
        assert mapped_labels(Path(), names, list(classes), label_map) == found
    else:
        with pytest.raises(DataError, match=f"mixes names and numbers(?s:.*){found}(?s:.*)counted from 0"):
            mapped_labels(Path(), names, list(classes), label_map)


# ---- thin images -------------------------------------------------------------------------------------------


def strip(height: int, width: int) -> Image.Image:
    """Smooth content of any shape."""
    small = np.random.default_rng(0).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("shape", [(20, 5000), (5000, 31), (300, 9000), (224, 2000), (48, 64)])
def test_a_thin_image_is_seen_as_if_all_of_it_had_been_resized(shape: tuple[int, int]) -> None:
    image = strip(*shape)
    whole = F.center_crop(F.resize(image, [224], interpolation=F.InterpolationMode.BICUBIC), [224, 224])
    found = Preprocess((224, 224), (0.0,) * 3, (1.0,) * 3)(image).numpy() * 255
    assert np.abs(found - pixels(whole)).mean() < 5  # half a pixel of the resized image
    whole = F.center_crop(F.resize(image, [256]), [224, 224])
    found = probe_view(224, mean=[0.0] * 3, std=[1.0] * 3)(image).numpy() * 255
    assert np.abs(found - pixels(whole)).mean() < 5  # half a pixel of the resized image


def test_what_is_resized_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    own = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *args: Any, **kwargs: Any) -> Image.Image:
        sizes.append(size[0] * size[1])
        return own(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for image in (Image.new("RGB", (20000, 20)), Image.new("L", (7, 30000))):
        Preprocess((224, 224), (0.0,) * 3, (1.0,) * 3)(image)
        probe_view(224, mean=[0.0] * 3, std=[1.0] * 3)(image)
    assert len(sizes) == 4 and max(sizes) < 256 * 1300


def test_a_tag_that_cannot_be_written_again_does_not_keep_a_photo_from_being_turned(tmp_path: Path) -> None:
    def entry(tag: int, kind: int, value: bytes) -> bytes:
        return struct.pack("<HHI", tag, kind, 1) + value

    tags = entry(0x0112, 3, struct.pack("<HH", 6, 0)) + entry(0x011A, 2, b"ab\0\0")  # a resolution in letters
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0)
    crop(1, 4).crop((0, 0, 40, 24)).save(tmp_path / "a.jpg", exif=exif)
    assert FolderImages(tmp_path)[0][0].size == (24, 40)


def test_links_to_themselves_are_no_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        crop(0, 0).save(tmp_path / name / "1.png")
    (tmp_path / "loop").symlink_to("loop")
    data = FolderImages(tmp_path)
    assert data.classes == ["a", "b"] and len(data) == 2


def test_images_without_a_suffix_are_counted(tmp_path: Path) -> None:
    crop(0, 0).save(tmp_path / "1.png")
    (tmp_path / "README").write_text("as it was")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FolderImages(tmp_path)
    (tmp_path / "2").write_bytes((tmp_path / "1.png").read_bytes())
    with pytest.warns(UserWarning, match="2 files .* have no suffix"):
        FolderImages(tmp_path)


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("x.png,Boeing 747", "Boeing 747"),
        ("x.png,n01 85 1 499 272", "n01"),
        ("x.png,n01 85 1 499 272 n01 1 2 3 4", "n01"),  # Kaggle's list, of two boxes
        ("x.png\tn01\t0\t32\t44\t62", "n01"),
    ],
)
def test_a_number_in_a_class_is_no_box(tmp_path: Path, line: str, label: str) -> None:
    (tmp_path / "m.txt").write_text(line)
    assert read_label_map(tmp_path / "m.txt") == {"x.png": label}
