"""A process with a gloo group leaves its threads a moment at the end, so that Python's shutdown cannot meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
GROUP = """
torch.distributed.init_process_group("gloo", init_method="file://{folder}/group-{name}", rank=0, world_size=1)
"""
OURS = """
from rela_lightning.process_group import wait_at_exit
wait_at_exit(), wait_at_exit()
"""
TRAINER = """
from {tree} import Trainer
quiet = dict(accelerator="cpu", devices=1, strategy="ddp", logger=False, enable_checkpointing=False,
             enable_progress_bar=False, enable_model_summary=False)
"""
LABEL = """
prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
build_targets(prior, make_digits(16), "{folder}/{name}", trainer=Trainer(**quiet))
"""
TRAIN = """
module = SimCLR("lightly:resnet-9", backbone_kwargs=dict(width=0.125))
loader = torch.utils.data.DataLoader(make_digits(64, TwoViews()), batch_size=8)
Trainer(**quiet, max_steps=1, callbacks=[ReLACallback("{targets}")]).fit(module, loader)
"""
FIT = """
main("fit --model SimCLR --model.backbone lightly:resnet-9 --data DigitsData --trainer.fast_dev_run true "
     "--trainer.accelerator cpu --trainer.strategy ddp --trainer.devices 1 "
     "--trainer.default_root_dir {folder}".split())
"""
CASES = {
    "a group": (GROUP + OURS, "waited"),
    "a group, and an import of ours": (GROUP, ""),
    "no group": (OURS, ""),
    "labelling": (TRAINER.replace("{tree}", "lightning.pytorch") + LABEL, "waited"),
    "labelling in the other tree": (TRAINER.replace("{tree}", "pytorch_lightning") + LABEL, "waited"),
    "training with the callback": (TRAINER.replace("{tree}", "lightning.pytorch") + TRAIN, "waited"),
    "rela fit": (FIT, "waited"),
}
FORKS = """
import json, os, sys, time
import lightning.pytorch, pytorch_lightning, torch
from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.cli import main
from rela_lightning.methods import SimCLR
from tests.parts import TwoViews, make_digits

def say(seconds):
    os.write(1, b"waited" if seconds > 0 and torch.distributed.is_initialized() else b"?")

said = dict()
for name, code in json.loads(sys.argv[1]).items():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        exec(code)
        sys.stdout.flush()
        time.sleep = say  # from here on: at the end of the process
        sys.exit()
    os.close(write)
    with os.fdopen(read) as output:
        said[name] = output.read()
    assert os.waitpid(child, 0)[1] == 0, name
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, targets64: Path) -> dict[str, str]:
    """What each process says as it ends: forks of one interpreter, which has imported everything and done nothing."""
    folder = tmp_path_factory.mktemp("ends")
    codes = {
        name: code.replace("{folder}", str(folder)).replace("{name}", name).replace("{targets}", str(targets64))
        for name, (code, _) in CASES.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps(codes)], cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", CASES)
def test_a_process_with_a_group_of_ours_waits_once(said: dict[str, str], name: str) -> None:
    _, expected = CASES[name]
    assert said[name].endswith(expected) and said[name].count("waited") == len(expected) // len("waited")
