"""lightly's BYOL in either Lightning, with ReLA: a module of your own needs no change, only the callback.

    python examples/lightly_byol.py --epochs 20
    python examples/lightly_byol.py --epochs 20 --namespace pytorch_lightning

The module below is written on lightly's public parts and knows nothing of ReLA. `--no-rela` trains it alone.
"""

from __future__ import annotations

import argparse
import copy
import importlib
from collections.abc import Sequence

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models import ResNetGenerator
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from torch import nn
from torch.utils.data import DataLoader

from rela_lightning import KNNProbe, ReLACallback, build_targets, load_prior
from rela_lightning.data import Digits, probe_view
from rela_lightning.schedules import Switch

STATS = {"mean": [0.305] * 3, "std": [0.323] * 3}


def byol_class(pl):
    """BYOL as a LightningModule of the package `pl`."""

    class BYOL(pl.LightningModule):
        def __init__(self):
            super().__init__()
            layers = list(ResNetGenerator("resnet-9", width=0.25).children())[:-1]
            self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.projection_head = BYOLProjectionHead(128, 256, 64)
            self.prediction_head = BYOLPredictionHead(64, 256, 64)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)
            self.criterion = NegativeCosineSimilarity()

        def predict(self, x):
            return self.prediction_head(self.projection_head(self.backbone(x)))

        @torch.no_grad()
        def teach(self, x):
            return self.projection_head_momentum(self.backbone_momentum(x))

        def training_step(self, batch, batch_idx):
            update_momentum(self.backbone, self.backbone_momentum, m=0.99)
            update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)
            (x0, x1), _ = batch
            loss = self.criterion(self.predict(x0), self.teach(x1)) + self.criterion(self.predict(x1), self.teach(x0))
            self.log("train_loss", loss / 2)
            return loss / 2

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    return BYOL


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespace", choices=("lightning.pytorch", "pytorch_lightning"), default="lightning.pytorch")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--targets", default="targets/digits-random")
    parser.add_argument("--no-rela", action="store_true")
    args = parser.parse_args(argv)
    pl = importlib.import_module(args.namespace)
    pl.seed_everything(0)

    view = {"input_size": 32, "hf_prob": 0.0, "gaussian_blur": 0.0, "normalize": STATS}
    images = Digits("train", transform=BYOLTransform(BYOLView1Transform(**view), BYOLView2Transform(**view)))
    train = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
    plain = probe_view(32, **STATS)
    validation = [DataLoader(Digits(split, transform=plain), batch_size=256) for split in ("train", "test")]

    callbacks = [KNNProbe(backbone="backbone")]
    if not args.no_rela:
        prior = load_prior("random:lightly:resnet-9", width=0.25, image_size=32, **STATS)
        build_targets(prior, images, args.targets)
        callbacks.append(ReLACallback(args.targets, schedule=Switch(0.5), transform=None))  # None: no mirrored digits
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=args.epochs, callbacks=callbacks, num_sanity_val_steps=0, **quiet)
    trainer.fit(byol_class(pl)(), train, validation)
    results = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
    print(results)
    return results


if __name__ == "__main__":
    main()
