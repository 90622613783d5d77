"""Wrong uses of the callback, its schedules and losses, and the methods."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler

from rela_lightning import BudgetSampler, ReLACallback, load_prior, transport_loss
from rela_lightning.data import DigitsData
from rela_lightning.losses import Contrastive
from rela_lightning.methods import BYOL, Supervised
from rela_lightning.schedules import Blend, Mix, Plateau, Switch
from tests.modules import byol, simclr
from tests.parts import TwoViews, make_digits
from tests.wrong_uses.place import RANDOM, Place
from tests.wrong_uses.place import WrongUse as Use


class Bypass(type(simclr(name="zebra"))):  # type: ignore[misc]
    """Never calls its backbone, only a part of it."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features = self.zebra.body.forward(torch.cat(list(batch[0]))).mean(dim=(2, 3))
        return self.criterion(*self.head(features).chunk(2))


class PartByPart(type(simclr(name="zebra"))):  # type: ignore[misc]
    """Calls the layers of its network one by one."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = torch.cat(list(batch[0]))
        for layer in self.zebra.body:
            x = layer(x)
        return self.criterion(*self.head(x.mean(dim=(2, 3))).chunk(2))


class HeadOnly(type(simclr())):  # type: ignore[misc]
    """Its optimizer does not know the backbone."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters(), lr=0.1)


class Iterated(type(byol())):  # type: ignore[misc]
    """Fetches its batches itself."""

    def training_step(self, dataloader_iter: Any) -> None: ...


class Stream(IterableDataset):
    """No length, no index."""

    def __iter__(self) -> Any:
        return (make_digits(4, TwoViews())[row] for row in range(4))


class Named(Dataset):
    """Samples with texts only."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> str:
        return str(row)


def loader(count: int = 64, data: Any = None, **options: Any) -> DataLoader:
    """Batches of 16."""
    return DataLoader(data or make_digits(count, TwoViews()), batch_size=16, **options)


def streamed() -> DataLoader:
    """Batches of a stream."""
    return DataLoader(Stream(), batch_size=2)


def on_the_fly() -> ReLACallback:
    """Embeds every batch; to hand over half-way."""
    return ReLACallback(prior=load_prior("random:lightly:resnet-9", **RANDOM), schedule=Switch(0.5))


def others() -> DataLoader:
    """All digits."""
    return loader(data=make_digits(128, TwoViews()).dataset)


def both() -> Any:
    """Two loaders at once."""
    return CombinedLoader({"a": loader(), "b": loader()}, "min_size")


def weighted() -> Any:
    """A loader with a sampler of its own."""
    return loader(sampler=WeightedRandomSampler(torch.ones(64), 64))


def uncollated(samples: Any) -> Any:
    """First views, each for itself."""
    return [views[0] for views, _ in samples]


NEVER = {"backbone": "zebra", "step": "swap_loss"}


def callback(place: Place, **options: Any) -> ReLACallback:
    """With targets of the digits."""
    return ReLACallback(place.targets, **options)


TRAINING = [
    Use("neither targets nor a prior", lambda p: ReLACallback()),
    Use("targets that are not there", lambda p: p.fit(ReLACallback(p.folder / "none"))),
    Use("targets of fewer images", lambda p: p.fit(callback(p), data=loader(48))),
    Use("targets of other images", lambda p: p.fit(callback(p), data=others())),
    Use(
        "a prior that did not make the targets",
        lambda p: p.fit(callback(p, prior=load_prior("random:lightly:resnet-9", **RANDOM, seed=5))),
    ),
    Use("a stream, with targets by row", lambda p: p.fit(callback(p), data=streamed())),
    Use("a switch within an epoch of any length", lambda p: p.fit(on_the_fly(), data=streamed(), max_epochs=1)),
    Use("several loaders at once", lambda p: p.fit(callback(p), data=both())),
    Use("training samples without an image", lambda p: p.fit(callback(p), data=loader(data=Named()))),
    Use("a backbone that does not exist", lambda p: p.fit(callback(p, backbone="trunk"))),
    Use("a backbone that is never called", lambda p: p.fit(callback(p, **NEVER), module=Bypass())),
    Use("a step that calls its network layer by layer", lambda p: p.fit(callback(p), module=PartByPart())),
    Use("a backbone that no optimizer knows", lambda p: p.fit(callback(p, backbone="backbone"), module=HeadOnly())),
    Use("samples that are not collated", lambda p: p.fit(callback(p), data=loader(collate_fn=uncollated))),
    Use(
        "a forward of ReLA's own beside warm heads",
        lambda p: callback(p, own_forward=True, head_warmup=0.1, schedule=Switch(0.5)),
    ),
    Use("stopping early by the transport loss", lambda p: p.fit(callback(p), EarlyStopping("rela/loss"))),
    Use("a step that fetches its own batches", lambda p: p.fit(callback(p), module=Iterated())),
    Use(
        "replacing a step that optimises itself",
        lambda p: p.fit(callback(p, step="replace"), module=simclr(manual=True)),
    ),
    Use("a pooling that does not exist", lambda p: callback(p, pooling="max")),
    Use("a way of training that does not exist", lambda p: callback(p, step="both")),
    Use("a layout of rows that does not exist", lambda p: callback(p, row_layout="columns")),
    Use("no views", lambda p: callback(p, num_views=0)),
    Use("a share of the data above one", lambda p: callback(p, data_ratio=2.0)),
    Use("half of the data, with a sampler of one's own", lambda p: p.fit(callback(p, data_ratio=0.5), data=weighted())),
    Use("crops that the targets do not have", lambda p: p.fit(callback(p, crops="stored"))),
    Use("a way of cropping that does not exist", lambda p: callback(p, crops="random")),
    Use("views of no pixels in the transport phase", lambda p: callback(p, transport_resolution=0)),
    Use("small views until an end that nobody knows", lambda p: callback(p, transport_resolution=8, schedule=Mix())),
    Use(
        "views on the device that rotate",
        lambda p: DigitsData(device_views=True, views="two", views_kwargs={"rr_prob": 1}),
    ),
    Use("a size of images in memory that are not there", lambda p: DigitsData(stored_size=32)),
    Use("a loss that does not exist", lambda p: callback(p, loss="cosin")),
    Use("a loss of weight zero", lambda p: callback(p, loss={"cosine": 0.0})),
    Use("a temperature of zero", lambda p: Contrastive(temperature=0.0)),
    Use("features and targets of two widths", lambda p: transport_loss(torch.ones(2, 3), torch.ones(2, 4))),
    Use("a switch after the end", lambda p: Switch(1.5)),
    Use("a negative weight", lambda p: Mix(-1.0)),
    Use("a blend that ends where it begins", lambda p: Blend(until=0.0)),
    Use("a plateau with no window", lambda p: Plateau(window=0.0)),
    Use("a plateau that may end when nothing is left", lambda p: Plateau(at_least=0.95)),
    Use("an epoch smaller than a share of nothing", lambda p: BudgetSampler(range(10), ratio=0.0)),
    Use("a backbone that no library has", lambda p: BYOL(backbone="resnet19")),
    Use("an option that the backbone does not know", lambda p: BYOL(backbone="resnet18", backbone_kwargs={"depth": 3})),
    Use("a projector of no width", lambda p: BYOL(backbone="resnet18", projector_dim=0)),
    Use("a classifier of one class", lambda p: Supervised(num_classes=1)),
]  # fmt: skip
