"""On a GPU: a ResNet-18 on all of CIFAR-10, BYOL alone against ReLA in a tenth, a fifth and half of its time.

    python benchmarks/gpu_convergence.py run --data-root DIR [--epochs 60] [--minutes 12] [--seeds 0]
    python benchmarks/gpu_convergence.py run --data-root DIR --device cpu --tiny    # the same, small: does it run?
    python benchmarks/gpu_convergence.py report

BYOL as lightly's benchmark trains it on CIFAR-10 (batches of 512, SGD of .06 per 256 images, weight decay 5e-4, teacher
momentum .99, warm-up and cosine), bf16, channels-last, its views made on the device. Its time is that of its epochs at
step times measured first, in the same process; a run with ReLA is given a share of that, less what its labelling took,
under its default schedule. Linear probe and kNN on the test images. The most important runs come first, each is a line
of the results when it is done, and what is there already is left out; with `--minutes` no run is begun after that time.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from candidates import Decoded
from common import quiet_lightning
from convergence import Stopwatch, accuracy, quiet
from images import Images, Rows, Splits, load_splits
from journal import Journal
from networks import prior_of
from speed import MODES, trainer_of
from virtual_clock import VirtualClock

from rela_lightning import ReLACallback, TargetStore, build_targets, methods
from rela_lightning.schedules import TransportOnly

RESULTS = Path(__file__).parent / "results" / "gpu_convergence.jsonl"
KEY = ("prior", "share", "data", "epochs", "images", "backbone", "batch_size", "seed")
WARMUP = 5  # steps that are not timed


class Job(NamedTuple):
    """A run: BYOL alone where there is no prior."""

    prior: str | None
    share: float


FULL = {
    "images": 0, "backbone": "lightly:resnet-18", "width": 1.0, "batch_size": 512, "timed": 40, "threads": 0,
    "mode": "bf16, channels-last", "workers": min(os.cpu_count() or 1, 16), "label_batch_size": 512,
}  # fmt: skip
TINY = {
    "images": 128, "backbone": "lightly:resnet-9", "width": 0.125, "batch_size": 32, "timed": 2, "threads": 1,
    "mode": "fp32, channels-last", "workers": 0, "label_batch_size": 64,
}  # fmt: skip


def jobs(priors: list[str]) -> list[Job]:
    """The first prior is the strong one, the second knows little: what the aims ask of each comes first."""
    shares = {priors[0]: (0.1, 0.2, 0.5), **dict.fromkeys(priors[1:], (0.5, 0.2, 0.1))}
    turns = itertools.zip_longest(*([Job(prior, share) for share in own] for prior, own in shares.items()))
    return [Job(None, 1.0), *(job for turn in turns for job in turn if job)]


def targets_of(options: argparse.Namespace, images: Images, prior: str) -> TargetStore:
    """Targets, made once; their manifest says what that took."""
    path = options.data_root / f".gpu-targets-{options.data}-{len(images)}-{prior}"
    return build_targets(
        prior_of(prior), Rows.of(images), path, batch_size=options.label_batch_size, num_workers=options.workers
    )


def build(options: argparse.Namespace, seed: int) -> Any:
    """BYOL with lightly's settings, from seeded weights."""
    torch.manual_seed(seed)
    rate = 0.06 * options.batch_size / 256
    module = methods.BYOL(
        options.backbone, backbone_kwargs={"width": options.width}, momentum=0.99, momentum_end=1.0,
        optimizer=functools.partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4),
    )  # fmt: skip
    return module.to(memory_format=torch.channels_last)


def fit(options: argparse.Namespace, images: Images, seed: int, *callbacks: Any, **limits: Any) -> Any:
    """A trained module."""
    module = build(options, seed)
    data = Decoded(images, batch_size=options.batch_size, device_views=True, seed=seed)
    torch.manual_seed(seed)
    limits = {"max_epochs": 10**6, **limits}
    trainer_of(options, MODES[options.mode].precision, *callbacks, **limits).fit(module, datamodule=data)
    return module


def step_seconds(options: argparse.Namespace, images: Images, store: TargetStore) -> dict[str, float]:
    """Seconds of a step of BYOL, and of one of the transport phase."""
    kinds: dict[str, list[Any]] = {"ssl": [], "transport1": [ReLACallback(store, schedule=TransportOnly())]}
    found = {}
    for kind, callbacks in kinds.items():
        watch = Stopwatch()
        fit(options, images, 0, watch, *callbacks, max_steps=options.timed + WARMUP)
        found[kind] = quiet(watch.seconds[WARMUP:] or watch.seconds)
    return found


def one_run(
    options: argparse.Namespace, splits: Splits, job: Job, seed: int, *, full: float, costs: dict[str, float]
) -> dict[str, Any]:
    """Train for a share of BYOL's seconds, and probe."""
    callbacks, labelling = [], 0.0
    if job.prior:
        store = targets_of(options, splits.train, job.prior)
        callbacks, labelling = [ReLACallback(store)], store.manifest["labelling_seconds"]
    left = job.share * full - labelling
    if left < 0.5 * job.share * full:
        return {"labelling_seconds": labelling, "left_out": "labelling takes more than half of the time"}
    clock = VirtualClock(left, costs, None if job.prior else "ssl", *callbacks)
    begun = time.perf_counter()
    module = fit(options, splits.train, seed, clock, *callbacks)
    return {
        "steps": clock.steps,
        "training_seconds": round(clock.elapsed, 2),
        "labelling_seconds": round(labelling, 2),
        "wall_seconds": round(time.perf_counter() - begun, 2),
        "switched_at": clock.switched_at,
        **accuracy(module.to(options.device), splits.train, splits.test),
    }


def work(options: argparse.Namespace) -> None:
    """Do what is missing, while there is time."""
    begun = time.perf_counter()
    journal = Journal(options.out, KEY, {"DATA_ROOT": options.data_root, "OUT": options.out})
    splits = load_splits(options.data, options.data_root, options.images)
    images = splits.train
    costs = step_seconds(options, images, targets_of(options, images, options.priors[-1]))
    full = options.epochs * (len(images) // options.batch_size) * costs["ssl"]
    print(f"a step of BYOL {costs['ssl']:.4f} s, of transport {costs['transport1']:.4f} s; BYOL alone {full:.0f} s")
    named = {"data": options.data, "epochs": options.epochs, "images": len(images), "backbone": options.backbone}
    for seed, job in itertools.product(options.seeds, jobs(options.priors)):
        row = {**job._asdict(), **named, "batch_size": options.batch_size, "seed": seed, "seconds_full": round(full, 1)}
        if journal.has(row):
            continue
        if time.perf_counter() - begun + job.share * full > 60 * options.minutes:
            print("no time is left for", row, flush=True)
            continue
        journal.append({**row, "step_seconds": costs, **one_run(options, splits, job, seed, full=full, costs=costs)})
        print(journal.rows()[-1], flush=True)


def report(path: Path) -> None:
    """A line for each run."""
    for row in map(json.loads, path.read_text().splitlines()):
        share, full, seed = 100 * row["share"], row["seconds_full"], row["seed"]
        if "left_out" in row:
            found = row["left_out"]
        else:
            found = f"linear {100 * row['linear_top1']:.1f}, kNN {100 * row['knn_top1']:.1f}, {row['steps']:,} steps"
        print(f"{row['prior'] or 'BYOL alone'}, {share:.0f}% of {full:.0f} s, seed {seed}: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--data", choices=("cifar10", "fashion_mnist"), default="cifar10")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--epochs", type=float, default=60.0, help="of BYOL alone")
    parser.add_argument("--priors", nargs="+", default=["efficientnet_lite0", "random"], help="the strong one first")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.action == "report":
        report(options.out)
        return
    if options.data_root is None:
        parser.error("run needs --data-root")
    vars(options).update(TINY if options.tiny else FULL)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    quiet_lightning()
    work(options)


if __name__ == "__main__":
    main()
