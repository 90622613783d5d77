"""Every method under the callback and through `accelerate`: transport, the switch, both losses at once."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from rela_lightning import ReLACallback, ReLAMixin, TargetStore, accelerate, transport_loss
from rela_lightning.methods import SimCLR, Supervised
from rela_lightning.schedules import Mix, Switch
from tests.modules import same, weights
from tests.parts import TinyBackbone, make_digits
from tests.test_callback import Log, fit, trainer
from tests.test_methods_every import METHODS, TEACHERS, build


class Crops:
    """Two global crops and local ones of a PIL image: plain, mirrored, corners."""

    def __init__(self, small: int) -> None:
        self.tensor = v2.Compose([v2.ToImage(), v2.Resize(16), v2.ToDtype(torch.float32, scale=True)])
        self.small = small

    def __call__(self, image: Any) -> list[torch.Tensor]:
        image = self.tensor(image)
        return [image, image.flip(-1), *(image[:, at : at + 10, at : at + 10] for at in range(self.small))]


def loader(name: str) -> DataLoader:
    return DataLoader(make_digits(64, Crops(METHODS[name][2])), batch_size=16)


class Watch(L.Callback):
    """Weights after each step, and whether the method's own step ran."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []
        self.own: list[bool] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.states.append(weights(module))

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        trainer.callback_metrics.pop("train_loss", None)

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.states.append(weights(module))
        self.own.append("train_loss" in trainer.callback_metrics)


@pytest.mark.parametrize("name", METHODS)
def test_transport_trains_the_backbone_then_the_method_takes_over(name: str, targets64: Any) -> None:
    module, log, watch = build(name), Log(), Watch()
    fit(module, ReLACallback(targets64, schedule=Switch(0.5)), log, watch, data=loader(name))
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [2.0] * 4
    start, middle, end = watch.states[0], watch.states[4], watch.states[-1]
    parameters = {n for n, p in module.named_parameters() if p.requires_grad}
    for key in parameters:
        moved = not torch.equal(start[key], middle[key])
        assert moved == key.startswith("backbone."), f"{key}: heads rest in the transport phase, the backbone does not"
        assert not torch.equal(middle[key], end[key]), f"{key} is trained after the switch"
    for key in (f"teacher_{key}" for key in parameters if name in TEACHERS and key.startswith("backbone.")):
        before, student = watch.states[3], watch.states[4]
        torch.testing.assert_close(middle[key], 0.99 * before[key] + 0.01 * student[key.removeprefix("teacher_")])
    assert watch.own == [False] * 4 + [True] * 4
    losses = [entry["rela/loss"] for entry in log.seen[:4]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", METHODS)
def test_mixed_gradients_are_the_methods_own_and_transports(name: str, targets64: Any) -> None:
    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    plain, mixed, log = Keep(), Keep(), Log()
    callback = ReLACallback(targets64, schedule=Mix(0.7), transport_optimizer=None)
    module = build(name)
    transported, data, options = copy.deepcopy(module).double(), loader(name), {"max_steps": 1, "precision": "64-true"}
    fit(build(name), plain, data=data, **options)
    fit(module, mixed, callback, log, data=data, **options)
    views, targets = next(iter(data))[0], TargetStore(targets64)[torch.arange(16)][:, :16]
    read = views[:1] if name == "MoCoV2" else views  # its second view goes through the teacher alone
    sizes: dict[Any, list[torch.Tensor]] = {}
    for view in read:
        sizes.setdefault(view.shape, []).append(view)
    together = METHODS[name][0] in ("DINO", "SwAV", "SimCLR", "Supervised", "FineTune")
    calls = [torch.cat(views) for views in sizes.values()] if together else read
    features = torch.cat([transported.backbone(images.double()) for images in calls]).float()
    linear = callback.state_dict()["transport"]["map"]
    mapped = features @ linear["linear.weight"].T + linear["linear.bias"]
    loss = transport_loss(mapped, targets.repeat(len(read), 1))
    (0.7 * loss).backward()
    assert log.seen[0]["rela/loss"] == pytest.approx(loss.item(), rel=1e-5)
    for key, parameter in transported.named_parameters():
        if parameter.requires_grad:
            extra = 0.0 if parameter.grad is None else parameter.grad
            assert key.startswith("backbone.") == (parameter.grad is not None)
            torch.testing.assert_close(mixed.grads[key], plain.grads[key] + extra, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_accelerate_equals_the_callback(name: str, targets64: Any) -> None:
    by_callback, by_function, log = build(name), build(name), Log()
    fit(by_callback, ReLACallback(targets64, schedule=Switch(0.5)), log, data=loader(name))
    fit(accelerate(by_function, targets64, schedule=Switch(0.5)), data=loader(name))
    assert same(tensors(by_callback), tensors(by_function)) and log.seen[-1]["rela/phase"] == 2.0


def tensors(module: Any) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights(module).items() if isinstance(value, torch.Tensor)}


def test_supervised_on_plain_labelled_images(targets64: Any) -> None:
    """One view and its label, as in any classification data set; the gentler view of transport is one, too."""
    view = v2.Compose([v2.ToImage(), v2.RandomCrop(16), v2.ToDtype(torch.float32, scale=True)])
    train, val = (DataLoader(make_digits(64, view), batch_size=16) for _ in range(2))
    module, watch = Supervised(TinyBackbone(), num_classes=10), Watch()
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.5)), watch)
    run.fit(module, train, val)
    assert watch.own == [False] * 4 + [True] * 4
    assert 0 <= run.callback_metrics["val_top1"] <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "32-true"])
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(name: str, precision: str, targets64: Any) -> None:
    options = {"accelerator": "gpu", "devices": 1, "precision": precision}
    for schedule in (Switch(0.5), Mix()):
        run = fit(build(name), ReLACallback(targets64, schedule=schedule), data=loader(name), **options)
        assert run.callback_metrics["train_loss"].isfinite()


def test_mixin_keeps_checkpoints_plain(targets64: Any, tmp_path: Any) -> None:
    class Fast(ReLAMixin, SimCLR):
        pass

    torch.manual_seed(0)
    module = Fast(TinyBackbone(), projector_dim=8, targets=targets64, rela={"schedule": Switch(0.5)})
    log = Log()
    fit(module, log, data=loader("SimCLR")).save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["projector_dim"] == 8 and log.seen[-1]["rela/phase"] == 2.0
    SimCLR.load_from_checkpoint(tmp_path / "a.ckpt", backbone=TinyBackbone())
