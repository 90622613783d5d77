"""What the user's own crops meet in a mixed phase, where targets have several views: the whole image's, or the mean's.

    python benchmarks/mixed_targets.py --data-root DIR [--steps 1000] [--seeds 0 1 2] [--views 8]

BYOL with `Mix(1.0)` for a fixed number of steps on CIFAR-10 (JPEG), 10,000 images, ResNet-9 of width .25, and
EfficientNet-Lite0 as the prior; settings as tuned for BYOL alone; linear and kNN accuracy on validation images.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import quiet_lightning
from convergence import RESULTS, accuracy, settings_of
from images import SSLViews, load_splits
from journal import Journal
from networks import build, fit, prior_of

from rela_lightning import ReLACallback, build_targets
from rela_lightning.schedules import Mix
from rela_lightning.targets.lookup import TargetLookup

KEY = ("meets", "views", "steps", "seed", "images")


def of_whole_images(lookup: TargetLookup, rows: np.ndarray) -> np.ndarray:
    """Targets `[B, 1, D]`: those of whole images."""
    return lookup.store.read(rows, np.zeros((len(rows), 1), np.int64)).targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    quiet_lightning()
    torch.set_num_threads(1)
    splits = load_splits("cifar10", options.data_root, options.images)
    path = options.data_root / f".targets-cifar10-{options.images}-efficientnet_lite0-views{options.views}"
    prior, train = prior_of("efficientnet_lite0"), splits.train
    build_targets(prior, train.rows(range(len(train))), path, views=options.views, batch_size=64)
    settings = settings_of("byol", "cifar10")
    journal = Journal(RESULTS / "mixed_targets.jsonl", KEY, {"DATA_ROOT": options.data_root})
    for seed in options.seeds:
        for meets in ("whole", "mean"):
            job: dict[str, Any] = {name: getattr(options, name) for name in ("views", "steps", "images")}
            job |= {"meets": meets, "seed": seed}
            if journal.has(job):
                continue
            own = of_whole_images if meets == "whole" else TargetLookup.of_images
            with mock.patch.object(TargetLookup, "of_images", own):
                module = build("byol", settings, seed)
                data = train.rows(range(len(train)), SSLViews(2))
                fit(module, data, settings, seed, ReLACallback(path, schedule=Mix(1.0)), max_steps=options.steps)
            row = {**job, **accuracy(module, splits.train, splits.validation)}
            journal.append(row)
            print(row, flush=True)
    rows = [r for r in journal.rows() if (r["views"], r["steps"]) == (options.views, options.steps)]
    for measure in ("linear_top1", "knn_top1"):
        by_seed = {m: {r["seed"]: r[measure] for r in rows if r["meets"] == m} for m in ("whole", "mean")}
        both = by_seed["whole"].keys() & by_seed["mean"].keys()
        gains = [100 * (by_seed["mean"][seed] - by_seed["whole"][seed]) for seed in sorted(both)]
        print(measure, "mean minus whole:", [round(g, 2) for g in gains], round(statistics.mean(gains), 2))


if __name__ == "__main__":
    main()
