"""Step time of BYOL, of BYOL with the mixed loss, of the transport phase and after the switch, as ratios.

All variants run in one process, in turn, on views that are in memory, so that neither data loading nor the
machine's mood decides. A step is the whole Lightning loop: hooks, logging, forward, backward, optimizer.

    python benchmarks/overhead.py [--steps 20] [--rounds 5] [--batch-size 64] [--backbone resnet18]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from common import header, quiet_lightning, write_result
from torch.utils.data import DataLoader, Dataset

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.methods import BYOL
from rela_lightning.schedules import Mix, Schedule, TransportOnly, Weights


class Off(Schedule):
    """As after the switch."""

    def weights(self, progress: float) -> Weights:
        """SSL alone."""
        return Weights(1.0, 0.0)


VARIANTS = {"byol": None, "byol+rela mixed": Mix(), "byol+rela transport": TransportOnly(), "byol+rela after": Off()}


class Views(Dataset):
    """Two fixed views of random images."""

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.images.shape[1]

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        return [self.images[0, index], self.images[1, index]], 0


class Raw(Dataset):
    """The first view as a uint8 image, for labelling."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.views.images[0, index] * 255).to(torch.uint8)


class Clock(L.Callback):
    """Seconds per step, the first ones left out."""

    def __init__(self, skip: int) -> None:
        self.skip = skip

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.skip:
            self.start = time.perf_counter()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = (time.perf_counter() - self.start) / (trainer.global_step - self.skip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args()
    quiet_lightning()
    warnings.filterwarnings("ignore")
    skip, views = 3, Views(options.batch_size * 4, options.size)
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        prior = load_prior(
            "random:lightly:resnet-9", width=0.25, image_size=options.size, mean=[0.5] * 3, std=[0.5] * 3, seed=0
        )
        build_targets(prior, Raw(views), Path(folder) / "targets")
        for _ in range(options.rounds):
            for name, schedule in VARIANTS.items():
                torch.manual_seed(0)
                clock = Clock(skip)
                callbacks: list[Any] = [clock]
                if schedule is not None:
                    callbacks.append(
                        ReLACallback(Path(folder) / "targets", schedule=schedule, transform=None, verify_targets=0)
                    )
                trainer = L.Trainer(
                    max_steps=options.steps + skip, max_epochs=-1, callbacks=callbacks, logger=False, devices=1,
                    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                )  # fmt: skip
                trainer.fit(BYOL(options.backbone, cifar_stem=True), DataLoader(views, options.batch_size))
                times[name].append(clock.seconds)
    ratios = {name: [a / b for a, b in zip(values, times["byol"], strict=True)] for name, values in times.items()}
    result = {
        "seconds_per_step_median": {name: statistics.median(values) for name, values in times.items()},
        "ratio_to_byol_median": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_to_byol_all_rounds": ratios,
        "settings": {key: str(value) for key, value in vars(options).items() if key != "out"},
    }
    write_result(options.out, header(seeds=[0]), result)
    for name, ratio in result["ratio_to_byol_median"].items():
        print(f"{name:22s} {result['seconds_per_step_median'][name] * 1e3:8.1f} ms   {ratio:.3f} of byol")


if __name__ == "__main__":
    main()
