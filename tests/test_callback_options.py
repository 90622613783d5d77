"""The callback: options, copies, and what it says of mistakes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from rela_lightning import ReLACallback
from rela_lightning.compat import DualCallback
from rela_lightning.errors import ConfigError, DataError, InjectionError
from rela_lightning.schedules import Mix, Switch, TransportOnly
from tests.modules import byol, simclr
from tests.parts import make_digits
from tests.test_callback import Log, fit, loader, seeded, trainer
from tests.test_compat import KeepsOneIterator


@pytest.mark.slow
def test_feature_layer_and_method_backbones(targets64: Any) -> None:
    class Encoder(TinyLike):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return self(x)

    def build() -> Any:
        module = seeded(simclr)
        module.backbone.__class__ = Encoder
        return module

    logs = [Log(), Log(), Log()]
    for log, options in zip(
        logs, [{}, {"backbone": "backbone.encode"}, {"feature_layer": "backbone.body"}], strict=True
    ):
        fit(build(), ReLACallback(targets64, schedule=TransportOnly(), **options), log)
    assert logs[0].seen == logs[1].seen == logs[2].seen


class TinyLike(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).mean(dim=(2, 3))


def test_pickle_and_deepcopy_before_and_during_fit(targets64: Any) -> None:
    callback = ReLACallback(targets64, schedule=Switch(0.5))
    pickle.loads(pickle.dumps(callback))

    class Copy(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            copied = copy.deepcopy(callback)
            assert copied.state_dict().keys() == callback.state_dict().keys()
            pickle.dumps(copied)

    fit(seeded(byol), callback, Copy())


ERRORS = {
    "budget": (lambda t: ReLACallback(t, data_ratio=0.0), {}, ConfigError, "data_ratio"),
    "no targets": (lambda t: ReLACallback(), {}, ConfigError, "build_targets"),
    "backbone name": (lambda t: ReLACallback(t, backbone="resnet"), {}, InjectionError, "projection_head_momentum"),
    "no end": (ReLACallback, {"max_epochs": -1}, ConfigError, "max_epochs"),
    "iterable": (ReLACallback, {"data": [1, 2]}, DataError, "map-style"),
    "view names": (lambda t: ReLACallback(t, views=["9"]), {}, DataError, "0.0: torch.float32"),
    "layer as backbone": (
        lambda t: ReLACallback(t, backbone="backbone.body.2"), {}, InjectionError, "feature_layer"),
    "transform without effect": (
        lambda t: ReLACallback(t, transform=lambda x: x), {"data": "tensors"}, DataError, "no effect"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_to_do(name: str, targets64: Any) -> None:
    build, options, kind, text = ERRORS[name]
    if options.get("data") == "tensors":
        images = torch.utils.data.TensorDataset(torch.rand(64, 3, 16, 16))
        options = {"data": DataLoader(images, batch_size=8)}
    with pytest.raises(kind, match=text.replace(".", r"\.")):
        fit(seeded(byol), build(targets64), **options)


def test_not_finite_features_are_an_error_with_rows(targets64: Any) -> None:
    module = seeded(simclr)
    with torch.no_grad():
        module.backbone.body[0].weight.fill_(float("nan"))
    with pytest.raises(InjectionError, match="rows 0, 1, 2"):
        fit(module, ReLACallback(targets64), data=loader(shuffle=False))


def test_width_of_a_resumed_map_must_fit(targets64: Any, tmp_path: Any) -> None:
    run = fit(seeded(byol), ReLACallback(targets64), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    wide = ReLACallback(targets64, feature_layer="backbone.body.0")
    with pytest.raises(ConfigError, match="width 16"):
        trainer("lightning.pytorch", wide, max_epochs=4).fit(byol(), loader(), ckpt_path=tmp_path / "a.ckpt")


def test_a_schedule_that_never_lets_go_warns(targets64: Any) -> None:
    with pytest.warns(UserWarning, match="to the end of training"):
        fit(seeded(byol), ReLACallback(targets64, schedule=Mix()), max_steps=1)


@pytest.mark.slow
def test_head_warmup_trains_the_heads_on_detached_features(targets64: Any) -> None:
    class Gradients(L.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[bool, torch.Tensor]] = []

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            head = module.head.layers[0].weight.grad
            self.seen.append((head is not None, module.backbone.body[0].weight.grad.clone()))

    options = {"schedule": Switch(0.75), "transform": None, "transport_optimizer": None, "num_views": 2}
    cold, warm, log = Gradients(), Gradients(), Log()
    fit(seeded(simclr), ReLACallback(targets64, **options), cold)
    fit(seeded(simclr), ReLACallback(targets64, head_warmup=0.25, **options), warm, log)
    assert [head for head, _ in cold.seen] == [False] * 6 + [True] * 2
    assert [head for head, _ in warm.seen] == [False] * 4 + [True] * 4
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [1.0] * 2 + [2.0] * 2
    for (_, a), (_, b) in zip(cold.seen[:5], warm.seen[:5], strict=True):
        torch.testing.assert_close(a, b, msg="the backbone sees the transport gradient alone")


@pytest.mark.parametrize("schedule", ["Switch", Switch])
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(ConfigError, match="a Schedule, such as Switch"):
        ReLACallback("targets", schedule=schedule)


@pytest.mark.parametrize(("reload", "combined"), [(0, False), (1, False), (1, True)])
def test_who_reads_the_trainers_training_loader_gets_the_users_own(reload: int, combined: bool, targets64: Any) -> None:
    data, phases = loader(), Log()
    found: list[Any] = []

    class Cluster(DualCallback):
        """As methods that embed all images before an epoch."""

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            found.append(trainer.train_dataloader)
            assert sum(len(labels) for _, labels in trainer.train_dataloader) == 64

    options, given = {"reload_dataloaders_every_n_epochs": reload}, CombinedLoader(data) if combined else data
    fit(byol(), Cluster(), ReLACallback(targets64, schedule=Switch(0.5)), phases, data=given, **options)
    assert [entry["rela/phase"] for entry in phases.seen] == [0.0] * 4 + [2.0] * 4
    assert all(one is data for one in found) and len(found) == 2


def test_a_loader_that_keeps_one_iterator_for_all_epochs(targets64: Any) -> None:
    plain, kept = seeded(byol), seeded(byol)
    view = v2.Compose([v2.ToImage(), v2.Resize((16, 16)), v2.ToDtype(torch.float32, scale=True)])  # none at random
    data = {"dataset": make_digits(64, lambda image: [view(image), view(image).flip(-1)]), "batch_size": 16}
    fit(plain, ReLACallback(targets64, schedule=Switch(0.5), transform=None), data=DataLoader(**data), max_epochs=2)
    loader = KeepsOneIterator(**data)
    fit(kept, ReLACallback(targets64, schedule=Switch(0.5), transform=None), data=loader, max_epochs=2)
    assert kept.steps_run == plain.steps_run == 4
    for ours, other in zip(kept.backbone.parameters(), plain.backbone.parameters(), strict=True):
        assert torch.equal(ours, other)
