"""What a step and a label cost, and how many steps fit in the time of others."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from common import header
from convergence import now, private_paths, quiet
from images import load_splits
from journal import without_paths
from transport_store import Labelled, embed

FILE = "transport_costs.json"
TIMED = ("k0", "k8", "nearest8", "blend8", "online", "online_jitter")
"""Views with steps of their own cost; the number of crops makes no difference."""


def calibrate(options: argparse.Namespace, results: Path, rounds: int = 6) -> None:
    """Seconds of a step by view and of a label, all in turn, so that a busy machine is busy for all of them."""
    from transport_train import Phase

    train = load_splits(options.data, options.data_root, options.images).train
    known = json.loads((results / FILE).read_text()) if (results / FILE).exists() else {}
    for prior in options.priors:
        labelled = Labelled(options.data_root, options.data, train, prior)
        few = slice(0, 128)
        for batch in options.batches:
            job = {"loss": "cosine", "kind": "per_dim", "batch": batch, "lr": options.lr, "resolution": 32, "seed": 0}
            phases = {view: Phase({**job, "view": view}, labelled) for view in TIMED}
            seconds: dict[str, list[float]] = {name: [] for name in (*TIMED, "whole", "crop")}
            for _ in range(rounds):
                for view, phase in phases.items():
                    for _ in range(4):
                        begun = now()
                        phase.step(0.0, 1.0)
                        seconds[view].append(now() - begun)
                for name, view in (("whole", 0), ("crop", 1)):
                    begun = now()
                    embed(labelled.network, labelled.images[few], labelled.boxes(view)[few])
                    seconds[name].append((now() - begun) / 128)
            table = {name: quiet(values) for name, values in seconds.items()}
            known[f"{options.data}/{prior}/{batch}"] = table
            print(prior, batch, table, flush=True)
    head = header()
    head["command"] = without_paths(head["command"], private_paths(options))
    (results / FILE).write_text(json.dumps({**known, "made": head}, indent=2) + "\n")


def steps_of(job: dict[str, Any], results: Path) -> int:
    """Steps of a run: those asked for, or as many as fit in the time of `k0` at these, labelling counted."""
    if not job["counted"]:
        return int(job["steps"])
    cost = json.loads((results / FILE).read_text())[f"{job['data']}/{job['prior']}/{job['batch']}"]
    way, crops = re.fullmatch(r"([a-z_]+?)(\d*)", job["view"]).groups()  # type: ignore[union-attr]
    whole, crops = job["images"] * cost["whole"], int(crops or 0)
    budget = job["steps"] * cost["k0"] + whole
    if way.startswith("online"):
        return round(budget / cost[way])
    name = "k0" if crops == 0 else "blend8" if way == "mean" else f"{way}8"
    return max(1, round((budget - whole - crops * job["images"] * cost["crop"]) / cost[name]))
