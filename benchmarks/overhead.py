r"""Step times of SSL methods alone, with the mixed loss, in the transport phase and after the switch, as ratios.

All variants of a method run in one process, in turn, on views that are in memory, so that neither data loading nor
the machine's mood decides. A step is the whole Lightning loop: hooks, logging, forward, backward, optimizer.

    python benchmarks/overhead.py [--methods BYOL DINO SwAV] [--steps 8] [--rounds 5] [--backbone resnet18]
    python benchmarks/overhead.py --methods Tiny --steps 600 --rounds 15 --size 8 --batch-size 2 --batches 300 \
        --variants "after the switch" --out benchmarks/results/overhead_tiny.json

`Tiny` is a module whose whole step takes a few milliseconds: what a step costs besides its arithmetic shows there. On a
busy machine times of so short steps scatter more than they differ; Python's function calls a step do not scatter.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
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

from rela_lightning import ReLACallback, build_targets, load_prior, methods
from rela_lightning.schedules import Mix, Schedule, TransportOnly, Weights


class Off(Schedule):
    """As after the switch."""

    def weights(self, progress: float) -> Weights:
        """SSL alone."""
        return Weights(1.0, 0.0)


class Tiny(L.LightningModule):
    """A method of two small layers.

    Args:
        backbone: Not used; images are of 8 pixels.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Flatten())
        self.head = torch.nn.Linear(128, 16)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Two views agree."""
        first, second = (self.head(self.backbone(view)) for view in batch[0])
        return -torch.nn.functional.cosine_similarity(first, second).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


VARIANTS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "alone, with a callback that does nothing": None,
    "mixed": {"schedule": Mix()},
    "transport, two views": {"schedule": TransportOnly()},
    "transport, one view": {"schedule": TransportOnly(), "num_views": 1},
    "after the switch": {"schedule": Off()},
}


class Views(Dataset):
    """Two fixed views of random images."""

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        """Number of images."""
        return self.images.shape[1]

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], int]:
        """Two views and a label."""
        return [self.images[0, index], self.images[1, index]], 0


class Raw(Dataset):
    """The first view as a uint8 image, for labelling."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        """Number of images."""
        return len(self.views)

    def __getitem__(self, index: int) -> torch.Tensor:
        """An image."""
        return (self.views.images[0, index] * 255).to(torch.uint8)


class Clock(L.Callback):
    """Seconds from the end of a step to the end of the next, and Python's calls meanwhile; the first ones left out."""

    def __init__(self, skip: int, profile: cProfile.Profile | None = None) -> None:
        self.skip, self.times, self.last, self.profile = skip, [], 0.0, profile

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        """Note the step's end."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if trainer.global_step > self.skip:
            self.times.append(now - self.last)
        elif trainer.global_step == self.skip and self.profile is not None:
            self.profile.enable()
        self.last = now

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """The last step is over."""
        if self.profile is not None:
            self.profile.disable()


def run(
    options: argparse.Namespace, method: str, variant: str, views: Views, targets: Path, *, counted: bool = False
) -> dict[str, float]:
    """Seconds a step, and the bytes of the map and its optimizer; calls a step, if they are counted."""
    torch.manual_seed(0)
    clock, callback, extra = Clock(options.skip, cProfile.Profile() if counted else None), None, []
    if VARIANTS[variant] is not None:
        callback = ReLACallback(targets, transform=None, verify_targets=0, **VARIANTS[variant])
        extra = [callback]
    elif "callback" in variant:
        extra = [L.Callback()]
    trainer = L.Trainer(
        max_steps=options.steps + options.skip, max_epochs=-1, callbacks=[clock, *extra], logger=False,
        devices=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    kind = Tiny if method == "Tiny" else getattr(methods, method)
    trainer.fit(kind(options.backbone), DataLoader(views, options.batch_size))
    state = callback.state_dict()["transport"] if callback else {}
    tensors = [*state.get("map", {}).values()]
    tensors += [t for s in state.get("optimizer", {}).get("state", {}).values() for t in s.values()]
    calls = pstats.Stats(clock.profile).total_calls / options.steps if clock.profile is not None else 0.0  # type: ignore[attr-defined]
    return {"seconds": statistics.median(clock.times), "bytes": float(sum(t.nbytes for t in tensors)), "calls": calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["BYOL", "DINO", "SwAV"])
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS)[1:], default=list(VARIANTS)[1:])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", type=int, default=5, help="first steps that are not timed")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=4, help="an epoch")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args()
    quiet_lightning()
    warnings.filterwarnings("ignore")
    views = Views(options.batch_size * options.batches, options.size)
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        prior = load_prior("random:lightly:resnet-9", width=0.25, image_size=options.size, mean=0.5, std=0.5, seed=0)
        build_targets(prior, Raw(views), Path(folder) / "targets")
        for method in options.methods:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("alone", *options.variants)}
            for number in range(options.rounds):
                for name in runs if number % 2 else reversed(runs):  # neither is always the first
                    runs[name].append(run(options, method, name, views, Path(folder) / "targets"))
            calls = {
                name: run(options, method, name, views, Path(folder) / "targets", counted=True)["calls"]
                for name in runs
            }
            alone = [row["seconds"] for row in runs["alone"]]
            table[method] = {
                name: {
                    "seconds_per_step": statistics.median(row["seconds"] for row in rows),
                    "ratio": statistics.median(row["seconds"] / a for row, a in zip(rows, alone, strict=True)),
                    "ratio_of_each_round": [round(r["seconds"] / a, 4) for r, a in zip(rows, alone, strict=True)],
                    "python_calls_per_step": round(calls[name], 1),
                    "ratio_of_calls": round(calls[name] / calls["alone"], 4),
                    "bytes_of_map_and_optimizer": rows[0]["bytes"],
                }
                for name, rows in runs.items()
            }
            for name, row in table[method].items():
                print(
                    f"{method:6s} {name:41s} {row['seconds_per_step'] * 1e3:8.1f} ms  {row['ratio']:.3f} of alone"
                    f"  {row['python_calls_per_step']:8.0f} calls  {row['ratio_of_calls']:.3f}"
                )
    settings = {key: str(value) for key, value in vars(options).items() if key != "out"}
    write_result(options.out, header(seeds=[0]), {"settings": settings, "methods": table})


if __name__ == "__main__":
    main()
