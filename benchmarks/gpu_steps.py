"""Part of gpu.py: the time and memory of a step on views that are on the device already, no data loading."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from overhead import VARIANTS
from speed import MODES, Meter, Mode, Seconds, Window, bare, build, free_memory, small_prior, summary, trainer_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rela_lightning import ReLACallback, build_targets

BARE = {
    "bare, two views and teacher": {"views": 2, "teacher": True},  # the backbone's part of `alone`
    "bare, one view": {"views": 1, "teacher": False},  # and of `transport, one view`
}
"""The network alone, for what a step could take at best."""


class Repeated(Dataset):
    """A few items over and over, so that many rows need little memory.

    Args:
        items: The items.
        length: Rows.
    """

    def __init__(self, items: Any, length: int) -> None:
        self.items, self.length = items, length

    def __len__(self) -> int:
        """Number of rows."""
        return self.length

    def __getitem__(self, index: int) -> Any:
        """Row `index`."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.items[index % len(self.items)]


def random_images(count: int, size: int) -> list[Tensor]:
    """Uint8 images `[3, size, size]`, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator))


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Every variant in a mode, in turn; ratios are to BYOL alone."""
    mode, targets = MODES[name], Path(options.folder) / "targets-of-steps"
    rows = options.batch_size * (options.warmup + options.steps)
    first, second = torch.rand(2, options.batch_size, 3, options.size, options.size, device=options.device)
    views = Repeated([([a, b], 0) for a, b in zip(first, second, strict=True)], rows)
    if not targets.exists():
        build_targets(small_prior(), random_images(rows, 32), targets)
    found: dict[str, list[Seconds]] = {variant: [] for variant in (*VARIANTS, *BARE)}
    for _, variant in itertools.product(range(options.rounds), found):
        if variant in BARE:
            found[variant].append(bare(options, mode, **BARE[variant]))
        else:
            found[variant].append(one_run(options, mode, VARIANTS[variant], views, targets))
    return {variant: summary(each, found["alone"], options.batch_size) for variant, each in found.items()}


def one_run(
    options: argparse.Namespace, mode: Mode, variant: dict[str, Any] | None, views: Dataset, targets: Path
) -> Seconds:
    """A step, and the peak without the images."""
    held, meter = free_memory(options), Meter(options.device)
    callbacks: list[L.Callback] = [Window(meter, options.warmup, options.steps)]
    if variant is not None:
        callbacks.append(ReLACallback(targets, transform=None, verify_targets=0, **variant))
    trainer = trainer_of(options, mode.precision, *callbacks, max_steps=options.warmup + options.steps, max_epochs=-1)
    trainer.fit(build(options, mode), DataLoader(views, options.batch_size))
    return meter.each(options.steps, held)


def lines(table: dict[str, Any]) -> list[str]:
    """A line for each variant."""
    return [
        f"{variant:30s} {1e3 * row['seconds_per_step']:8.1f} ms  {row['ratio']:.3f} of alone"
        + ("" if row["peak_mib"] is None else f"  {row['peak_mib']:8.0f} MiB")
        for variant, row in table.items()
    ]
