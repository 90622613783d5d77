"""CollapseMonitor: what it logs is what numpy says of the backbone's features, and the run does not know of it."""

from __future__ import annotations

import copy
import csv
import functools
import json
import re
import warnings
from importlib import import_module
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from rela_lightning import CollapseMonitor, ReLACallback
from rela_lightning.data import RGBImages, build_views
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.schedules import Switch
from tests.modules import NAMESPACES
from tests.ranks import succeeded

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
IMAGES = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
DATA = TensorDataset(IMAGES[:240], IMAGES[:240].flip(3))
NAMES = {"features/effective_rank", "features/deviation", "features/uniformity", "features/alignment"}


def module(namespace: str = "lightning.pytorch", *, collapses: bool = False, lr: float = 0.1) -> Any:
    class Method(import_module(namespace).LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(),
                nn.Dropout(0.1), nn.Linear(24, 12),
            )  # fmt: skip

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            one, two = self.backbone(batch[0]), self.backbone(batch[1])
            closer = (one - two).square().mean() + one.var(dim=0).mean()
            return closer if collapses else -one.var(dim=0).clamp(max=1).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=lr if collapses else 1e-3)

    return Method()


def fit(callbacks: list[Any], *, of: Any = None, epochs: int = 1, shuffle: bool = False, **options: Any) -> Any:
    of = of or module()
    namespace = next(name for name in NAMESPACES if isinstance(of, import_module(name).LightningModule))
    trainer = import_module(namespace).Trainer(max_epochs=epochs, callbacks=callbacks, **{**QUIET, **options})
    trainer.fit(of, DataLoader(DATA, batch_size=24, shuffle=shuffle))
    return trainer


def logged(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("features/")}


# ---- what is logged ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_it_logs_what_numpy_says(namespace: str) -> None:
    """The weights do not move, so that the features of all batches are known."""
    of = module(namespace)
    of.configure_optimizers = lambda: torch.optim.SGD(of.parameters(), lr=0.0)
    of.on_train_start = of.backbone[1].eval
    trainer = fit([CollapseMonitor(every_n_steps=50, num_samples=100)], of=of)
    of.backbone.eval()
    one, two = (of.backbone(views[:120]).detach().double().numpy() for views in DATA.tensors)  # 5 batches of 24
    unit, other = normalize(one), normalize(two)
    found = logged(trainer)
    assert found.keys() == NAMES
    assert found["features/effective_rank"] == pytest.approx(
        np.exp(entropy(np.linalg.svd(one, compute_uv=False))), rel=1e-5
    )
    assert found["features/deviation"] == pytest.approx(np.sqrt(unit.var(axis=0).sum()), rel=1e-5)
    assert found["features/uniformity"] == pytest.approx(np.log(np.exp(-2 * pdist(unit) ** 2).mean()), rel=1e-5)
    assert found["features/alignment"] == pytest.approx(((unit - other) ** 2).sum(1).mean(), rel=1e-4)


def test_loggers_get_each_measurement_at_its_step(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fit([CollapseMonitor(every_n_steps=4, num_samples=40)], epochs=1, logger=logger, log_every_n_steps=1000)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["1", "5", "9"]  # batches 0 + 1, 4 + 5, 8 + 9
    assert all(float(row[name]) == float(row[name]) for row in table for name in NAMES)


def test_one_view_has_no_alignment_and_an_epoch_is_all_there_is() -> None:
    of = module()
    of.training_step = lambda batch, batch_idx: of.backbone(batch[0]).square().mean()
    trainer = L.Trainer(max_epochs=2, callbacks=[CollapseMonitor(num_samples=5000)], **QUIET)
    trainer.fit(of, DataLoader(TensorDataset(DATA.tensors[0], torch.zeros(240).long()), batch_size=60))
    assert logged(trainer).keys() == NAMES - {"features/alignment"}


def test_the_alignment_is_that_of_views_that_differ(tmp_path: Any, digits64: Any, targets64: Any) -> None:
    """The transport phase shows one view in the place of two."""

    class Pairs(RGBImages):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0]

    views = build_views("two", 32, mean=[0.5] * 3, std=[0.5] * 3)
    of = module()
    of.backbone[0], of.backbone[6] = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 64, 12)
    rela = ReLACallback(targets64, schedule=Switch(0.5))
    monitor = CollapseMonitor(every_n_steps=4, num_samples=16)
    logger = CSVLogger(tmp_path, name="", version="")
    options = {**QUIET, "logger": logger}
    trainer = L.Trainer(max_epochs=2, callbacks=[rela, monitor], log_every_n_steps=1000, **options)
    trainer.fit(of, DataLoader(Pairs(digits64, views), batch_size=16))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row["features/deviation"]]
    transport, own = table[0], table[-1]
    assert transport["features/alignment"] == "" and float(own["features/alignment"]) > 0
    assert logged(trainer).keys() == NAMES  # the second epoch's


# ---- the run does not know of it --------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_run_is_the_same_bit_for_bit(namespace: str) -> None:
    def run(callbacks: list[Any]) -> tuple[Any, Any]:
        torch.manual_seed(3)
        of = module(namespace)
        fit(callbacks, of=of, epochs=2, shuffle=True)
        return of.state_dict(), torch.get_rng_state()

    (plain, state), (watched, watched_state) = run([]), run([CollapseMonitor(every_n_steps=3, num_samples=48)])
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(state, watched_state)


def test_no_trace_in_checkpoints_module_and_callback(tmp_path: Any) -> None:
    of, monitor = module(), CollapseMonitor(num_samples=48)
    fit([], of=of)
    before, idle = set(vars(of)), copy.deepcopy(vars(monitor))

    def state() -> dict[str, Any]:
        return {name: vars(monitor)[name] for name in idle}  # Lightning gives every callback `log`

    trainer = fit([monitor], of=of)
    assert set(vars(of)) == before
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert not any("Collapse" in key for key in saved["callbacks"])
    assert saved["state_dict"].keys() == of.state_dict().keys()
    assert state() == idle
    of.on_train_batch_start = lambda batch, batch_idx: 1 / 0 if batch_idx == 1 else None
    with pytest.raises(ZeroDivisionError):
        fit([monitor], of=of)
    assert state() == idle


class Watched(L.LightningModule):
    """Its weights do not move; each rank has its own shard, of other batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = module().backbone.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.backbone(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def on_train_start(self) -> None:
        self.backbone.eval()

    def train_dataloader(self) -> Any:
        rows, size = {1: (range(240), 40), 2: [(range(90), 15), (range(90, 240), 25)][self.global_rank]}[
            self.trainer.world_size
        ]
        return DataLoader(Subset(DATA, rows), batch_size=size)


@pytest.mark.slow
def test_two_processes_are_one() -> None:
    """All 240 images in six batches, in shards of 90 and 150."""
    one = watched(1)
    assert one.keys() == NAMES
    for written in succeeded(lambda: print("logged", json.dumps(watched(2)))):
        both = next(line for line in written.splitlines() if line.startswith("logged "))
        assert json.loads(both.removeprefix("logged ")) == pytest.approx(one, rel=1e-5)


def watched(devices: int) -> dict[str, float]:
    trainer = L.Trainer(
        max_epochs=1, devices=devices, strategy="ddp" if devices > 1 else "auto",
        callbacks=[CollapseMonitor(num_samples=240)], use_distributed_sampler=False, **QUIET,
    )  # fmt: skip
    trainer.fit(Watched())
    return logged(trainer)


# ---- warnings ---------------------------------------------------------------------------------------------


def warned(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught if "seldom recover" in str(warning.message)]


@pytest.mark.slow
def test_a_collapse_is_told_once_with_what_to_do() -> None:
    monitor = CollapseMonitor(every_n_steps=2, num_samples=48)
    told = warned(functools.partial(fit, [monitor], of=module(collapses=True), epochs=12))
    assert len(told) == 1
    assert re.search(r"Step \d+: The backbone(.*)stop-gradient(.*)learning rate(.*)Mix\(\)", told[0])


def test_a_loss_of_directions_is_told() -> None:
    of = module()

    def flatten(*_: Any) -> None:
        if of.global_step == 6:
            with torch.no_grad():
                of.backbone[-1].weight[1:] = of.backbone[-1].weight[0] * 1.01
                of.backbone[-1].bias.zero_()

    of.on_train_batch_start = flatten
    told = warned(functools.partial(fit, [CollapseMonitor(every_n_steps=1, num_samples=24)], of=of))
    assert len(told) == 1
    assert "effective directions, from" in told[0]


def test_features_that_are_no_numbers_are_told() -> None:
    of = module()
    of.on_train_start = lambda: of.backbone[-1].bias.data.fill_(float("nan"))
    trainer: list[Any] = []
    told = warned(lambda: trainer.append(fit([CollapseMonitor(num_samples=24)], of=of)))
    assert len(told) == 1
    assert "NaN" in told[0]
    assert np.isnan(logged(trainer[0])["features/effective_rank"])


def test_a_sound_run_is_not_warned_of() -> None:
    assert not warned(lambda: fit([CollapseMonitor(every_n_steps=2, num_samples=48)], epochs=3))


# ---- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"every_n_steps": 0}, {"num_samples": 1}, {"backbone": "nowhere"}])
def test_bad_options_are_refused_before_training(options: Any) -> None:
    with pytest.raises(ConfigError):
        fit([CollapseMonitor(**options)])


def test_batches_without_images_are_refused() -> None:
    of = module()
    trainer = L.Trainer(max_epochs=1, callbacks=[CollapseMonitor()], **QUIET)
    of.training_step = lambda batch, batch_idx: sum(p.sum() for p in of.parameters())
    with pytest.raises(DataError, match="No image views"):
        trainer.fit(of, DataLoader(TensorDataset(torch.zeros(48, 3)), batch_size=24))


def test_options_from_yaml(tmp_path: Any) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CollapseMonitor, "monitor", fail_untyped=False)
    path = tmp_path / "config.yaml"
    path.write_text("monitor: {every_n_steps: 7, num_samples: 64, backbone: net}\n")
    made = parser.instantiate_classes(parser.parse_path(path)).monitor
    assert (made.every_n_steps, made.num_samples, made.backbone) == (7, 64, "net")
