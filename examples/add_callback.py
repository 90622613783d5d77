"""ReLA in an ordinary Lightning script: the three lines marked `# ReLA` are all that was added.

    python examples/add_callback.py --epochs 20

BYOL on scikit-learn's handwritten digits, a kNN probe after every epoch and a linear probe at the end. Leave the
three lines out, and the script is what it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from rela_lightning import KNNProbe, LinearProbe, ReLACallback, build_targets, load_prior
from rela_lightning.data import Digits
from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.methods import BYOL

TO_TENSOR = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
PLAIN = v2.Compose(TO_TENSOR)
AUGMENTED = v2.Compose([v2.RandomResizedCrop(32, scale=(0.6, 1.0)), v2.RandomAffine(15, shear=10), *TO_TENSOR])


def two_views(image):
    return [AUGMENTED(image), AUGMENTED(image)]


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--probe-epochs", type=int, default=50)
    parser.add_argument("--targets", default="targets/digits", help="folder for the cached targets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    L.seed_everything(args.seed)

    images = Digits("train", transform=two_views)
    train = DataLoader(images, batch_size=32, shuffle=True, drop_last=True)
    bank = DataLoader(Digits("train", transform=PLAIN), batch_size=256)
    queries = DataLoader(Digits("test", transform=PLAIN), batch_size=256)
    model = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.25})

    prior = load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)  # ReLA: any pre-trained network
    build_targets(prior, images, args.targets)  # ReLA: once; the next call finds them

    quiet = {"logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        max_epochs=args.epochs,
        callbacks=[
            KNNProbe(),
            ReLACallback(args.targets, transform=None),  # ReLA: None keeps our own views
        ],
        **quiet,
    )
    trainer.fit(model, train, [bank, queries])
    results = {"knn/top1": float(trainer.callback_metrics["knn/top1"])}

    probe = LinearProbe(model.backbone, num_classes=10, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))
    trainer = L.Trainer(max_epochs=args.probe_epochs, **quiet)
    trainer.fit(probe, bank)
    results["probe/top1"] = trainer.test(probe, queries, verbose=False)[0]["probe/top1"]
    print({name: round(value, 4) for name, value in results.items()})
    return results


if __name__ == "__main__":
    main()
