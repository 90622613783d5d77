"""LARS as published: what is decayed and adapted, a rate that changes each step, and the same after a resume."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightly.utils.lars import LARS
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import nn

from rela_lightning import ReLACallback, ReLAModule
from rela_lightning.cli import main
from rela_lightning.errors import ConfigError
from rela_lightning.optim import WarmupCosine, parameter_groups
from rela_lightning.schedules import Switch
from tests.parts import TinyBackbone
from tests.test_methods import QUIET
from tests.test_methods_every import METHODS, batches, build
from tests.test_methods_rela import loader


def lars(**options: Any) -> Any:
    return functools.partial(LARS, **{"lr": 0.4, "momentum": 0.9, "weight_decay": 1e-2, **options})


class Restated:
    """LARS of one tensor in numpy: arXiv 1708.03888, eq. 6 and algorithm 1, with torch's place for the momentum."""

    def __init__(self, w: np.ndarray, *, lr: float, decay: float, momentum: float, nesterov: bool, adapt: bool) -> None:
        self.w, self.lr, self.decay, self.momentum = w.astype(np.float64), lr, decay, momentum
        self.nesterov, self.adapt, self.v = nesterov, adapt, np.zeros_like(w, dtype=np.float64)

    def step(self, gradient: np.ndarray) -> None:
        local = 1.0
        if self.adapt:
            length, steep = np.linalg.norm(self.w), np.linalg.norm(gradient)
            local = 0.001 * length / (steep + self.decay * length)
        update = local * (gradient + self.decay * self.w)
        self.v = self.momentum * self.v + update
        self.w = self.w - self.lr * (update + self.momentum * self.v if self.nesterov else self.v)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("own_rate", [None, 0.0096])
def test_lars_steps_are_those_of_the_formula(momentum: float, nesterov: bool, own_rate: float | None) -> None:
    """Six steps of a method's optimizer: weights are decayed and adapted, biases and batch norm get plain momentum."""
    options = {"exclude_bias_and_norm": True, "bias_and_norm_lr": own_rate}
    module = build("BarlowTwins", optimizer=lars(momentum=momentum, nesterov=nesterov), **options)
    optimizer = module.configure_optimizers()
    expected = {}
    for name, parameter in module.named_parameters():
        weight = parameter.ndim > 1  # of this network: what else there is are biases and batch norm
        if not weight:
            nn.init.normal_(parameter)
        expected[name] = Restated(
            parameter.detach().numpy(), lr=0.4 if weight else own_rate or 0.4, decay=1e-2 if weight else 0.0,
            momentum=momentum, nesterov=nesterov, adapt=weight,
        )  # fmt: skip
    draw = torch.Generator().manual_seed(1)
    for _ in range(6):
        for name, parameter in module.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            expected[name].step(parameter.grad.numpy().astype(np.float64))
        optimizer.step()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name].w, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_sets_biases_and_norms_apart(name: str) -> None:
    module = build(name, optimizer=lars(), exclude_bias_and_norm=True, bias_and_norm_lr=0.01)
    weights, apart = module.configure_optimizers().param_groups
    assert (weights["lr"], weights["weight_decay"]) == (0.4, 1e-2) and (apart["lr"], apart["weight_decay"]) == (0.01, 0)
    names = {id(parameter): each for each, parameter in module.named_parameters()}
    held = [names[id(parameter)] for group in (weights, apart) for parameter in group["params"]]
    assert sorted(held) == sorted(each for each, p in module.named_parameters() if p.requires_grad)
    norms = {
        f"{place}.{each}"
        for place, layer in module.named_modules()
        if "Norm" in type(layer).__name__
        for each, _ in layer.named_parameters(recurse=False)
    }
    wanted = {each for each in held if each.endswith("bias") or each in norms}
    assert {names[id(parameter)] for parameter in apart["params"]} == wanted and wanted
    (together,) = build(name, optimizer=lars()).configure_optimizers().param_groups
    assert len(together["params"]) == len(held)


def test_groups_of_odd_networks() -> None:
    """A norm over an image, a scale of layers, tied and frozen weights; a network without biases has one group."""
    net = nn.Module()
    net.norm, net.first, net.second = nn.LayerNorm([3, 4, 4]), nn.Linear(4, 4), nn.Linear(4, 4)
    net.second.weight, net.scale, net.frozen = net.first.weight, nn.Parameter(torch.ones(4)), nn.Linear(4, 4)
    net.frozen.requires_grad_(False)
    weights, apart = parameter_groups(net, exclude_bias_and_norm=True)
    assert [id(p) for p in weights["params"]] == [id(net.first.weight)]
    assert {id(p) for p in apart["params"]} == {
        id(p) for p in (net.norm.weight, net.norm.bias, net.first.bias, net.second.bias, net.scale)
    }
    (alone,) = parameter_groups(nn.Linear(4, 4, bias=False), exclude_bias_and_norm=True)
    assert len(alone["params"]) == 1 and "weight_decay" not in alone


# ---- the rate ----------------------------------------------------------------------------------------------


class Rates(L.Callback):
    """The rates that each optimizer step was made with."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def curve(steps: int, warmup: int, end: float = 0.0) -> list[float]:
    """Shares of the rate, step by step."""
    rise = [step / warmup for step in range(warmup)]
    last = steps - warmup - 1
    return rise + [end + (1 - end) * (1 + math.cos(math.pi * step / last)) / 2 for step in range(last + 1)]


def byol(warmup_epochs: float = 2, end: float = 0.0, **options: Any) -> Any:
    scheduler = functools.partial(WarmupCosine, warmup_epochs=warmup_epochs, end=end)
    return build("BYOL", optimizer=lars(), lr_scheduler=scheduler, exclude_bias_and_norm=True, **options)


def fit(module: Any, *callbacks: Any, epochs: int = 4, ckpt_path: Any = None, rows: int = 72, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer = L.Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": epochs, **options})
    trainer.fit(module, batches("BYOL", rows, 8), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize(
    ("every", "warmup", "end", "steps", "rise"),
    [(1, 2, 0.0, 36, 18), (2, 2, 0.001, 20, 10), (4, 1.5, 0.0, 12, 4), (1, 0, 0.5, 36, 0)],
)
def test_the_rate_follows_optimizer_steps(every: int, warmup: float, end: float, steps: int, rise: int) -> None:
    """Nine batches an epoch, the last step of an epoch on what is left; two groups with rates of their own."""
    rates = Rates()
    fit(byol(warmup, end, bias_and_norm_lr=0.1), rates, accumulate_grad_batches=every)
    expected = [[0.4 * share, 0.1 * share] for share in curve(steps, rise, end)]
    np.testing.assert_allclose(rates.seen, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("plan", "options", "steps", "rise"),
    [
        ({0: 1, 2: 3}, {}, 9 + 9 + 3 + 3, 14),
        ({0: 4, 1: 2, 3: 1}, {}, 3 + 5 + 5 + 9, 6),
        ({2: 3}, {"max_steps": 20}, 20, 14),
    ],
)
def test_the_rate_and_the_teachers_momentum_follow_batches_to_a_step_that_change(
    plan: dict[int, int], options: dict[str, int], steps: int, rise: int
) -> None:
    """Nine batches an epoch, four epochs, one and a half of them warm-up."""

    class Momenta(L.Callback):
        seen: ClassVar[list[float]] = []

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.seen.append(module._momentum_now())

    rates, momenta, accumulation = Rates(), Momenta(), GradientAccumulationScheduler(plan)
    fit(byol(1.5, momentum=0.9, momentum_end=1.0), rates, momenta, accumulation, **options)
    np.testing.assert_allclose(rates.seen, [[0.4 * share] * 2 for share in curve(steps, rise)], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(momenta.seen, [1.0 - 0.1 * share for share in curve(steps, 0)], rtol=1e-9)


def test_a_run_counted_in_steps_and_one_shorter_than_its_warmup() -> None:
    rates = Rates()
    fit(byol(1), rates, epochs=-1, max_steps=20)
    np.testing.assert_allclose(rates.seen, [[0.4 * share] * 2 for share in curve(20, 9)], atol=1e-12)
    rates = Rates()
    fit(byol(10), rates, epochs=1)
    np.testing.assert_allclose(rates.seen, [[0.4 * step / 9] * 2 for step in range(9)], atol=1e-12)


class Stop(L.Callback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.after


@pytest.mark.parametrize("stop", [10, 13])  # at the end of the second epoch, and inside the third
def test_a_resumed_run_makes_the_same_steps(stop: int, tmp_path: Any) -> None:
    """Ten steps of warm-up at two batches each, in a run of twenty: rates, and weights, of the uninterrupted run."""
    whole, rates = byol(), Rates()
    fit(whole, rates, accumulate_grad_batches=2)
    before, after = Rates(), Rates()
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)
    fit(byol(), before, Stop(stop), saved, accumulate_grad_batches=2, enable_checkpointing=True)
    again = byol()
    fit(again, after, accumulate_grad_batches=2, ckpt_path=tmp_path / "last.ckpt")
    assert before.seen == rates.seen[:stop] and after.seen == rates.seen[stop:]
    if stop == 10:  # inside an epoch, a plain loader begins with its first batch again
        for own, other in zip(again.parameters(), whole.parameters(), strict=True):
            assert torch.equal(own, other)


def test_a_longer_plan_takes_the_longer_curve(tmp_path: Any) -> None:
    saved = ModelCheckpoint(tmp_path, save_last=True)
    fit(byol(1), saved, epochs=2, enable_checkpointing=True)
    rates = Rates()
    fit(byol(1), rates, epochs=4, ckpt_path=tmp_path / "last.ckpt")
    np.testing.assert_allclose(rates.seen[1:], [[0.4 * share] * 2 for share in curve(36, 9)[19:]], atol=1e-12)


def test_the_rate_goes_on_through_the_transport_phase(targets64: Any) -> None:
    """Warm-up and cosine count the steps of both phases; ReLAModule follows the same curve."""
    data = loader("BYOL")  # four batches
    rates, log = Rates(), Rates()
    trainer = L.Trainer(**QUIET, max_epochs=4, callbacks=[ReLACallback(targets64, schedule=Switch(0.25)), rates])
    trainer.fit(byol(2), data)
    scheduler = functools.partial(WarmupCosine, warmup_epochs=2)
    alone = ReLAModule(TinyBackbone(), targets64, optimizer=lars(), lr_scheduler=scheduler)
    L.Trainer(**QUIET, max_epochs=4, callbacks=[log]).fit(alone, data)
    expected = [0.4 * share for share in curve(16, 8)]
    np.testing.assert_allclose([seen[0] for seen in rates.seen], expected, atol=1e-12)
    np.testing.assert_allclose([seen[0] for seen in log.seen], expected, atol=1e-12)


# ---- the command -------------------------------------------------------------------------------------------


class Plain(L.LightningModule):
    """A module of a user's without optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = TinyBackbone()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.backbone(batch[0][0]).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["BYOL", "tests.test_optim.Plain"])
def test_the_command_takes_them_by_name(model: str, tmp_path: Any, monkeypatch: Any) -> None:
    """`--model.optimizer` of a method of ours, `--optimizer` of any module."""
    monkeypatch.chdir(tmp_path)
    own = model == "BYOL"
    at = "--model." if own else "--"
    words = [f"--model={model}", f"{at}optimizer=lightly.utils.lars.LARS", f"{at}optimizer.lr=0.4"]
    words += [f"{at}optimizer.weight_decay=1e-6"]
    words += [f"{at}lr_scheduler=WarmupCosine", f"{at}lr_scheduler.warmup_epochs=0.5"]
    words += ["--data=DigitsData", "--name=run", "--trainer.max_epochs=1", "--data.batch_size=16"]
    words += ["--trainer.limit_train_batches=8", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu"]
    if own:
        words += ["--model.exclude_bias_and_norm=true", "--model.bias_and_norm_lr=0.01"]
        words += ["--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={width: 0.125}"]
    assert main(["fit", *words, "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]) == 0
    saved = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)
    (scheduler,), (optimizer,) = saved["lr_schedulers"], saved["optimizer_states"]
    assert scheduler["last_epoch"] == 8 and "warmup_epochs" not in scheduler
    assert scheduler["base_lrs"] == ([0.4, 0.01] if own else [0.4])
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == ([1e-6, 0.0] if own else [1e-6])


def test_options_out_of_range_and_runs_without_end() -> None:
    net = nn.Linear(2, 2)
    sgd = torch.optim.SGD(net.parameters(), lr=1.0)
    for options, named in (({"warmup_epochs": -1}, "warmup_epochs"), ({"end": 2}, "`end`")):
        with pytest.raises(ConfigError, match=named):
            WarmupCosine(sgd, **options)
    with pytest.raises(ConfigError, match="bias_and_norm_lr"):
        build("BYOL", bias_and_norm_lr=0.0)
    with pytest.raises(ConfigError, match="length is known"):
        fit(byol(), epochs=-1)
    alone = WarmupCosine(sgd)
    with pytest.raises(ConfigError, match=r"follow\(trainer\)"):
        alone.step()
