"""Folders of image files: what is a class, which row holds which file, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from rela_lightning.data import FolderImages, ImageFolderData, ImageNetData, TinyImageNetData, readable
from rela_lightning.data.label_map import read_label_map
from rela_lightning.errors import ConfigError, DataError
from tests.image_files import crop, write_classes, write_flat


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_classes(tmp_path / "train", 6)
    write_classes(tmp_path / "val", 3)
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))


def names(dataset: FolderImages) -> list[str]:
    return [name for name, _ in dataset.samples]


def test_rows_classes_and_pixels_are_those_of_torchvision(folders: Path) -> None:
    ours, theirs = FolderImages(folders / "train"), ImageFolder(str(folders / "train"))
    assert ours.classes == theirs.classes and ours.targets == theirs.targets
    assert [str(folders / "train" / name) for name in names(ours)] == [path for path, _ in theirs.samples]
    for row in (0, 7, 11):
        np.testing.assert_array_equal(np.asarray(ours[row][0]), np.asarray(theirs[row][0]))
        assert ours[row][1] == theirs[row][1]


def test_classes_are_sorted_by_name_though_paths_sort_otherwise(tmp_path: Path) -> None:
    write_classes(tmp_path, 2, ("a", "a b", "a-b"))  # as paths, "a-b/" comes before "a/"
    data = FolderImages(tmp_path)
    assert data.classes == ["a", "a b", "a-b"] and data.targets == [0, 0, 1, 1, 2, 2]
    assert [Path(name).parent.name for name in names(data)] == ["a", "a", "a b", "a b", "a-b", "a-b"]


def test_images_may_lie_deeper_in_a_class_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", 2)
    write_classes(tmp_path / "data" / "flower" / "more", 1, ("deep",))
    (tmp_path / "data" / "flower" / "._00.jpg").write_bytes(b"a resource fork")
    (tmp_path / "data" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("not an image")
    data = FolderImages(tmp_path / "data")
    assert data.classes == ["flower", "temple"] and data.targets == [0, 0, 0, 1, 1]


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    write_flat(tmp_path / "data", 1)
    picture = crop(0, 3)
    picture.convert("L").save(tmp_path / "data" / "b.png")
    picture.convert("P").save(tmp_path / "data" / "c.png")
    picture.convert("CMYK").save(tmp_path / "data" / "d.JPEG")
    data = FolderImages(tmp_path / "data")
    assert [data[row][0].mode for row in range(4)] == ["RGB"] * 4
    np.testing.assert_array_equal(np.asarray(data[1][0])[..., 2], np.asarray(picture.convert("L")))


@pytest.mark.parametrize("layout", ["flat", "one folder", "nested", "folders with labelled=False"])
def test_images_without_labels(layout: str, tmp_path: Path) -> None:
    root, options = tmp_path / "images", {}
    if layout == "flat":
        write_flat(root, 6)
    elif layout == "one folder":
        write_flat(root / "shard", 6)
    elif layout == "nested":
        write_flat(root / "deep" / "er", 4)
        write_flat(root / "deep" / "est", 2)
    else:
        write_classes(root, 3)
        options = {"labelled": False}
    data = ImageFolderData(str(root), image_size=32, batch_size=3, **options)
    data.setup("fit")
    dataset = data.dataset("train", None)
    assert len(dataset) == 6 and dataset.targets == [-1] * 6
    assert data.num_classes is None and data.val_dataloader() == []
    views, labels = next(iter(data.train_dataloader()))
    assert [tuple(view.shape) for view in views] == [(3, 3, 32, 32)] * 2 and labels.tolist() == [-1] * 3


def test_images_beside_folders_are_taken_without_labels_and_it_is_said(folders: Path) -> None:
    crop(0, 9).save(folders / "train" / "cover.jpg")
    with pytest.warns(UserWarning, match="labelled=True"):
        assert FolderImages(folders / "train").classes is None
    data = FolderImages(folders / "train", labelled=True)
    assert data.classes == ["flower", "temple"] and len(data) == 12, "the file beside the classes has no row"


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "val"), ("train", "test"), ("train", "validation"), ("train", "valid"), ("Training", "Testing"),
     ("Train", "Test"), ("TRAIN", "val")],
)  # fmt: skip
def test_names_of_the_folders_of_splits(train: str, val: str, tmp_path: Path) -> None:
    write_classes(tmp_path / train, 2)
    write_classes(tmp_path / val, 3)
    data = ImageFolderData(str(tmp_path), image_size=32)
    assert data.classes == ["flower", "temple"], "not the splits"
    assert len(data.dataset("train")) == 4 and len(data.dataset("val", "probe")) == 6


def test_a_class_called_train_is_told_from_a_split(tmp_path: Path) -> None:
    vehicles = write_classes(tmp_path / "vehicles", 2, ("bus", "ship", "train"))
    with pytest.warns(UserWarning, match=r"left out: bus, ship\. .*pass train_dir='.*vehicles'"):
        assert len(ImageFolderData(str(vehicles)).dataset("train")) == 2
    data = ImageFolderData(train_dir=str(vehicles))
    assert data.classes == ["bus", "ship", "train"] and len(data.dataset("train")) == 6


def test_what_is_no_folder_of_images_beside_a_split_is_no_matter(folders: Path, recwarn: Any) -> None:
    (folders / "notes").mkdir()
    (folders / "notes" / "read.txt").write_text("me")
    ImageFolderData(str(folders)).setup("fit")
    assert not any("left out" in str(warning.message) for warning in recwarn)


def test_folders_by_name(tmp_path: Path) -> None:
    mine, yours = write_classes(tmp_path / "mine", 2), write_classes(tmp_path / "yours", 1)
    data = ImageFolderData(train_dir=str(mine), val_dir=str(yours))
    assert len(data.dataset("train")) == 4 and len(data.dataset("val")) == 2
    data = ImageFolderData(train_dir=str(mine))
    data.setup("fit")
    assert data.num_classes == 2 and data.val_dataloader() == []
    with pytest.raises(DataError, match="no labelled validation images"):
        data.dataset("val")


def test_class_folders_without_splits(tmp_path: Path) -> None:
    data = ImageFolderData(str(write_classes(tmp_path / "pets", 3)))
    assert data.num_classes == 2 and len(data.dataset("train")) == 6 and data.val_dataloader() == []


def damage(root: Path, how: str) -> dict[str, Any]:
    """Break a good tree in one way; options that go with it."""
    if how == "empty class":
        (root / "train" / "rose").mkdir()
    elif how == "no images":
        for file in root.glob("train/*/*.jpg"):
            file.rename(file.with_suffix(".dat"))
    elif how == "other classes":
        (root / "val" / "temple").rename(root / "val" / "castle")
    elif how == "class missing in val":
        for file in (root / "val" / "temple").iterdir():
            file.unlink()
        (root / "val" / "temple").rmdir()
    elif how == "no train":
        (root / "train").rename(root / "elsewhere")
    elif how == "flat val":
        for number, file in enumerate(root.glob("val/*/*.jpg")):
            file.rename(root / "val" / f"{number}.jpg")
        for folder in ("flower", "temple"):
            (root / "val" / folder).rmdir()
    elif how == "labelled=True without folders":
        write_flat(root / "flat", 2)
        return {"train_dir": str(root / "flat"), "labelled": True}
    elif how == "missing":
        return {"root": str(root / "trian")}
    elif how == "missing val_dir":
        return {"val_dir": str(root / "vla")}
    elif how == "file":
        (root / "images.zip").write_bytes(b"PK")
        return {"root": str(root / "images.zip")}
    elif how == "list of labels missing":
        return {"val_map": str(root / "labels.txt")}
    return {}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty class", r"class folder holds no.*\n.*\n  found:    rose\n.*labelled=False"),
        ("no images", r"holds no images.*\n  expected: files with .*\.jpg.*\n.*\n  available: flower, temple"),
        ("other classes", r"different classes.*\n.*\n.*only here: castle; missing here: temple"),
        ("no train", r"no folder of training images.*\n.*train\n.*val alone\n.*train_dir"),
        ("flat val", r"no class folders.*\n.*\n.*6 images in .*val itself\n.*val_map"),
        ("labelled=True without folders", r"no class folders"),
        ("missing", r"not there.*\n.*\n.*trian\n  available: train, val"),
        ("missing val_dir", r"not there.*\n.*\n.*vla"),
        ("file", r"is a file.*\n.*\n.*images\.zip\n.*unpack"),
        ("list of labels missing", r"list of labels is not there"),
    ],
)
def test_bad_folders_are_refused_before_training(how: str, message: str, folders: Path) -> None:
    options = {"root": str(folders), **damage(folders, how)}
    with pytest.raises(DataError, match=message):
        ImageFolderData(**options).prepare_data()


def test_a_class_without_validation_images_is_told(folders: Path) -> None:
    damage(folders, "class missing in val")
    (folders / "train" / "flower").rename(folders / "train" / "zinnia")
    (folders / "val" / "flower").rename(folders / "val" / "zinnia")
    data = ImageFolderData(str(folders))
    with pytest.warns(UserWarning, match="no images of 1 of 2 classes: temple"):
        labels = data.dataset("val").targets
    assert set(labels) == {1} and data.classes == ["temple", "zinnia"]


def test_no_folder_at_all_and_unknown_options() -> None:
    with pytest.raises(ConfigError, match="root, or train_dir"):
        ImageFolderData()
    with pytest.raises(ConfigError, match="raise, skip"):
        ImageFolderData("x", on_error="ignore")  # type: ignore[arg-type]


@pytest.fixture
def broken(folders: Path) -> Path:
    """A truncated JPEG and a file that is none, among good ones."""
    cut = folders / "train" / "flower" / "02.jpg"
    cut.write_bytes(cut.read_bytes()[:600])
    (folders / "train" / "temple" / "04.jpg").write_text("<html>404</html>")
    return folders


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers: int, broken: Path) -> None:
    data = ImageFolderData(str(broken), image_size=32, batch_size=12, num_workers=workers)
    with pytest.raises(DataError, match=r"(?s)cannot be read.*train/flower/02\.jpg.*on_error=.?\"skip"):
        next(iter(data.probe_train_dataloader()))


@pytest.mark.slow
def test_a_link_to_nothing_is_left_out_too(folders: Path) -> None:
    (folders / "train" / "temple" / "gone.jpg").symlink_to(folders / "nowhere.jpg")
    number = len(FolderImages(folders / "train", on_error="skip"))
    assert number == len(FolderImages(folders / "train")) - 1


@pytest.mark.slow
def test_skipped_images_have_no_row_and_rows_stay(broken: Path, monkeypatch: Any) -> None:
    with pytest.warns(UserWarning, match=r"2 of 12 images.*flower/02\.jpg, temple/04\.jpg"):
        first = FolderImages(broken / "train", on_error="skip")
    expected = [f"{kind}/{n:02d}.jpg" for kind, bad in (("flower", 2), ("temple", 4)) for n in range(6) if n != bad]
    assert names(first) == expected and len(list(DataLoader(first, batch_size=None))) == 10

    def never(path: Path) -> Image.Image:
        raise AssertionError("the list is kept, nothing is decoded again")

    with monkeypatch.context() as patched:
        patched.setattr(readable, "open_rgb", never)
        assert names(FolderImages(broken / "train", on_error="skip")) == expected
    crop(1, 40).save(broken / "train" / "temple" / "04.jpg")  # mended: files changed, so they are looked at again
    os.utime(broken / "train" / "temple" / "04.jpg", (1, 1))
    assert len(FolderImages(broken / "train", on_error="skip")) == 11


def test_skipping_where_nothing_can_be_kept(broken: Path, monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "in_the_way"))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert len(FolderImages(broken / "train", on_error="skip")) == 10


def test_the_kept_list_says_what_it_is(broken: Path) -> None:
    FolderImages(broken / "train", on_error="skip")
    (file,) = (Path(os.environ["TORCH_HOME"]) / "rela_lightning" / "readable").iterdir()
    kept = json.loads(file.read_text())
    assert kept == {"root": str(broken / "train"), "images": 12, "unreadable": ["flower/02.jpg", "temple/04.jpg"]}


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DataError, match="None of the images"):
        FolderImages(tmp_path, on_error="skip")


def test_a_class_of_unreadable_images_is_an_empty_class(folders: Path) -> None:
    for file in (folders / "train" / "temple").iterdir():
        file.write_text("no image")
    with pytest.raises(DataError, match=r"no \(readable\) images.*\n.*\n  found:    temple"):
        FolderImages(folders / "train", on_error="skip")


def test_the_list_of_labels_in_three_formats(tmp_path: Path) -> None:
    plain = {"val_0": "n02", "val_1": "n01"}
    (tmp_path / "tiny.txt").write_text("val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n")
    (tmp_path / "kaggle.csv").write_text("ImageId,PredictionString\nval_0,n02 1 2 3 4\nval_1,n01 5 6 7 8 \n")
    (tmp_path / "caffe.txt").write_text("val_0.JPEG n02\n\nval_1.JPEG n01\n")
    for name in ("tiny.txt", "kaggle.csv", "caffe.txt"):
        wanted = plain if name == "kaggle.csv" else {f"{key}.JPEG": label for key, label in plain.items()}
        assert read_label_map(tmp_path / name) == wanted
    (tmp_path / "bad.txt").write_text("val_0.JPEG n02\nval_1.JPEG\n")
    with pytest.raises(DataError, match="line 2"):
        read_label_map(tmp_path / "bad.txt")


def flat_validation(root: Path, labels: dict[str, str], folder: str = "") -> None:
    (root / "val" / folder).mkdir(parents=True)
    for number, name in enumerate(labels):
        crop(number, number).save(root / "val" / folder / name)


def test_imagenet_with_flat_validation_images(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2, ("n01440764", "n01443537", "n01484850"), suffix="JPEG")
    labels = {f"ILSVRC2012_val_{n:08d}.JPEG": ("n01443537", "n01440764")[n % 2] for n in range(4)}
    flat_validation(tmp_path, labels)
    with pytest.raises(DataError, match="no class folders"):
        ImageNetData(str(tmp_path)).prepare_data()
    lines = "".join(f"{name.removesuffix('.JPEG')},{label} 1 2 3 4\n" for name, label in labels.items())
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + lines)
    data = ImageNetData(str(tmp_path))
    with pytest.warns(UserWarning, match="has 1000 classes, but 3 were found"):
        data.setup("fit")
    assert data.dataset("val").targets == [1, 0, 1, 0]
    assert data.dataset("val", "probe")[0][0].shape == (3, 224, 224)
    (tmp_path / "numbers.txt").write_text("".join(f"{name} {n % 3}\n" for n, name in enumerate(labels)))
    assert ImageNetData(str(tmp_path), val_map=str(tmp_path / "numbers.txt")).dataset("val").targets == [0, 1, 2, 0]
    (tmp_path / "numbers.txt").write_text("".join(f"{name} 3\n" for name in labels))
    with pytest.raises(DataError, match=r"classes that the training images do not have.*\n.*0 to 2\n.*3"):
        ImageNetData(str(tmp_path), val_map=str(tmp_path / "numbers.txt")).dataset("val")
    (tmp_path / "numbers.txt").write_text("ILSVRC2012_val_00000000.JPEG 0\n")
    with pytest.raises(DataError, match=r"missing from the list.*\n.*\n.*3 of 4"):
        ImageNetData(str(tmp_path), val_map=str(tmp_path / "numbers.txt")).dataset("val")


@pytest.mark.parametrize("inside", [True, False])
def test_tiny_imagenet_as_it_comes_and_sorted(inside: bool, tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for kind, name in enumerate(("n01443537", "n01629819")):
        (root / "train" / name / "images").mkdir(parents=True)
        for number in range(3):
            crop(kind, number, 64).save(root / "train" / name / "images" / f"{name}_{number}.JPEG")
    labels = {"val_0.JPEG": "n01629819", "val_1.JPEG": "n01443537", "val_2.JPEG": "n01629819"}
    flat_validation(root, labels, "images")
    (root / "val" / "val_annotations.txt").write_text("".join(f"{n}\t{c}\t0\t0\t9\t9\n" for n, c in labels.items()))
    data = TinyImageNetData(str(tmp_path if inside else root))
    assert data.dataset("train").targets == [0, 0, 0, 1, 1, 1] and data.dataset("val").targets == [1, 0, 1]
    assert data.dataset("val", "probe")[0][0].shape == (3, 64, 64)
    for name, label in labels.items():  # sorted as many scripts do; the list of labels stays
        (root / "val" / label / "images").mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(root / "val" / label / "images" / name)
    (root / "val" / "images").rmdir()
    assert TinyImageNetData(str(tmp_path)).dataset("val").targets == [0, 1, 1]


def test_pickles_for_workers(folders: Path) -> None:
    data = pickle.loads(pickle.dumps(FolderImages(folders / "train")))
    assert len(data) == 12 and data[0][0].size == (48, 48)
