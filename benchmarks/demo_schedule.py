"""Where the demo hands over from transport to BYOL: several points of one budget, on held-out training images.

    python benchmarks/demo_schedule.py run [--units 450] [--seeds 0 1 2]
    python benchmarks/demo_schedule.py report

The demo's own BYOL, views, priors and probes. A fifth of its training images is held out: they are neither labelled nor
trained on, and all scores are of them. The demo's test images are not read. A run lasts for `units` steps of BYOL; a
step of transport costs .42 of one, labelling nine, whatever else the machine does. As in the demo, the share at which a
run hands over is one of its training, without labelling. Runs that are in the results already are left out.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import quiet_lightning
from curves import paired, shown
from journal import Journal
from networks import bare_trainer
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Subset, TensorDataset
from virtual_clock import VirtualClock

from rela_lightning import ReLACallback, build_targets
from rela_lightning.data import Digits
from rela_lightning.demo import quiet
from rela_lightning.demo import training as parts
from rela_lightning.demo.compare import PLAIN, RANDOM, RELA, demo_prior
from rela_lightning.schedules import Plateau, Schedule, Switch, TransportOnly

RESULTS = Path(__file__).parent / "results" / "demo_schedule.jsonl"
KEY = ("run", "schedule", "units", "seed")
COSTS = {"ssl": 1.0, "transport1": 0.42}
"""Units of a step; transport reads one view. The demo's committed run has .098 s and .039 s."""
LABELLING = 9.0
"""Units: the .91 s of that run."""
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "20%": lambda: Switch(0.2),
    "40%": lambda: Switch(0.4),
    "60%": lambda: Switch(0.6),
    "80%": lambda: Switch(0.8),
    "never": TransportOnly,
    "default": Plateau,
}
VARIANTS: tuple[tuple[str, str | None], ...] = (
    (PLAIN, None),
    *((RELA, name) for name in SCHEDULES),
    *((RANDOM, name) for name in ("40%", "never")),
)
"""The demo's run, and where it hands over."""
MEASURES = {"few_label_top1": "few labels", "knn_top1": "kNN", "linear_top1": "linear"}


class Clock(VirtualClock):
    """Units of a step of BYOL; the learning rate is the demo's, which is constant."""

    def factor(self) -> float:
        """Nothing changes the rate."""
        return 1.0


class HeldOut(parts.Evaluation):
    """The demo's probes, fitted on the images of the backbone and scored on training images that nobody saw."""

    def __init__(self) -> None:
        every = parts.tensors("train")
        self.train, self.test = (TensorDataset(*(t[rows] for t in every.tensors)) for rows in split())


@functools.cache
def split() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows of the demo's training images: those to train on, and those held out; stratified and always the same."""
    labels = Digits("train").targets
    train, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    return np.sort(train), np.sort(held_out)


def one_run(job: dict[str, Any], targets: Path, evaluation: HeldOut) -> dict[str, Any]:
    """Label, train until the units are used up, and probe."""
    rows, held_out = (part.tolist() for part in split())
    seed, budget = job["seed"], job["units"]
    callbacks = []
    if job["schedule"] is not None:
        prior = demo_prior(job["run"], seed)
        store = build_targets(prior, Subset(Digits("train"), rows), targets / prior.identity[:12])
        callbacks = [ReLACallback(store, schedule=SCHEDULES[job["schedule"]](), transform=None)]
        budget -= LABELLING
    clock = Clock(budget, COSTS, None if callbacks else "ssl", *callbacks)
    module = parts.build_byol(seed)
    data = Subset(Digits("train", transform=parts.TwoViews()), rows)
    torch.manual_seed(seed)  # the same order of images and the same views in all runs of a seed
    bare_trainer(clock, *callbacks).fit(module, DataLoader(data, parts.BATCH_SIZE, shuffle=True, drop_last=True))
    scores = evaluation.probe(module.backbone)
    switched = None if clock.switched_at is None else round(clock.switched_at / budget, 3)
    return {
        **{name: _percent(scores[name]) for name in MEASURES},
        "switched_at": switched if callbacks else None,
        "steps": clock.steps,
        "trained_on": len(rows),
        "held_out": len(held_out),
    }


def _percent(score: Any) -> float:
    return round(100 * float(score["mean"] if isinstance(score, dict) else score), 2)


def work(options: argparse.Namespace) -> None:
    """Do the runs that are not in the results."""
    journal = Journal(RESULTS, KEY, {})
    evaluation = HeldOut()
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for run, schedule in VARIANTS:
                job = {"run": run, "schedule": schedule, "units": options.units, "seed": seed}
                if not journal.has(job):
                    with quiet():
                        row = {**job, **one_run(job, Path(folder), evaluation)}
                    journal.append(row)
                    print(row, flush=True)


def report(units: float) -> None:
    """Print the mean over seeds of each variant, and its few-label score less that of 40%, seed by seed."""
    rows = [row for row in Journal(RESULTS, KEY, {}).rows() if row["units"] == units]
    print(f"| run | hands over at | {' | '.join(MEASURES.values())} | few labels against 40% | seeds |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    of_variant = {
        variant: sorted((r for r in rows if (r["run"], r["schedule"]) == variant), key=lambda r: r["seed"])
        for variant in VARIANTS
    }
    for (run, schedule), own in of_variant.items():
        if not own:
            continue
        scores = [shown([row[name] for row in own]) for name in MEASURES]
        apart = paired(own, of_variant[RELA, "40%"], lambda row: float(row["few_label_top1"]))
        against = shown(apart, "+.1f") if apart and (run, schedule) != (RELA, "40%") else ""
        where = schedule or ""
        if schedule == "default":
            where += f" ({', '.join(_when(row['switched_at']) for row in own)})"
        print(f"| {run} | {where} | {' | '.join(scores)} | {against} | {len(own)} |")


def _when(share: float | None) -> str:
    return "never" if share is None else f"{share:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--units", type=float, default=450.0, help="budget of a run, in steps of BYOL")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    if options.action == "run":
        if options.units <= 2 * LABELLING:
            parser.error(f"--units: more than {2 * LABELLING:.0f}, as labelling takes {LABELLING:.0f}")
        torch.set_num_threads(1)
        quiet_lightning()
        work(options)
    report(options.units)


if __name__ == "__main__":
    main()
