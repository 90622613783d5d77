"""How many directions the features of a prior fill (`TargetStore.directions`), by which the default knows weak priors.

    python benchmarks/directions.py --data-root CIFAR10 [--priors random digits fashion_mnist efficientnet_lite0]

Labels the training images of the convergence benchmark with each prior.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import header, write_result
from images import Images, load_splits
from journal import without_paths
from networks import prior_of

from rela_lightning import build_targets, load_prior
from rela_lightning.demo.prior import PRIOR_FILE, PRIOR_SETTINGS

PRIORS = ("random", "digits", "fashion_mnist", "efficientnet_lite0")
RESULTS = Path(__file__).parent / "results" / "directions.json"


def prior_named(name: str) -> Any:
    """A prior of the benchmarks, or the one of the demo, which learnt Fashion-MNIST."""
    return load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS) if name == "fashion_mnist" else prior_of(name)


def directions_of(prior: Any, images: Images) -> float:
    """What a store of the prior's targets says."""
    with tempfile.TemporaryDirectory() as folder:
        store = build_targets(prior, images.rows(range(len(images))), Path(folder) / "targets", batch_size=64)
        return round(float(store.directions), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--data", default="cifar10", choices=("cifar10", "fashion_mnist"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--priors", nargs="*", default=list(PRIORS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    train = load_splits(options.data, options.data_root, options.images).train
    head = header()
    head["command"] = without_paths(head["command"], {"DATA_ROOT": options.data_root})
    found = {name: directions_of(prior_named(name), train) for name in options.priors}
    for name, value in found.items():
        print(f"{name:20s} {value:8.2f}")
    write_result(options.results, head, {"data": options.data, "images": len(train), "directions": found})


if __name__ == "__main__":
    main()
