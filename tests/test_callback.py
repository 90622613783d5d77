"""The callback on real SSL modules, one device."""

from __future__ import annotations

import copy
import functools
import warnings
from importlib import import_module
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback, TargetStore, transport_loss
from rela_lightning.compat import DualCallback
from rela_lightning.schedules import Blend, Mix, Plateau, Schedule, Switch, TransportOnly, Weights
from tests.modules import NAMESPACES, byol, same, simclr, weights
from tests.parts import TwoViews, make_digits, numbered


def loader(workers: int = 0, count: int = 64, **options: Any) -> DataLoader:
    options = {"batch_size": 16, "shuffle": True, "drop_last": True, **options}
    return DataLoader(make_digits(count, TwoViews()), num_workers=workers, **options)


def trainer(namespace: str = "lightning.pytorch", *callbacks: Any, **options: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = {"accelerator": "cpu", "max_epochs": 2, **quiet, **options}
    return import_module(namespace).Trainer(callbacks=list(callbacks), **options)


def fit(module: Any, *callbacks: Any, data: Any = None, namespace: str = "lightning.pytorch", **options: Any) -> Any:
    torch.manual_seed(0)
    run = trainer(namespace, *callbacks, **options)
    run.fit(module, data if data is not None else loader())
    return run


def seeded(build: Any, *args: Any, **options: Any) -> Any:
    torch.manual_seed(1)
    return build(*args, **options)


class Log(DualCallback):
    """Collects what the callback logs."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("rela/")})


@pytest.mark.slow
@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("build", [byol, simclr])
def test_switch_runs_transport_then_the_users_step(namespace: str, build: Any, targets64: Any) -> None:
    module, log = seeded(build, namespace), Log()
    fit(module, ReLACallback(targets64, schedule=Switch(0.5)), log, namespace=namespace)
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [2.0] * 4
    assert [entry["rela/weight"] for entry in log.seen] == [1.0] * 4 + [0.0] * 4
    assert [entry["rela/ssl_weight"] for entry in log.seen] == [0.0] * 4 + [1.0] * 4
    if build is byol:
        assert module.steps_run == 4, "the user's step is left out in the transport phase, and only there"


def test_passed_alone_in_both_namespaces(targets64: Any) -> None:
    for namespace in NAMESPACES:
        callback = ReLACallback(targets64)
        run = import_module(namespace).Trainer(callbacks=callback, logger=False)
        assert any(found is callback for found in run.callbacks)


@pytest.mark.slow
def test_transport_trains_the_backbone_and_leaves_the_heads(targets64: Any) -> None:
    module, log = seeded(byol, weight_decay=0.01, momentum=0.9), Log()
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=TransportOnly()), log, max_epochs=20)
    after = weights(module)
    losses = [entry["rela/loss"] for entry in log.seen]
    assert sum(losses[-4:]) / 4 < sum(losses[:4]) / 4 - 0.05
    assert not torch.equal(before["backbone.body.0.weight"], after["backbone.body.0.weight"])
    for name in before:
        if "head" in name:
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["backbone_momentum.body.0.weight"], after["backbone_momentum.body.0.weight"])


def test_first_step_equals_a_hand_written_one(targets64: Any) -> None:
    """Mixed loss on BYOL: same gradients as a straight restatement, on the same batch."""
    store, batches = TargetStore(targets64), []

    class Keep(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            batches.append(copy.deepcopy(batch))

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            self.gradients = {k: p.grad.clone() for k, p in module.named_parameters() if p.grad is not None}

    data = make_digits(64, TwoViews())
    keep, relacb = Keep(), ReLACallback(targets64, schedule=Mix(0.7), transport_optimizer=None)
    module = seeded(byol)
    reference = copy.deepcopy(module)
    fit(module, keep, relacb, data=DataLoader(data, batch_size=16), max_steps=1, max_epochs=1)
    own = reference.training_step.__func__
    reference.log = lambda *a, **k: None
    linear = relacb.state_dict()["transport"]["map"]
    features = [reference.backbone(view) for view in batches[0][0]]
    y = store[torch.arange(16)][:, :16]
    mapped = [h @ linear["linear.weight"].T + linear["linear.bias"] for h in features]
    (0.7 * transport_loss(torch.cat(mapped), torch.cat([y, y]))).backward()
    own(reference, batches[0], 0).backward()
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(keep.gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("schedule", [Mix(0.0), "ssl from the start"])
def test_weight_zero_is_bitwise_the_plain_run(workers: int, schedule: Any, targets64: Any) -> None:
    class Off(Schedule):
        def weights(self, progress: float) -> Weights:
            return Weights(1.0, 0.0)

    plain, accelerated = seeded(byol), seeded(byol)
    fit(plain, data=loader(workers))
    fit(
        accelerated,
        ReLACallback(targets64, schedule=Off() if isinstance(schedule, str) else schedule),
        data=loader(workers),
    )
    assert same(weights(plain), weights(accelerated))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix(), Blend(), TransportOnly()])
def test_everything_is_undone(schedule: Schedule, targets64: Any) -> None:
    module, data = seeded(byol), loader()
    callback = ReLACallback(targets64, schedule=schedule)
    run = trainer("lightning.pytorch", callback)
    strategy = run.strategy
    before = set(vars(module)), set(vars(strategy)), dict(vars(data)), data.dataset.dataset.transform
    hooks = sum(len(m._forward_hooks) for m in module.modules())
    run.fit(module, data)
    assert set(vars(module)) - {"_hparams"} == before[0], "Lightning itself leaves `_hparams`"
    assert "process_dataloader" not in vars(strategy)
    assert dict(vars(data)) == before[2] and data.dataset.dataset.transform is before[3]
    assert sum(len(m._forward_hooks) for m in module.modules()) == hooks
    fresh, again = seeded(byol), seeded(byol)
    fresh.load_state_dict(module.state_dict())
    again.load_state_dict(module.state_dict())
    module.load_state_dict(fresh.state_dict())
    fit(fresh)
    fit(module)
    assert same(weights(fresh), weights(module)), "a second fit is as if the callback had never been there"


def test_undone_after_an_error(targets64: Any) -> None:
    class Broken(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise ValueError("stop here")

    module = seeded(byol)
    with pytest.raises(ValueError, match="stop here"):
        fit(module, ReLACallback(targets64), Broken())
    assert not {"training_step", "manual_backward", "on_before_batch_transfer"} & set(vars(module))


def test_checkpoint_loads_strictly_and_safely(targets64: Any, tmp_path: Any) -> None:
    module = seeded(byol)
    run = fit(module, ReLACallback(targets64, schedule=Switch(0.5)))
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    seeded(byol).load_state_dict(state["state_dict"], strict=True)
    assert len(state["optimizer_states"][0]["param_groups"]) == 1
    assert state["callbacks"]["ReLACallback"]["transport"]["map"]["linear.weight"].shape == (16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix(0.5), Blend()])
def test_resume_is_bitwise_the_uninterrupted_run(stop: int, schedule: Schedule, targets64: Any, tmp_path: Any) -> None:
    def data() -> DataLoader:
        return DataLoader(make_digits(64, Fixed()), batch_size=16)

    class Fixed(TwoViews):
        def __call__(self, image: Any) -> Any:
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.as_tensor(list(image.tobytes()[:3000])).sum()) % 2**31)
                return super().__call__(image)

    class SaveAt(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch + 1 == stop:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    def callback() -> ReLACallback:
        return ReLACallback(targets64, schedule=copy.deepcopy(schedule), transform=None)

    whole = seeded(byol)
    fit(whole, callback(), SaveAt(), data=data(), max_epochs=4)
    resumed = byol()
    resuming = callback()
    run = trainer("lightning.pytorch", resuming, max_epochs=4)
    run.fit(resumed, data(), ckpt_path=tmp_path / "mid.ckpt")
    assert same(weights(whole), weights(resumed))


def test_resume_without_state_says_so(targets64: Any, tmp_path: Any) -> None:
    run = fit(seeded(byol), max_epochs=1)
    run.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(UserWarning, match="without ReLACallback"):
        trainer("lightning.pytorch", ReLACallback(targets64), max_epochs=2).fit(
            byol(), loader(), ckpt_path=tmp_path / "plain.ckpt"
        )


@pytest.mark.slow
def test_an_end_that_never_came_is_said(targets64: Any) -> None:
    with pytest.warns(UserWarning, match="Plateau saw no end.*own objective never ran.*Switch"):
        fit(seeded(byol), ReLACallback(targets64))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*saw no end")
        fit(seeded(byol), ReLACallback(targets64, schedule=Plateau(at_most=0.5)))


@pytest.mark.slow
@pytest.mark.parametrize("workers, persistent, views", [(0, False, 1), (2, True, 2)])
def test_transport_views_end_at_the_switch(workers: int, persistent: bool, views: int, targets64: Any) -> None:
    sizes: list[int] = []

    class Spy(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            sizes.append(len(batch[0]))
            distinct.append(len({view[0].sum().item() for view in batch[0]}))

    distinct: list[int] = []
    data = DataLoader(
        make_digits(64, TwoViews(views=3)), batch_size=16, num_workers=workers, persistent_workers=persistent
    )
    module, log = seeded(simclr3), Log()
    fit(module, ReLACallback(targets64, schedule=Switch(0.5), num_views=views), Spy(), log, data=data, max_epochs=4)
    phases = [entry["rela/phase"] for entry in log.seen]
    assert sizes[:8] == [2] * 8 and phases[:8] == [0.0] * 8, "a pair of gentle views in the transport phase"
    assert distinct[:8] == [views] * 8 and distinct[-4:] == [3] * 4, "only as many as are used are made"
    assert sizes[-4:] == [3] * 4 and phases[-4:] == [2.0] * 4, "the user's three views afterwards"
    assert all((size == 3) == (phase == 2.0) for size, phase in zip(sizes, phases, strict=True)), "never mixed up"


def simclr3() -> Any:
    module = simclr()
    module.training_step_views = []
    original = type(module).training_step

    class Three(type(module)):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) != 3:
                raise AssertionError("the user's step must see the user's views")
            return original(self, [batch[0][:2], batch[1]], batch_idx)

    module.__class__ = Three
    return module


@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
def test_a_backbone_of_any_name_is_found(schedule: Schedule, targets64: Any) -> None:
    named, unusual, log = seeded(simclr), seeded(simclr, name="zebra"), Log()
    fit(named, ReLACallback(targets64, schedule=copy.deepcopy(schedule), transform=None))
    fit(unusual, ReLACallback(targets64, schedule=schedule, transform=None), log)
    a, b = weights(named), weights(unusual)
    if isinstance(schedule, Mix):  # the first transport step is found by running the user's own
        assert all(torch.equal(a[k], b[k.replace("backbone", "zebra")]) for k in a)
    assert log.seen[0]["rela/loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Switch(0.5), Mix()])
def test_manual_optimization(schedule: Schedule, targets64: Any) -> None:
    manual, automatic, log = seeded(simclr, manual=True), seeded(simclr), Log()
    fit(manual, ReLACallback(targets64, schedule=copy.deepcopy(schedule)), log)
    fit(automatic, ReLACallback(targets64, schedule=schedule, step="swap_loss"))
    assert same(weights(manual), weights(automatic))
    assert log.seen[0]["rela/phase"] == (0.0 if isinstance(schedule, Switch) else 1.0)


def test_swap_loss_equals_replace(targets64: Any) -> None:
    replaced, swapped = seeded(simclr), seeded(simclr)
    for module, step in ((replaced, "replace"), (swapped, "swap_loss")):
        fit(module, ReLACallback(targets64, schedule=TransportOnly(), step=step, transform=None, num_views=2))
    for (name, a), b in zip(weights(replaced).items(), weights(swapped).values(), strict=True):
        if "head" not in name or ("running" not in name and "num_batches" not in name):
            torch.testing.assert_close(a, b, msg=name)


def test_accumulation_steps_the_map_and_the_schedule_once(targets64: Any) -> None:
    log = Log()
    callback = ReLACallback(targets64, schedule=Switch(0.5))
    fit(seeded(byol), callback, log, accumulate_grad_batches=2)
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 4 + [2.0] * 4
    steps = callback.state_dict()["transport"]["optimizer"]["state"][0]["step"]
    assert float(steps) == 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision: str, targets64: Any) -> None:
    callback, log = ReLACallback(targets64, schedule=Switch(0.5)), Log()
    fit(seeded(byol), callback, log, precision=precision)
    assert callback.state_dict()["transport"]["map"]["linear.weight"].dtype == torch.float32
    assert 0 < log.seen[0]["rela/loss"] < 2


@pytest.mark.slow
def test_frozen_map_stays_as_the_authors_left_it(targets64: Any) -> None:
    callbacks = [ReLACallback(targets64, schedule=TransportOnly(), transport_optimizer=option)
                 for option in (None, functools.partial(torch.optim.SGD, lr=0.1))]  # fmt: skip
    for callback in callbacks:
        fit(seeded(byol), callback)
    frozen, trained = (callback.state_dict()["transport"] for callback in callbacks)
    from rela_lightning import LinearTransport

    initial = LinearTransport(16, 16, seed=0).state_dict()["linear.weight"]
    assert torch.equal(frozen["map"]["linear.weight"], initial) and "optimizer" not in frozen
    assert not torch.equal(trained["map"]["linear.weight"], initial)


def test_data_ratio_draws_a_fresh_subset_each_epoch(targets64: Any) -> None:
    epochs: list[set[int]] = []
    callback = ReLACallback(targets64, schedule=TransportOnly(), data_ratio=0.5)

    class Rows(L.Callback):
        def on_train_epoch_start(self, *args: Any) -> None:
            epochs.append(set())

        def on_train_batch_start(self, *args: Any) -> None:
            rows = args[2][1]
            epochs[-1].update(rows.tolist())

    data = DataLoader(numbered(64, TwoViews()), batch_size=8, shuffle=True)
    fit(seeded(byol), callback, Rows(), data=data)
    assert [len(rows) for rows in epochs] == [32, 32] and epochs[0] != epochs[1]


def test_teachers_at_the_switch_are_the_moving_average_of_the_students(targets64: Any) -> None:
    """As in the authors' code: `t <- .99 t + .01 s` after every step of the transport phase."""
    module = seeded(byol)
    expected = {name: p.clone() for name, p in module.backbone_momentum.named_parameters()}
    at_switch: dict[str, torch.Tensor] = {}

    class Follow(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            if trainer.callback_metrics["rela/phase"] == 0.0:
                for name, student in module.backbone.named_parameters():
                    expected[name] = 0.99 * expected[name] + 0.01 * student.detach()
                at_switch.update({n: p.clone() for n, p in module.backbone_momentum.named_parameters()})

    fit(module, ReLACallback(targets64, schedule=Switch(0.5)), Follow())
    for name, value in expected.items():
        torch.testing.assert_close(at_switch[name], value)
