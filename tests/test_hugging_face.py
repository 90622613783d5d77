"""Data sets of Hugging Face as data modules, from what lies on the disk."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.data import HuggingFaceData
from rela_lightning.data.hugging_face import HuggingFaceImages, image_column, label_column
from rela_lightning.errors import ConfigError, DataError, TargetError
from rela_lightning.methods import BYOL
from rela_lightning.probe import KNNProbe
from rela_lightning.schedules import Switch
from tests.parts import TinyBackbone, make_digits
from tests.test_callback import Log, trainer

CLASSES = [str(digit) for digit in range(10)]


def kind(name: str, **values: Any) -> Any:
    """A column type, told by the name of its class."""
    return type(name, (SimpleNamespace,), {})(**values)


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"photo_of_it": "Image", "label": "ClassLabel"}, ("photo_of_it", "label")),
        ({"mask": "Image", "image": "Image", "target": "Value"}, ("image", "target")),
        ({"img": "Image", "fine": "ClassLabel"}, ("img", "fine")),
        ({"png": "dict", "text": "Value"}, ("png", None)),
    ],
)
def test_columns_are_found_by_type_and_by_name(columns, expected):
    features = {name: kind(value) for name, value in columns.items()}
    assert (image_column(features), label_column(features)) == expected


@pytest.mark.parametrize("columns", [{"left": "Image", "right": "Image"}, {"text": "Value"}])
def test_columns_that_cannot_be_told_are_named(columns):
    features = {name: kind(value) for name, value in columns.items()}
    with pytest.raises(
        ConfigError, match=rf"{next(iter(columns))} \({next(iter(columns.values()))}\)[\s\S]*image=NAME"
    ):
        image_column(features)
    with pytest.raises(ConfigError, match="no column 'lable'"):
        label_column(features, "lable")
    with pytest.raises(ConfigError, match=r"fine_label, coarse_label[\s\S]*label=NAME"):
        label_column({"fine_label": kind("ClassLabel"), "coarse_label": kind("ClassLabel")})


@pytest.mark.parametrize("module", [None, SimpleNamespace()])  # not installed; a folder of that name
def test_without_the_package_the_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(ConfigError, match=r"not installed[\s\S]*pip install 'rela-lightning\[hf\]'"):
        HuggingFaceData("cifar10").prepare_data()


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def rows(count: int, start: int = 0) -> dict[str, list[Any]]:
    """Digits as bytes, with their labels."""
    images = [make_digits(start + count)[start + row] for row in range(count)]
    return {"image": [{"bytes": encoded(image), "path": None} for image, _ in images], "label": [y for _, y in images]}


def made(count: int, start: int = 0) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    return datasets.Dataset.from_dict(rows(count, start), features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of `save_to_disk` with 48 images to train on and 16 to validate on."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hf") / "digits"
    datasets.DatasetDict({"train": made(48), "test": made(16, 48)}).save_to_disk(folder)
    return str(folder)


OPTIONS = {"image_size": 32, "batch_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}


def same_images(found: Any, start: int = 0) -> None:
    """Images and labels are those of the digits, in their order."""
    digits = make_digits(start + len(found))
    for row in range(len(found)):
        image, label = digits[start + row]
        assert found[row][1] == label
        np.testing.assert_array_equal(np.asarray(found[row][0]), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("label, classes", [("label", 10), ("coarse_label", 2), ("word", 2)])
def test_few_labels_are_drawn_by_the_column_of_the_labels(tmp_path, label, classes):
    coarse = [digit // 5 for digit in rows(100)["label"]]
    table = made(100).add_column("coarse_label", coarse).add_column("word", [["low", "high"][one] for one in coarse])
    table.save_to_disk(tmp_path / "few")
    few = HuggingFaceData(str(tmp_path / "few"), label=label, labels_per_class=3, **OPTIONS).dataset("train", "probe")
    assert np.bincount([few[row][1] for row in range(len(few))]).tolist() == [3] * classes


def test_a_saved_data_set_gives_the_images_in_their_order(saved):
    data = HuggingFaceData(saved, **OPTIONS)
    data.setup("fit")
    assert data.classes == CLASSES and data.num_classes == 10
    same_images(data.dataset("train"))
    same_images(data.dataset("val"), 48)
    assert data.dataset("train").targets == [make_digits(48)[row][1] for row in range(48)]
    image, _ = data.dataset("train", "probe")[0]
    assert image.shape == (3, 32, 32) and image.is_floating_point()


def test_a_folder_of_parquet_files_works_with_whole_numbers_as_labels(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = rows(24)
    plain = {"img": [image["bytes"] for image in table["image"]], "digit": [3 * label for label in table["label"]]}
    for split, part in (("train", slice(0, 16)), ("validation", slice(16, 24))):
        cut = {name: values[part] for name, values in plain.items()}
        datasets.Dataset.from_dict(cut).to_parquet(tmp_path / "p" / f"{split}-0.parquet")
    data = HuggingFaceData(
        str(tmp_path / "p"), label="digit", load_kwargs={"cache_dir": str(tmp_path / "c")}, **OPTIONS
    )
    found = sorted(set(plain["digit"][:16]))
    assert data.classes == [str(value) for value in found]
    assert data.dataset("train").targets == [found.index(value) for value in plain["digit"][:16]]
    np.testing.assert_array_equal(np.asarray(data.dataset("val")[0][0]), np.asarray(make_digits(24)[16][0]))


def test_a_folder_of_images_works(tmp_path):
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        for row in range(6):
            file = tmp_path / "images" / split / "ab"[row % 2] / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(make_digits(6)[row][0]))
    data = HuggingFaceData(str(tmp_path / "images"), load_kwargs={"cache_dir": str(tmp_path / "c")}, **OPTIONS)
    assert data.classes == ["a", "b"] and data.dataset("train").targets == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(np.asarray(data.dataset("train")[1][0]), np.asarray(make_digits(6)[2][0]))


def test_images_may_lie_in_an_archive(tmp_path):
    datasets = pytest.importorskip("datasets")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for row in range(3):
            archive.writestr(f"in/{row}.png", encoded(make_digits(3)[row][0]))
    paths = [{"bytes": None, "path": f"zip://in/{row}.png::{tmp_path / 'a.zip'}"} for row in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    found = HuggingFaceImages(datasets.Dataset.from_dict({"image": paths}, features=features), "image")
    for row in range(3):
        np.testing.assert_array_equal(np.asarray(found[row][0]), np.asarray(make_digits(3)[row][0]))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_labelling_training_and_probing(tmp_path, saved, workers):
    data = HuggingFaceData(saved, num_workers=workers, **OPTIONS)
    network = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    store = build_targets(network, data.dataset("train"), tmp_path / "t")
    log = Log()
    torch.manual_seed(0)
    module = BYOL(TinyBackbone(), hidden_dim=16, projector_dim=8)
    run = trainer("lightning.pytorch", ReLACallback(store, schedule=Switch(0.5)), log, KNNProbe(k=3), max_epochs=2)
    run.fit(module, datamodule=data)
    assert log.seen[0]["rela/phase"] == 0.0 and log.seen[-1]["rela/phase"] == 2.0
    assert 0.0 <= float(run.callback_metrics["knn/top1"]) <= 1.0
    again = HuggingFaceData(saved, **OPTIONS)
    assert build_targets(network, again.dataset("train"), tmp_path / "t").fingerprint == store.fingerprint
    with pytest.raises(TargetError, match="lengths differ"):
        store.verify(again.dataset("val"))


def test_rows_that_were_selected_or_sorted_are_another_order(tmp_path, saved):
    datasets = pytest.importorskip("datasets")
    network = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    store = build_targets(network, HuggingFaceData(saved, **OPTIONS).dataset("train"), tmp_path / "t")
    order = datasets.load_from_disk(saved)["train"].shuffle(seed=0)
    order.save_to_disk(tmp_path / "shuffled")
    with pytest.raises(TargetError, match="its rows are others, or in another order"):
        store.verify(HuggingFaceData(str(tmp_path / "shuffled"), **OPTIONS).dataset("train"))


def test_without_labels_there_is_no_validation(tmp_path, saved):
    data = HuggingFaceData(saved, label=None, **OPTIONS)
    assert data.num_classes is None and set(data.dataset("train").targets) == {-1} and data.val_dataloader() == []
    datasets = pytest.importorskip("datasets")
    hidden = made(8).map(lambda row: {"label": -1})
    datasets.DatasetDict({"train": made(16), "test": hidden}).save_to_disk(tmp_path / "hidden")
    assert HuggingFaceData(str(tmp_path / "hidden"), **OPTIONS).val_dataloader() == []


def test_images_are_read_upright_as_those_of_folders_are(tmp_path):
    datasets = pytest.importorskip("datasets")
    exif = Image.Exif()
    exif[0x0112] = 6
    image, file = make_digits(1)[0][0].crop((0, 0, 32, 16)), io.BytesIO()
    image.save(file, "png", exif=exif)
    made = {"image": [{"bytes": file.getvalue(), "path": None}] * 2}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(made, features=features).save_to_disk(tmp_path / "d")
    found, _ = HuggingFaceData(str(tmp_path / "d"), **OPTIONS).dataset("train")[0]
    np.testing.assert_array_equal(np.asarray(found), np.rot90(np.asarray(image), -1))


def test_what_does_not_fit_is_refused_by_name(tmp_path, saved):
    datasets = pytest.importorskip("datasets")

    def refused(message: str, path: Any = saved, error: Any = DataError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            HuggingFaceData(str(path), **options).prepare_data()

    refused(r"no split 'training'[\s\S]*train, test", train_split="training")
    refused("no column 'photo'", error=ConfigError, image="photo")
    refused(r"'label' does not hold images[\s\S]*image \(Image\)", image="label")
    refused("cannot load", path=tmp_path / "none")
    datasets.Dataset.from_dict({**rows(4), "label": [0.5] * 4}).save_to_disk(tmp_path / "floats")
    refused("'label' does not hold labels", path=tmp_path / "floats")
    broken = {"image": [{"bytes": b"no image", "path": None}] * 4}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(broken, features=features).save_to_disk(tmp_path / "broken")
    with pytest.raises(DataError, match="row 2 cannot be read"):
        HuggingFaceData(str(tmp_path / "broken")).dataset("train")[2]
    parts = {"train": ["a", "b"], "test": ["b", "c"]}
    words = {name: datasets.Dataset.from_dict({**rows(2), "label": each}) for name, each in parts.items()}
    datasets.DatasetDict(words).save_to_disk(tmp_path / "words")
    refused(r"training images do not have[\s\S]*found:    c", path=tmp_path / "words")


@pytest.mark.slow
def test_the_command_knows_its_short_name(tmp_path, saved, monkeypatch):
    from rela_lightning.cli import main
    from tests.test_cli import PRIOR

    monkeypatch.chdir(tmp_path)
    data = ["--data=HuggingFaceData", f"--data.path={saved}", "--data.image_size=32"]
    assert main(["targets", *PRIOR, *data, "--path=t"]) == 0
    assert (Path("t") / "manifest.json").is_file()
