"""Step times of SSL methods alone, in the transport phase, with the mixed loss and after the switch, as ratios.

All runs of a case are in one process, on views that are in memory: data loading does not decide. Each run of a variant
stands beside one of the base, now before it, now after it, so that neither does the machine's mood. A step is the
whole Lightning loop: hooks, logging, forward, backward, optimizer. Medians are over the steps of a run, and over the
rounds.

    python benchmarks/overhead.py [--cases Tiny BYOL DINO SwAV] [--rounds 5] [--backbone resnet18]
    python benchmarks/overhead.py --cases Tiny --against idle --variants "after the switch" --rounds 25 --out FILE

`Tiny` is a module whose whole step takes one or a few milliseconds: what a step costs besides its arithmetic shows
there. `idle` is the plain run with a callback that does nothing: Lightning asks it at every hook of every step all the
same, so no callback costs less.
On a machine that others use, wall-clock times of so short steps scatter more than they differ: processor time of the
process scatters less, and Python's function calls a step do not scatter.
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
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from common import header, quiet_lightning, write_result
from torch.utils.data import DataLoader, Dataset

from rela_lightning import ReLACallback, build_targets, load_prior, methods
from rela_lightning.schedules import Mix, Switch, TransportOnly

SKIP = 6
"""First steps that are not timed: of the longest variant the switch, and the batches that were on their way."""


class Case(NamedTuple):
    """What is trained, and for how long."""

    size: int  # pixels
    batch_size: int
    batches: int  # an epoch
    steps: int  # timed, a round


CASES = {"Tiny": Case(8, 2, 60, 300), **dict.fromkeys(("BYOL", "DINO", "SwAV"), Case(64, 32, 4, 8))}


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
    "mixed": {"schedule": Mix()},
    "transport, two views": {"schedule": TransportOnly(), "num_views": 2},
    "transport, one view": {"schedule": TransportOnly(), "num_views": 1},
    "after the switch": {"schedule": Switch(1e-6)},
}
IDLE = "idle"
"""The plain run with a callback that does nothing."""


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
    """Seconds from the end of a step to the end of the next, and Python's calls meanwhile; the first ones left out.

    Args:
        profile: Counts calls, and makes steps slow; None for times.
    """

    def __init__(self, profile: cProfile.Profile | None = None) -> None:
        self.times, self.busy, self.last, self.profile = [], [], (0.0, 0.0), profile

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        """Note the step's end."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        if trainer.global_step > SKIP:
            self.times.append(now[0] - self.last[0])
            self.busy.append(now[1] - self.last[1])
        elif trainer.global_step == SKIP and self.profile is not None:
            self.profile.enable()
        self.last = now

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """The last step is over."""
        if self.profile is not None:
            self.profile.disable()


class Bench:
    """Runs the variants of a case.

    Args:
        name: Of the case.
        backbone: Network of the method.
        folder: Where the targets go.
    """

    def __init__(self, name: str, backbone: str, folder: Path) -> None:
        self.case, self.backbone, self.targets = CASES[name], backbone, folder / name
        self.module = Tiny if name == "Tiny" else getattr(methods, name)
        self.views = Views(self.case.batch_size * self.case.batches, self.case.size)
        prior = load_prior("random:lightly:resnet-9", width=0.25, image_size=self.case.size, mean=0.5, std=0.5, seed=0)
        build_targets(prior, Raw(self.views), self.targets)

    def run(self, variant: str, profile: cProfile.Profile | None = None) -> dict[str, float]:
        """Seconds and processor seconds a step, calls a step if a profile counts them, bytes of map and optimizer."""
        torch.manual_seed(0)
        clock, options = Clock(profile), VARIANTS.get(variant)
        callbacks: list[Any] = [L.Callback()] if variant == IDLE else []
        if options is not None:
            callbacks = [ReLACallback(self.targets, transform=None, verify_targets=0, **options)]
        trainer = L.Trainer(
            max_steps=self.case.steps + SKIP, max_epochs=-1, callbacks=[clock, *callbacks], logger=False, devices=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(self.module(self.backbone), DataLoader(self.views, self.case.batch_size))
        state = callbacks[0].state_dict()["transport"] if options is not None else {}
        tensors = [*state.get("map", {}).values()]
        tensors += [t for s in state.get("optimizer", {}).get("state", {}).values() for t in s.values()]
        return {
            "seconds": statistics.median(clock.times),
            "processor_seconds": statistics.median(clock.busy),
            "calls": pstats.Stats(profile).total_calls / self.case.steps if profile is not None else 0.0,  # type: ignore[attr-defined]
            "bytes": float(sum(t.nbytes for t in tensors)),
        }

    def compare(self, variants: list[str], base: str, rounds: int) -> dict[str, Any]:
        """What each variant costs, and its ratio to the run of the base beside it."""
        calls_of_base = self.run(base, cProfile.Profile())["calls"]
        found: dict[str, Any] = {}
        for name in variants:
            rows: dict[str, list[dict[str, float]]] = {name: [], base: []}
            for number in range(rounds):
                for one in rows if number % 2 else reversed(rows):  # neither is always the first
                    rows[one].append(self.run(one))
            calls = self.run(name, cProfile.Profile())["calls"]
            found[name] = {
                "seconds_per_step": statistics.median(row["seconds"] for row in rows[name]),
                "seconds_per_step_of_base": statistics.median(row["seconds"] for row in rows[base]),
                "python_calls_per_step": round(calls, 1),
                "python_calls_per_step_of_base": round(calls_of_base, 1),
                **_ratios("ratio", "seconds", rows[name], rows[base]),
                **_ratios("ratio_of_processor_time", "processor_seconds", rows[name], rows[base]),
                "ratio_of_calls": round(calls / calls_of_base, 4),
                "bytes_of_map_and_optimizer": rows[name][0]["bytes"],
            }
        return found


def _ratios(name: str, key: str, rows: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Any]:
    ratios = [row[key] / other[key] for row, other in zip(rows, base, strict=True)]
    return {name: round(statistics.median(ratios), 4), f"{name}_of_each_round": [round(ratio, 4) for ratio in ratios]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=["Tiny", "BYOL"])
    parser.add_argument(
        "--variants", nargs="*", choices=[IDLE, *list(VARIANTS)[1:]], default=[IDLE, *list(VARIANTS)[1:]]
    )
    parser.add_argument("--against", choices=["alone", IDLE], default="alone", help="what every variant is set against")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args()
    quiet_lightning()
    warnings.filterwarnings("ignore")
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            table[name] = Bench(name, options.backbone, Path(folder)).compare(
                options.variants, options.against, options.rounds
            )
            for variant, row in table[name].items():
                print(
                    f"{name:5s} {variant:41s} {row['seconds_per_step'] * 1e3:7.2f} ms, {options.against}"
                    f" {row['seconds_per_step_of_base'] * 1e3:7.2f} ms, ratio {row['ratio']:6.3f}"
                    f"  processor {row['ratio_of_processor_time']:6.3f}"
                    f"  calls {row['python_calls_per_step']:6.0f} {row['ratio_of_calls']:6.3f}",
                    flush=True,
                )
    settings = {
        "backbone": options.backbone,
        "against": options.against,
        "rounds": options.rounds,
        "cases": {name: CASES[name]._asdict() for name in table},
    }
    write_result(options.out, header(seeds=[0]), {"settings": settings, "cases": table})


if __name__ == "__main__":
    main()
