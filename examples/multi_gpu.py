"""ReLA on several devices: the script is the one for a single device, the Trainer is told `strategy="ddp"`.

    python examples/multi_gpu.py --devices 8
    python examples/multi_gpu.py --devices 2 --accelerator cpu

DDP starts this script once for each device. Labelling is spread over them too, by the Trainer given to `build_targets`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning.pytorch as L
import torch

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.data import DigitsData
from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS
from rela_lightning.methods import BYOL


def fingerprint(module: torch.nn.Module) -> torch.Tensor:
    """Sum of all weights: equal on all devices as long as they train one model."""
    return torch.stack([parameter.detach().double().sum() for parameter in module.parameters()]).sum()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="on each device")
    parser.add_argument("--targets", default="targets/digits")
    args = parser.parse_args(argv)
    L.seed_everything(0)
    machine = {"devices": args.devices, "accelerator": args.accelerator, "strategy": "ddp", "precision": args.precision}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}

    data = DigitsData(batch_size=args.batch_size)
    prior = load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)
    labelling = L.Trainer(**machine, **quiet, enable_progress_bar=False)
    store = build_targets(prior, data.dataset("train"), args.targets, trainer=labelling)

    model = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.25})
    callback = ReLACallback(args.targets, transform=None)
    trainer = L.Trainer(max_epochs=args.epochs, callbacks=[callback], limit_val_batches=0, **machine, **quiet)
    trainer.fit(model, datamodule=data)
    everywhere = trainer.strategy.all_gather(fingerprint(model))
    if trainer.is_global_zero:
        print({
            "devices": trainer.world_size,
            "targets": len(store),
            "steps": trainer.global_step,
            "equal": bool((everywhere == everywhere.flatten()[0]).all()),
        })  # fmt: skip


if __name__ == "__main__":
    main()
