"""Data modules read the files of each data set, and say where they looked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
from jsonargparse import ArgumentParser
from lightly.transforms import SimCLRTransform
from torchvision import datasets

from rela_lightning.data import (
    CIFAR10Data,
    CIFAR100Data,
    FashionMNISTData,
    ImageFolderData,
    STL10Data,
)
from rela_lightning.errors import ConfigError, DataError
from tests.image_files import crop, digit_arrays, write_cifar10, write_classes, write_fashion, write_stl10
from tests.test_datamodules import LARGE, SMALL


def test_fashion_mnist_from_idx_files(tmp_path: Path) -> None:
    data = FashionMNISTData(str(write_fashion(tmp_path)))
    images, labels = digit_arrays(28, slice(0, 96))
    train = data.dataset("train")
    assert len(train) == 96 and len(data.dataset("val")) == 32 and train.targets == labels.tolist()
    image = train[7][0]
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 1], images[7])
    assert data.dataset("val", "probe")[0][0].shape == LARGE
    assert len(FashionMNISTData(str(tmp_path / "FashionMNIST")).dataset("train")) == 96, "or the folder itself"


def test_cifar_from_pickles(tmp_path: Path, monkeypatch: Any) -> None:
    data = CIFAR10Data(str(write_cifar10(tmp_path, monkeypatch)))
    train = data.dataset("train")
    assert len(train) == 100 and len(data.dataset("val")) == 20 and data.num_classes == 10
    np.testing.assert_array_equal(np.asarray(train[23][0]), np.asarray(crop(3, 23, 32)))
    assert train[23][1] == 3
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="CIFAR10 are broken or incomplete"):
        CIFAR10Data(str(tmp_path)).dataset("train")


def test_stl10_trains_on_all_and_probes_on_the_labelled(tmp_path: Path, monkeypatch: Any) -> None:
    root = str(write_stl10(tmp_path, monkeypatch))
    data = STL10Data(root, bank=True)
    train = data.dataset("train")
    assert train.targets == list(range(10)) + [-1] * 20 and data.dataset("val").targets == list(range(10))
    np.testing.assert_array_equal(np.asarray(train[12][0]), np.asarray(crop(2, 12, 96)))
    assert data.dataset("train", "probe").targets == list(range(10))
    assert [len(loader.dataset) for loader in data.val_dataloader()] == [10, 10] and data.num_classes == 10
    assert STL10Data(root, train_split="unlabeled").dataset("train").targets == [-1] * 20
    assert STL10Data(root, train_split="train").dataset("train", "probe").targets == list(range(10))
    few = STL10Data(root, labels_per_class=1)
    assert few.dataset("train", "probe").targets == few.dataset("train").targets == list(range(10))
    with pytest.raises(ConfigError, match="train, unlabeled"):
        STL10Data(root, train_split="test")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [CIFAR10Data, CIFAR100Data, FashionMNISTData, STL10Data])
def test_missing_files_say_where_was_looked_and_nothing_is_downloaded(
    kind: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    asked = []
    for name in ("CIFAR10", "MNIST", "STL10"):
        monkeypatch.setattr(getattr(datasets, name), "download", lambda self: asked.append(type(self).__name__))
    (tmp_path / "other").mkdir()
    message = rf"(?s)files of .* are not there.*{tmp_path}/{kind.folder}.*available: +other\n.*download=True.*train/"
    with pytest.raises(DataError, match=message):
        kind(str(tmp_path)).prepare_data()
    assert not asked and kind(str(tmp_path)).num_classes == (100 if kind is CIFAR100Data else 10)
    with pytest.raises(DataError, match="could not be downloaded"):
        kind(str(tmp_path), download=True).prepare_data()
    assert asked == [kind.__name__.removesuffix("Data")]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        kind(str(tmp_path / "file")).prepare_data()


def test_the_same_images_in_folders(tmp_path: Path) -> None:
    names = ("airplane", "automobile", "bird")
    write_classes(tmp_path / "train", 3, names)
    write_classes(tmp_path / "test", 2, names)
    data = CIFAR10Data(str(tmp_path), batch_size=4)
    with pytest.warns(UserWarning, match="CIFAR10Data has 10 classes, but 3 were found"):
        data.setup("fit")
    assert data.num_classes == 3 and data.classes == list(names)
    assert data.dataset("train").targets == [0] * 3 + [1] * 3 + [2] * 3 and len(data.dataset("val")) == 6
    assert next(iter(data.train_dataloader()))[0][0].shape == (4, 3, 32, 32)


# Configuration


def test_everything_can_be_written_in_yaml(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 4)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    config = f"""
data:
  class_path: rela_lightning.data.ImageFolderData
  init_args:
    root: {tmp_path}
    on_error: skip
    image_size: 32
    batch_size: 4
    data_ratio: 0.5
    views: dino
    views_kwargs: {{n_local_views: 1, global_crop_scale: [0.5, 1.0]}}
    mean: [0.5, 0.5, 0.5]
    bank: true
"""
    data = parser.instantiate_classes(parser.parse_string(config)).data
    assert type(data) is ImageFolderData and data.data_ratio == 0.5 and data.bank is True
    views, _ = next(iter(data.train_dataloader()))
    assert [tuple(view.shape) for view in views] == [(4, *LARGE)] * 2 + [(4, *SMALL)]
    arguments = [
        "--data=rela_lightning.data.DigitsData", "--data.views=lightly.transforms.SimCLRTransform",
        "--data.views.input_size=24", "--data.batch_size=8",
    ]  # fmt: skip
    data = parser.instantiate_classes(parser.parse_args(arguments)).data
    assert isinstance(data.views, SimCLRTransform)
    assert next(iter(data.train_dataloader()))[0][0].shape == (8, 3, 24, 24)
