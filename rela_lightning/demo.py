"""`rela demo`: the whole method on real images, in under three minutes on two cores.

The same small BYOL is trained at the same wall-clock budget from the same weights: plain, with
`ReLACallback` on targets of a prior trained on other images, and on targets of a random prior. Probing
happens afterwards, on copies of the backbone taken meanwhile, so that no run pays for it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from rela_lightning.priors import Prior
    from rela_lightning.targets import TargetStore

PRIOR_FILE = Path(__file__).parent / "assets" / "fashion_mnist_resnet9.safetensors"
PRIOR_SETTINGS: dict[str, Any] = {
    "arch": "lightly:resnet-9",
    "width": 0.25,
    "image_size": 32,
    "mean": (0.286, 0.286, 0.286),  # of Fashion-MNIST
    "std": (0.353, 0.353, 0.353),
}
PLAIN, RELA, RANDOM = "byol", "byol+rela", "byol+rela (random prior)"
_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "rela_lightning")


def demo(out: str = "rela_demo", seconds: float = 40.0, seed: int = 0) -> None:
    """Compare plain BYOL with BYOL and ReLA on scikit-learn's handwritten digits, at one wall-clock budget.

    Prints a table and writes `report.md`, `report.json` and `curves.png`.

    Args:
        out: Folder for targets and report; made if missing. A report of an earlier demo is replaced.
        seconds: Wall-clock budget of each of the three training runs, labelling included; at least 1.
        seed: Seed of the initial weights, the order of images, the views and the random prior; at least 0.

    Raises:
        ConfigError: If a value is out of range, or labelling alone uses up most of the budget.
        DataError: If scikit-learn (the extra `demo`) is not installed.
    """
    if not math.isfinite(seconds) or seconds < 1:
        raise ConfigError("`seconds` is the budget of a run.", expected="a number >= 1", found=seconds)
    if not 0 <= seed < 2**31:
        raise ConfigError("`seed` is out of range.", expected="0 to 2147483647", found=seed)
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError("`out` is a file.", expected="a folder, or a name that is free", found=out)
    from rich.console import Console

    from rela_lightning.report import to_table, write_report

    console = Console()
    console.print(f"BYOL on handwritten digits, plain and with ReLA, {seconds:g} s each. Loading the libraries ...")
    title = f"Digits: {seconds:g} s of BYOL, plain and with ReLA"
    with quiet():
        runs, protocol = compare(folder, seconds, seed, console)
        files = write_report(runs, protocol, folder, title=title)
    console.print(to_table(runs, title=title))
    console.print(protocol["few labels"], style="dim")
    console.print("Top-1 in %. Seconds are training plus labelling; probing is left out.", style="dim")
    if not any(file.suffix == ".png" for file in files):
        console.print("No curves.png: matplotlib is not installed (pip install 'rela-lightning[plot]').")
    console.print(f"Report: {files[0]}", soft_wrap=True)


def compare(folder: Path, seconds: float, seed: int, console: Console) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Label, train and probe the demo's runs under a progress bar.

    Returns:
        Runs and protocol, as `rela_lightning.report` takes them.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from rela_lightning import demo_training as parts

    evaluation = parts.Evaluation()
    columns = TextColumn("{task.description:<25}"), BarColumn(), TimeElapsedColumn()
    with parts.one_thread(), Progress(*columns, console=console, refresh_per_second=4) as progress:
        bars = {name: progress.add_task(name, total=seconds, start=False) for name in (PLAIN, RELA, RANDOM)}
        probing = progress.add_task("probing", total=3 * parts.SNAPSHOTS + 2, start=False)
        parts.train(
            "warm-up", None, labelling=0.0, seconds=1.0, seed=seed, tick=lambda _: None
        )  # libraries compile; no run pays for it
        trained = []
        for name, bar in bars.items():
            progress.start_task(bar)
            store, labelling = _label(name, folder / "targets", seed)
            tick = functools.partial(_show, progress, bar)
            trained.append(parts.train(name, store, labelling=labelling, seconds=seconds, seed=seed, tick=tick))
            tick(seconds)
            progress.stop_task(bar)
        progress.start_task(probing)
        tick = functools.partial(progress.advance, probing)
        still = {"seconds": 0.0, "labelling_seconds": 0.0, "steps": 0, "history": []}
        untrained = evaluation.probe(parts.build_byol(seed).backbone)
        tick()
        prior = _prior(RELA, seed)
        runs = [
            {"name": "untrained", **still, **untrained},
            {"name": "prior alone", **still, **evaluation.probe(prior, prior.preprocess)},
        ]
        tick()
        runs += [evaluation.run(run, untrained, tick) for run in trained]
    return runs, _protocol(seconds, seed)


def _show(progress: Progress, bar: TaskID, spent: float) -> None:
    progress.update(bar, completed=spent)


def _prior(name: str, seed: int) -> Prior:
    """The prior of a run: the shipped one, or a random one that is not the student's own start."""
    from rela_lightning.priors import load_prior

    if name == RELA:
        return load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)
    settings = {key: value for key, value in PRIOR_SETTINGS.items() if key != "arch"}
    return load_prior(f"random:{PRIOR_SETTINGS['arch']}", seed=seed + 1, **settings)


def _label(name: str, folder: Path, seed: int) -> tuple[TargetStore | None, float]:
    """Targets of a run and the seconds they took: now, or when they were cached."""
    from rela_lightning.data.digits import Digits
    from rela_lightning.targets import build_targets

    if name == PLAIN:
        return None, 0.0
    started = time.perf_counter()
    prior = _prior(name, seed)
    store = build_targets(prior, Digits("train"), folder / prior.identity[:12])
    return store, max(time.perf_counter() - started, store.manifest["labelling_seconds"])


def _protocol(seconds: float, seed: int) -> dict[str, Any]:
    """What was done, in words and numbers."""
    import torch
    from safetensors import safe_open

    from rela_lightning import demo_training as parts

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
        "prior": f"{made['arch']}; {made['data']}; its own test top-1 {made['test_top1']}; script {made['made_by']}",
        "random prior": f"the same network with random weights (seed {seed + 1})",
        "few labels": f"{parts.LABELS_PER_CLASS} labels a class, logistic regression; mean and standard deviation "
        f"over {parts.FOLDS} fixed draws of the labels",
        "linear": "logistic regression on all training labels, L2 1.0 on standardised features, solved to its optimum",
        "kNN": f"k = {parts.NEIGHBOURS}, cosine similarity, weights exp(s / 0.07)",
        "seed": seed,
    }


@contextmanager
def quiet() -> Iterator[None]:
    """None of the frameworks' tips and warnings meanwhile; levels and filters are put back."""
    importlib.import_module("lightning.pytorch")  # sets its own level when first imported
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
