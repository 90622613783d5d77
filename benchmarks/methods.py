"""Every method from the same start, plain and with ReLACallback, for the same number of steps.

    python benchmarks/methods.py run --data-root DIR [--shard 0/2]   # Fashion-MNIST in torchvision's layout
    python benchmarks/methods.py run --data-root DIR --schedule default  # ReLACallback's own schedule
    python benchmarks/methods.py table                               # into docs/methods_benchmark.md

All methods share one backbone, one optimizer and one batch size, fixed beforehand and tuned for none of them, so
rows compare a method with itself, not methods with each other. Runs that are in the results file already are left
out: interrupt and repeat as you like.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from common import quiet_lightning
from convergence import accuracy, targets_of
from curves import shown
from images import Splits, SSLViews, load_splits
from journal import Journal
from networks import BACKBONE, fit
from report import cell
from targets import now, since
from torchvision.transforms import v2
from variants import schedule_in_words

from rela_lightning import ReLACallback, TargetStore, methods
from rela_lightning.schedules import Plateau, Schedule, Switch

ROOT = Path(__file__).resolve().parents[1]
KEY = ("method", "variant", "seed", "data", "images", "steps", "prior", "settings")
VARIANTS = ("start", "plain", "rela")
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "switch": functools.partial(Switch, 0.4),  # a fixed share for both parts: each method's own step is run too
    "default": Plateau,  # what ReLACallback(targets) does
}
OPTIMIZER = {"lr": 1e-3, "weight_decay": 1e-2}  # AdamW at a constant rate, for all
BATCH_SIZE = 64
SMALL_CROPS = (0.1, 0.4)  # share of the image; enlarged to 32 pixels, the one size this backbone takes


class Entry(NamedTuple):
    """A method's class, its options and whether it sees small crops.

    Heads are at most 512 wide, as the backbone has 128 features; queue and prototypes suit 5,000 images in 10
    classes; nothing is frozen for an epoch, which would be half of the run. The rest are the class's defaults.
    """

    name: str
    options: dict[str, Any]
    multi_crop: bool = False


METHODS = {
    "byol": Entry("BYOL", {}),
    "dino": Entry(
        "DINO", {"output_dim": 1024, "hidden_dim": 512, "bottleneck_dim": 128, "freeze_last_layer": 0}, multi_crop=True
    ),
    "simclr": Entry("SimCLR", {}),
    "moco_v2": Entry("MoCoV2", {"hidden_dim": 512, "queue_size": 1024}),
    "moco_v3": Entry("MoCoV3", {"hidden_dim": 512}),
    "simsiam": Entry("SimSiam", {"projector_dim": 512, "hidden_dim": 128}),
    "barlow_twins": Entry("BarlowTwins", {"projector_dim": 512}),
    "vicreg": Entry("VICReg", {"projector_dim": 512}),
    "swav": Entry("SwAV", {"hidden_dim": 512, "num_prototypes": 100, "freeze_prototypes": 0}, multi_crop=True),
    "supervised": Entry("Supervised", {"num_classes": 10}),
}


class Crops:
    """Two large views as every method sees them, and two of small parts of the image."""

    def __init__(self) -> None:
        self.large, self.small = SSLViews(2), SSLViews(2)
        self.small.view.transforms[0] = v2.RandomResizedCrop(32, scale=SMALL_CROPS, antialias=True)

    def __call__(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Four views of one image."""
        return [*self.large(image), *self.small(image)]


def views_of(method: str) -> Callable[[Any], Any]:
    """The training views of a method: one for the supervised, four for those with small crops, else two."""
    return Crops() if METHODS[method].multi_crop else SSLViews(1 if method == "supervised" else 2)


def build(method: str, seed: int) -> L.LightningModule:
    """The method, from seeded weights; the backbone's are the same for all."""
    torch.manual_seed(seed)
    entry = METHODS[method]
    optimizer = functools.partial(torch.optim.AdamW, **OPTIMIZER)
    module: L.LightningModule = getattr(methods, entry.name)(**BACKBONE, **entry.options, optimizer=optimizer)
    return module


def jobs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs asked for, all methods at the first seed first."""
    for seed, method, variant in itertools.product(options.seeds, options.methods, VARIANTS):
        settings = {**METHODS[method].options, **OPTIMIZER, "batch_size": BATCH_SIZE}
        rela = variant == "rela"
        yield {
            "method": method,
            "variant": variant,
            "seed": seed,
            "data": "fashion_mnist",
            "images": options.images,
            "steps": 0 if variant == "start" else options.steps,
            "prior": options.prior if rela else None,
            "settings": {**settings, "schedule": schedule_in_words(SCHEDULES[options.schedule]())}
            if rela
            else settings,
        }


def one_run(options: argparse.Namespace, job: dict[str, Any], splits: Splits) -> dict[str, Any]:
    """Train, or leave as it starts, and probe."""
    module, labelling = build(job["method"], job["seed"]), 0.0
    callbacks = []
    if job["variant"] == "rela":
        store = targets_of(options, splits.train, options.prior)
        labelling = TargetStore(store).manifest["labelling_seconds"]
        callbacks = [ReLACallback(store, schedule=SCHEDULES[options.schedule]())]
    begun = now()
    if job["steps"]:
        data = splits.train.rows(range(len(splits.train)), views_of(job["method"]))
        fit(module, data, {"batch_size": BATCH_SIZE}, job["seed"], *callbacks, max_steps=job["steps"])
    spent = since(begun)
    return {
        "processor_seconds": round(spent.cpu, 2),
        "wall_seconds": round(spent.wall, 2),
        "labelling_seconds": round(labelling, 2),
        **accuracy(module.to("cpu"), splits.train, splits.test),
    }


def run(options: argparse.Namespace) -> None:
    """Do the runs of this shard that nobody did before."""
    journal = Journal(options.results, KEY, {"DATA_ROOT": options.data_root, "RESULTS": options.results})
    shard, shards = options.shard
    waiting = [job for job in itertools.islice(jobs(options), shard, None, shards) if not journal.has(job)]
    splits = load_splits("fashion_mnist", options.data_root, options.images) if waiting else None
    for job in waiting:
        if splits is None or journal.has(job):
            continue
        result = one_run(options, job, splits)
        journal.append({**job, **result})
        print(*(job[name] for name in ("method", "variant", "seed")), result, flush=True)


Row = dict[str, Any]


def difference(rows: list[Row], key: str) -> str:
    """Mean of ReLA minus plain over the seeds that have both, in points, with its 95% interval."""
    by = {(row["variant"], row["seed"]): row[key] for row in rows}
    pairs = [100 * (by["rela", seed] - by["plain", seed]) for v, seed in by if v == "rela" and ("plain", seed) in by]
    if not pairs:
        return "–"
    return shown(pairs, "+.1f")


def accuracy_table(rows: list[Row], key: str, title: str) -> list[str]:
    """One line a method: start, plain, with ReLA and their difference."""
    lines = [f"| {title} | start | plain | + ReLA | ReLA − plain |", "|---|---:|---:|---:|---:|"]
    for method in [name for name in METHODS if any(row["method"] == name for row in rows)]:
        own = [row for row in rows if row["method"] == method]
        cells = [cell([row for row in own if row["variant"] == variant], key) for variant in VARIANTS]
        lines.append(f"| {METHODS[method].name} | {' | '.join(cells)} | {difference(own, key)} |")
    return [*lines, ""]


def cost_table(rows: list[Row]) -> list[str]:
    """Processor seconds of training, mean over seeds."""
    lines = ["| processor seconds | plain | + ReLA | ReLA / plain |", "|---|---:|---:|---:|"]
    for method, entry in METHODS.items():
        plain, rela = (
            [row["processor_seconds"] for row in rows if (row["method"], row["variant"]) == (method, variant)]
            for variant in ("plain", "rela")
        )
        if plain and rela:
            means = statistics.fmean(plain), statistics.fmean(rela)
            lines.append(f"| {entry.name} | {means[0]:.0f} | {means[1]:.0f} | {means[1] / means[0]:.2f} |")
    return [*lines, ""]


def tables(rows: list[Row]) -> list[str]:
    """Sections for each training set, length, prior and schedule found."""
    lines: list[str] = []
    rela = [row for row in rows if row["variant"] == "rela"]
    settings = sorted({
        (r["data"], r["images"], r["steps"], r["prior"], r["settings"]["schedule"]) for r in rela
    })  # fmt: skip
    for data, images, steps, prior, schedule in settings:
        alike = [row for row in rows if (row["data"], row["images"]) == (data, images) and row["steps"] in (0, steps)]
        group = [
            row
            for row in alike
            if row["variant"] != "rela" or (row["prior"], row["settings"]["schedule"]) == (prior, schedule)
        ]
        last = max(group, key=lambda row: row["date"])
        labelling = next(row["labelling_seconds"] for row in group if row["variant"] == "rela")
        lines += [
            f"### {data}, {images} images, {steps} steps, prior {prior}, {schedule}",
            "",
            f"{len(group)} runs, the last of {last['date']}, on {last['hardware']['cpu']}, {last['threads']} thread a "
            f"run, torch {last['versions']['torch']}, lightning {last['versions']['lightning']}. Top-1 on the test "
            "set in percent, mean ± 95% interval (Student's t) over the seeds, their number in brackets; the "
            "difference is taken seed by seed.",
            "",
            *accuracy_table(group, "knn_top1", "kNN"),
            *accuracy_table(group, "linear_top1", "linear"),
            f"Labelling took {labelling:.0f} s of wall-clock, once for all runs, and is not in these seconds:",
            "",
            *cost_table(group),
        ]
    return lines or ["No runs with ReLA yet.", ""]


def write_tables(options: argparse.Namespace) -> None:
    """Put the tables between the marks in the page."""
    rows = Journal(options.results, KEY, {}).rows()
    page = options.page.read_text()
    text = "\n".join(["<!-- tables -->", "", *tables(rows), "<!-- end of tables -->"])
    changed, count = re.subn(r"<!-- tables -->.*<!-- end of tables -->", lambda _: text, page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{options.page} needs the marks <!-- tables --> and <!-- end of tables -->, once.")
    options.page.write_text(changed)
    print(options.page)


def shard_of(text: str) -> tuple[int, int]:
    """`k/n` as numbers."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"a shard is k/n with k below n, such as 0/2, not {text!r}")
    return int(match[1]), int(match[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--data-root", type=Path, help="folder that holds FashionMNIST/raw")
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, default=156, help="of a run; 156 are two epochs of 5,000 images")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--prior", default="efficientnet_lite0", help="or random, or what load_prior takes")
    parser.add_argument("--schedule", choices=tuple(SCHEDULES), default="switch", help="of the runs with ReLA")
    parser.add_argument("--shard", type=shard_of, default=(0, 1), help="k/n: the k-th of n parts, from 0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "methods.jsonl")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "methods_benchmark.md")
    options = parser.parse_args()
    if options.action == "table":
        if not options.results.exists():
            parser.error(f"there are no results yet: {options.results} is missing; `run` writes it")
        write_tables(options)
        return
    if options.data_root is None or not (options.data_root / "FashionMNIST" / "raw").is_dir():
        parser.error(f"--data-root has to hold FashionMNIST/raw, in torchvision's layout; found {options.data_root}")
    if min(options.steps, options.images // BATCH_SIZE) < 1:
        parser.error(f"a run needs at least one step, and {BATCH_SIZE} images")
    options.data = "fashion_mnist"
    torch.set_num_threads(options.threads)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    run(options)


if __name__ == "__main__":
    main()
