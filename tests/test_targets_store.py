"""Reading targets, and telling whether they belong to a data set."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from rela_lightning import TargetStore, build_targets, load_prior
from rela_lightning.errors import TargetError
from rela_lightning.targets.manifest import write_manifest
from rela_lightning.targets.records import Geometry, encode, record_type
from tests.test_targets import Digits, Pixels, changed_images, pixel_prior


@pytest.fixture(scope="module")
def prior():
    return pixel_prior()


@pytest.fixture(scope="module")
def store(tmp_path_factory, prior):
    return build_targets(prior, Digits(), tmp_path_factory.mktemp("store") / "t")


def test_rows_come_by_index_in_any_order(store):
    stored = np.load(store.path / "targets.npy")["target"][:, 0].astype(np.float32)
    index = torch.tensor([39, 0, 7, 7])
    assert store[index].dtype == torch.float32
    np.testing.assert_array_equal(store[index].numpy(), stored[index.numpy()])
    np.testing.assert_array_equal(store[3].numpy(), stored[3])
    assert store[[1, 2]].shape == (2, store.dim) and store[torch.tensor([], dtype=torch.int64)].shape == (0, store.dim)
    assert len(list(store)) == len(store) == 40


def test_what_comes_out_can_be_written_to_without_touching_the_store(store):
    rows = store[torch.arange(2)]
    before = rows.clone()
    rows.zero_()
    assert torch.equal(store[torch.arange(2)], before)


@pytest.mark.parametrize(
    "index, message",
    [
        (torch.tensor([3, 40]), r"indices 0 to 39[\s\S]*found:    \[40\]"),
        (torch.tensor([-1]), r"found:    \[-1\]"),
        (torch.tensor([0.5]), "int64 tensor"),
        (torch.zeros(40, dtype=torch.bool), "int64 tensor"),
        (torch.zeros(2, 2, dtype=torch.int64), r"int64 \[2, 2\]"),
    ],
)
def test_indices_that_are_not_there_are_refused(store, index, message):
    with pytest.raises(TargetError, match=message):
        store[index]


def test_a_store_is_pickled_without_its_rows(store):
    store[torch.arange(3)], store.projection
    packed = pickle.dumps(store)
    assert len(packed) < 20_000
    assert torch.equal(pickle.loads(packed)[torch.arange(40)], store[torch.arange(40)])


@pytest.fixture
def replaced(tmp_path, prior):
    """A store of which no row was read, and the same after other targets were built at its path."""
    store = build_targets(prior, Digits(), tmp_path / "t")
    opened, packed = TargetStore(store.path), pickle.dumps(store)
    build_targets(pixel_prior(24), Digits(), tmp_path / "t", overwrite=True)
    return opened, pickle.loads(packed)


def test_rows_of_targets_that_were_built_after_it_was_opened_are_refused(replaced):
    for store in replaced:
        with pytest.raises(TargetError, match=r"built again(?s:.*)another path"):
            store[torch.arange(3)]
        with pytest.raises(TargetError, match="built again"):
            _ = store.projection
        assert TargetStore(store.path).fingerprint != store.fingerprint


@pytest.mark.parametrize("opened_again", [False, True])
def test_a_job_keeps_the_rows_it_has_open_and_its_workers_get_no_others(tmp_path, prior, opened_again):
    """Seen before: new workers read the new rows, of the same number and width, as those of the old prior."""
    rows = torch.arange(40)
    store = build_targets(prior, Digits(), tmp_path / "t")
    first = store[rows]
    other = load_prior(Pixels(), image_size=8, mean=[0.5], std=[1.0])
    other.network.map.weight.data = -other.network.map.weight.data.roll(3, 1)
    assert build_targets(other, Digits(), tmp_path / "t", overwrite=True).dim == store.dim
    assert torch.equal(store[rows], first), "what is open stays"
    if opened_again:
        store = TargetStore(store.path)
        assert not torch.equal(store[rows], first)
    worker = DataLoader(Looked(store), 40, num_workers=1, multiprocessing_context="spawn")
    with nullcontext() if opened_again else pytest.raises(TargetError, match="built again"):
        assert torch.equal(next(iter(worker)), store[rows])


class Looked(Dataset):
    """Targets as a loader's worker looks them up."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, row):
        return self.store[row]


def test_the_same_targets_may_be_put_at_the_path_again(tmp_path, prior):
    store = build_targets(prior, Digits(), tmp_path / "t")
    packed, first = pickle.dumps(store), store[torch.arange(40)]
    kept = shutil.copytree(store.path, tmp_path / "kept")
    build_targets(prior, Digits(), tmp_path / "t", overwrite=True)
    assert torch.equal(pickle.loads(packed)[torch.arange(40)], first), "built alike"
    shutil.rmtree(store.path)
    with pytest.raises(TargetError, match="removed"):
        pickle.loads(packed)[torch.arange(40)]
    shutil.copytree(kept, store.path)
    assert torch.equal(pickle.loads(packed)[torch.arange(40)], first), "a copy"


def test_identities(store, prior):
    assert store.prior_identity == prior.identity
    assert TargetStore(store.path).fingerprint == store.fingerprint and len(store.fingerprint) == 64


def test_what_is_no_store_is_refused(store, tmp_path):
    with pytest.raises(TargetError, match="no target store here"):
        TargetStore(tmp_path)
    with pytest.raises(TargetError, match="no target store here"):
        TargetStore(tmp_path / "nothing")
    copy = shutil.copytree(store.path, tmp_path / "t")
    rows = (copy / "targets.npy").read_bytes()
    (copy / "targets.npy").write_bytes(rows[: len(rows) // 2])
    with pytest.raises(TargetError, match="incomplete"):
        TargetStore(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["settings"]["format_version"] = 99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TargetError, match="expected: version 2"):
        TargetStore(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(TargetError, match="not a manifest"):
        TargetStore(copy)


def fresh(store):
    return TargetStore(store.path)


def test_the_labelled_data_set_passes_in_silence(store, prior):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fresh(store).verify(Digits())
        fresh(store).verify(Digits(transform=lambda image: torch.rand(3)), prior)  # its views may be anything
        fresh(store).verify(Digits(), prior, num_samples=1)
    with pytest.raises(TargetError):  # the same calls on other images
        fresh(store).verify(torch.utils.data.Subset(Digits(), list(range(39, -1, -1))), prior)


def test_another_length_is_refused_always(store):
    with pytest.raises(TargetError, match=r"40 rows \(targets[\s\S]*found:    41 rows \(Digits\)"):
        fresh(store).verify(Digits(41), num_samples=0)


def test_other_images_are_refused_by_row(store):
    with pytest.raises(TargetError, match=r"other pixels in rows \[17\]"):
        fresh(store).verify(changed_images(Digits()), num_samples=40)
    reversed_rows = Subset(Digits(transform=lambda image: image), range(39, -1, -1))
    with pytest.raises(TargetError, match=r"rows \[0, 13, 26, 39\]"):
        fresh(store).verify(reversed_rows, num_samples=4)
    fresh(store).verify(changed_images(Digits()), num_samples=0)


class Views(Dataset):
    """Random views of the digits, without a transform to set aside."""

    def __len__(self):
        return 40

    def __getitem__(self, row):
        return torch.randn(2, 3, 8, 8), 0


class Noisy(Digits):
    """The digits with an augmentation of its own."""

    def __getitem__(self, row):
        return super().__getitem__(row)[0].point(lambda value: value * np.random.rand()), 0


def test_what_cannot_be_compared_is_said_once(store, prior):
    opened = fresh(store)
    with pytest.warns(UserWarning, match="Only the length") as caught:
        opened.verify(Views())
        opened.verify(Views())
    assert len([w for w in caught if "Only the length" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match="order of all 40 rows agrees, but no pixels could be compared"):
        fresh(store).verify(Noisy())


def test_augmentation_within_the_labelled_type_is_a_warning(tmp_path, prior):
    noise = {"on": False}

    class Own(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, row):
            image = Digits()[row][0]
            return image.point(lambda value: value * np.random.rand()) if noise["on"] else image

    store = build_targets(prior, Own(), tmp_path / "t")
    noise["on"] = True
    with pytest.warns(UserWarning, match="before augmentation"):
        store.verify(Own())


def test_a_prior_finds_other_images_under_any_type(store, prior):
    class Same(Dataset):
        images = Digits().images

        def __len__(self):
            return 40

        def __getitem__(self, row):
            return torch.from_numpy(self.images[row])[None]

    same = Same()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fresh(store).verify(same, prior)
    same.images = np.roll(same.images, 1, axis=0)
    with pytest.raises(TargetError, match=r"other pixels in rows \[0, 3, 5"):
        fresh(store).verify(same, prior)


def test_another_prior_is_refused(store):
    with pytest.raises(TargetError, match="made by another prior"):
        fresh(store).verify(Digits(), pixel_prior(mean=[0.2]))


def test_priors_of_one_name_are_told_apart_by_their_options(tmp_path):
    own = {"image_size": 16, "mean": 0.5, "std": 0.5, "width": 0.125}
    first, second = (load_prior("random:lightly:resnet-9", seed=seed, **own) for seed in (1, 2))
    store = build_targets(first, Digits(), tmp_path / "t")
    name = "random:lightly:resnet-9, seed {}, width 0.125"
    for refused in (lambda: build_targets(second, Digits(), tmp_path / "t"), lambda: store.verify(Digits(), second)):
        with pytest.raises(TargetError) as error:
            refused()
        text = str(error.value)
        assert name.format(1) in text and name.format(2) in text and first.identity[:8] not in text


def test_verifying_leaves_the_random_state_and_the_transform_alone(store):
    def augment(image):
        return torch.rand(3)

    dataset = Digits(transform=augment)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    fresh(store).verify(dataset)
    assert torch.equal(torch.rand(1), expected) and dataset.transform is augment


def test_a_store_of_ten_million_rows_opens_at_once(store, tmp_path):
    """The rows are a sparse file: opening must not read them."""
    copy = shutil.copytree(store.path, tmp_path / "t")
    manifest = {key: value for key, value in TargetStore(copy).manifest.items() if key != "sum"}
    kind = record_type(store.dim, "float16")
    rows = np.lib.format.open_memmap(copy / "targets.npy", mode="w+", dtype=kind, shape=(10_000_000, 1))
    rows[9_999_999] = encode(np.full((1, 1, store.dim), 3.0), Geometry(np.ones((1, 2)), np.ones((1, 1, 5))), "float16")
    del rows
    write_manifest(copy, {**manifest, "length": 10_000_000})
    opened = TargetStore(copy)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(copy) not in maps.read_text()  # not even mapped yet
    assert opened[torch.tensor([9_999_999])].unique().tolist() == [3.0]
    assert not maps.exists() or str(copy) in maps.read_text()
