"""What five kinds of user type, from the first word to the last.

Who knows the README or the command alone is followed in `test_snippets.py`, a contributor in `test_contributing.py`;
here are one with unlabelled photos and a small network of their own, and one on a cluster.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from rela_lightning.cli import main
from tests.image_files import write_flat
from tests.ranks import forks, succeeded

pytestmark = pytest.mark.usefixtures("all_images")  # as an interpreter of its own has them
MYNET = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, width=8):
        layers = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
PRIOR = {"width": 0.125, "image_size": 32, "mean": 0.5, "std": 0.5}


@pytest.mark.slow
def test_unlabelled_photos_and_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mynet.py").write_text(MYNET)
    write_flat(Path("photos"), 40)

    def rela(line: str) -> str:
        capsys.readouterr()
        options = json.dumps(PRIOR)
        assert main([word.replace("OPTIONS", options) for word in line.split()]) == 0
        return str(capsys.readouterr().out)

    data = "--data ImageFolderData --data.root photos --data.image_size 32"
    prior = "random:lightly:resnet-9"
    ranked = rela(f"rank {prior} --prior_kwargs OPTIONS {data} --num_samples 40")
    assert prior in ranked and "raw pixels" in ranked
    assert "images" in rela(f"targets {prior} --prior_kwargs OPTIONS {data} --path t --estimate true")
    assert not Path("t").exists()
    rela(f"targets {prior} --prior_kwargs OPTIONS {data} --path t")
    fit = f"fit --model BYOL --model.backbone mynet.MyNet {data} --data.batch_size 8 --trainer.accelerator cpu"
    fit += " --trainer.max_epochs 2 --trainer.enable_progress_bar false --trainer.enable_model_summary false"
    rela(f"{fit} --name plain")
    with_rela = "--trainer.callbacks+ ReLACallback --trainer.callbacks.targets t"
    said = rela(f"{fit} --name fast {with_rela} --trainer.callbacks.schedule TransportOnly")
    assert "10 steps" in said
    for run in ("plain", "fast"):
        assert "effective rank" in rela(f"probe runs/{run}")
    known = json.loads(Path("runs/fast/run.json").read_text())
    assert 1 <= known["effective_rank"] <= 8 and known["uniformity"] < 0 and "linear_top1" not in known
    table = rela("compare runs/plain runs/fast")
    assert "rank" in table and "kNN" not in table
    assert f"{known['effective_rank']:.3g}" in Path("comparison/report.md").read_text()
    rela("embed runs/fast features.npy")
    assert np.load("features.npy").shape == (40, 8)
    with Path("features.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(path.name for path in Path("photos").iterdir())
    rela("export runs/fast net.safetensors")
    assert load_file("net.safetensors")["0.weight"].shape == (8, 3, 3, 3)
    assert main(["finetune", "runs/fast"]) == 2
    assert "num_classes" in capsys.readouterr().err


SMALL = {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.125}}


def as_a_job(*words: str) -> int:
    """The command in a process group of its own; Lightning starts the second process as it would from a terminal."""
    os.setsid()
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("rela_lightning.__main__")
    sys.argv = ["rela", *words]
    return main()


@pytest.mark.slow
def test_a_job_of_two_processes_is_killed_and_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    """Two processes label, two train from a YAML; the job is killed, and goes on from its last checkpoint."""
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2"]
    options = [f"--prior_kwargs={json.dumps(PRIOR)}", "--data=DigitsData", "--path=t"]
    label = ["targets", "random:lightly:resnet-9", *options]
    monkeypatch.chdir(tmp_path)
    succeeded(main, [*label, "--trainer=lightning.pytorch.Trainer", *two])
    config = {
        "model": {"class_path": "BYOL", "init_args": SMALL},
        "data": {"class_path": "DigitsData", "init_args": {"batch_size": 32}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 2,
            "max_epochs": 200,
            "limit_train_batches": 5,
            "callbacks": [{"class_path": "rela_lightning.ReLACallback", "init_args": {"targets": "t"}}],
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    record = tmp_path / "runs/job/run.json"
    deadline = time.monotonic() + 240
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(forks, functools.partial(as_a_job, "fit", "--config=job.yaml", "--name=job"))
        while not (record.is_file() and json.loads(record.read_text())["checkpoint"]):
            assert not job.done() and time.monotonic() < deadline, job.done() and job.result()
            time.sleep(0.2)
        [started] = multiprocessing.active_children()
        os.killpg(started.pid or 0, signal.SIGKILL)
        assert [rank.code for rank in job.result()] == [-signal.SIGKILL]
    before = json.loads(record.read_text())
    epochs = before["epochs"] + 2
    succeeded(main, ["fit", "--resume", "runs/job", "--trainer.max_epochs", str(epochs)])
    after = json.loads(record.read_text())
    assert after["epochs"] == epochs and after["steps"] > before["steps"]
    assert after["budget"]["devices"] == 2 and after["seconds"] > before["seconds"]
