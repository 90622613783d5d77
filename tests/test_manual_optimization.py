"""Manual optimization: several backwards and several optimizers in one step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.schedules import Mix, Switch, TransportOnly
from tests.modules import same, simclr, weights
from tests.test_callback import fit, seeded


class WithProbe(type(simclr(manual=True))):
    """Manual optimization with an online probe whose backward comes first."""

    probed = "own forward"

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(16, 10)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        main, probe = self.optimizers()
        x = torch.cat(list(batch[0]))
        labels = batch[1].repeat(2)
        if self.probed == "no grad":
            with torch.no_grad():
                features = self.backbone(x)
        else:
            features = self.backbone(x)
        probe.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.probe(features.detach()), labels))
        probe.step()
        main.zero_grad()
        shared = features if self.probed == "shared forward" else self.backbone(x)
        self.manual_backward(self.criterion(*self.head(shared).chunk(2)))
        main.step()

    def configure_optimizers(self) -> Any:
        own = [*self.backbone.parameters(), *self.head.parameters()]
        return [torch.optim.SGD(own, lr=0.1), torch.optim.SGD(self.probe.parameters(), lr=0.1)]


@pytest.mark.parametrize("probed", ["own forward", "shared forward", "no grad"])
@pytest.mark.parametrize("schedule", [Mix(), TransportOnly(), Switch(0.5)])
def test_a_probe_before_the_main_loss_does_not_swallow_the_transport_loss(
    probed: str, schedule: Any, targets64: Any
) -> None:
    module, plain = seeded(WithProbe), seeded(WithProbe)
    module.probed = plain.probed = probed
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=schedule))
    fit(plain)
    after, other = weights(module), weights(plain)
    assert not torch.equal(after["backbone.body.0.weight"], before["backbone.body.0.weight"])
    assert not torch.equal(after["backbone.body.0.weight"], other["backbone.body.0.weight"])
    assert not torch.equal(after["probe.weight"], before["probe.weight"]), "the probe keeps learning"


def test_second_losses_get_the_ssl_weight(targets64: Any) -> None:
    seen: list[float] = []

    class Two(type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for _ in range(2):
                self.manual_backward(self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2)))
            seen.append(
                float(self.head.layers[0].weight.grad.abs().sum())
                if self.head.layers[0].weight.grad is not None
                else 0.0
            )
            optimizer.step()

    fit(seeded(Two), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=1)
    assert all(value == 0.0 for value in seen), "in the transport phase no loss of the module's own counts"


@pytest.mark.parametrize("name", ["backbone", "zebra"])
@pytest.mark.parametrize("schedule", [Mix(), TransportOnly()])
def test_another_pass_carries_the_transport_loss_as_the_first(schedule: Any, name: str, targets64: Any) -> None:
    """As for SAM, which goes by the gradients of the last of two passes."""

    class Passes(type(simclr(manual=True, name=name))):
        count = 1

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            for _ in range(self.count):
                optimizer.zero_grad()
                self.manual_backward(self.criterion(*self.head(getattr(self, name)(torch.cat(batch[0]))).chunk(2)))
            optimizer.step()

    def trained(count: int) -> list[torch.Tensor]:
        module, callback = seeded(Passes), ReLACallback(targets64, schedule=schedule)
        module.count = count
        fit(module, callback)
        return [*module.parameters(), callback.state_dict()["transport"]["map"]["linear.weight"]]

    assert all(map(torch.equal, trained(2), trained(1)))


def test_replacing_the_step_under_manual_optimization_is_refused(targets64: Any) -> None:
    with pytest.raises(ConfigError, match="swap_loss"):
        fit(seeded(simclr, manual=True), ReLACallback(targets64, step="replace"))


@pytest.mark.slow
def test_optimizers_that_bypass_lightning_are_an_error(targets64: Any) -> None:
    class Raw(type(simclr(manual=True))):
        def optimizers(self, use_pl_optimizer: bool = True) -> Any:
            return super().optimizers(use_pl_optimizer=False)

    with pytest.raises(InjectionError, match=r"self\.optimizers\(\)"):
        fit(seeded(Raw), ReLACallback(targets64), max_epochs=20)


class Counted(TransportOnly):
    """Counts the steps it hears of."""

    adaptive = True
    updates = 0

    def update(self, loss: torch.Tensor, progress: float, epochs: float) -> None:
        self.updates += 1


class ProbeAfter(WithProbe):
    """The main loss first, the probe after it."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        main, probe = self.optimizers()
        features = self.backbone(torch.cat(list(batch[0])))
        main.zero_grad()
        self.manual_backward(self.criterion(*self.head(features).chunk(2)))
        main.step()
        probe.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.probe(features.detach()), batch[1].repeat(2)))
        probe.step()


class StepFirst(type(simclr(manual=True))):
    """Applies the gradients of the batch before."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        if batch_idx:
            optimizer.step()
            optimizer.zero_grad()
        self.manual_backward(self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2)))


@pytest.mark.parametrize(("build", "steps"), [(WithProbe, 8), (ProbeAfter, 8), (StepFirst, 6)])
def test_the_map_and_the_schedule_follow_every_step_on_a_transport_loss(build: Any, steps: int, targets64: Any) -> None:
    schedule = Counted()
    callback = ReLACallback(targets64, schedule=schedule)
    fit(seeded(build), callback)  # two epochs of four batches
    state = callback.state_dict()["transport"]["optimizer"]["state"]
    assert {float(values["step"]) for values in state.values()} == {steps} and schedule.updates == steps


class Gradients(L.Callback):
    """Keeps the backbone's gradient of every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients = [p.grad.flatten() for p in module.backbone.parameters() if p.grad is not None]
        self.seen.append(torch.cat(gradients).clone())


@pytest.mark.parametrize("schedule", [Mix(), TransportOnly()])
def test_accumulated_gradients_weigh_as_under_automatic_optimization(schedule: Any, targets64: Any) -> None:
    class Still:
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    class Automatic(Still, type(simclr())):
        pass

    class Manual(Still, type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.manual_backward(self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2)) / 4)
            if batch_idx % 4 == 3:
                optimizer.step()
                optimizer.zero_grad()

    def gradients(module: Any, **options: Any) -> list[torch.Tensor]:
        kept = Gradients()
        rela = ReLACallback(targets64, schedule=schedule, step="swap_loss", transport_optimizer=None)
        fit(module, rela, kept, max_epochs=3, **options)
        return kept.seen

    automatic, manual = gradients(seeded(Automatic), accumulate_grad_batches=4), gradients(seeded(Manual))
    assert len(automatic) == len(manual) == 3
    for expected, found in list(zip(automatic, manual, strict=True))[1:]:  # the first step tells how many there are
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [WithProbe, ProbeAfter])
def test_heads_are_warmed_and_a_probe_learns_whichever_comes_first(build: Any, targets64: Any) -> None:
    class Moved(L.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[float, set[str]]] = []

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.before = {name: value.clone() for name, value in module.named_parameters()}

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            moved = (name for name, value in module.named_parameters() if not torch.equal(value, self.before[name]))
            names = {name.partition(".")[0] for name in moved}
            self.seen.append((float(trainer.callback_metrics["rela/phase"]), names))

    moved = Moved()
    fit(seeded(build), ReLACallback(targets64, schedule=Switch(0.5), head_warmup=0.25), moved)
    assert [phase for phase, _ in moved.seen] == [0.0] * 2 + [1.0] * 2 + [2.0] * 4
    assert all("probe" in names and "backbone" in names for _, names in moved.seen)
    assert ["head" in names for _, names in moved.seen] == [False] * 2 + [True] * 6


def test_a_head_may_change_features_in_place_while_it_is_warmed(targets64: Any) -> None:
    class InPlace(type(simclr(manual=True))):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.ReLU(inplace=True), self.head)

    module = seeded(InPlace)
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=Switch(1.0), head_warmup=0.5), max_epochs=1)
    assert not torch.equal(weights(module)["head.1.layers.0.weight"], before["head.1.layers.0.weight"])


def test_optimizers_of_heads_step_in_half_precision_too(targets64: Any) -> None:
    class Two(type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizers = self.optimizers()
            loss = self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2))
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), lr=0.1, weight_decay=0.1) for part in (self.backbone, self.head)]

    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    scaled.forward_context = torch.enable_grad  # the scaler is what counts: 16 bits do little on a CPU
    module = seeded(Two)
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=TransportOnly()), plugins=[scaled], max_epochs=1)
    after = weights(module)
    assert not torch.equal(after["backbone.body.0.weight"], before["backbone.body.0.weight"])
    assert torch.equal(after["head.layers.0.weight"], before["head.layers.0.weight"]), "no decay either"


def test_manual_optimization_that_is_said_too_late_is_refused(targets64: Any) -> None:
    class Late(type(simclr(manual=True))):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = True

        def setup(self, stage: str) -> None:
            self.automatic_optimization = False

    with pytest.raises(ConfigError, match=r"__init__[\s\S]*swap_loss"):
        fit(seeded(Late), ReLACallback(targets64, schedule=Switch(0.5)))
    module = seeded(Late)
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=Switch(0.5), step="swap_loss"), max_epochs=1)
    assert not same(weights(module), before)
