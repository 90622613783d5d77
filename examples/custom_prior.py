"""Any nn.Module can be a prior, and several priors can be one: the callback only sees targets.

    python examples/custom_prior.py --epochs 20

The prior here was never trained: the directions of edges in each cell of a grid, written by hand. It is fused with the
network that comes with the package (trained on Fashion-MNIST); both are measured by themselves first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning.pytorch as L
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from rela_lightning import KNNProbe, ReLACallback, build_targets, load_prior
from rela_lightning.data import DigitsData
from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.methods import BYOL
from rela_lightning.probe import extract_features, knn_predict


class EdgeHistograms(nn.Module):
    """Strength of edges by direction, averaged over a grid of cells: images `[B, 3, H, W]` to `[B, bins * cells²]`.

    A prior is a network without a head: float images in, features `[B, F]` (or a feature map, or tokens) out.
    """

    def __init__(self, bins: int = 8, cells: int = 4) -> None:
        super().__init__()
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 4
        self.register_buffer("kernels", torch.stack([sobel, sobel.T]).unsqueeze(1))
        self.register_buffer("directions", torch.arange(bins) * (2 * torch.pi / bins))
        self.cells = cells

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images."""
        dx, dy = conv2d(images.mean(1, keepdim=True), self.kernels, padding=1).split(1, dim=1)
        votes = dx * self.directions.cos()[:, None, None] + dy * self.directions.sin()[:, None, None]
        return adaptive_avg_pool2d(votes.relu(), self.cells).flatten(1)


def alone(prior: nn.Module, data: DigitsData) -> float:
    """Accuracy by nearest neighbours of a prior itself, its images through its own preprocessing."""
    sets = [data.dataset(split) for split in ("train", "val")]
    for images in sets:
        images.transform = prior.preprocess
    (x, y), (test_x, test_y) = (extract_features(prior, images) for images in sets)
    return float((knn_predict(x, y, test_x) == test_y).double().mean())


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--targets", default="targets/digits-fused")
    args = parser.parse_args(argv)
    L.seed_everything(0)
    data = DigitsData(batch_size=64)

    edges = load_prior(EdgeHistograms(), image_size=32, mean=0.0, std=1.0)  # a bare module: say how it sees images
    trained = load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)
    fused = load_prior([edges, trained])  # features side by side
    results = {"edges": alone(edges, data), "trained": alone(trained, data)}
    store = build_targets(fused, data.dataset("train"), args.targets)
    results["columns"] = float(store.dim)

    model = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.25})
    callbacks = [KNNProbe(), ReLACallback(args.targets, transform=None)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=args.epochs, callbacks=callbacks, num_sanity_val_steps=0, **quiet)
    trainer.fit(model, datamodule=data)
    results["byol"] = float(trainer.callback_metrics["knn/top1"])
    print({name: round(value, 4) for name, value in results.items()})
    return results


if __name__ == "__main__":
    main()
