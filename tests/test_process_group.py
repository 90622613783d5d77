"""A finished process closes its gloo group, so that Python's shutdown cannot meet gloo's threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

START = """
    import atexit, os, sys
    import torch

    state = lambda: os.write(1, b"open" if torch.distributed.is_initialized() else b"closed")
    atexit.register(state)  # first registered, last called
    sys.excepthook = lambda *error: None
"""
GROUP = """
    torch.distributed.init_process_group("{backend}", init_method="file://{file}", rank=0, world_size=1)
    from rela_lightning.process_group import destroy_at_exit

    destroy_at_exit()
    destroy_at_exit()
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
"""
TRAIN = """
    from torch.utils.data import DataLoader
    from rela_lightning import ReLACallback
    from rela_lightning.methods import SimCLR

    loader = DataLoader(make_digits(64, TwoViews()), batch_size=8)
    module = SimCLR("lightly:resnet-9", backbone_kwargs=dict(width=0.125))
    Trainer(**quiet, max_steps=1, callbacks=[ReLACallback("{targets}")]).fit(module, loader)
"""


def end_of(script: str, file: Path, **values: Any) -> subprocess.CompletedProcess[str]:
    """Run a script; its standard output says how the group was left."""
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script.format(file=file, **values))],
        cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("last, code", [("", 0), ("    raise SystemExit(3)", 3)])
def test_a_clean_end_closes_the_group(tmp_path: Path, last: str, code: int) -> None:
    done = end_of(START + GROUP + last, tmp_path / "group", backend="gloo")
    assert (done.returncode, done.stdout) == (code, "closed"), done.stderr


def test_after_an_error_nothing_is_waited_for(tmp_path: Path) -> None:
    done = end_of(START + GROUP + "    raise ValueError", tmp_path / "group", backend="gloo")
    assert (done.returncode, done.stdout) == (1, "open"), done.stderr


def test_without_a_group_nothing_happens(tmp_path: Path) -> None:
    done = end_of(START + GROUP.replace("torch.distributed.init", "#"), tmp_path / "group", backend="gloo")
    assert (done.returncode, done.stdout) == (0, "closed"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tree", ["lightning.pytorch", "pytorch_lightning"])
def test_labelling_on_several_processes_ends_closed(tmp_path: Path, tree: str) -> None:
    done = end_of(START + TRAINER + LABEL, tmp_path / "targets", tree=tree)
    assert done.returncode == 0 and done.stdout.endswith("closed"), done.stderr[-3000:]


@pytest.mark.slow
def test_training_with_the_callback_ends_closed(tmp_path: Path, targets64: Path) -> None:
    done = end_of(START + TRAINER + TRAIN, tmp_path, tree="lightning.pytorch", targets=targets64)
    assert done.returncode == 0 and done.stdout.endswith("closed"), done.stderr[-3000:]


@pytest.mark.slow
def test_rela_fit_ends_closed(tmp_path: Path) -> None:
    words = "fit --model SimCLR --model.backbone lightly:resnet-9 --data DigitsData --trainer.fast_dev_run true"
    words += (
        f" --trainer.accelerator cpu --trainer.strategy ddp --trainer.devices 1 --trainer.default_root_dir {tmp_path}"
    )
    done = end_of(START + "    from rela_lightning.cli import main\n    main({words})", tmp_path, words=words.split())
    assert done.returncode == 0 and done.stdout.endswith("closed"), done.stderr[-3000:]
