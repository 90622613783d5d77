"""Training on views that are made where the model is, from images that were decoded once."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from rela_lightning import KNNProbe, OnlineLinearProbe, ReLACallback, build_targets, load_prior, methods
from rela_lightning.compat import NAMESPACES, DualCallback
from rela_lightning.data import DeviceViews, DigitsData, ImageData, ImageFolderData, RGBImages, build_views
from rela_lightning.data.device import decode
from rela_lightning.data.transforms import taking_images_of
from rela_lightning.memory import free_memory
from rela_lightning.schedules import Switch, TransportOnly
from tests.image_files import crop
from tests.modules import byol, module_class
from tests.parts import TinyBackbone, make_digits
from tests.test_callback import Log, seeded, trainer

ROWS = 48


def prior() -> Any:
    return load_prior(
        "random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1
    )  # fmt: skip


class Pieces(Dataset):
    """Pieces of photos, each with its row as its label; of one size or of many."""

    def __init__(self, count: int = ROWS, sizes: tuple[tuple[int, int], ...] = ((32, 32),)) -> None:
        self.images = [crop(0, row, 64).resize(sizes[row % len(sizes)][::-1]) for row in range(count)]
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        self.reads += 1
        return self.images[row], row


class Photos(ImageData):
    """Pieces of photos as a data module, without validation."""

    default_size, default_mean, default_std = 32, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2)

    def __init__(self, pieces: Pieces | None = None, **options: Any) -> None:
        super().__init__(**{"batch_size": 16, "device_views": True, **options})
        self.pieces = pieces or Pieces()

    def source(self, split: str) -> Any:
        return self.pieces if split == "train" else None


class Seen(DualCallback):
    """The first two views of every image, by epoch and row."""

    def __init__(self) -> None:
        self.views: dict[tuple[int, int], Tensor] = {}
        self.shapes: list[list[tuple[int, ...]]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        views = batch[0] if isinstance(batch[0], list) else [batch[0]]
        assert all(view.dtype == torch.float32 for view in views)
        self.shapes.append([tuple(view.shape[1:]) for view in views])
        for row, *of_row in zip(batch[1].tolist(), *views[:2], strict=True):
            self.views[trainer.current_epoch, row] = torch.stack(of_row)


def fit(module: Any, data: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> Any:
    torch.manual_seed(0)
    run = trainer("lightning.pytorch", *callbacks, **options)
    run.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return run


def small(name: str, **options: Any) -> Any:
    """One of our methods with a network of a few thousand weights."""
    torch.manual_seed(1)
    few = {"DINO": {"output_dim": 64, "hidden_dim": 32, "bottleneck_dim": 16}}
    few |= {labelled: {"num_classes": ROWS} for labelled in ("Supervised", "FineTune")}
    return getattr(methods, name)(TinyBackbone(), **few.get(name, {}), **options)


def same_views(one: dict[Any, Tensor], other: dict[Any, Tensor], *, exact: bool = True) -> bool:
    pairs = ((one[key], other[key]) for key in other)
    return all(torch.equal(a, b) if exact else torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: Any) -> Path:
    """Three crops of each photo."""
    path = tmp_path_factory.mktemp("device") / "t"
    build_targets(prior(), Photos().dataset("train"), path, views=3)
    return path


# ---- training ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_byol_with_rela_and_both_probes(tmp_path: Path) -> None:
    build_targets(prior(), DigitsData().dataset("train"), tmp_path / "t")
    log, seen = Log(), Seen()
    callback = ReLACallback(tmp_path / "t", schedule=Switch(0.5))
    data = DigitsData(batch_size=90, device_views=True)
    run = fit(seeded(byol), data, callback, log, seen, KNNProbe(), OnlineLinearProbe(10), max_epochs=2)
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 5 + [2.0] * 5
    assert seen.shapes == [[(3, 32, 32)] * 2] * 10
    assert run.callback_metrics["knn/top1"] > 0.3 and "probe/top1" in run.callback_metrics


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_both_trees_of_lightning(namespace: str, targets: Path) -> None:
    log, seen = Log(), Seen()
    run = trainer(namespace, ReLACallback(targets, schedule=Switch(0.5)), log, seen)
    run.fit(seeded(byol, namespace), datamodule=Photos())
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 3 + [2.0] * 3
    assert seen.shapes == [[(3, 32, 32)] * 2] * 6


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in methods.__all__ if hasattr(getattr(methods, name), "views")])
def test_every_method_trains_on_the_views_it_has_one_at_a_time(name: str) -> None:
    if name in ("Method", "MomentumMethod"):
        pytest.skip("a base")
    shapes = []
    for on_device in (True, False):
        seen = Seen()
        fit(small(name), Photos(device_views=on_device, bank=False), seen, max_steps=2)
        shapes.append(seen.shapes)
    assert shapes[0] == shapes[1]


def test_dino_with_rela_gets_two_gentle_views_and_then_eight(targets: Path) -> None:
    seen, log = Seen(), Log()
    fit(small("DINO"), Photos(), ReLACallback(targets, schedule=Switch(0.5), crops="free"), seen, log)
    large, local = (3, 32, 32), (3, 16, 16)
    assert seen.shapes == [[large] * 2] * 3 + [[large] * 2 + [local] * 6] * 3
    gentle, own = (torch.stack([v for (e, _), v in seen.views.items() if e == epoch]) for epoch in (0, 1))
    assert torch.equal(gentle[:, 0], gentle[:, 1]), "one view of each is read, so one is made"
    assert not torch.equal(own[:, 0], own[:, 1])


def test_images_of_a_batch_have_parameters_of_their_own() -> None:
    pieces = Pieces(1)
    pieces.images *= ROWS
    seen = Seen()
    fit(small("SimCLR"), Photos(pieces), seen, max_epochs=1)
    views = torch.stack(list(seen.views.values()))
    differ = {tuple(view.flatten()[::97].tolist()) for view in views.flatten(0, 1)}
    assert len(differ) > 2 * ROWS - 4, "but for the sky, which may be white in several"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [((32, 32),), ((40, 60), (60, 40))])
@pytest.mark.parametrize("num_views", [1, 2])
def test_stored_crops_are_those_whose_targets_are_read(num_views: int, sizes: Any, tmp_path: Path) -> None:
    """In colours drawn at random: what is left as it is must be the crop itself, all else correlated with it."""
    data = Photos(Pieces(sizes=sizes))
    store = build_targets(prior(), data.dataset("train"), tmp_path / "t", views=3)
    seen = Seen()
    callback = ReLACallback(store, schedule=TransportOnly(), crops="stored", num_views=num_views)
    fit(small("BYOL"), data, callback, seen, max_epochs=2)
    exact, alike = 0, []
    kept = store.read(np.arange(ROWS)).crops
    for (epoch, row), views in seen.views.items():
        for place, view in enumerate(views[:num_views]):
            top, left, height, width, mirrored = kept[row, 1 + (epoch * num_views + place) % 3]
            part = F.pil_to_tensor(data.pieces.images[row])[:, top : top + height, left : left + width]
            part = F.resize(part.flip(-1) if mirrored else part, [32, 32], antialias=True).float() / 255
            pixels = view * 0.2 + 0.4
            exact += bool((pixels - part).abs().mean() < 0.02)
            alike.append(float(torch.corrcoef(torch.stack([pixels.mean(0).flatten(), part.mean(0).flatten()]))[0, 1]))
    assert exact > 0.08 * len(alike) and np.nanmedian(alike) > 0.95 and np.nanquantile(alike, 0.1) > 0.7


@pytest.mark.slow
def test_crops_near_the_stored_ones_and_targets_on_the_fly(targets: Path) -> None:
    near = ReLACallback(targets, schedule=TransportOnly(), num_views=2, crops="blended")
    for callback in (near, ReLACallback(prior=prior(), schedule=TransportOnly())):
        log = Log()
        fit(small("BYOL"), Photos(), callback, log, max_epochs=8)
        assert 0.0 < log.seen[-1]["rela/loss"] < 1.2


def test_data_modules_and_views_pickle(targets: Path) -> None:
    data = Photos(views="dino")
    again = pickle.loads(pickle.dumps(copy.deepcopy(data)))
    runs = []
    for module in (data, again):
        seen = Seen()
        fit(small("DINO"), module, seen, max_epochs=1)
        runs.append(seen.views)
    assert same_views(*runs)
    views = DeviceViews(build_views("byol", 16, mean=[0.3] * 3, std=[0.4] * 3))
    assert pickle.loads(pickle.dumps(views))(crop(0, 1)).pixels.shape == (3, 48, 48)


def test_a_transform_of_ones_own_for_the_transport_phase_gets_pil_images(targets: Path) -> None:
    def darkest(image: Image.Image) -> Tensor:
        assert isinstance(image, Image.Image) and image.size == (32, 32)
        return torch.full((3, 32, 32), -2.0)

    seen = Seen()
    fit(small("BYOL"), Photos(), ReLACallback(targets, schedule=Switch(0.5), transform=darkest), seen)
    assert all((views == -2.0).all() == (epoch == 0) for (epoch, _), views in seen.views.items())


def test_a_transform_of_ones_own_sees_images_in_their_proportions() -> None:
    images = decode(Pieces(4, sizes=((32, 96), (96, 32), (20, 20), (64, 48))), most=32)
    shown: list[tuple[int, int]] = []
    dataset = RGBImages(images, DeviceViews(build_views("byol", 32, mean=[0.5] * 3, std=[0.5] * 3)))
    dataset.transform = taking_images_of(dataset, lambda image: shown.append(image.size))
    assert [dataset[row][1] for row in range(4)] == [0, 1, 2, 3]
    assert shown == [(96, 32), (32, 96), (20, 20), (32, 43)]  # width and height


# ---- the same views ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_same_views(targets: Path, tmp_path: Path) -> None:
    def callback() -> ReLACallback:
        return ReLACallback(targets, schedule=Switch(0.5), crops="free")

    class Save(DualCallback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "c.ckpt")

    straight, second = Seen(), Seen()
    fit(small("BYOL"), Photos(), callback(), straight, Save(), max_epochs=4)
    fit(small("BYOL"), Photos(), callback(), second, max_epochs=4, ckpt_path=tmp_path / "c.ckpt")
    assert {epoch for epoch, _ in second.views} == {1, 2, 3} and len(second.views) == 3 * ROWS
    assert same_views(straight.views, second.views)
    assert not torch.equal(straight.views[1, 0], straight.views[0, 0]), "each epoch has its own"


@pytest.mark.slow
def test_views_do_not_depend_on_batches_workers_or_who_asks() -> None:
    runs = []
    for options in ({}, {"batch_size": 12}, {"num_workers": 2}, {"seed": 1}):
        seen = Seen()
        torch.rand(len(runs))
        fit(small("BYOL"), Photos(**options), seen, max_epochs=1)
        runs.append(seen.views)
    assert same_views(runs[0], runs[1], exact=False) and same_views(runs[0], runs[2])
    assert not any(torch.equal(runs[0][key], runs[3][key]) for key in runs[0])


@pytest.mark.parametrize("whose", ["data", "callback"])
def test_a_share_of_the_data(whose: str, targets: Path) -> None:
    seen = Seen()
    ratio = {"data_ratio": 0.5}
    callback = ReLACallback(targets, schedule=Switch(0.5), **(ratio if whose == "callback" else {}))
    fit(small("BYOL"), Photos(batch_size=12, **(ratio if whose == "data" else {})), callback, seen, max_epochs=4)
    rows = [{row for epoch, row in seen.views if epoch == each} for each in range(4)]
    assert [len(each) for each in rows] == [24] * 4 and len(set.union(*rows)) > 36


def test_the_probes_see_the_pixels_of_the_probe_view() -> None:
    class Images(DualCallback):
        def __init__(self) -> None:
            self.seen: list[list[Tensor]] = [[], []]

        def on_validation_batch_end(self, *args: Any) -> None:
            self.seen[args[5]].append(args[3][0])

    class Wide(Photos):
        default_size = 112

        def source(self, split: str) -> Any:
            return Pieces(20, sizes=((150, 130), (120, 260)))

    runs = []
    for on_device in (True, False):
        images = Images()
        module = seeded(byol)
        module.validation_step = lambda *args: None
        options = {"views": "two", "device_views": on_device, "batch_size": 8, "bank": True}
        fit(module, Wide(**options), images, max_epochs=1, num_sanity_val_steps=0)
        runs.append([torch.cat(loader) for loader in images.seen])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*runs, strict=True)) and len(runs[0][0]) == 20


# ---- memory --------------------------------------------------------------------------------------------


def test_images_are_decoded_once_and_their_size_is_said(caplog: Any) -> None:
    pieces = Pieces()
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        fit(small("BYOL"), Photos(pieces), max_epochs=3)
    assert pieces.reads == ROWS + 1, "and one to see how large they are"
    assert "In memory: 48 training images, 32 x 32 px, 144 KiB." in caplog.text


@pytest.mark.parametrize(
    ("sizes", "most", "shape"),
    [(((30, 20),), 32, (30, 20)), (((30, 50),), 32, (30, 32)), (((30, 20), (20, 30)), 32, (32, 32)),
     (((90, 120),), 64, (64, 64)), (((20, 20), (20, 20), (64, 64)), 48, (48, 48))],
)  # fmt: skip
def test_images_of_one_size_stay_and_others_become_one(sizes: Any, most: int, shape: tuple[int, int]) -> None:
    pieces = Pieces(6, sizes)
    kept = decode(pieces, most)
    assert len(kept) == 6 and kept.targets == list(range(6)) and tuple(kept.pixels.shape) == (6, 3, *shape)
    for row in range(6):
        image, label = kept[row]
        assert label == row and image.origin == (row, sizes[row % len(sizes)])
        whole = F.resize(F.pil_to_tensor(pieces.images[row]), list(shape), antialias=True)
        assert (image.float() - whole).abs().max() <= 1


def test_free_memory_is_known_here() -> None:
    free = free_memory()
    assert free is None or 1 << 20 < free < 1 << 50


# ---- options and errors --------------------------------------------------------------------------------


def test_half_precision_and_a_module_that_moves_batches_itself(targets: Path) -> None:
    class Moves(type(small("BYOL"))):  # type: ignore[misc]
        moved = 0

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            self.moved += 1
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

    module = Moves(TinyBackbone())
    fit(module, Photos(), ReLACallback(targets, schedule=Switch(0.5)), max_epochs=2, precision="bf16-true")
    assert module.moved == 6


@pytest.mark.slow
def test_a_folder_of_photos_of_many_sizes_is_verified_by_the_originals(tmp_path: Path, recwarn: Any) -> None:
    for number in range(12):
        crop(0, number, 40 + number).save(tmp_path / f"{number:02d}.png")
    data = ImageFolderData(str(tmp_path), image_size=32, batch_size=6, device_views=True, num_workers=1)
    build_targets(prior(), data.dataset("train"), tmp_path / "targets" / "t")
    log = Log()
    callback = ReLACallback(tmp_path / "targets" / "t", prior=prior(), schedule=Switch(0.5))
    fit(small("SimSiam"), data, callback, log)
    assert not [each for each in recwarn if "could be compared" in str(each.message)]
    assert [entry["rela/phase"] for entry in log.seen] == [0.0, 0.0, 2.0, 2.0]


# ---- one's own data and module -------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_views_on_the_device_in_a_module_of_ones_own(namespace: str, targets64: Any) -> None:
    views = DeviceViews(build_views("simclr", 16, mean=[0.3] * 3, std=[0.4] * 3))

    class Mine(module_class(namespace)):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = TinyBackbone(), torch.nn.Linear(16, 8)
            self.seen: list[list[Tensor]] = []

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return views.on_device(batch, device, epoch=self.current_epoch)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            first, second = (self.head(self.backbone(view)) for view in batch[0])
            self.seen.append(batch[0])
            return (first - second).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module, log = Mine(), Log()
    loader = DataLoader(make_digits(64, views), batch_size=16, shuffle=True, num_workers=1)
    torch.manual_seed(0)
    run = trainer(namespace, ReLACallback(targets64, schedule=Switch(0.5)), log, max_epochs=2)
    run.fit(module, loader)
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [2.0] * 4
    assert len(module.seen) == 4 and all(v.shape == (16, 3, 16, 16) for pair in module.seen for v in pair)
    assert loader.dataset.dataset.transform is views
