"""Do views made in batches train as well as views made one image at a time? BYOL and transport, CIFAR-10.

    python benchmarks/device_accuracy.py run --data-root DIR [--steps 1000] [--seeds 0 1 2]
    python benchmarks/device_accuracy.py report

A ResNet-9 of width .25 on 10,000 images, SimCLR views, batches of 64, the settings that convergence.py chose, probed on
validation images. Both kinds of a seed start from the same weights. Runs that are in the results already are left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from candidates import Decoded, train
from common import quiet_lightning
from convergence import accuracy, now, settings_of
from curves import shown
from images import Splits, load_splits
from journal import Journal
from networks import prior_of

from rela_lightning import ReLACallback, build_targets
from rela_lightning.schedules import TransportOnly

RESULTS = Path(__file__).parent / "results" / "device_accuracy.jsonl"
KEY = ("step", "device_views", "images", "steps", "seed")
STEPS = ("byol", "transport")


def one_run(options: argparse.Namespace, job: dict[str, Any], splits: Splits) -> dict[str, Any]:
    """Train with one kind of views, and probe."""
    settings = settings_of("byol", "cifar10")
    kind = {"device_views": job["device_views"], "seed": job["seed"]}
    data = Decoded(splits.train, batch_size=settings["batch_size"], **kind)
    callbacks = []
    if job["step"] == "transport":
        store = options.data_root / f".device-accuracy-{job['images']}"
        build_targets(prior_of("random"), data.dataset("train"), store)
        callbacks.append(ReLACallback(store, schedule=TransportOnly(), num_views=1))
    begun = now()
    module = train(data, settings, job["seed"], job["steps"], *callbacks)
    return {"seconds": round(now() - begun, 1), **accuracy(module, splits.train, splits.validation)}


def report() -> None:
    """Print both kinds of each step, and their difference seed by seed."""
    rows = {tuple(row[name] for name in KEY): row for row in map(json.loads, RESULTS.read_text().splitlines())}
    for step, steps in sorted({(row["step"], row["steps"]) for row in rows.values()}):
        own = [row for row in rows.values() if (row["step"], row["steps"]) == (step, steps)]
        for measure in ("linear_top1", "knn_top1"):
            kinds = [{r["seed"]: 100 * r[measure] for r in own if r["device_views"] is kind} for kind in (False, True)]
            seeds = sorted(kinds[0].keys() & kinds[1].keys())
            if not seeds:
                continue
            each = " -> ".join(shown([kind[seed] for seed in seeds]) for kind in kinds)
            apart = shown([kinds[1][seed] - kinds[0][seed] for seed in seeds], "+.2f")
            print(f"{step}, {steps:,} steps, {measure}: {each}, difference {apart}, {len(seeds)} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--step", nargs="*", choices=STEPS, default=STEPS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    if options.action == "report":
        report()
        return
    if options.data_root is None:
        parser.error("run needs --data-root")
    torch.set_num_threads(1)
    quiet_lightning()
    journal = Journal(RESULTS, KEY, {"DATA_ROOT": options.data_root})
    splits = load_splits("cifar10", options.data_root, options.images)
    for seed, step, on_device in itertools.product(options.seeds, options.step, (False, True)):
        job = {"step": step, "device_views": on_device, "images": options.images, "steps": options.steps, "seed": seed}
        if not journal.has(job):
            journal.append({**job, **one_run(options, job, splits)})


if __name__ == "__main__":
    main()
