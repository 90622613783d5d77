"""Building targets: once, exactly, resumably, and never for the wrong data."""

from __future__ import annotations

import logging
import random as python_random

import lightning.pytorch as L
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.transforms import v2

from rela_lightning import build_targets, load_prior
from rela_lightning.errors import ConfigError, TargetError
from rela_lightning.targets import project
from rela_lightning.targets.partial import partial_folder

DIGITS = (load_digits().images * 15.9375).astype(np.uint8)


class Digits(Dataset):
    """The first digits as `(image, label)`, images in a form of choice, with a working `transform`."""

    def __init__(self, count=40, form="pil", transform=None, start=0):
        self.images, self.form, self.transform = DIGITS[start : start + count], form, transform
        self.reads, self.fail_at = [], None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        if row == self.fail_at:
            raise KeyError("the disk went away")
        self.reads.append(row)
        array = self.images[row]
        image = {
            "pil": lambda: Image.fromarray(array),
            "uint8": lambda: torch.from_numpy(array)[None],
            "plane": lambda: torch.from_numpy(array),
            "float": lambda: torch.from_numpy(array / 255.0).float()[None],
            "numpy": lambda: np.stack([array] * 3, axis=-1),
        }[self.form]()
        return (image if self.transform is None else self.transform(image)), 0


class Bare(Dataset):
    """`dataset[i]` as the function says, without a transform."""

    def __init__(self, count, item):
        self.count, self.item = count, item

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return self.item(row)


class Pixels(nn.Module):
    """A prior whose features can be worked out by hand: the pixels, through one linear map."""

    def __init__(self, width=20):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.map = nn.Linear(64, width, bias=False)
        self.map.weight.data = torch.randn(width, 64, generator=generator)
        self.calls = 0

    def forward(self, images):
        self.calls += len(images)
        return self.map(images.flatten(1))


def pixel_prior(width=20, **options):
    prior = load_prior(Pixels(width), **{"image_size": 8, "mean": [0.0], "std": [1.0], **options})
    prior.network.calls = 0
    return prior


@pytest.fixture(scope="module")
def prior():
    return pixel_prior()


def features_by_hand(prior, images):
    return (images.reshape(len(images), -1) / 255.0) @ prior.network.map.weight.double().numpy().T


def expected_targets(prior, images, columns=None):
    """Whitened PCA of scikit-learn."""
    return PCA(columns, whiten=True, svd_solver="full").fit_transform(features_by_hand(prior, images))


def same_up_to_sign(found, expected, atol):
    found = found.double().numpy()
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=atol)


def images_as(form):
    if form == "dict":
        return Bare(40, lambda row: {"label": 1, "image": Image.fromarray(DIGITS[row])})
    if form == "bare":
        return Bare(40, lambda row: Image.fromarray(DIGITS[row]))
    return Digits(form=form)


@pytest.mark.parametrize("form", ["pil", "uint8", "plane", "float", "numpy", "dict", "bare"])
def test_targets_are_the_whitened_features_of_each_row(tmp_path, prior, form):
    store = build_targets(prior, images_as(form), tmp_path / "t", standardise="per_dim", storage_dtype=torch.float32)
    assert len(store) == 40 and store.dim == 20
    # three equal channels turned to gray again may be off by one level
    atol = 0.2 if form == "numpy" else 1e-3
    same_up_to_sign(store[torch.arange(40)], expected_targets(prior, DIGITS[:40]), atol)


@pytest.mark.parametrize(
    "options", [{"target_dim": 5, "standardise": "per_dim"}, {"standardise": "isotropic"}, {"standardise": "none"}]
)
def test_options_shape_the_targets(tmp_path, prior, options):
    store = build_targets(prior, Digits(), tmp_path / "t", **options)
    targets = store[torch.arange(40)].double()
    oracle = PCA(svd_solver="full").fit(features_by_hand(prior, DIGITS[:40]))
    variance = oracle.explained_variance_
    expected = {
        "per_dim": np.ones(5),
        "isotropic": variance / variance.mean(),
        "none": variance,
    }[options["standardise"]]
    np.testing.assert_allclose(targets.var(dim=0).numpy(), expected, rtol=5e-3)
    shares = oracle.explained_variance_ratio_
    shares = shares[shares > 1e-12]  # of 5 columns, too, the directions are those of all components
    np.testing.assert_allclose(store.manifest["explained_variance"], shares, rtol=1e-4)
    assert store.directions == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_share_of_the_variance_cuts_where_scikit_learn_does(tmp_path, prior, share):
    options = {"target_dim": share, "standardise": "per_dim", "storage_dtype": torch.float32}
    store = build_targets(prior, Digits(), tmp_path / "t", **options)
    oracle = PCA(share, whiten=True, svd_solver="full")
    expected = oracle.fit_transform(features_by_hand(prior, DIGITS[:40]))
    assert store.dim == expected.shape[1]
    same_up_to_sign(store[torch.arange(40)], expected, 1e-3)


def test_files_hold_what_they_say(tmp_path, prior):
    store = build_targets(prior, Digits(), tmp_path / "deep" / "t")
    assert sorted(p.name for p in store.path.iterdir()) == ["manifest.json", "projection.safetensors", "targets.npy"]
    assert np.load(store.path / "targets.npy")["target"].dtype == np.float16
    assert not partial_folder(store.path).exists()
    assert store.manifest["labelling_seconds"] > 0
    assert store.manifest["labelling_flops"] == 40 * 2 * 64 * 20  # a product of 64 pixels and 20 columns an image
    images = torch.stack([prior.preprocess(Digits()[row][0]) for row in range(40)])
    again = project(prior(images), store.projection)
    torch.testing.assert_close(again, store[torch.arange(40)], atol=5e-3, rtol=5e-3)


def test_dead_features_are_dropped_and_reported(tmp_path, caplog):
    prior = pixel_prior()
    with torch.no_grad():
        prior.network.map.weight[3:5] = 0.0
        prior.network.map.weight[7] = prior.network.map.weight[8]
    store = build_targets(prior, Digits(), tmp_path / "t")
    assert store.dim == 17 and store.manifest["dropped_dimensions"] == 3
    assert store[torch.arange(40)].isfinite().all()
    assert "3 of 20 dimensions carry no variance" in caplog.text


def scramble(image):
    raise AssertionError("the data set's own transform was run")


def test_the_data_sets_transform_is_set_aside_and_put_back(tmp_path, prior):
    inner = Digits(transform=scramble)
    wrapped = Subset(ConcatDataset([inner, Digits(transform=scramble)]), list(range(60, 20, -1)))
    store = build_targets(prior, wrapped, tmp_path / "t", standardise="per_dim", storage_dtype=torch.float32)
    assert inner.transform is scramble
    rows = np.concatenate([DIGITS[:40], DIGITS[:40]])[list(range(60, 20, -1))]
    same_up_to_sign(store[torch.arange(40)], expected_targets(prior, rows, 20), 1e-3)


@pytest.mark.slow
def test_workers_set_the_transform_aside_too(tmp_path, prior):
    dataset = Digits(transform=scramble)
    with_workers = build_targets(prior, dataset, tmp_path / "a", num_workers=2, batch_size=8)
    alone = build_targets(prior, dataset, tmp_path / "b", batch_size=8)
    assert torch.equal(with_workers[torch.arange(40)], alone[torch.arange(40)])
    assert dataset.transform is scramble


def test_a_second_call_returns_without_a_forward_and_reads_only_the_sample(tmp_path):
    prior, dataset = pixel_prior(), Digits(200)
    first = build_targets(prior, dataset, tmp_path / "t")
    assert prior.network.calls == 232  # 32 of them for `rounding`
    stamp = (first.path / "targets.npy").stat().st_mtime_ns
    dataset.reads.clear()
    again = build_targets(prior, dataset, tmp_path / "t")
    assert prior.network.calls == 232 and len(set(dataset.reads)) == 64
    assert again.fingerprint == first.fingerprint
    assert (again.path / "targets.npy").stat().st_mtime_ns == stamp


def changed_images(dataset):
    dataset.images = dataset.images.copy()
    dataset.images[17] += 1
    return dataset


OTHERS = {
    "prior": (lambda: (pixel_prior(21), Digits(), {}), "another prior"),
    "preprocessing": (lambda: (pixel_prior(mean=[0.1]), Digits(), {}), r"mean=\(0.1,\)"),
    "length": (lambda: (pixel_prior(), Digits(41), {}), r"expected: data set length 40[\s\S]*length 41"),
    "content": (lambda: (pixel_prior(), changed_images(Digits()), {}), "another data set content"),
    "order": (lambda: (pixel_prior(), Subset(Digits(), [*range(39), 0]), {}), "another data set order"),
    "target_dim": (lambda: (pixel_prior(), Digits(), {"target_dim": 3}), r"target_dim None[\s\S]*target_dim 3"),
    "standardise": (lambda: (pixel_prior(), Digits(), {"standardise": "none"}), "shrunk[\\s\\S]*none"),
    "dtype": (lambda: (pixel_prior(), Digits(), {"storage_dtype": torch.float32}), "float16[\\s\\S]*float32"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_targets_built_for_something_else_are_refused_by_name(tmp_path, prior, name):
    store = build_targets(prior, Digits(), tmp_path / "t")
    make, message = OTHERS[name]
    other, dataset, options = make()
    before = (store.path / "manifest.json").read_bytes()
    with pytest.raises(TargetError, match=message) as refused:
        build_targets(other, dataset, tmp_path / "t", **options)
    assert "overwrite=True" in str(refused.value)
    assert other.network.calls == 0 or other is prior
    assert (store.path / "manifest.json").read_bytes() == before


def test_another_data_set_of_the_same_images_in_the_same_order_is_the_same(tmp_path, prior):
    class OtherDigits(Digits):
        """Of another name."""

    store = build_targets(prior, Digits(), tmp_path / "t")
    for same in (OtherDigits(), Subset(OtherDigits(), range(40)), ConcatDataset([Digits(15), Digits(25, start=15)])):
        assert build_targets(prior, same, tmp_path / "t").fingerprint == store.fingerprint


def test_order_beyond_the_sample_is_seen_in_subsets(tmp_path, prior):
    data = Digits(300)
    swapped = list(range(300))
    swapped[1], swapped[2] = 2, 1  # neither row is among the 64 that are sampled
    build_targets(prior, Subset(data, range(300)), tmp_path / "t")
    with pytest.raises(TargetError, match=r"built with another data set order\."):
        build_targets(prior, Subset(data, swapped), tmp_path / "t")


def test_image_folders_are_known_by_their_files(tmp_path, prior):
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import RandomResizedCrop

    for row in range(120):
        folder = tmp_path / "images" / f"class{row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(DIGITS[row]).convert("RGB").save(folder / f"{row:04d}.png")
    colour = load_prior(pixel_prior(), image_size=8)
    dataset = ImageFolder(tmp_path / "images", transform=RandomResizedCrop(8))
    options = {"standardise": "per_dim", "storage_dtype": torch.float32}
    store = build_targets(colour, dataset, tmp_path / "t", **options)
    rows = np.concatenate([DIGITS[0:120:2], DIGITS[1:120:2]])
    same_up_to_sign(store[torch.arange(120)], expected_targets(prior, rows), 1e-2)
    moved = (tmp_path / "images").rename(tmp_path / "elsewhere")
    calls = colour.network.calls
    again = build_targets(colour, ImageFolder(str(moved)), tmp_path / "t", **options)
    assert again.fingerprint == store.fingerprint  # a folder may move
    (moved / "class0" / "0002.png").rename(moved / "class0" / "0003.png")
    with pytest.raises(TargetError, match="data set order"):
        build_targets(colour, ImageFolder(moved), tmp_path / "t", **options)
    assert colour.network.calls == calls


@pytest.mark.parametrize("tree", [L, pl])
def test_a_given_trainer_of_either_tree_keeps_its_callbacks(tmp_path, prior, tree):
    class Loud(tree.Callback):
        def setup(self, trainer, pl_module, stage):
            raise AssertionError("a callback of the user's training ran while labelling")

    trainer = tree.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[Loud()]
    )
    before = list(trainer.callbacks)
    store = build_targets(prior, Digits(), tmp_path / "t", trainer=trainer, batch_size=16)
    alone = build_targets(prior, Digits(), tmp_path / "u", batch_size=16)
    assert trainer.callbacks == before
    assert torch.equal(store[torch.arange(40)], alone[torch.arange(40)])


def test_a_trainer_that_stops_early_is_refused_and_gone_on_with(tmp_path):
    prior = pixel_prior()
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    with pytest.raises(TargetError, match=r"40 rows[\s\S]*found:    16; the first missing row is 16"):
        build_targets(
            prior, Digits(), tmp_path / "t", trainer=L.Trainer(limit_predict_batches=1, **options), batch_size=16
        )
    build_targets(prior, Digits(), tmp_path / "t", batch_size=16)
    assert prior.network.calls == 72  # 32 of them for `rounding`
    with pytest.raises(ConfigError, match="bf16-mixed"):
        build_targets(prior, Digits(), tmp_path / "u", trainer=L.Trainer(precision="bf16-true", **options))


def test_the_random_state_is_left_as_it_was(tmp_path, prior):
    def draw():
        return torch.rand(1).item(), np.random.rand(), python_random.random()

    torch.manual_seed(3), np.random.seed(3), python_random.seed(3)
    expected = draw()
    torch.manual_seed(3), np.random.seed(3), python_random.seed(3)
    build_targets(prior, Digits(), tmp_path / "t")
    assert draw() == expected


def test_lightning_is_quiet_during_the_pass_and_itself_afterwards(tmp_path, prior, recwarn, capfd):
    logger = logging.getLogger("lightning.pytorch")
    logger.setLevel(logging.INFO)
    build_targets(prior, Digits(), tmp_path / "t")
    assert logger.level == logging.INFO
    assert not [w for w in recwarn if "workers" in str(w.message)]
    assert "available" not in "".join(capfd.readouterr())


def test_fusions_are_labelled(tmp_path):
    fused = load_prior([pixel_prior(6), pixel_prior(5, image_size=8, mean=[0.5])])
    store = build_targets(fused, Digits(), tmp_path / "t", standardise="per_dim", storage_dtype=torch.float32)
    assert store.manifest["feature_dim"] == 11
    features = np.concatenate([features_by_hand(part, DIGITS[:40]) for part in fused.network], axis=1)
    oracle = PCA(store.dim, whiten=True, svd_solver="full").fit_transform(features)
    same_up_to_sign(store[torch.arange(40)], oracle, 1e-2)


class Cached(Digits):
    """Keeps what its transform returned."""

    def __getitem__(self, row):
        self.kept = getattr(self, "kept", {})
        if row not in self.kept:
            self.kept[row] = super().__getitem__(row)
        return self.kept[row]


def test_of_a_data_set_that_keeps_what_its_transform_returned_that_is_labelled_and_kept(tmp_path, prior):
    half = v2.Compose([v2.ToImage(), v2.Resize(4)])
    cached = Cached(transform=half)
    store = build_targets(prior, cached, tmp_path / "t")
    assert all(cached[row][0].shape == (1, 4, 4) for row in range(40)), "nothing else was left in its cache"
    halves = Bare(40, lambda row: half(Image.fromarray(DIGITS[row])))
    rows = torch.arange(40)
    assert torch.equal(store[rows], build_targets(prior, halves, tmp_path / "halves")[rows])
    store.verify(Cached(transform=half))


def test_of_several_parts_those_that_keep_are_labelled_by_what_they_keep(tmp_path, prior):
    half = v2.Compose([v2.ToImage(), v2.Resize(4)])
    cached, plain = Cached(transform=half), Digits(transform=half)
    assert cached[0][0].shape == (1, 4, 4)  # there is a cache already
    store = build_targets(prior, Subset(ConcatDataset([cached, plain]), range(10, 70)), tmp_path / "t")
    assert all(cached[row][0].shape == (1, 4, 4) for row in range(40)), "nothing else was left in its cache"
    images = [*(half(Image.fromarray(DIGITS[row])) for row in range(10, 40)), *map(Image.fromarray, DIGITS[:30])]
    assert torch.equal(store[torch.arange(60)], build_targets(prior, images, tmp_path / "u")[torch.arange(60)])
