"""Part of gpu.py: epochs of CIFAR-10's size, data loading included, with the images and their views on the device.

A ResNet-18 with CIFAR's stem at 32 px, views by `device_views`, BYOL alone and its transport phase on one view, each
beside its network's bare forward and backward on a batch that stays on the device. 200 epochs are counted from the
rate.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from device_views import PieceData, pieces_of_photographs, step_seconds
from gpu_steps import BARE
from speed import MODES, Seconds, bare, small_prior, summary

from rela_lightning import build_targets

KINDS = {"byol": "bare, two views and teacher", "transport, one view": "bare, one view"}
"""Each kind of step, and the bare step beside it."""
CIFAR10 = 50_000


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Rates in a mode; the ratio is to the bare step of the same round."""
    own = argparse.Namespace(**{**vars(options), "size": 32, **options.epochs})
    pieces, targets = pieces_of_photographs(own.epoch_images, own.size), Path(options.folder) / "targets-of-epochs"
    if not targets.exists():
        build_targets(small_prior(), PieceData(pieces).dataset("train"), targets, num_workers=own.workers)
    found: dict[str, list[tuple[Seconds, Seconds]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, beside in KINDS.items():
            image = step_seconds(own, MODES[name], pieces, targets, kind, on_device=True)
            step = Seconds(image.wall * own.batch_size, image.processor * own.batch_size, image.bytes)
            found[kind].append((step, bare(own, MODES[name], **BARE[beside])))
    table = {}
    for kind, rounds in found.items():
        steps, bares = zip(*rounds, strict=True)
        table[kind] = summary(steps, bares, own.batch_size)
        table[kind]["share_of_bare"] = 1 / table[kind]["ratio"]
        table[kind]["minutes_for_200_epochs"] = 200 * CIFAR10 / table[kind]["images_per_second"] / 60
    return table


def lines(table: dict[str, Any]) -> list[str]:
    """A line for each kind of step."""
    return [
        f"{kind:22s} {row['images_per_second']:9.1f} images/s  {row['share_of_bare']:.3f} of bare  "
        f"200 epochs of CIFAR-10 {row['minutes_for_200_epochs']:.1f} min"
        for kind, row in table.items()
    ]
