"""The demo's comparison: label, train and probe, under bars in a terminal, a line for each part elsewhere."""

from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors import safe_open

from rela_lightning.data import Digits
from rela_lightning.demo import training as parts
from rela_lightning.demo.prior import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.priors import Prior, load_prior
from rela_lightning.targets import TargetStore, build_targets

PLAIN, RELA, RANDOM = "byol", "byol+rela", "byol+rela (random prior)"


def compare(folder: Path, seconds: float, seed: int, console: Console) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Label, train and probe the demo's runs, and say on the console how far they are.

    Returns:
        Runs and protocol, as `rela_lightning.runs.report` takes them.
    """
    evaluation = parts.Evaluation()
    columns = TextColumn("{task.description:<25}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True)
    live = console.is_terminal or console.is_jupyter
    say = _nothing if live else console.print
    with parts.one_thread(), Progress(*columns, console=console, refresh_per_second=4, disable=not live) as progress:
        bars = {name: progress.add_task(name, total=seconds, start=False) for name in (PLAIN, RELA, RANDOM)}
        probing = progress.add_task("probing", total=None, start=False)
        parts.train(
            "warm-up", None, labelling=0.0, seconds=1.0, seed=seed, tick=lambda _: None
        )  # libraries compile; no run pays for it
        trained = []
        for name, bar in bars.items():
            progress.start_task(bar)
            say(f"{name}: {seconds:g} s ...")
            store, labelling = _label(name, folder / "targets", seed)
            tick = functools.partial(_show, progress, bar)
            trained.append(parts.train(name, store, labelling=labelling, seconds=seconds, seed=seed, tick=tick))
            tick(seconds)
            progress.stop_task(bar)
        progress.update(probing, total=2 + sum(len(run.snapshots) for run in trained))
        progress.start_task(probing)
        say("Probing what was there before ...")
        tick = functools.partial(progress.advance, probing)
        still = {"seconds": 0.0, "labelling_seconds": 0.0, "steps": 0, "history": []}
        untrained = evaluation.probe(parts.build_byol(seed).backbone)
        tick()
        prior = demo_prior(RELA, seed)
        runs = [
            {"name": "untrained", **still, **untrained},
            {"name": "prior alone", **still, **evaluation.probe(prior, prior.preprocess)},
        ]
        tick()
        for run in trained:
            say(f"Probing {run.name}, {len(run.snapshots)} times from its start to its end ...")
            runs.append(evaluation.run(run, untrained, tick))
    return runs, _protocol(seconds, seed)


def _nothing(_: str) -> None:
    """Says nothing: the bars do."""


def _show(progress: Progress, bar: TaskID, spent: float) -> None:
    progress.update(bar, completed=spent)


def demo_prior(name: str, seed: int) -> Prior:
    """The prior of a run: the shipped one, or a random one that is not the student's own start."""
    if name == RELA:
        return load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)
    settings = {key: value for key, value in PRIOR_SETTINGS.items() if key != "arch"}
    return load_prior(f"random:{PRIOR_SETTINGS['arch']}", seed=seed + 1, **settings)


def _label(name: str, folder: Path, seed: int) -> tuple[TargetStore | None, float]:
    """Targets of a run and the seconds they took: now, or when they were cached."""
    if name == PLAIN:
        return None, 0.0
    started = time.perf_counter()
    prior = demo_prior(name, seed)
    store = build_targets(prior, Digits("train"), folder / prior.identity[:12])
    return store, max(time.perf_counter() - started, store.manifest["labelling_seconds"])


def _protocol(seconds: float, seed: int) -> dict[str, Any]:
    """What was done, in words and numbers."""
    with safe_open(PRIOR_FILE, "pt") as file:
        made = file.metadata()
    return {
        "command": f"rela demo --seconds {seconds:g} --seed {seed}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, one torch thread and one loader process"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "data": "scikit-learn's handwritten digits at 32x32: 1,347 training and 450 test images, fixed stratified "
        "split",
        "budget": f"{seconds:g} s of wall-clock a run, labelling included, probing left out",
        "student": f"{parts.ARCHITECTURE}, width {parts.WIDTH}; the same initial weights in all runs (seed {seed})",
        "method": f"BYOL, batch {parts.BATCH_SIZE}, AdamW {parts.LEARNING_RATE:g}, teacher momentum 0.99; two views "
        "by crop (scale 0.6 to 1), rotation up to 15 degrees and shear; settings chosen for plain BYOL on a part of "
        "the training images",
        "ReLA": f"transport for the first {100 * parts.SWITCH_AT:.0f}% of the training time, on the same views; BYOL "
        "afterwards",
        "why then": "with few labels, on held-out training images, a hand-over at 20 to 60% beats transport to the end "
        "and BYOL alone (docs/demo.md). The library's default stays with transport in so short a run, as its loss "
        "still falls; with all labels and in kNN that is as good",
        "prior": f"{made['arch']}; {made['data']}; its own test top-1 {made['test_top1']}; script {made['made_by']}",
        "random prior": f"the same network with random weights (seed {seed + 1})",
        "few labels": f"{parts.LABELS_PER_CLASS} labels a class, logistic regression; mean and standard deviation "
        f"over {parts.FOLDS} fixed draws of the labels",
        "linear": "logistic regression on all training labels, L2 1.0 on standardised features, solved to its optimum",
        "kNN": f"k = {parts.NEIGHBOURS}, cosine similarity, weights exp(s / 0.07)",
        "seed": seed,
    }
