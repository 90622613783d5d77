"""A process with a gloo group leaves its threads a moment at the end, so that Python's shutdown cannot meet them."""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.cli import main
from rela_lightning.methods import SimCLR
from rela_lightning.process_group import wait_at_exit
from tests.parts import TwoViews, make_digits
from tests.ranks import forks

pytestmark = pytest.mark.slow


def group(folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)


def ask_twice() -> None:
    wait_at_exit(), wait_at_exit()


def trainer(tree: str, **options: Any) -> Any:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    kind = importlib.import_module(tree).Trainer
    return kind(accelerator="cpu", devices=1, strategy="ddp", logger=False, **quiet, **options)


def label(folder: Path, tree: str) -> None:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    build_targets(prior, make_digits(16), folder / "targets", trainer=trainer(tree))


def train(targets: Path) -> None:
    module = SimCLR("lightly:resnet-9", backbone_kwargs={"width": 0.125})
    loader = torch.utils.data.DataLoader(make_digits(64, TwoViews()), batch_size=8)
    trainer("lightning.pytorch", max_steps=1, callbacks=[ReLACallback(targets)]).fit(module, loader)


def fit(folder: Path) -> None:
    words = "fit --model SimCLR --model.backbone lightly:resnet-9 --data DigitsData --trainer.fast_dev_run true"
    words += " --trainer.accelerator cpu --trainer.strategy ddp --trainer.devices 1 --data.batch_size 8"
    main([*words.split(), "--trainer.default_root_dir", str(folder)])


CASES: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a group": (lambda folder, targets: (group(folder), ask_twice()), "waited"),
    "a group, and an import of ours": (lambda folder, targets: group(folder), ""),
    "no group": (lambda folder, targets: ask_twice(), ""),
    "labelling": (lambda folder, targets: label(folder, "lightning.pytorch"), "waited"),
    "labelling in the other tree": (lambda folder, targets: label(folder, "pytorch_lightning"), "waited"),
    "training with the callback": (lambda folder, targets: train(targets), "waited"),
    "rela fit": (lambda folder, targets: fit(folder), "waited"),
}


def say(seconds: float) -> None:
    """Stands for `time.sleep` at the end of a process."""
    os.write(1, b"waited" if seconds > 0 and torch.distributed.is_initialized() else b"?")


def whole(run: Callable[[], Any]) -> None:
    """What a process does from its beginning, in which nobody asked for anything yet, to what is asked for its end."""
    wait_at_exit.cache_clear()
    atexit._clear()
    run()
    time.sleep = say
    atexit._run_exitfuncs()


@pytest.mark.parametrize("name", CASES)
def test_a_process_with_a_group_of_ours_waits_once(name: str, tmp_path: Path, targets64: Path) -> None:
    run, expected = CASES[name]
    [ended] = forks(functools.partial(whole, functools.partial(run, tmp_path, targets64)))
    assert ended.code == 0, ended.output
    assert ended.output.endswith(expected) and ended.output.count("waited") == len(expected) // len("waited")
