"""Labelling: its throughput as a share of the bare prior forward, and the memory of the reduction.

Bare forward and labelling pass alternate in one process, so that the ratio does not depend on the
machine's mood; where other jobs share the machine, the share in processor time is the one to read.
Each memory figure is the peak of a process of its own.

    python benchmarks/targets.py [--images 128] [--rounds 9] [--batch-size 32] [--prior timm:resnet18]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import torch
from common import header, quiet_lightning, write_result
from PIL import Image
from torch.utils.data import Dataset

from rela_lightning import build_targets, load_prior
from rela_lightning.priors import Prior
from rela_lightning.targets.assemble import assemble
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.embedding import LabellingModule
from rela_lightning.targets.label_view import DrawnCrops
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.plan import LabellingPlan
from rela_lightning.targets.records import Geometry
from rela_lightning.targets.shards import Shape, ShardWriter
from rela_lightning.targets.writer import TargetWriter

WIDTH = 256  # of the synthetic features
SHAPE = Shape(1, WIDTH)
EIGHT = "pass, JPEG decoded, 8 crops beside the whole"


class Photos(Dataset):
    """Crops of scikit-learn's two photographs, as JPEG bytes in memory, decoded when read."""

    def __init__(self, count: int, size: int = 256) -> None:
        from sklearn.datasets import load_sample_images

        generator, photos = np.random.default_rng(0), load_sample_images().images
        self.jpegs = []
        for row in range(count):
            photo = photos[row % 2]
            top, left = (int(generator.integers(0, side - size)) for side in photo.shape[:2])
            buffer = io.BytesIO()
            Image.fromarray(photo[top : top + size, left : left + size]).save(buffer, "jpeg")
            self.jpegs.append(buffer.getvalue())

    def __len__(self) -> int:
        return len(self.jpegs)

    def __getitem__(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self.jpegs[row])).convert("RGB")


class InMemory(Dataset):
    """Images in [0, 1] at the prior's size, ready in memory."""

    def __init__(self, photos: Photos, size: int) -> None:
        resized = [np.array(photos[row].resize((size, size))) for row in range(len(photos))]
        self.images = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float().div(255).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.images[row]


class AsItIs:
    """The preprocessing of images that are ready."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Any) -> torch.Tensor:
        """The image itself; for another kind of image, on which a prior is tried, black."""
        ready = isinstance(image, torch.Tensor) and image.is_floating_point()
        return image if ready else torch.zeros(3, self.size, self.size)


class Seconds(NamedTuple):
    """Wall-clock seconds, and processor seconds of all threads of this process."""

    wall: float
    cpu: float


def now() -> Seconds:
    """The clocks, after what the GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter(), time.process_time())


def since(start: Seconds, end: Seconds | None = None) -> Seconds:
    """What passed."""
    end = end or now()
    return Seconds(end.wall - start.wall, end.cpu - start.cpu)


def bare_forward(prior: Prior, images: torch.Tensor, batch_size: int) -> Seconds:
    """The prior's forward over all images, nothing else."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior.to(device)
    images = images.to(device)
    started = now()
    for batch in images.split(batch_size):
        prior(batch)
    return since(started)


def labelling_pass(prior: Prior, dataset: Dataset, batch_size: int, workers: int = 0, views: int = 0) -> Seconds:
    """`Trainer.predict` with the writer, from the start of the loop to its end."""
    clock: dict[str, Seconds] = {}

    class Clock(L.Callback):
        def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
            clock["start"] = now()

        def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
            clock["end"] = now()

    with tempfile.TemporaryDirectory() as folder:
        shape = Shape(1 + views, prior.feature_dim)
        claim = Claim(partial_folder(Path(folder) / "t"))
        plan = LabellingPlan(
            dataset, len(dataset), claim, {}, batch_size, workers, time.time(), shape, DrawnCrops(shape.views - 1)
        )
        trainer = L.Trainer(
            accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[TargetWriter(plan), Clock()],
        )  # fmt: skip
        trainer.predict(LabellingModule(prior, plan), return_predictions=False)
    return since(clock["start"], clock["end"])


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and shares of the bare forward over alternating rounds.

    A pass with 8 crops beside each whole image is held against 9 bare forwards.
    """
    own = load_prior(f"random:{options.prior}", image_size=options.image_size)
    photos, ready = Photos(options.images), InMemory(Photos(options.images), options.image_size)
    prior = load_prior(own, preprocess=AsItIs(options.image_size))
    bare_forward(prior, ready.images[: 2 * options.batch_size], options.batch_size)
    rounds = [
        {
            "bare forward": bare_forward(prior, ready.images, options.batch_size),
            "pass, tensors in memory": labelling_pass(prior, ready, options.batch_size),
            "pass, JPEG decoded": labelling_pass(own, photos, options.batch_size),
            EIGHT: labelling_pass(own, photos, options.batch_size, views=8),
            "pass, JPEG decoded by 1 worker": labelling_pass(own, photos, options.batch_size, workers=1),
        }
        for _ in range(options.rounds)
    ]
    names = list(rounds[0])
    forwards = {name: 9 if name == EIGHT else 1 for name in names}
    wall = {name: [forwards[name] * turn["bare forward"].wall / turn[name].wall for turn in rounds] for name in names}
    cpu = {name: [forwards[name] * turn["bare forward"].cpu / turn[name].cpu for turn in rounds] for name in names[:4]}
    median = {name: statistics.median(values) for name, values in wall.items()}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        store = build_targets(own, photos, Path(folder) / "t", batch_size=options.batch_size)
        whole = time.perf_counter() - started
    return {
        "images": options.images,
        "seconds_median": {name: statistics.median(turn[name].wall for turn in rounds) for name in names},
        "share_of_bare_forward_median": median,
        "share_of_bare_forward_in_processor_time_median": {k: statistics.median(v) for k, v in cpu.items()},
        "share_of_bare_forward_all_rounds": wall,
        "share_of_bare_forward_in_processor_time_all_rounds": cpu,
        "data_wait_share_median": {name: 1.0 - median[name] / median["pass, tensors in memory"] for name in names[2:]},
        "build_targets_seconds": whole,
        "build_targets_labelling_seconds": store.manifest["labelling_seconds"],
    }


def write_shards(folder: Path, rows: int) -> None:
    """Synthetic features of falling variance, as a pass leaves them."""
    writer, generator = ShardWriter(folder, 0, SHAPE), np.random.default_rng(0)
    scales = np.linspace(2.0, 0.1, WIDTH, dtype=np.float32)
    for start in range(0, rows, 8192):
        index = np.arange(start, min(rows, start + 8192))
        features = generator.standard_normal((len(index), 1, WIDTH), dtype=np.float32) * scales
        geometry = Geometry(np.full((len(index), 2), 32, np.int32), np.zeros((len(index), 1, 5), np.int32))
        writer.append(index, geometry, features)
    writer.close()


def reduce_in_this_process(shards: Path) -> None:
    """Reduce and print the seconds and the peak resident memory in MB, before and after."""
    rows = (shards / "index-00000.bin").stat().st_size // SHAPE.entry.itemsize
    with tempfile.TemporaryDirectory(dir=shards) as out:
        before, started = peak_mb(), time.perf_counter()
        assemble(
            shards, Path(out), length=rows, shape=SHAPE, target_dim=None, standardise="per_dim", storage="float16"
        )  # fmt: skip
        seconds = time.perf_counter() - started
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_mb_before": before, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Peak resident memory of this process, in MB.

    From /proc where there is one: `ru_maxrss` of a child starts at what its parent held.
    """
    try:
        line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(rows: list[int]) -> list[dict[str, float]]:
    """Peak memory of the reduction, each size in a process of its own."""
    results = []
    for count in rows:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(Path(folder), count)
            command = [sys.executable, __file__, "--reduce", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prior", default="timm:resnet18")
    parser.add_argument("--threads", type=int, default=1, help="of the forward, on the CPU")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "targets.json")
    parser.add_argument("--reduce", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reduce:
        reduce_in_this_process(options.reduce)
        return
    quiet_lightning()
    reduction = memory(options.rows)
    for turn in reduction:
        print(f"reduction of {turn['rows']:>9,} rows: peak {turn['peak_mb']:.0f} MB, {turn['seconds']:.1f} s")
    torch.set_num_threads(options.threads)
    labelling = throughput(options)
    for name, share in labelling["share_of_bare_forward_median"].items():
        print(f"{name:45s} {labelling['seconds_median'][name]:6.2f} s   {share:.3f} of the bare forward's throughput")
    for name, share in labelling["share_of_bare_forward_in_processor_time_median"].items():
        print(f"{name:45s} in processor time {share:.3f}")
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "reduce")}
    result = {"labelling": labelling, "reduction": reduction, "feature_dim": WIDTH, "settings": settings}
    write_result(options.out, header(seeds=[0]), result)


if __name__ == "__main__":
    main()
