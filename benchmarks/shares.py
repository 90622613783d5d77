"""Where the time of a training step goes: views, tagging, look-up, transport loss, logging, backward, optimizer.

    python benchmarks/shares.py [--steps 20] [--batch-size 64] [--threads 1]

BYOL of a ResNet-9 of width .25 on images of 32 px in memory, views one image at a time in the training process, so that
all of a step is in one profile: alone, with the mixed loss, in the transport phase on one view, and after the switch.
Python's profiler makes what is Python dearer than it is, so what ReLA adds is less than it says. Shares are of the
whole step; the rest is Lightning, the forward passes and what a method does besides. The first steps are left out.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import header, quiet_lightning
from device_views import PieceData, pieces_of_photographs
from images import Rows
from journal import without_paths
from overhead import SKIP, VARIANTS, Clock
from speed import MODES, build, small_prior, trainer_of

from rela_lightning import ReLACallback, build_targets

RESULTS = Path(__file__).parent / "results" / "shares.txt"
KINDS = ("alone", "mixed", "transport, one view", "after the switch")


class Function(NamedTuple):
    """A function by the end of its file's path and its name; without a name, all in the file by themselves."""

    file: str
    name: str = ""


PARTS = {
    "views": (Function("data/images.py", "__getitem__"),),
    "collating": (Function("_utils/collate.py", "default_collate"),),
    "ReLA: tagging samples": (Function("injection/tagging.py"),),
    "ReLA: looking targets up": (
        Function("targets/lookup.py", "of_images"),
        Function("targets/source.py", "__call__"),
    ),
    "ReLA: transport loss": (Function("injection/transport_head.py", "loss"),),
    "ReLA: the map's optimizer": (Function("injection/optim.py", "step"),),
    "ReLA: logging phases": (Function("injection/run.py", "_log_phase"),),
    "logging, all": (Function("core/module.py", "log"),),
    "backward": (Function("autograd/__init__.py", "backward"),),
}
"""What is added up of each part."""


def profile(options: argparse.Namespace, variant: str, targets: Path, pieces: Rows) -> pstats.Stats:
    """A profile of the steps of one kind, after the first ones."""
    torch.manual_seed(0)
    profiler = cProfile.Profile()
    callbacks: list[Any] = [Clock(profiler)]
    if VARIANTS[variant] is not None:
        callbacks.append(ReLACallback(targets, verify_targets=0, **VARIANTS[variant]))
    data = PieceData(pieces, batch_size=options.batch_size, num_workers=0, drop_last=True)
    trainer = trainer_of(options, "32-true", *callbacks, max_steps=options.steps + SKIP, max_epochs=-1)
    trainer.fit(build(options, MODES["fp32"]), datamodule=data)
    return pstats.Stats(profiler)


def seconds_of(stats: pstats.Stats, function: Function) -> float:
    """Seconds of a function with all that it calls; of a file, what its functions and the built-ins they call take."""
    rows = stats.stats.items()  # type: ignore[attr-defined]
    if function.name:
        return sum(row[3] for (file, _, name), row in rows if name == function.name and file.endswith(function.file))
    own = sum(row[2] for (file, _, _), row in rows if file.endswith(function.file))
    callers = (by for (file, _, _), row in rows if file == "~" for by in row[4].items())
    return own + sum(times[2] for (file, _, _), times in callers if file.endswith(function.file))


def shares(stats: pstats.Stats) -> dict[str, float]:
    """Each part's share of the profile."""
    total = stats.total_tt  # type: ignore[attr-defined]
    return {part: sum(seconds_of(stats, function) for function in added) / total for part, added in PARTS.items()}


def longest(stats: pstats.Stats, count: int) -> list[str]:
    """The functions that took longest by themselves, without the paths of this machine."""
    total = stats.total_tt  # type: ignore[attr-defined]
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:count]  # type: ignore[attr-defined]
    lines = []
    for (file, _, name), (_, calls, own, _, _) in rows:
        where = "/".join(Path(file).parts[-3:]) if file != "~" else "built in"
        lines.append(f"  {own / total:6.1%} {calls:8,} calls  {name}  ({where})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--longest", type=int, default=15, help="functions to list")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    options.device, options.compiler, options.cifar_stem = "cpu", "", False
    options.backbone, options.backbone_kwargs = "lightly:resnet-9", {"width": 0.25}
    pieces, head = pieces_of_photographs(options.batch_size * (options.steps + SKIP), 32), header(seeds=[0])
    head["command"] = without_paths(head["command"], {"OUT": options.out})
    text = [f"{name}: {value}" for name, value in head.items()]
    with tempfile.TemporaryDirectory() as folder:
        build_targets(small_prior(), PieceData(pieces).dataset("train"), Path(folder) / "targets")
        stats = {kind: profile(options, kind, Path(folder) / "targets", pieces) for kind in KINDS}
    text += ["", "share of a step" + " " * 15 + "".join(f"{kind:>22s}" for kind in KINDS)]
    found = {kind: shares(each) for kind, each in stats.items()}
    text += [f"{part:30s}" + "".join(f"{found[kind][part]:22.2%}" for kind in KINDS) for part in PARTS]
    steps = [1e3 * each.total_tt / options.steps for each in stats.values()]  # type: ignore[attr-defined]
    text.append(f"{'milliseconds, profiled':30s}" + "".join(f"{step:22.1f}" for step in steps))
    for kind, each in stats.items():
        text += ["", f"{kind}: longest by themselves", *longest(each, options.longest)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
