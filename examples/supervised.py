"""A supervised run with ReLA: transport for the first quarter of the steps, cross-entropy from then on.

    python examples/supervised.py --epochs 10
    python examples/supervised.py --epochs 10 --no-rela

Both start from the same weights and see the same images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning.pytorch as L

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.data import DigitsData
from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.methods import Supervised
from rela_lightning.schedules import Switch


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--switch-at", type=float, default=0.25, help="share of the budget given to transport")
    parser.add_argument("--targets", default="targets/digits")
    parser.add_argument("--no-rela", action="store_true")
    args = parser.parse_args(argv)
    L.seed_everything(0)

    data = DigitsData(batch_size=64)
    model = Supervised("lightly:resnet-9", num_classes=data.num_classes, backbone_kwargs={"width": 0.25})
    callbacks = []
    if not args.no_rela:
        build_targets(load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS), data.dataset("train"), args.targets)
        callbacks = [ReLACallback(args.targets, schedule=Switch(args.switch_at), transform=None)]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=args.epochs, callbacks=callbacks, num_sanity_val_steps=0, **quiet)
    trainer.fit(model, datamodule=data)
    results = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
    print(results)
    return results


if __name__ == "__main__":
    main()
