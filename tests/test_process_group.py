"""A process with a gloo group leaves its threads a moment at the end, so that Python's shutdown cannot meet them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
START = """
    import os, time
    import torch

    def say(seconds):
        os.write(1, b"waited" if seconds > 0 and torch.distributed.is_initialized() else b"?")

    def watch():
        time.sleep = say  # from here on: at the end of the process
"""
GROUP = """
    torch.distributed.init_process_group("gloo", init_method="file://{file}", rank=0, world_size=1)
"""
EXIT = """
    import rela_lightning

    watch()
"""
OURS = """
    from rela_lightning.process_group import wait_at_exit

    wait_at_exit(), wait_at_exit()
"""
TRAINER = """
    from {tree} import Trainer
    from tests.parts import TwoViews, make_digits

    quiet = dict(accelerator="cpu", devices=1, strategy="ddp", logger=False, enable_checkpointing=False,
                 enable_progress_bar=False, enable_model_summary=False)
"""
LABEL = """
    from rela_lightning import build_targets, load_prior

    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    build_targets(prior, make_digits(16), "{file}", trainer=Trainer(**quiet))
    watch()
"""
TRAIN = """
    from torch.utils.data import DataLoader
    from rela_lightning import ReLACallback
    from rela_lightning.methods import SimCLR

    loader = DataLoader(make_digits(64, TwoViews()), batch_size=8)
    module = SimCLR("lightly:resnet-9", backbone_kwargs=dict(width=0.125))
    Trainer(**quiet, max_steps=1, callbacks=[ReLACallback("{targets}")]).fit(module, loader)
    watch()
"""
FIT = """
    from rela_lightning.cli import main

    main({words})
    watch()
"""


def end_of(script: str, file: Path, **values: Any) -> str:
    """Run a script; what it says as it ends."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script.format(file=file, **values))],
        cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_group_is_waited_for_once(tmp_path: Path) -> None:
    assert end_of(START + GROUP + OURS + EXIT, tmp_path / "group") == "waited"


def test_who_only_imports_us_does_not_wait(tmp_path: Path) -> None:
    assert end_of(START + GROUP + EXIT, tmp_path / "group") == ""


def test_without_a_group_nobody_waits(tmp_path: Path) -> None:
    assert end_of(START + OURS + EXIT, tmp_path / "group") == ""


@pytest.mark.parametrize("tree", ["lightning.pytorch", "pytorch_lightning"])
def test_labelling_on_several_processes_waits(tmp_path: Path, tree: str) -> None:
    assert end_of(START + TRAINER + LABEL, tmp_path / "targets", tree=tree).endswith("waited")


def test_training_with_the_callback_waits(tmp_path: Path, targets64: Path) -> None:
    assert end_of(START + TRAINER + TRAIN, tmp_path, tree="lightning.pytorch", targets=targets64).endswith("waited")


def test_rela_fit_waits(tmp_path: Path) -> None:
    words = "fit --model SimCLR --model.backbone lightly:resnet-9 --data DigitsData --trainer.fast_dev_run true"
    words += " --trainer.devices 1"
    words += (
        f" --trainer.accelerator cpu --trainer.strategy ddp --trainer.devices 1 --trainer.default_root_dir {tmp_path}"
    )
    assert end_of(START + FIT, tmp_path, words=words.split()).endswith("waited")
