"""Rows that moved, files that were renamed, other classes and other views: what `fit` and `build_targets` see of it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder

from rela_lightning import TargetStore, build_targets, load_prior
from rela_lightning.data.folder import FolderImages
from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.order import order_of, rows_of
from rela_lightning.targets.source import StoredTargets
from tests.image_files import write_classes
from tests.test_targets import DIGITS, Digits, pixel_prior

ROWS = 300
SWAPPED = [0, 2, 1, *range(3, ROWS)]  # neither row is sampled
SHIFTED = [*range(100), *range(101, 140), 100, *range(140, ROWS)]


@pytest.fixture(scope="module")
def prior():
    return load_prior(pixel_prior(), image_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 150 digits each, and file names that recur in both."""
    root = tmp_path_factory.mktemp("images") / "train"
    for row in range(ROWS):
        where = root / f"class{row // 150}"
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(DIGITS[row]).convert("RGB").save(where / f"{row % 150:04d}.png")
    return root


class Listed(Dataset):
    """Another class over image files: a list of paths, no root, no labels."""

    def __init__(self, paths, transform=None):
        self.image_paths, self.transform = list(paths), transform

    def __len__(self):
        return len(self.image_paths)

    def __getitem__(self, row):
        image = Image.open(self.image_paths[row]).convert("RGB")
        return image if self.transform is None else self.transform(image)


class Silent(Dataset):
    """Images of which nothing is told, with labels or without."""

    def __init__(self, images, labels=None):
        self._hidden = images
        if labels is not None:
            self.labels = labels

    def __len__(self):
        return len(self._hidden)

    def __getitem__(self, row):
        return Image.fromarray(self._hidden[row])


class Transformed(Dataset):
    """A wrapper with a transform of its own."""

    def __init__(self, dataset, transform=None):
        self.dataset, self.transform = dataset, transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, row):
        image = self.dataset[row]
        image = image[0] if isinstance(image, tuple) else image
        return image if self.transform is None else self.transform(image)


class Opened(Transformed):
    """A wrapper around a list of paths and labels."""

    def __getitem__(self, row):
        image = Image.open(self.dataset[row][0]).convert("RGB")
        return image if self.transform is None else self.transform(image)


class Backwards(Transformed):
    """A wrapper that changes the order without saying so."""

    def __getitem__(self, row):
        return super().__getitem__(len(self) - 1 - row)


def refused(store, prior, dataset, message):
    """By `fit` and by `build_targets` over the store."""
    with pytest.raises(TargetError, match=message):
        StoredTargets(TargetStore(store.path)).check(dataset)
    with pytest.raises(TargetError, match="built with another data set"):
        build_targets(prior, dataset, store.path)


def accepted(store, prior, dataset):
    """In silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        StoredTargets(TargetStore(store.path)).check(dataset)
        assert build_targets(prior, dataset, store.path).fingerprint == store.fingerprint


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory, prior, folder):
    return build_targets(prior, ImageFolder(folder), tmp_path_factory.mktemp("targets") / "t")


def paths_of(folder):
    return [path for path, _ in ImageFolder(folder).samples]


MOVED = {
    "two rows of a subset": lambda folder: Subset(ImageFolder(folder), SWAPPED),
    "a stretch of a subset": lambda folder: Subset(ImageFolder(folder), SHIFTED),
    "two files in the list of another class": lambda folder: Listed([paths_of(folder)[row] for row in SWAPPED]),
    "another class in another order": lambda folder: Listed(sorted(paths_of(folder), key=lambda path: path[::-1])),
    "a subset of a subset": lambda folder: Subset(Subset(ImageFolder(folder), SWAPPED), range(ROWS)),
    "classes the other way round": lambda folder: ConcatDataset([
        Subset(FolderImages(folder), range(150, 300)), Subset(FolderImages(folder), range(150)),
    ]),
    "inside of a wrapper": lambda folder: Transformed(Subset(ImageFolder(folder), SWAPPED)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_file_names_in_another_order_are_refused(of_folder, prior, folder, name):
    refused(of_folder, prior, MOVED[name](folder), "another order[\\s\\S]*other file names")


SAME = {
    "our own folder": FolderImages,
    "a list of paths": lambda folder: Listed(paths_of(folder)),
    "a wrapper": lambda folder: Transformed(ImageFolder(folder), torch.rand),
    "a permutation and back": lambda folder: Subset(Subset(ImageFolder(folder), SHIFTED), np.argsort(SHIFTED)),
    "a list of samples in a wrapper": lambda folder: Opened(ImageFolder(folder).samples),
    "parts joined": lambda folder: ConcatDataset([
        Subset(ImageFolder(folder), range(100)), Subset(FolderImages(folder), range(100, 300)),
    ]),
    "other labels": lambda folder: ImageFolder(folder, target_transform=str),
    "negative indices": lambda folder: Subset(ImageFolder(folder), range(-ROWS, 0)),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_files_in_the_same_order_are_accepted_whatever_the_class(of_folder, prior, folder, name):
    accepted(of_folder, prior, SAME[name](folder))


def test_a_renamed_file_is_refused(of_folder, prior, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    accepted(of_folder, prior, ImageFolder(copy))
    (copy / "class0" / "0001.png").rename(copy / "class0" / "0001b.png")  # keeps its row
    refused(of_folder, prior, ImageFolder(copy), "other file names")


def test_other_pixels_under_the_same_names_are_refused_by_row(of_folder, prior, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.copy(copy / "class1" / "0002.png", copy / "class0" / "0000.png")
    with pytest.raises(TargetError, match=r"images differ[\s\S]*other pixels in rows \[0\]"):
        StoredTargets(TargetStore(of_folder.path)).check(Listed(paths_of(copy)))


def test_images_of_another_size_are_another_view_and_said_in_one_line(of_folder, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "larger")
    for path in copy.rglob("*.png"):
        Image.open(path).resize((12, 10)).save(path)
    with pytest.warns(UserWarning, match=r"all 300 rows agrees.*another size \(10 x 12 in row 0\)") as caught:
        StoredTargets(TargetStore(of_folder.path)).check(FolderImages(copy))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_what_another_decoder_makes_of_a_photograph_is_the_same_image(tmp_path):
    """Photographs encoded once more stand in for another decoder: a few levels apart."""
    root = write_classes(tmp_path / "exact", 24)
    colour = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    copy = shutil.copytree(root, tmp_path / "decoded")
    apart = []
    for path in sorted(copy.rglob("*.jpg")):
        image = Image.open(path).convert("RGB")
        image.save(path, quality=92)
        apart.append(np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(path))).max())
    assert 3 < np.mean(apart) < 20
    store = build_targets(colour, ImageFolder(root), tmp_path / "t")
    accepted(store, colour, ImageFolder(copy))


@pytest.mark.slow
def test_the_hint_does_not_offer_to_set_aside_an_order_that_is_wrong(tmp_path):
    store = build_targets(pixel_prior(), Digits(ROWS), tmp_path / "t")
    refused(store, pixel_prior(), Subset(Digits(ROWS), SWAPPED), "labelled rows in their order$")
    brighter = Digits(ROWS)
    brighter.images = brighter.images // 2
    refused(store, pixel_prior(), brighter, "verify_targets=0$")


@pytest.mark.parametrize("order", [SWAPPED, SHIFTED])
def test_images_in_memory_in_another_order_are_refused(tmp_path, order):
    store = build_targets(pixel_prior(), Digits(ROWS), tmp_path / "t")
    moved = Digits(ROWS)
    moved.images = moved.images[order]
    refused(store, pixel_prior(), moved, "images differ")
    refused(store, pixel_prior(), Subset(Digits(ROWS), order), "in another order")
    again = TensorDataset(torch.from_numpy(DIGITS[:ROWS]))
    assert order_of(again, [0]).keys() & order_of(moved, [0]).keys() == {"stored images: uint8 [8, 8]"}
    accepted(store, pixel_prior(), again)
    refused(store, pixel_prior(), TensorDataset(torch.from_numpy(DIGITS[order])), "images differ")


def test_labels_tell_the_order_of_a_class_that_tells_nothing_else(tmp_path):
    labels = np.arange(ROWS) % 7
    store = build_targets(pixel_prior(), Silent(DIGITS[:ROWS], labels.tolist()), tmp_path / "t")
    refused(store, pixel_prior(), Silent(DIGITS[:ROWS][SWAPPED], labels[SWAPPED]), "other labels")
    with pytest.warns(UserWarning, match="rows that share a label may have changed places") as caught:
        StoredTargets(store).check(Silent(DIGITS[:ROWS], torch.tensor(labels * 10 + 3)))  # other numbers, same classes
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_indices_are_compared_where_nothing_else_is_told_and_the_rest_is_said(tmp_path):
    store = build_targets(pixel_prior(), Silent(DIGITS[:ROWS]), tmp_path / "t")
    refused(store, pixel_prior(), Subset(Silent(DIGITS[:ROWS]), SWAPPED), "other rows of")
    with pytest.warns(UserWarning, match="300 rows could not be checked beyond 16 sampled images") as caught:
        StoredTargets(store).check(Subset(Subset(Silent(DIGITS[:ROWS]), SHIFTED), np.argsort(SHIFTED)))
    assert len(caught) == 1 and "\n" not in str(caught[0].message)


def test_a_wrapper_that_changes_the_order_in_its_own_way_tells_nothing(folder):
    assert rows_of(Backwards(ImageFolder(folder)), [0, 5]) is None
    assert order_of(Backwards(ImageFolder(folder)), [0, 5]) == {}
    mixed = rows_of(ConcatDataset([Subset(Digits(5), [4, 2]), Transformed(Digits(3))]), [0])
    assert mixed.leaf.tolist() == [0, 0, 1, 1, 1] and mixed.row.tolist() == [4, 2, 0, 1, 2]


def test_a_data_set_is_left_as_it_was(of_folder, folder):
    augment = torch.rand
    inner = ImageFolder(folder)
    dataset = Transformed(inner, augment)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    StoredTargets(TargetStore(of_folder.path)).check(dataset)
    assert torch.equal(torch.rand(1), expected)
    assert dataset.transform is augment and dataset.dataset is inner


class Column:
    """As much of an Arrow column as is read."""

    def __init__(self, values):
        self.values, self.chunks = values, [self]

    def field(self, name):
        return Column([value[name] for value in self.values])

    def to_pylist(self):
        return list(self.values)

    def to_numpy(self):
        return np.asarray(self.values)


class Table:
    """As much of an Arrow table as is read."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def column(self, name):
        return Column(self.columns[name] if isinstance(name, str) else list(self.columns.values())[name])


class HuggingFace(Dataset):
    """What `datasets.Dataset` keeps: a table, indices into it, and a fingerprint."""

    def __init__(self, fingerprint="a", names=True, rows=None):
        images = [{"path": f"{row}.png" if names else None, "bytes": b""} for row in range(ROWS)]
        self.data = Table(image=images, label=[row % 3 for row in range(ROWS)])
        self._indices = None if rows is None else Table(indices=rows)
        self._fingerprint = fingerprint

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        row = row if self._indices is None else self._indices.columns["indices"][row]
        return {"image": Image.fromarray(DIGITS[row]), "label": row % 3}


@pytest.mark.parametrize("names", [True, False])
def test_data_sets_of_hugging_face_tell_file_names_labels_indices_and_a_fingerprint(tmp_path, names):
    store = build_targets(pixel_prior(), HuggingFace(names=names), tmp_path / "t")
    accepted(store, pixel_prior(), HuggingFace(names=names))
    accepted(store, pixel_prior(), Subset(Subset(HuggingFace(names=names), SHIFTED), np.argsort(SHIFTED)))
    refused(store, pixel_prior(), HuggingFace("b", names, SWAPPED), "another order")
    again = Subset(HuggingFace("b", names, SHIFTED), np.argsort(SHIFTED))  # shuffled and put right
    if names:
        accepted(store, pixel_prior(), again)
    else:  # `with_transform` changes the fingerprint too, so that another one says nothing
        with pytest.warns(UserWarning, match="rows that share a label"):
            StoredTargets(TargetStore(store.path)).check(again)
