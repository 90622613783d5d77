"""On a GPU: the speed and memory of steps, of labelling, of views made on the device, and of whole epochs.

    python benchmarks/gpu.py [epochs] [steps] [labelling] [views] [--jpeg] [--minutes 12]   # all without a name
    python benchmarks/gpu.py --device cpu --tiny             # the same code, small, to see that it runs
    python benchmarks/gpu.py steps --device cpu              # how a CPU does, at sizes for one

Epochs: CIFAR-10's size, with data loading and views on the device, against the bare network (gpu_epochs.py).

Steps: BYOL alone, with the mixed loss, in the transport phase on two views and on one, after the switch, and the
network alone; in fp32, bf16-mixed, channels-last and compiled. All variants of a mode run in turn in one process, so
that the ratios do not depend on the machine's mood. A step is the whole Lightning loop, on views that are on the device
already. The device is waited for at both ends of a window of steps, not at every step.

Labelling: CLIP-sized priors with random weights, as the values of weights and pixels make no difference to the speed.
Three rates side by side, in images a second: the bare forward on one batch that stays on the device; the labelling
pass on images in host memory, read by worker processes; `build_targets` as a whole, with hashing the weights and the
reduction. With `--jpeg` also the pass on JPEG files in memory, decoded and resized by the workers.

Views: steps with their data loading, views made one image at a time by worker processes and by `device_views`, in turn;
see `device_views.py`, which does the same on a CPU.

Results are lines of a file, each written when it is there; what is in the file already under the same settings is left
out, so that a run that was cut off goes on. With `--minutes` no measurement is begun after that time.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import device_views
import gpu_epochs
import gpu_labelling
import gpu_steps
import torch
from common import quiet_lightning
from journal import Journal
from speed import MODES

RESULTS = Path(__file__).parent / "results"
FULL = {
    "backbone": "resnet50", "size": 224, "batch_size": 128, "warmup": 10, "steps": 30, "rounds": 3,
    "compiler": "inductor", "priors": ["random:open_clip:ViT-B-16", "random:open_clip:ViT-L-14"],
    "label_batch_size": 256, "images": 20_000, "workers": min(os.cpu_count() or 1, 16), "threads": 0,
    "modes": ["bf16, channels-last, compiled", "bf16, channels-last", "bf16", "fp32"], "out": RESULTS / "gpu.jsonl",
}  # fmt: skip
CPU = {
    **FULL, "backbone": "lightly:resnet-9", "size": 32, "batch_size": 64, "warmup": 3, "steps": 8, "rounds": 3,
    "priors": ["random:timm:vit_tiny_patch16_224"], "label_batch_size": 32, "images": 320, "workers": 0, "threads": 1,
    "modes": [name for name in MODES if name.startswith("fp32")], "out": RESULTS / "cpu.jsonl",
}  # fmt: skip
TINY = {
    **CPU, "batch_size": 4, "warmup": 1, "steps": 2, "rounds": 1, "compiler": "aot_eager", "label_batch_size": 8,
    "images": 24, "modes": FULL["modes"], "out": None,
}  # fmt: skip
WHOLE_EPOCHS = {"backbone": "resnet18", "cifar_stem": True, "epoch_images": 50_000, "batch_size": 256, "steps": 300}
"""What the part `epochs` has of its own on a GPU; on a CPU it has the sizes of the others."""


class Part(NamedTuple):
    """A part of the benchmark."""

    names: Callable[[argparse.Namespace], list[str]]
    measure: Callable[[argparse.Namespace, str], dict[str, Any]]
    lines: Callable[[dict[str, Any]], list[str]]


def modes_of(options: argparse.Namespace) -> list[str]:
    """The modes that are asked for."""
    return list(options.modes)


PARTS = {
    "epochs": Part(modes_of, gpu_epochs.measure, gpu_epochs.lines),
    "steps": Part(modes_of, gpu_steps.measure, gpu_steps.lines),
    "labelling": Part(gpu_labelling.names, gpu_labelling.measure, gpu_labelling.lines),
    "views": Part(modes_of, lambda options, name: device_views.compare(options, MODES[name]), device_views.lines),
}


def parse() -> argparse.Namespace:
    """The options; sizes that were not given are those of FULL, CPU or TINY."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="epochs, steps, labelling, views; all without a name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs; no figures")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing after that; no limit by default")
    parser.add_argument("--jpeg", action="store_true", help="also decode JPEG files in the labelling pass")
    for name, value in FULL.items():
        kind = type(value[0] if isinstance(value, list) else value)
        kind = Path if name == "out" else kind
        shown = value.name if isinstance(value, Path) else value
        many = {"nargs": "+"} if isinstance(value, list) else {}
        many |= {"choices": tuple(MODES)} if name == "modes" else {}
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"default: {shown}", **many)
    options = parser.parse_args()
    sizes = TINY if options.tiny else FULL if options.device == "cuda" else CPU
    for name, value in sizes.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.cifar_stem = False
    options.backbone_kwargs = (
        {"width": 0.125 if options.tiny else 0.25} if options.backbone == "lightly:resnet-9" else None
    )
    own = {"epoch_images": options.batch_size * (options.warmup + options.steps)}
    options.epochs = WHOLE_EPOCHS | {"backbone_kwargs": None} if sizes is FULL else own
    options.parts = options.parts or list(PARTS)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if min(options.warmup, options.steps, options.rounds, options.images) < 1:
        parser.error("--warmup, --steps, --rounds and --images are at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; `--device cpu --tiny` runs the same code, small")
    return options


def main() -> None:
    options = parse()
    quiet_lightning()
    warnings.filterwarnings("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = {
        name: getattr(options, name) for name in (*FULL, "device", "tiny", "jpeg") if name not in ("out", "modes")
    }
    settings |= {"tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as options.folder:
        out = options.out or Path(options.folder) / "tiny.jsonl"
        journal = Journal(out, ("part", "name", "settings"), {"OUT": out})
        for part in options.parts:
            for name in PARTS[part].names(options):
                job = {"part": part, "name": name, "settings": settings}
                if journal.has(job):
                    continue
                if time.monotonic() - begun > 60 * options.minutes:
                    print(f"{part}, {name}: left for the next time, {options.minutes:g} minutes are over")
                else:
                    journal.append({**job, "seeds": [0], "result": measured(options, part, name)})


def measured(options: argparse.Namespace, part: str, name: str) -> dict[str, Any]:
    """One line of results, shown as it comes."""
    try:
        table = PARTS[part].measure(options, name)
    except torch.cuda.OutOfMemoryError as error:
        raise SystemExit(
            f"The GPU's memory is too small for the part `{part}`: lower --batch-size or --label-batch-size. "
            "What was measured before is written."
        ) from error
    for line in PARTS[part].lines(table):
        print(f"{part}, {name:32s} {line}", flush=True)
    return table


if __name__ == "__main__":
    main()
