"""Data modules with the trainer, the probes, targets and the callback; and the files that torchvision reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from rela_lightning import ReLACallback, build_targets, load_prior, methods
from rela_lightning.data import (
    CIFAR10Data,
    Digits,
    DigitsData,
    FashionMNISTData,
    ImageFolderData,
    STL10Data,
)
from rela_lightning.data.views import VIEWS
from rela_lightning.errors import ConfigError, DataError, TargetError
from rela_lightning.probe import KNNProbe, OnlineLinearProbe
from rela_lightning.schedules import Switch
from tests.image_files import crop, write_cifar10, write_classes, write_fashion, write_flat, write_stl10
from tests.modules import NAMESPACES, byol
from tests.parts import TinyBackbone
from tests.test_callback import Log, trainer
from tests.test_methods_every import METHODS, build

pytestmark = pytest.mark.usefixtures("all_images")


def fit(module: Any, data: Any, *callbacks: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    run = trainer("lightning.pytorch", *callbacks, **options)
    run.fit(module, datamodule=data)
    return run


class Shapes(L.Callback):
    """The shapes of the views of each training batch."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[int, ...]]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        views = batch[0] if isinstance(batch[0], list) else [batch[0]]
        self.seen.append([tuple(view.shape[1:]) for view in views])


LARGE, SMALL = (3, 32, 32), (3, 16, 16)


@pytest.mark.parametrize("name", [name for name in METHODS if "," not in name])
def test_every_method_gets_views_it_can_train_on(name: str) -> None:
    module, shapes = build(name), Shapes()
    fit(module, DigitsData(batch_size=8), shapes, max_steps=1, limit_val_batches=0)
    views = {"one": [LARGE], "dino": [LARGE] * 2 + [SMALL] * 6, "swav": [LARGE] * 2 + [SMALL] * 6}
    assert shapes.seen == [views.get(module.views, [LARGE] * 2)]


def test_each_method_says_its_views() -> None:
    said = {name: getattr(methods, name).views for name in methods.__all__ if name != "build_backbone"}
    assert set(said.values()) <= set(VIEWS)
    assert said.items() >= {
        "BYOL": "byol", "DINO": "dino", "BarlowTwins": "barlow_twins", "MoCoV2": "moco", "MoCoV3": "byol",
        "FineTune": "one", "SimCLR": "simclr", "SimSiam": "simsiam", "Supervised": "one", "SwAV": "swav",
        "VICReg": "vicreg", "Method": "two", "MomentumMethod": "two",
    }.items()  # fmt: skip


def test_modules_that_do_not_say_get_two_views_and_others_may_say() -> None:
    class Other(L.LightningModule):
        views: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.backbone = TinyBackbone()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.backbone(batch[0] if isinstance(batch[0], torch.Tensor) else batch[0][0]).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    shapes = Shapes()
    for said in (None, "unheard of", "one", "dino"):
        module = Other()
        module.views = said
        fit(module, DigitsData(batch_size=8, views_kwargs={"hf_prob": 0.0}), shapes, max_steps=1, limit_val_batches=0)
    assert [len(views) for views in shapes.seen] == [2, 2, 1, 8]


@pytest.mark.slow
def test_digits_are_what_they_are_and_never_mirrored() -> None:
    data = DigitsData(batch_size=50, views="one", views_kwargs={"min_scale": 1.0})
    raw, digits = data.dataset("train"), Digits("train")
    assert raw.targets == digits.targets and raw.classes == digits.classes and data.num_classes == 10
    np.testing.assert_array_equal(np.asarray(raw[5][0]), np.asarray(digits[5][0]))
    batches = list(data.probe_train_dataloader())
    images, labels = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert labels.tolist() == digits.targets, "in order"
    assert abs(float(images.mean())) < 0.02 and abs(float(images.std()) - 1) < 0.02, "normalised by its own numbers"
    plain, views = data.dataset("train", "probe"), data.dataset("train", "views")
    for row in range(40):
        image, view = plain[row][0].flatten(), views[row][0]
        own, mirrored = (torch.corrcoef(torch.stack([image, v.flatten()]))[0, 1] for v in (view, view.flip(-1)))
        assert own > mirrored or own > 0.9


@pytest.mark.slow
def test_training_batches_are_shuffled_and_full() -> None:
    data = DigitsData(batch_size=100, views="two")
    labels = [batch[1] for batch in data.train_dataloader()]
    assert [len(batch) for batch in labels] == [100] * 13
    assert labels[0].tolist() != data.dataset("train").targets[:100]
    assert len(DigitsData(batch_size=100, drop_last=False).train_dataloader()) == 14


@pytest.mark.slow
def test_workers_bring_the_same_and_stay() -> None:
    loader = DigitsData(batch_size=64, num_workers=1, views="dino").train_dataloader()
    views, labels = next(iter(loader))
    assert [tuple(view.shape[1:]) for view in views] == [LARGE] * 2 + [SMALL] * 6 and len(labels) == 64
    assert loader.persistent_workers
    assert not DigitsData(num_workers=1, persistent_workers=False).train_dataloader().persistent_workers


# Probes


def features(backbone: Any, dataset: Any) -> np.ndarray:
    with torch.no_grad():
        rows = backbone.eval()(torch.stack([image for image, _ in dataset])).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("max_bank", [50_000, 200])
def test_knn_probe_has_the_training_images_as_its_bank(max_bank: int) -> None:
    module, data = build("SimSiam"), DigitsData(batch_size=100)
    run = trainer("lightning.pytorch", KNNProbe(k=5, weights="uniform", max_bank=max_bank))
    (metrics,) = [m for m in run.validate(module, datamodule=data, verbose=False) if "knn/top1" in m][:1]
    train, val = data.dataset("train", "probe"), data.dataset("val", "probe")
    rows = [n * len(train) // 200 for n in range(200)] if max_bank == 200 else range(len(train))
    oracle = KNeighborsClassifier(5, metric="cosine")
    oracle.fit(features(module.backbone, train)[list(rows)], np.asarray(train.targets)[list(rows)])
    expected = oracle.score(features(module.backbone, val), val.targets)
    assert metrics["knn/top1"] == pytest.approx(expected, abs=0.01)
    assert expected > 0.5


@pytest.mark.slow
def test_probes_during_training() -> None:
    run = fit(build("SimSiam"), DigitsData(batch_size=64), KNNProbe(), OnlineLinearProbe(10), max_epochs=1)
    assert [len(loader.dataset) for loader in run.val_dataloaders] == [1347, 450]
    assert {"knn/top1", "probe/top1"} <= set(run.callback_metrics)


@pytest.mark.slow
def test_bank_by_hand() -> None:
    assert [len(loader.dataset) for loader in DigitsData(bank=True).val_dataloader()] == [1347, 450]
    run = fit(build("SimSiam"), DigitsData(batch_size=64, bank=False), KNNProbe(), max_steps=1)
    assert len(run.val_dataloaders) == 1
    assert [len(loader.dataset) for loader in DigitsData(bank=True).test_dataloader()] == [450]


@pytest.mark.slow
def test_supervised_training_learns_and_so_does_the_online_probe() -> None:
    data = DigitsData(batch_size=32, views_kwargs={"min_scale": 0.6})
    torch.manual_seed(0)
    backbone, _ = methods.build_backbone("lightly:resnet-9", width=0.125)
    module = build(
        "Supervised", backbone, num_classes=data.num_classes, optimizer=lambda p: torch.optim.Adam(p, lr=0.01)
    )
    probe = OnlineLinearProbe(10, optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
    run = fit(module, data, probe, max_epochs=3)
    assert len(run.val_dataloaders) == 1, "a linear probe needs no bank"
    assert run.callback_metrics["val_top1"] > 0.4 and run.callback_metrics["probe/top1"] > 0.3


def test_unlabelled_images_train_without_validation(tmp_path: Path) -> None:
    data = ImageFolderData(str(write_flat(tmp_path / "images", 8)), image_size=32, batch_size=4)
    run = fit(build("SimSiam"), data, OnlineLinearProbe(2), KNNProbe(), max_epochs=1)
    assert run.global_step == 2 and not run.val_dataloaders and "knn/top1" not in run.callback_metrics


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_both_trees_of_lightning(namespace: str, tmp_path: Path) -> None:
    data = DigitsData(batch_size=32)
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    store, log, module = build_targets(prior, data.dataset("train"), tmp_path / "targets"), Log(), byol(namespace)
    run = trainer(namespace, ReLACallback(store, schedule=Switch(0.5)), KNNProbe(), log, max_steps=8)
    run.fit(module, datamodule=data)
    assert log.seen[0]["rela/phase"] == 0.0 and log.seen[-1]["rela/phase"] == 2.0
    assert len(run.val_dataloaders) == 2 and module.steps_run < 8


# A share of the data


class Rows(L.Callback):
    """The rows of each epoch, told by their labels: `views` hands the row on as the image's value."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1] += [round(float(value)) for value in batch[0][0][:, 0, 0, 0]]


class Numbered(DigitsData):
    """Digits whose views say which row they are."""

    def source(self, split: Any) -> Any:
        return RowsOf(super().source(split))


class RowsOf(torch.utils.data.Dataset):
    """Each row's number in place of its image."""

    def __init__(self, digits: Digits) -> None:
        self.targets, self.transform = digits.targets, RowView()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> Any:
        return self.transform(row), self.targets[row]


class RowView:
    def __call__(self, row: int) -> Any:
        return torch.full((3, 8, 8), float(row))


class Twice:
    def __call__(self, view: Any) -> Any:
        return [view, view]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fresh_share_each_epoch_also_after_a_resume(workers: int, tmp_path: Path) -> None:
    def run(epochs: int, ckpt: Any = None) -> Any:
        options = {"data_ratio": 0.1, "batch_size": 45, "num_workers": workers}  # 135 of 1,347
        rows, data = Rows(), Numbered(views=Twice(), **options)
        torch.manual_seed(0)
        made = trainer("lightning.pytorch", rows, max_epochs=epochs, limit_val_batches=0)
        made.fit(build("SimSiam"), datamodule=data, ckpt_path=ckpt)
        made.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return rows.epochs

    epochs = run(3)
    assert [len(set(rows)) for rows in epochs] == [135] * 3
    assert len(set().union(*map(set, epochs))) > 300, "each epoch draws afresh"
    run(2)
    assert run(3, tmp_path / "2.ckpt")[-1] == epochs[2]


def test_on_several_devices_ranks_share_a_draw_and_lightning_keeps_the_sampler() -> None:
    def loader(rank: int) -> Any:
        data = DigitsData(data_ratio=0.2, batch_size=10, views="two")
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, current_epoch=3)
        return data.train_dataloader()

    first, second = (list(loader(rank).sampler) for rank in range(2))
    assert len(first) == len(second) == 134 and not set(first) & set(second)
    assert isinstance(loader(0).sampler, torch.utils.data.DistributedSampler)
    alone = DigitsData(data_ratio=0.2, batch_size=10)
    alone.trainer = SimpleNamespace(world_size=1, global_rank=0, current_epoch=3)
    assert set(alone.train_dataloader().sampler) >= set(first) | set(second)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5])
def test_shares_out_of_range(ratio: float) -> None:
    with pytest.raises(ConfigError, match="0 < data_ratio <= 1"):
        DigitsData(data_ratio=ratio)


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(DataError, match=r"(?s)batch_size=256.*135 of 1347, with data_ratio=0.1.*smaller batch_size"):
        fit(build("SimSiam"), DigitsData(data_ratio=0.1))
    assert len(DigitsData(data_ratio=0.1, drop_last=False).train_dataloader()) == 1


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(256, [100]), (64, [64, 36]), (33, [33, 33, 33]), (99, [99]), (100, [100])]
)
def test_fine_tuning_keeps_the_last_batch(batch_size: int, sizes: list[int]) -> None:
    data = DigitsData(labels_per_class=10, batch_size=batch_size)
    tuned, other = (method("lightly:resnet-9", num_classes=10) for method in (methods.FineTune, methods.Supervised))
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, lightning_module=tuned)
    assert [len(labels) for _, labels in data.train_dataloader()] == sizes
    if batch_size <= 100:
        data.trainer.lightning_module = other
        assert {len(labels) for _, labels in data.train_dataloader()} == {batch_size}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": "simcrl"}, "(?s)Unknown views.*simcrl.*simclr"),
        ({"views": "simclr", "views_kwargs": {"blur": 1}}, "(?s)no such option.*blur.*gaussian_blur"),
        ({"views": Twice(), "views_kwargs": {"min_scale": 1}}, "views_kwargs"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"image_size": 4}, "image_size"),
        ({"mean": [0.5]}, "normalisation"),
        ({"std": [0.5, 0.5, 0.0]}, "normalisation"),
    ],
)
def test_bad_options_are_refused_at_once(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DigitsData(**options)


def test_options_of_views_found_later_are_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"(?s)dino.*no such option.*min_scale.*n_local_views"):
        fit(build("DINO"), DigitsData(batch_size=8, views_kwargs={"min_scale": 0.5}))
    with pytest.raises(ConfigError, match="split train or val"):
        DigitsData().dataset("test")  # type: ignore[arg-type]


# Targets and the callback


def folder_data(tmp_path: Path, monkeypatch: Any) -> Any:
    write_classes(tmp_path / "train", 24)
    write_classes(tmp_path / "val", 4)
    return ImageFolderData(str(tmp_path), image_size=32, batch_size=16)


DATA = {
    "digits": lambda tmp_path, monkeypatch: DigitsData(batch_size=16),
    "folder": folder_data,
    "fashion": lambda tmp_path, monkeypatch: FashionMNISTData(str(write_fashion(tmp_path)), batch_size=16),
    "cifar": lambda tmp_path, monkeypatch: CIFAR10Data(str(write_cifar10(tmp_path, monkeypatch)), batch_size=16),
    "stl": lambda tmp_path, monkeypatch: STL10Data(
        str(write_stl10(tmp_path, monkeypatch, 16, 32)), batch_size=16, image_size=32
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_targets_of_the_raw_images_serve_training(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    data = DATA[name](tmp_path / "data", monkeypatch)
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    store = build_targets(prior, data.dataset("train", None), tmp_path / "targets", storage_dtype=torch.float32)
    assert len(store) == len(data.dataset("train"))
    for verified in (data.dataset("train", "views"), data.dataset("train", "probe")):
        if len(verified) == len(store):  # STL-10's probes have images of their own
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # content is compared, not only the length
                store.verify(verified, prior)
    shapes, log = Shapes(), Log()
    fit(
        build("DINO, crops"), data, ReLACallback(store, schedule=Switch(0.5)), shapes, log,
        max_steps=4, max_epochs=-1, limit_val_batches=0,
    )  # fmt: skip
    own = [LARGE] * 2 + [SMALL] * 6
    assert shapes.seen == [[LARGE] * 2] * 3 + [own], "gentle views, of one more batch as it was on its way; then DINO's"
    assert [entry["rela/phase"] for entry in log.seen] == [0.0, 0.0, 0.0, 2.0]


def test_targets_of_other_images_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    data = folder_data(tmp_path / "data", monkeypatch)
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    store = build_targets(prior, data.dataset("train", None), tmp_path / "targets")
    crop(0, 77).save(tmp_path / "data" / "train" / "flower" / "00.jpg")
    again = ImageFolderData(str(tmp_path / "data"), image_size=32)
    with pytest.raises(TargetError, match=r"other pixels in rows \[0\]"):
        store.verify(again.dataset("train", "views"))


# Files that torchvision reads
