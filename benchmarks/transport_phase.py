"""Crops, losses and targets of the transport phase alone, at a fixed number of steps.

    python benchmarks/transport_phase.py calibrate --data-root DIR            # once: seconds of a step and of a label
    python benchmarks/transport_phase.py agree --data-root DIR                # what stored views say of a free crop
    python benchmarks/transport_phase.py run --data-root DIR --views k0 k8 --losses cosine --steps 1000 --seeds 0 1 2
    python benchmarks/transport_phase.py plan --data-root DIR --length long   # the runs of the docs, in their order
    python benchmarks/transport_phase.py report                               # tables from the results

Views of a batch are made at once, in plain PyTorch and kornia, so that a step costs little more than the network.
Views: `k0` crops freely and pulls every crop to the target of the whole image; `k8` shows one of eight stored crops
and uses its target; `nearest8` crops freely and takes the target of the stored view (eight crops or the whole image)
that overlaps most, `blend8` a mean of theirs weighted by overlap, `mean8` their plain mean; `online` has the prior
embed the very crop, `online_jitter` the very view. A loss is a name, a sum as in `cosine+0.5*relational`, with an
option as in `contrastive@0.2`. With `--counted` a run gets the time of `k0` at its steps, its own labelling included.
Runs that are in the results already are left out. Settings are chosen on validation images; `--split test` probes the
networks that such runs have left beside the data.
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import Any

import torch
from convergence import private_paths
from images import load_splits
from journal import Journal
from transport_agreement import agree
from transport_costs import calibrate
from transport_plan import plan
from transport_report import report
from transport_store import KINDS, Labelled
from transport_train import train_and_probe

RESULTS = Path(__file__).parent / "results"
KEY = (
    "data",
    "images",
    "prior",
    "view",
    "loss",
    "kind",
    "batch",
    "lr",
    "steps",
    "counted",
    "resolution",
    "seed",
    "split",
)
"""What makes a run the same run."""
SHOWN = (*KEY[2:], "linear_top1", "knn_top1", "step_seconds")


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The runs asked for by options, or those of the plan."""
    if options.action == "plan":
        found = plan(options.length)
    else:
        names = ("seed", "steps", "batch", "prior", "kind", "loss", "view")
        values = (options.seeds, options.steps, options.batches, options.priors, options.kinds, options.losses)
        found = [dict(zip(names, some, strict=True)) for some in itertools.product(*values, options.views)]
    shared = {"lr": options.lr, "counted": options.counted, "resolution": options.resolution, "split": options.split}
    data = {"data": options.data, "images": options.images}
    return [{**shared, **job, **data} for job in found]


def work(options: argparse.Namespace) -> None:
    """Do the runs of this shard that nobody did before."""
    journal = Journal(RESULTS / "transport_phase.jsonl", KEY, private_paths(options))
    splits = load_splits(options.data, options.data_root, options.images)
    shard, shards = map(int, options.shard.split("/"))
    labelled: dict[str, Labelled] = {}
    for job in jobs(options)[shard::shards]:
        if journal.has(job):
            continue
        name = job["prior"]
        labelled.setdefault(name, Labelled(options.data_root, options.data, splits.train, name))
        row = {**job, **train_and_probe(job, labelled[name], splits, options.data_root, RESULTS)}
        journal.append(row)
        print({key: row[key] for key in SHOWN}, flush=True)


def a_view(text: str) -> str:
    """A view's name, checked."""
    if not re.fullmatch(r"k\d+|(nearest|blend|mean)[1-9]\d*|online(_jitter)?", text):
        raise argparse.ArgumentTypeError(f"{text}: k0, k8, nearest8, blend8, mean8, online or online_jitter")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("calibrate", "agree", "run", "plan", "report"))
    parser.add_argument("--data", choices=("cifar10", "fashion_mnist"), default="cifar10")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--priors", nargs="*", default=["efficientnet_lite0"])
    parser.add_argument("--views", nargs="*", type=a_view, default=["k0"])
    parser.add_argument("--losses", nargs="*", default=["cosine"])
    parser.add_argument("--kinds", nargs="*", choices=tuple(KINDS), default=["per_dim"])
    parser.add_argument("--batches", nargs="*", type=int, default=[64])
    parser.add_argument("--steps", nargs="*", type=int, default=[1000])
    parser.add_argument("--lr", type=float, default=4e-3, help="of the network; that of the map W is 1e-3")
    parser.add_argument("--resolution", type=int, default=32, help="of views, but for the last quarter of the steps")
    parser.add_argument("--counted", action="store_true", help="equal total time, labelling counted")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--length", choices=("short", "long"), default="short", help="of the runs of the plan")
    parser.add_argument("--shard", default="0/1")
    options = parser.parse_args()
    if options.action == "report":
        report(RESULTS / "transport_phase.jsonl")
        return
    if options.data_root is None:
        parser.error(f"{options.action} needs --data-root")
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    if options.action in ("calibrate", "agree"):
        (calibrate if options.action == "calibrate" else agree)(options, RESULTS)
        return
    work(options)


if __name__ == "__main__":
    main()
