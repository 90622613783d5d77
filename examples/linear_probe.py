"""How good are the features of a checkpoint? Linear, few-label and kNN probes on cached features.

    python examples/linear_probe.py                                    # the network that comes with the package
    python examples/linear_probe.py --weights backbone.safetensors --backbone lightly:resnet-9 --width 0.25

The backbone runs once over the images; every probe then works on the features alone. For a run of `rela fit` the
command `rela probe runs/NAME` does the same. Here: digits, and an untrained network beside yours as the baseline.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from rela_lightning.data import DigitsData
from rela_lightning.demo import PRIOR_FILE
from rela_lightning.methods import build_backbone
from rela_lightning.probe import extract_features, few_label_evaluation, knn_predict, linear_evaluation


def probes(backbone: torch.nn.Module, data: DigitsData) -> dict[str, float]:
    """Top-1 accuracies in [0, 1] on the validation images."""
    (x, y), (test_x, test_y) = (extract_features(backbone, data.dataset(split, "probe")) for split in ("train", "val"))
    few = few_label_evaluation(x, y, test_x, test_y, labels_per_class=5, folds=5, seed=0)
    return {
        "linear": linear_evaluation(x, y, test_x, test_y, solver="lbfgs", standardise=True)["top1"],
        "few labels": few["top1_mean"],
        "kNN": float((knn_predict(x, y, test_x) == test_y).double().mean()),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=str(PRIOR_FILE), help="what `rela export` wrote, as safetensors")
    parser.add_argument("--backbone", default="lightly:resnet-9", help="a name for build_backbone")
    parser.add_argument("--width", type=float, default=0.25, help="for lightly's ResNets")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    options = {"width": args.width} if args.backbone.startswith("lightly:") else {}
    data = DigitsData()

    backbone, _ = build_backbone(args.backbone, **options)
    results = {"untrained": probes(backbone, data)}
    backbone.load_state_dict(load_file(args.weights), strict=True)
    results["trained"] = probes(backbone, data)
    for name, accuracy in results.items():
        print(f"{name:>10}", *(f"{probe} {100 * value:5.1f}" for probe, value in accuracy.items()), sep="   ")
    return results


if __name__ == "__main__":
    main()
