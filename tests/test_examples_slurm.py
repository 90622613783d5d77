"""The scripts for Slurm, with a stand-in for `srun` that notes the command, which `rela` then parses."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rela_lightning.runs.read import find_checkpoint
from tests.test_configs import printed

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples" / "slurm").glob("*.sbatch"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder with the examples, and `srun` and `scontrol` that write down what they are called with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in ("srun", "scontrol"):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f'#!/bin/bash\nprintf "%q " "$@" >> {tmp_path}/{name}.txt\n[ ! -f {tmp_path}/wait ] || sleep 5\n'
        )
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return tmp_path


def called(place: Path, script: str, *words: str) -> list[str]:
    """The `rela` command that a script hands to srun, without `rela`."""
    (place / "srun.txt").unlink(missing_ok=True)
    subprocess.run(["bash", f"examples/slurm/{script}", *words], check=True)
    name, *command = shlex.split((place / "srun.txt").read_text())
    assert name == "rela"
    return command


def asked(script: str) -> dict[str, str]:
    """The options of sbatch at the head of a script."""
    text = (ROOT / "examples" / "slurm" / script).read_text(encoding="utf-8")
    return dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", text, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("script", ["targets.sbatch", "fit.sbatch"])
def test_a_script_asks_for_the_tasks_that_its_trainer_expects(script: str, place: Path, capsys: Any) -> None:
    """Lightning takes a task for each device; words after the script's name reach the command."""
    wide = "--batch_size=77" if script == "targets.sbatch" else "--data.batch_size=77"
    found = printed(called(place, script, wide), capsys)
    options = asked(script)
    trainer = found["trainer"].get("init_args", found["trainer"])
    tasks = options["ntasks-per-node"]
    assert (str(trainer["num_nodes"]), str(trainer["devices"])) == (options["nodes"], tasks) == ("2", "4")
    assert options["gpus-per-node"] == tasks
    assert 77 in (found.get("batch_size"), found.get("data", {}).get("init_args", {}).get("batch_size"))
    if script == "fit.sbatch":
        assert trainer["default_root_dir"] == "runs/byol-imagenet" and options["signal"].startswith("SIGUSR1@")


def test_targets_are_the_ones_that_the_run_reads() -> None:
    path = re.search(r"^ +--path (\S+)", (ROOT / "examples/slurm/targets.sbatch").read_text(encoding="utf-8"), re.M)
    fit = (ROOT / "examples/configs/byol_imagenet_ddp_rela.yaml").read_text(encoding="utf-8")
    assert path is not None and f"targets: {path[1]}\n" in fit


def test_a_requeued_job_goes_on_with_its_run(place: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RUN", "runs/mine")
    assert called(place, "fit.sbatch")[:2] == ["fit", "--config"]
    (place / "runs/mine").mkdir(parents=True)  # failed before its first checkpoint
    assert "--trainer.default_root_dir" in called(place, "fit.sbatch")
    (place / "runs/mine/hpc_ckpt_1.ckpt").touch()
    assert called(place, "fit.sbatch", "--trainer.max_epochs=9") == [
        "fit", "--resume", "runs/mine", "--trainer.max_epochs=9"
    ]  # fmt: skip
    (place / "runs/mine/hpc_ckpt_1.ckpt").rename(place / "runs/mine/last.ckpt")
    (place / "runs/mine/checkpoints").mkdir()
    (place / "runs/mine/last.ckpt").rename(place / "runs/mine/checkpoints/last.ckpt")
    assert called(place, "fit.sbatch") == ["fit", "--resume", "runs/mine"]


def test_labelling_is_queued_again_when_its_time_is_nearly_up(place: Path) -> None:
    (place / "wait").touch()
    with subprocess.Popen(["bash", "examples/slurm/targets.sbatch"]) as job:
        while not (place / "srun.txt").exists():
            assert job.poll() is None
        assert asked("targets.sbatch")["signal"].startswith("B:USR1@")  # B: to the script alone
        job.send_signal(signal.SIGUSR1)
        job.wait(60)
    assert shlex.split((place / "scontrol.txt").read_text()) == ["requeue", "17"]


def test_a_run_goes_on_from_what_was_saved_when_time_was_up(tmp_path: Path) -> None:
    """Of the checkpoint that run.json names and Lightning's `hpc_ckpt_*.ckpt`, the newer one."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text('{"checkpoint": "checkpoints/last.ckpt"}')
    last, saved = tmp_path / "checkpoints/last.ckpt", tmp_path / "hpc_ckpt_1.ckpt"
    last.touch()
    assert find_checkpoint(tmp_path).samefile(last)
    saved.touch()
    for newer, older in ((saved, last), (last, saved)):
        os.utime(older, (1, 1))
        os.utime(newer, (2, 2))
        assert find_checkpoint(tmp_path).samefile(newer)


def test_scripts_are_sound_bash_and_listed() -> None:
    index = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) == 2
    for script in SCRIPTS:
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert script.name in index
