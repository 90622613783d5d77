"""How much of a prior's neighbourhoods its targets keep, by the number of images and the standardisation.

    python benchmarks/target_columns.py --data-root DIR [--features DIR] [--priors ...] [--data ...] [--images ...]

`DIR` holds CIFAR-10 as an image folder (`train/<class>/*.jpg`) and Fashion-MNIST in torchvision's layout. The features
of each prior are embedded once, and kept in `--features` where it is given. Targets are then learnt from N images for
each N, again and again from other images where N is small. The score is the share of images whose nearest other image
among the N, by the cosine of the targets, has the same label: in all columns, and in the first 128, which are all that
a student of 128 features reads. Ten classes: chance is 10%. One line a run goes to `results/target_columns.jsonl`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from journal import Journal
from networks import prior_of
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST, ImageFolder

from rela_lightning.targets.label_view import DrawnCrops, LabelView, embed
from rela_lightning.targets.reduce import (
    STANDARDISATIONS,
    Projection,
    moments,
    pca,
    project,
    projection,
    rank_tolerance,
)

PRIORS = ("efficientnet_lite0", "random", "digits")
DATA = ("cifar10", "fashion_mnist")
IMAGES = (100, 300, 500, 1000, 1500, 2000, 3000, 5000, 10000, 50000)
NARROW = 128
SEED = 0  # of the order of the images; each subset is a stretch of it


def images_of(name: str, root: Path) -> tuple[Any, np.ndarray]:
    """Training images and their labels int64 `[N]`."""
    if name == "cifar10":
        folder = ImageFolder(root / "train")
        return folder, np.array(folder.targets)
    fashion = FashionMNIST(root, train=True)
    return fashion, fashion.targets.numpy()


def features_of(prior_name: str, data: str, root: Path, most: int, kept: Path | None) -> tuple[Tensor, Tensor]:
    """Features float32 `[most, F]` and labels of the images, in a shuffled order."""
    images, labels = images_of(data, root)
    order = np.random.default_rng(SEED).permutation(len(labels))[:most]
    file = kept / f"{data}-{prior_name}-{len(order)}.npy" if kept else None
    if file is None or not file.exists():
        prior = prior_of(prior_name)
        view = LabelView(images, prior.preprocess, order, DrawnCrops(0))
        rows = torch.cat([embed(prior, item.images)[:, 0] for item in DataLoader(view, batch_size=64)])
        if file is None:
            return rows, torch.from_numpy(labels[order])
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, rows.numpy())
    return torch.from_numpy(np.load(file)), torch.from_numpy(labels[order])


def targets_of(features: Tensor) -> dict[str, Tensor]:
    """Float32 targets `[N, D]` of features `[N, F]`, by the name of the standardisation."""
    rows = features.double() - features.double().mean(dim=0)
    width = rows.shape[1]
    shrinkage = float(ledoit_wolf_shrinkage(rows.numpy(), assume_centered=True))
    unused = max(0, width - len(rows))
    if unused:  # the same PCA in the span of the rows, which is smaller, and zeros
        rows = torch.linalg.qr(rows.T).R.T
    full = pca(moments(rows), rtol=rank_tolerance(width))
    rows, mean = F.pad(rows, (0, unused)), F.pad(full.mean, (0, unused))
    full = full._replace(mean=mean, components=F.pad(full.components, (0, 0, 0, unused)))
    level = full.total / width
    linear = full._replace(variance=(1 - shrinkage) * full.variance + shrinkage * level)
    made: dict[str, Projection] = {name: projection(full, name) for name in STANDARDISATIONS if name != "none"}
    made["ledoit_wolf"] = projection(linear, "per_dim")
    return {name: project(rows, by).float() for name, by in made.items()}


def agreeing(targets: Tensor, labels: Tensor, queries: Tensor) -> int:
    """How many of the queries have the label of their nearest other row, by cosine."""
    unit, count = F.normalize(targets, dim=1), 0
    for some in queries.split(500):
        similar = unit[some] @ unit.T
        similar[torch.arange(len(some)), some] = -2.0
        count += int((labels[similar.argmax(dim=1)] == labels[some]).sum())
    return count


def measure(features: Tensor, labels: Tensor, images: int, queries: int) -> dict[str, Any]:
    """Agreement in percent by standardisation, for all columns and for the first 128."""
    started = time.perf_counter()
    subsets = max(1, min(len(features) // images, -(-queries // images)))
    hits: dict[str, dict[str, int]] = {}
    asked = 0
    for number in range(subsets):
        part = slice(number * images, (number + 1) * images)
        chosen = torch.randperm(images, generator=torch.Generator().manual_seed(number))[:queries]
        asked += len(chosen)
        for name, targets in targets_of(features[part]).items():
            of = hits.setdefault(name, {"all": 0, str(NARROW): 0})
            for key, columns in (("all", targets), (str(NARROW), targets[:, :NARROW])):
                of[key] += agreeing(columns, labels[part], chosen)
    agreement = {name: {key: round(100 * n / asked, 2) for key, n in of.items()} for name, of in hits.items()}
    return {
        "subsets": subsets, "queries": asked, "agreement": agreement, "seconds": round(time.perf_counter() - started, 1)
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each prior, data set and number of images."""
    names = list(rows[0]["agreement"])
    lines = ["| prior | data | images | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row in sorted(rows, key=lambda r: (r["prior"], r["data"], r["images"])):
        cells = [f"{row['agreement'][n]['all']:.1f} / {row['agreement'][n][str(NARROW)]:.1f}" for n in names]
        lines.append(f"| {row['prior']} | {row['data']} | {row['images']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the journal yet; print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="folder to keep features in")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=PRIORS)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--images", nargs="+", type=int, default=IMAGES)
    parser.add_argument("--queries", type=int, default=4000, help="images whose neighbours are looked at, at least")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "target_columns.jsonl")
    options = parser.parse_args()
    private = {"DATA_ROOT": options.data_root, "FEATURES": options.features, "OUT": options.out}
    journal = Journal(options.out, ("prior", "data", "images"), {k: v for k, v in private.items() if v})
    for prior in options.priors:
        for data in options.data:
            runs = [{"prior": prior, "data": data, "images": n, "seed": SEED} for n in options.images]
            runs = [run for run in runs if not journal.has(run)]
            if runs:
                features, labels = features_of(prior, data, options.data_root, max(IMAGES), options.features)
            for run in runs:
                journal.append({**run, **measure(features, labels, run["images"], options.queries)})
                print(run, flush=True)
    print(table(journal.rows()))


if __name__ == "__main__":
    main()
