"""Labelling, training, probing and export, killed at random moments: the end result is the uninterrupted one.

    python benchmarks/killed.py [--kills 50] [--seed 0] [--jobs targets fit probe export]

Each command runs once undisturbed, in a process of its own, on scikit-learn's digits. Then it is started again and
killed (SIGKILL, with all its children) at a moment drawn evenly over the time that the undisturbed one took; it is
started once more, as the documentation says, killed again or not, and lives to its end at last. After each kill, what
lies under the final name is either missing or whole; what the last one leaves must be the same as if nobody had
killed anything, bit for bit. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import header, write_result
from safetensors import safe_open

BACKBONE = ["--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={width: 0.125}"]
DIGITS = "--data=DigitsData"
PRIOR = ["--prior=random:lightly:resnet-18", "--prior_kwargs={width: 0.25, image_size: 32, mean: 0.5, std: 0.5}"]
QUIET = [f"--trainer.{name}=false" for name in ("enable_progress_bar", "enable_model_summary")]
FIT = [
    "fit", "--model=BYOL", *BACKBONE, DIGITS, "--data.batch_size=64", "--trainer.accelerator=cpu", *QUIET,
    "--trainer.max_epochs=4", "--trainer.limit_train_batches=8", "--trainer.callbacks+=rela_lightning.ReLACallback",
    "--trainer.callbacks.targets=targets", "--trainer.callbacks.schedule=Switch", "--trainer.callbacks.schedule.at=0.5",
    "--name=run",
]  # fmt: skip
RESUME = ["fit", "--config=runs/run/config.yaml", "--ckpt_path=runs/run"]


class Job(NamedTuple):
    """A command.

    Attributes:
        command: Words after `rela`, to begin.
        again: Words to go on, by the folder in which it was killed.
        result: What counts of a finished command, to be compared; None where there is nothing under the final name.
        needs: Commands whose results it reads.
    """

    command: list[str]
    again: Callable[[Path], list[str]]
    result: Callable[[Path], Any]
    needs: tuple[str, ...] = ()


def resumed(folder: Path) -> list[str]:
    """A run that has a checkpoint goes on from it; one that has none starts anew."""
    if (folder / "runs/run/checkpoints/last.ckpt").exists():
        return RESUME
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return FIT


def targets_of(folder: Path) -> Any:
    """Targets: check sums of rows and projection, and the manifest but for what the clock says."""
    path = folder / "targets"
    if not (path / "manifest.json").exists():
        return None
    manifest = json.loads((path / "manifest.json").read_text())
    told = {key: value for key, value in manifest.items() if key not in CLOCK}
    return {**told, "files": {name: sum_of(path / name) for name in ("targets.npy", "projection.safetensors")}}


CLOCK = ("sum", "created", "seconds", "labelling_seconds")
"""Of a manifest: what differs between any two passes."""


def checkpoint_of(folder: Path) -> Any:
    """A run: weights and optimizer states of its last checkpoint, once it has all its epochs."""
    path = folder / "runs/run/checkpoints/last.ckpt"
    if not path.exists():
        return None
    saved = torch.load(path, weights_only=True)
    if saved["global_step"] < 4 * 8:
        return None
    slots = [slot for state in saved["optimizer_states"] for slot in state["state"].values()]
    return {
        "weights": {name: sum_of(value) for name, value in saved["state_dict"].items()},
        "optimizers": [{name: sum_of(value) for name, value in slot.items()} for slot in slots],
    }


def accuracies_of(folder: Path) -> Any:
    """A probe: its numbers, with their protocol."""
    path = folder / "runs/run/probe.json"
    return {**json.loads(path.read_text()), "checkpoint": ""} if path.exists() else None


def exported(folder: Path) -> Any:
    """An export: its tensors, and what it says of itself, which safetensors writes in any order."""
    path = folder / "backbone.safetensors"
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: sum_of(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118


def sum_of(content: Path | torch.Tensor | float) -> str:
    """Check sum of a file, of a tensor, or of a number."""
    data = content.read_bytes() if isinstance(content, Path) else torch.as_tensor(content).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


JOBS = {
    "targets": Job(
        ["targets", *PRIOR, DIGITS, "--views=4", "--path=targets"],
        lambda folder: JOBS["targets"].command,
        targets_of,
    ),
    "fit": Job(FIT, resumed, checkpoint_of, ("targets",)),
    "probe": Job(
        ["probe", "runs/run", "--solver=lbfgs"], lambda folder: JOBS["probe"].command, accuracies_of, ("targets", "fit")
    ),
    "export": Job(
        ["export", "runs/run", "backbone.safetensors"],
        lambda folder: JOBS["export"].command,
        exported,
        ("targets", "fit"),
    ),
}


def rela(words: list[str], folder: Path, until: float | None = None) -> int:
    """Run a command in a folder, killed after so many seconds; its exit code, or minus the signal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rela_lightning", *words],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(until)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()


class Undisturbed(NamedTuple):
    """A command that nobody killed."""

    folder: Path
    seconds: float
    result: Any


def undisturbed(job: Job, folder: Path, before: list[Undisturbed]) -> Undisturbed:
    """Run a command once, in a folder with what it needs."""
    fresh(folder, before)
    started = time.monotonic()
    code = rela(job.command, folder)
    seconds = time.monotonic() - started
    result = job.result(folder)
    if code or result is None:
        raise SystemExit(f"{job.command} ended with {code}:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return Undisturbed(folder, seconds, result)


def fresh(folder: Path, before: list[Undisturbed]) -> None:
    """A folder that holds copies of what earlier commands left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for earlier in before:
        shutil.copytree(earlier.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("log.txt"))


def killed(job: Job, known: Undisturbed, folder: Path, moments: list[float]) -> tuple[int, list[str]]:
    """Kill a command at each of some shares of its time, then let it live; kills that met it alive, and complaints."""
    kills, wrong, words = 0, [], job.command
    for moment in moments:
        code = rela(words, folder, moment * known.seconds)
        kills += code == -signal.SIGKILL
        left = job.result(folder)
        if left not in (None, known.result):
            wrong.append(f"killed at {moment:.2f}: what lies under the final name is not whole")
        if left is not None:
            break  # it was done
        words = job.again(folder)
    code = 0 if job.result(folder) is not None else rela(words, folder)
    if code or job.result(folder) != known.result:
        wrong.append(f"killed at {moments}: exit code {code}, other result; {(folder / 'log.txt').read_text()[-500:]}")
    return kills, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="*", choices=tuple(JOBS), default=list(JOBS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "killed.json")
    options = parser.parse_args()
    draw, kills, wrong = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as place:
        known: dict[str, Undisturbed] = {}
        for name in {needed: None for job in options.jobs for needed in (*JOBS[job].needs, job)}:
            known[name] = undisturbed(JOBS[name], Path(place) / name, [known[n] for n in JOBS[name].needs])
            print(f"{name}: {known[name].seconds:.1f} s undisturbed", flush=True)
        while sum(kills.values()) < options.kills:
            name = min(options.jobs, key=lambda job: kills[job])
            moments = [draw.random() for _ in range(draw.choice([1, 1, 2]))]
            folder = Path(place) / "killed"
            fresh(folder, [known[needed] for needed in JOBS[name].needs])
            made, complaints = killed(JOBS[name], known[name], folder, moments)
            kills[name] += made
            wrong += [f"{name}: {complaint}" for complaint in complaints]
            print(name, [round(moment, 2) for moment in moments], complaints or "as if nothing had been", flush=True)
    print(f"{sum(kills.values())} kills, {len(wrong)} wrong results")
    seconds = {name: round(each.seconds, 1) for name, each in known.items()}
    result = {"kills": dict(kills), "wrong": wrong, "seconds_undisturbed": seconds}
    write_result(options.out, header(seeds=[options.seed]), result)
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
