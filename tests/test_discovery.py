"""What is taken for the backbone, by its name, by the optimizers and by what the training step calls."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError, DataError, InjectionError
from rela_lightning.injection.discovery import Discovery
from rela_lightning.injection.teachers import find_pairs
from rela_lightning.networks.names import guess_backbone, trained_by
from rela_lightning.schedules import Blend, Mix, Switch, TransportOnly
from tests.modules import byol, simclr, weights
from tests.parts import TinyBackbone, TwoViews, make_digits
from tests.test_callback import Log, fit, loader, seeded

SimCLR = type(simclr())
Zebra = type(simclr(name="zebra"))


def moved(module: nn.Module, before: dict[str, Tensor], prefix: str) -> list[bool]:
    after = weights(module)
    return [not torch.equal(before[k], after[k]) for k, _ in module.named_parameters() if k.startswith(prefix)]


class PartByPart(Zebra):
    """Calls the parts of its network one by one, as many masked image models do."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x = torch.cat(list(batch[0]))
        for layer in self.zebra.body:
            x = layer(x)
        return self.criterion(*self.head(x.mean(dim=(2, 3))).chunk(2))


@pytest.mark.parametrize("schedule", [Mix(), Switch(0.5)])
def test_the_first_layer_of_a_network_is_not_taken_for_it(schedule: Any, targets64: Any) -> None:
    with pytest.raises(InjectionError, match="own_forward=True") as caught:
        fit(seeded(PartByPart), ReLACallback(targets64, schedule=schedule))
    found = next(line for line in str(caught.value).splitlines() if "found" in line)
    assert found.split("calls of ")[1].split(", ")[:2] == ["zebra.body.0", "zebra.body.3"]
    assert found.count(",") == 3, "the ReLUs hold nothing, and four layers do"


def test_at_most_five_names_of_what_was_called(targets64: Any) -> None:
    class Deep(PartByPart):
        def __init__(self) -> None:
            super().__init__()
            self.zebra.body = nn.Sequential(*self.zebra.body, *(nn.Conv2d(16, 16, 1) for _ in range(9)))

    with pytest.raises(InjectionError) as caught:
        fit(seeded(Deep), ReLACallback(targets64, schedule=Mix(), backbone="zebra"))
    assert sum("zebra.body." in word for word in str(caught.value).split()) == 5


def test_a_forward_of_our_own_beside_the_step(targets64: Any) -> None:
    """Gradients of the first step: those of the module's loss, and of the transport loss on one view."""
    from rela_lightning import TargetStore, transport_loss

    kept: dict[str, Any] = {}

    class Keep(Log):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            kept["batch"] = copy.deepcopy(batch)

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            kept["gradients"] = {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}

    module = seeded(PartByPart)
    reference = copy.deepcopy(module)
    options = {"backbone": "zebra", "own_forward": True, "transport_optimizer": None}
    rela = ReLACallback(targets64, schedule=Mix(0.7), **options)
    data = torch.utils.data.DataLoader(make_digits(64, TwoViews()), batch_size=16)
    fit(module, Keep(), rela, data=data, max_steps=1, max_epochs=1)
    linear = rela.state_dict()["transport"]["map"]
    loss = reference.training_step(kept["batch"], 0)
    features = reference.zebra(kept["batch"][0][0])
    y = TargetStore(targets64)[torch.arange(16)][:, :16]
    (loss + 0.7 * transport_loss(features @ linear["linear.weight"].T + linear["linear.bias"], y)).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(kept["gradients"][name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_forward_of_our_own_needs_a_name_and_no_warm_heads(targets64: Any) -> None:
    with pytest.raises(ConfigError, match="`own_forward` calls the backbone"):
        fit(seeded(PartByPart), ReLACallback(targets64, schedule=Mix(), own_forward=True))
    with pytest.raises(ConfigError, match="own_forward"):
        ReLACallback(targets64, schedule=Switch(0.5), own_forward=True, head_warmup=0.1)


@pytest.mark.slow
def test_manual_steps_that_never_pass_on_the_backbones_loss_are_refused(targets64: Any) -> None:
    class Direct(type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer, x = self.optimizers(), torch.cat(list(batch[0]))
            optimizer.zero_grad()
            for layer in self.backbone.body:
                x = layer(x)
            self.criterion(*self.head(x.mean(dim=(2, 3))).chunk(2)).backward()
            optimizer.step()

    with pytest.raises(InjectionError, match=r"(?s)never called.*backbone.body.0"):
        fit(seeded(Direct), ReLACallback(targets64), max_epochs=20)


class Decoy(SimCLR):
    """Something else has the usual name; what is called has none."""

    def __init__(self) -> None:
        super().__init__()
        self.zebra, self.backbone = self.backbone, nn.Linear(4, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(*self.head(self.zebra(torch.cat(list(batch[0])))).chunk(2))


def test_what_is_called_counts_where_a_guess_is_not(targets64: Any) -> None:
    module, log = seeded(Decoy), Log()
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=Mix(), transport_optimizer=None), log)
    assert all(entry["rela/loss"] > 0 for entry in log.seen) and all(moved(module, before, "zebra"))
    with pytest.raises(InjectionError, match=r"(?s)\(backbone\) was never called.*calls of zebra"):
        fit(seeded(Decoy), ReLACallback(targets64, schedule=Mix(), backbone="backbone"))


@pytest.mark.slow
def test_the_layer_that_is_read_counts_in_the_first_step_too(targets64: Any) -> None:
    """A backbone of no usual name: W is made for the layer that is named."""
    rela = ReLACallback(targets64, schedule=Mix(), feature_layer="zebra.body.1")
    fit(seeded(Zebra), rela)
    assert rela.state_dict()["transport"]["map"]["linear.weight"].shape[1] == 8


def test_a_network_is_not_changed_in_the_middle_of_a_run(targets64: Any) -> None:
    """What a first phase has read by its name is not replaced by a part of it that a later phase calls."""

    class ByForward(SimCLR):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            features = self.backbone.forward(torch.cat(list(batch[0])))
            return self.criterion(*self.head(features).chunk(2))

    with pytest.raises(InjectionError, match=r"(?s)\(backbone\) was never called.*backbone.body"):
        fit(seeded(ByForward), ReLACallback(targets64, schedule=Blend()))


class Spectral(Zebra):
    """Thirteen channels."""

    def __init__(self) -> None:
        super().__init__()
        self.zebra.body[0] = nn.Conv2d(13, 8, 3, stride=2, padding=1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [view[:, :1].expand(-1, 13, -1, -1) * torch.rand(13, 1, 1) for view in batch[0]], batch[1]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(*(self.head(self.zebra(view)) for view in batch[0]))


@pytest.mark.slow
def test_images_of_many_channels(targets64: Any) -> None:
    log = Log()
    fit(seeded(Spectral), ReLACallback(targets64, schedule=Mix()), log)
    assert all(entry["rela/loss"] > 0 for entry in log.seen)


def test_samples_that_are_not_collated(targets64: Any) -> None:
    data = loader(collate_fn=lambda samples: [sample[0][0] for sample in samples])
    with pytest.raises(DataError, match="not collated into tensors, which is not supported"):
        fit(seeded(byol), ReLACallback(targets64), data=data)


# ---- networks called on lists, and networks that return several things


class OnLists(nn.Module):
    """Takes a list of crops and returns a list, one output a crop."""

    def __init__(self, *, joined: bool) -> None:
        super().__init__()
        self.trunk, self.joined = TinyBackbone(), joined

    def forward(self, crops: list[Tensor]) -> Any:
        if not isinstance(crops, list):
            raise TypeError("crops come in a list")
        out = [self.trunk(crop) for crop in crops]
        return torch.cat(out) if self.joined else out


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("schedule", [Mix(), TransportOnly()])
def test_lists_of_crops_are_heard(joined: bool, schedule: Any, targets64: Any) -> None:
    class Lists(SimCLR):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = OnLists(joined=joined)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self.backbone(list(batch[0]))
            return self.criterion(*self.head(out if joined else torch.cat(out)).chunk(2))

    class Joined(Lists):
        """The same in one tensor."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = torch.cat([self.backbone.trunk(view) for view in batch[0]])
            return self.criterion(*self.head(out).chunk(2))

    lists, plain = seeded(Lists), seeded(Joined)
    fit(lists, ReLACallback(targets64, schedule=schedule))
    fit(plain, ReLACallback(targets64, schedule=schedule, backbone="backbone.trunk"))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(lists)[name], value, msg=name)


class Told:
    """The line that says what is read."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self._caplog = caplog

    def line(self) -> str:
        lines = [r.getMessage() for r in self._caplog.records if r.getMessage().startswith("ReLA reads")]
        assert len(lines) == 1, lines
        return lines[0]


def named(network: nn.Module, width: int) -> Any:
    """SimCLR on this backbone, whose first tensor, deepest map or output is `[B, width, ...]`."""

    class On(SimCLR):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = network, nn.Linear(width, 8)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = [self.backbone(view) for view in batch[0]]
            last = [o[-1] if isinstance(o, (list, tuple)) else o for o in out]
            return self.criterion(*(self.head(o.mean(dim=(2, 3)) if o.ndim == 4 else o) for o in last))

    return seeded(On)


def projecting() -> nn.Module:
    network = resnet18()
    network.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 12))
    return network


@pytest.mark.slow
def test_a_projection_is_said(targets64: Any, caplog: Any) -> None:
    told = Told(caplog)
    fit(named(projecting(), 12), ReLACallback(targets64, schedule=TransportOnly()), max_steps=2)
    line = told.line()
    assert "backbone: 12 features" in line and "fc.2, Linear(64, 12)" in line and "`feature_layer`" in line
    caplog.clear()
    fit(
        named(projecting(), 12),
        ReLACallback(targets64, schedule=TransportOnly(), feature_layer="backbone.avgpool"),
        max_steps=2,
    )
    assert "backbone.avgpool: 512 features an image;" in told.line()


@pytest.mark.slow
def test_of_several_maps_the_deepest_is_trained_and_said(targets64: Any, caplog: Any) -> None:
    told = Told(caplog)
    module = named(timm.create_model("resnet18", features_only=True, pretrained=False), 512)
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=TransportOnly()), max_steps=2)
    assert all(moved(module, before, "backbone")) and len(moved(module, before, "backbone")) == 60
    assert "512 features an image (the deepest of 5 maps)" in told.line()


def test_the_usual_name_may_hold_a_teacher_that_no_optimizer_moves() -> None:
    module = nn.Module()
    module.backbone = TinyBackbone()
    module.query_backbone = copy.deepcopy(module.backbone)
    optimizer = torch.optim.SGD(module.query_backbone.parameters(), lr=0.1)
    trains = trained_by([optimizer], module)
    assert guess_backbone(module, trains) == "query_backbone"
    assert find_pairs(module, trains, module.query_backbone) == [("query_backbone", "backbone")]


def test_a_backbone_in_no_optimizer_is_refused(targets64: Any) -> None:
    class HeadOnly(SimCLR):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    for schedule in (Mix(), Switch(0.5)):
        with pytest.raises(InjectionError, match="is in no optimizer"):
            fit(seeded(HeadOnly), ReLACallback(targets64, schedule=schedule, backbone="backbone"))


class Wrapped(nn.Module):
    """Both networks in one; answers for the teacher."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = inner, copy.deepcopy(inner).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher(images)


@pytest.mark.parametrize("name", ["backbone", "encoder", "model"])
def test_the_student_inside_a_wrapper(name: str) -> None:
    module = nn.Module()
    setattr(module, name, Wrapped(TinyBackbone()))
    assert guess_backbone(module) == f"{name}.student"
    crops = nn.Module()
    crops.backbone, crops.head = TinyBackbone(), nn.Linear(16, 4)
    setattr(module, name, Wrapped(crops))
    assert guess_backbone(module) == f"{name}.student.backbone"


def test_heads_on_vectors_may_be_larger_than_the_network() -> None:
    """Only what is called on maps or tokens afterwards makes a network the beginning of another."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zebra, self.expander = TinyBackbone(), nn.Linear(16, 4096)

    module = Large()
    discovery = Discovery(module, {3})
    with discovery.recording():
        F.mse_loss(module.expander(module.zebra(torch.rand(2, 3, 16, 16))), torch.zeros(2, 4096)).backward()
    found = discovery.network()
    assert found is not None and found[0] == "zebra" and discovery.called == ["zebra"]
