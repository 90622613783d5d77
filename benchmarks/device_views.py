"""Images a second with views made one image at a time, and with `device_views`: BYOL, transport on one view, labelling.

    python benchmarks/device_views.py [--rounds 7] [--steps 12] [--threads 1]
    python benchmarks/gpu.py views                                   # the same on a GPU, in its modes

Both kinds run in turn in one process, so that ratios do not depend on the machine's mood: seconds of a step with
`device_views` over seconds without, the median of the rounds; where other jobs share the machine, the ratio in
processor time is the one to read. A step is the whole Lightning loop and the data loading,
here in the training process. Images are pieces of scikit-learn's two photographs, in memory as CIFAR-10 is. Labelling
reads the original images either way, and is here to see that it does not change.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import header, quiet_lightning, write_result
from images import Rows
from journal import without_paths
from speed import MODES, Meter, Mode, Seconds, Window, build, free_memory, small_prior, trainer_of

from rela_lightning import ReLACallback, build_targets
from rela_lightning.data import ImageData
from rela_lightning.schedules import Mix, TransportOnly

RESULTS = Path(__file__).parent / "results" / "device_views.json"
STEPS: dict[str, dict[str, Any] | None] = {
    "byol": None,
    "mixed": {"schedule": Mix(), "crops": "free"},
    "transport, one view": {"schedule": TransportOnly(), "crops": "free"},
    "transport, one view, stored crops": {"schedule": TransportOnly(), "crops": "stored"},
    "transport, one view, blended crops": {"schedule": TransportOnly(), "crops": "blended"},
}
KINDS = {"one at a time": False, "on the device": True}


def pieces_of_photographs(count: int, size: int) -> Rows:
    """Pieces of scikit-learn's photographs, all of one class."""
    from sklearn.datasets import load_sample_images

    generator, photos = np.random.default_rng(0), load_sample_images().images
    data = np.empty((count, size, size, 3), np.uint8)
    for row in range(count):
        photo = photos[row % 2]
        top, left = (int(generator.integers(0, side - size)) for side in photo.shape[:2])
        data[row] = photo[top : top + size, left : left + size]
    return Rows(data, [0] * count)


class PieceData(ImageData):
    """The pieces as a data module, without validation."""

    def __init__(self, pieces: Rows, **options: Any) -> None:
        super().__init__(image_size=pieces.data.shape[1], views="byol", **options)
        self.pieces = pieces

    def source(self, split: str) -> Any:
        """The pieces, for training."""
        return self.pieces if split == "train" else None


def step_seconds(
    options: argparse.Namespace, mode: Mode, pieces: Rows, targets: Path, variant: str, *, on_device: bool
) -> Seconds:
    """Of a training step, for an image; after `warmup` steps, and after decoding."""
    held, meter = free_memory(options), Meter(options.device)
    callbacks: list[Any] = [Window(meter, options.warmup, options.steps)]
    if STEPS[variant] is not None:
        callbacks.append(ReLACallback(targets, verify_targets=0, **STEPS[variant]))
    data = PieceData(
        pieces, batch_size=options.batch_size, device_views=on_device, num_workers=options.workers, drop_last=True
    )
    trainer = trainer_of(options, mode.precision, *callbacks, max_steps=options.warmup + options.steps, max_epochs=-1)
    trainer.fit(build(options, mode), datamodule=data)
    return meter.each(options.steps * options.batch_size, held)


def labelling_seconds(options: argparse.Namespace, pieces: Rows, *, on_device: bool) -> Seconds:
    """Of `build_targets`, for an image."""
    meter, data = Meter(options.device), PieceData(pieces, device_views=on_device)
    with tempfile.TemporaryDirectory() as folder:
        meter.start()
        build_targets(
            small_prior(), data.dataset("train"), Path(folder) / "t", trainer=trainer_of(options, "32-true"),
            num_workers=options.workers,
        )  # fmt: skip
        meter.stop()
    return meter.each(len(pieces))


def compare(options: argparse.Namespace, mode: Mode) -> dict[str, Any]:
    """Both kinds of every step, and of labelling, round after round."""
    pieces = pieces_of_photographs(options.batch_size * (options.warmup + options.steps), options.size)
    found: dict[str, dict[str, list[Seconds]]] = {v: {kind: [] for kind in KINDS} for v in (*STEPS, "labelling")}
    with tempfile.TemporaryDirectory() as folder:
        targets = Path(folder) / "targets"
        build_targets(small_prior(), PieceData(pieces).dataset("train"), targets, views=2)
        for turn, variant in itertools.product(range(options.rounds), found):
            for kind in sorted(KINDS, reverse=bool(turn % 2)):
                if variant == "labelling":
                    each = labelling_seconds(options, pieces, on_device=KINDS[kind])
                else:
                    each = step_seconds(options, mode, pieces, targets, variant, on_device=KINDS[kind])
                found[variant][kind].append(each)
    return {variant: summary(seconds) for variant, seconds in found.items()}


def summary(seconds: dict[str, list[Seconds]]) -> dict[str, Any]:
    rounds = list(zip(*seconds.values(), strict=True))  # pairs: one at a time, on the device
    ratios = {
        name: [round(now[i] / before[i], 4) for before, now in rounds] for i, name in enumerate(("wall", "processor"))
    }
    return {
        "images_per_second": {k: round(1 / statistics.median(s.wall for s in each), 1) for k, each in seconds.items()},
        "time_ratio": statistics.median(ratios["wall"]),
        "processor_time_ratio": statistics.median(ratios["processor"]),
        "of_each_round": ratios,
    }


def lines(table: dict[str, Any]) -> list[str]:
    """A line for each kind of step."""
    rates = {variant: row["images_per_second"].values() for variant, row in table.items()}
    return [
        f"{variant:34s} {before:9.1f} -> {now:9.1f} images/s  time x {table[variant]['time_ratio']:.3f}"
        for variant, (before, now) in rates.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="of images, pixels")
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet-9")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    warnings.filterwarnings("ignore")
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    options.device, options.workers, options.compiler = "cpu", 0, ""
    options.backbone, options.backbone_kwargs, options.cifar_stem = "lightly:resnet-9", {"width": options.width}, False
    table = compare(options, MODES["fp32"])
    print(*lines(table), sep="\n", flush=True)
    head = header(seeds=[0])
    head["command"] = without_paths(head["command"], {"OUT": options.out})
    head["versions"]["kornia"] = _kornia()
    write_result(options.out, head, {"settings": settings, "steps": table})


def _kornia() -> str:
    import kornia

    return str(kornia.__version__)


if __name__ == "__main__":
    main()
