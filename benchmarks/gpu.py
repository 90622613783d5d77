"""On a GPU: step time and memory of BYOL with and without ReLA, and the throughput of labelling.

    python benchmarks/gpu.py [steps] [labelling] [views] [--jpeg]      # all without a name
    python benchmarks/gpu.py --device cpu --tiny               # the same code, small, to see that it runs

Steps: BYOL alone, with the mixed loss, in the transport phase on two views and on one, and after the switch, in
fp32, bf16-mixed, channels-last and compiled. All variants of a mode run in turn in one process, so that the ratios
do not depend on the machine's mood. A step is the whole Lightning loop, on views that are on the device already: data
loading is measured by nothing here. The device is waited for at both ends of a window of steps, not at every step.

Labelling: CLIP-sized priors with random weights, as the values of weights and pixels make no difference to the speed.
Three rates side by side, in images a second: the bare forward on one batch that stays on the device; the labelling
pass on images in host memory, read by worker processes; `build_targets` as a whole, with hashing the weights and the
reduction. With `--jpeg` also the pass on JPEG files in memory, decoded and resized by the workers.

Views: steps with their data loading, views made one image at a time by worker processes and by `device_views`, in turn;
see `device_views.py`, which does the same on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from common import header, quiet_lightning, write_result
from journal import without_paths
from overhead import VARIANTS
from targets import Photos
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rela_lightning import ReLACallback, build_targets, load_prior, methods
from rela_lightning.priors import Prior
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.embedding import LabellingModule
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.plan import LabellingPlan
from rela_lightning.targets.shards import Shape
from rela_lightning.targets.writer import TargetWriter

RESULTS = Path(__file__).parent / "results" / "gpu.json"


class Mode(NamedTuple):
    """How the step is computed."""

    precision: Any = "32-true"
    channels_last: bool = False
    compiled: bool = False


MODES = {
    "fp32": Mode(),
    "bf16": Mode("bf16-mixed"),
    "bf16, channels-last": Mode("bf16-mixed", channels_last=True),
    "bf16, channels-last, compiled": Mode("bf16-mixed", channels_last=True, compiled=True),
}
FULL = {
    "backbone": "resnet50", "size": 224, "batch_size": 128, "warmup": 10, "steps": 30, "rounds": 3,
    "compiler": "inductor", "priors": ["random:open_clip:ViT-B-16", "random:open_clip:ViT-L-14"],
    "label_batch_size": 256, "images": 20_000, "workers": min(os.cpu_count() or 1, 16), "out": RESULTS,
}  # fmt: skip
TINY = {
    "backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.125},
    "size": 32, "batch_size": 4, "warmup": 1, "steps": 2, "rounds": 1,
    "compiler": "aot_eager", "priors": ["random:timm:vit_tiny_patch16_224"], "label_batch_size": 8, "images": 24,
    "workers": 0, "out": None,
}  # fmt: skip


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


def to_float(image: Any, size: int) -> Tensor:
    """The least that preprocessing can be: uint8 to [0, 1]; black for the image of another kind a prior is tried on."""
    ready = isinstance(image, Tensor) and image.shape[-1] == size
    return image.float().div_(255) if ready else torch.zeros(3, size, size)


class Meter:
    """Seconds and peak bytes of what runs between `start` and `stop`, after what the device still has to do."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.seconds = self.processor_seconds = 0.0
        self.bytes: int | None = None

    def start(self) -> None:
        """Begin."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.begun, self.processor_begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """End."""
        if self.cuda:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated()
        self.seconds = time.perf_counter() - self.begun
        self.processor_seconds = time.process_time() - self.processor_begun


class Window(L.Callback):
    """Runs a meter over the training steps after the first `warmup`, or over a pass of prediction."""

    def __init__(self, meter: Meter, warmup: int = 0, steps: int = 0) -> None:
        self.meter, self.warmup, self.steps, self.seen = meter, warmup, steps, 0

    def on_train_batch_end(self, *args: Any) -> None:
        """Count a step."""
        self.seen += 1
        if self.seen == self.warmup:
            self.meter.start()
        elif self.seen == self.warmup + self.steps:
            self.meter.stop()

    def on_predict_start(self, *args: Any) -> None:
        """The pass begins."""
        self.meter.start()

    def on_predict_end(self, *args: Any) -> None:
        """The pass has ended."""
        self.meter.stop()


def trainer_of(options: argparse.Namespace, precision: Any, *callbacks: L.Callback, **limits: Any) -> L.Trainer:
    """A trainer with nothing on the side."""
    return L.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, precision=precision, benchmark=True,
        callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **limits,
    )  # fmt: skip


def free_memory(options: argparse.Namespace) -> int:
    """Let go of the last run's memory and compiled code; bytes on the device that remain in use."""
    torch.compiler.reset()
    gc.collect()
    if options.device != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def build(options: argparse.Namespace, mode: Mode) -> methods.BYOL:
    """BYOL in a mode; the first convolution passes the memory format on."""
    torch.manual_seed(0)
    module = methods.BYOL(options.backbone, backbone_kwargs=options.backbone_kwargs)
    if mode.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if mode.compiled:
        for network in (module.backbone, module.teacher_backbone):
            network.compile(backend=options.compiler)
    return module


def one_run(options: argparse.Namespace, mode: Mode, variant: str, views: Dataset, targets: Path) -> dict[str, Any]:
    """Seconds of a step and peak bytes, without those of the images."""
    before, meter = free_memory(options), Meter(options.device)
    callbacks: list[L.Callback] = [Window(meter, options.warmup, options.steps)]
    if VARIANTS[variant] is not None:
        callbacks.append(ReLACallback(targets, transform=None, verify_targets=0, **VARIANTS[variant]))
    trainer = trainer_of(options, mode.precision, *callbacks, max_steps=options.warmup + options.steps, max_epochs=-1)
    trainer.fit(build(options, mode), DataLoader(views, options.batch_size))
    return {"seconds": meter.seconds / options.steps, "bytes": None if meter.bytes is None else meter.bytes - before}


def summary(rows: list[dict[str, Any]], alone: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """Medians over the rounds of a variant, and its ratio to BYOL alone in the same round."""
    seconds = statistics.median(row["seconds"] for row in rows)
    ratios = [row["seconds"] / other["seconds"] for row, other in zip(rows, alone, strict=True)]
    peaks = [row["bytes"] / 2**20 for row in rows if row["bytes"] is not None]
    return {
        "seconds_per_step": seconds,
        "images_per_second": batch_size / seconds,
        "ratio": statistics.median(ratios),
        "ratio_of_each_round": [round(ratio, 4) for ratio in ratios],
        "peak_mib": round(max(peaks), 1) if peaks else None,
    }


def measure_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Every variant in every mode."""
    table: dict[str, Any] = {}
    rows = options.batch_size * (options.warmup + options.steps)
    first, second = torch.rand(2, options.batch_size, 3, options.size, options.size, device=options.device)
    views = Repeated([([a, b], 0) for a, b in zip(first, second, strict=True)], rows)
    with tempfile.TemporaryDirectory() as folder:
        prior = load_prior("random:lightly:resnet-9", image_size=32, mean=0.5, std=0.5, seed=0)  # 512 wide, as CLIP's
        build_targets(prior, random_images(rows, 32), Path(folder) / "targets")
        for name in options.modes:
            runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
            for _, variant in itertools.product(range(options.rounds), VARIANTS):
                runs[variant].append(one_run(options, MODES[name], variant, views, Path(folder) / "targets"))
            table[name] = {v: summary(each, runs["alone"], options.batch_size) for v, each in runs.items()}
            for variant, row in table[name].items():
                peak = "" if row["peak_mib"] is None else f"  {row['peak_mib']:8.0f} MiB"
                milliseconds = 1e3 * row["seconds_per_step"]
                print(f"{name:30s} {variant:22s} {milliseconds:8.1f} ms  {row['ratio']:.3f} of alone{peak}", flush=True)
    return table


def bare_forward(options: argparse.Namespace, prior: Prior, precision: str) -> float:
    """Images a second of the prior's forward, nothing else."""
    prior.to(options.device)
    batch = torch.rand(options.label_batch_size, *prior.input_shape, device=options.device)
    meter, batches = Meter(options.device), max(options.images // options.label_batch_size, 1)
    autocast = torch.autocast(options.device, torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()
    with autocast:
        for _ in range(options.warmup):
            prior(batch)
        meter.start()
        for _ in range(batches):
            prior(batch)
        meter.stop()
    return batches * len(batch) / meter.seconds


def labelling_pass(options: argparse.Namespace, prior: Prior, dataset: Any, precision: str) -> float:
    """Images a second of `Trainer.predict` with the writer, the start of the workers included."""
    meter = Meter(options.device)
    with tempfile.TemporaryDirectory() as folder:
        claim, shape = Claim(partial_folder(Path(folder) / "t")), Shape(1, prior.feature_dim)
        plan = LabellingPlan(
            dataset, len(dataset), claim, {}, options.label_batch_size, options.workers, time.time(), shape
        )
        trainer = trainer_of(options, precision, TargetWriter(plan), Window(meter))
        trainer.predict(LabellingModule(prior, plan), return_predictions=False)
    return len(dataset) / meter.seconds


def whole_build(options: argparse.Namespace, prior: Prior, dataset: Any, precision: str) -> float:
    """Images a second of `build_targets`, start to end."""
    with tempfile.TemporaryDirectory() as folder:
        meter = Meter(options.device)
        meter.start()
        build_targets(
            prior, dataset, Path(folder) / "targets", batch_size=options.label_batch_size, num_workers=options.workers,
            trainer=trainer_of(options, precision),
        )  # fmt: skip
        meter.stop()
    return len(dataset) / meter.seconds


def rates_of(options: argparse.Namespace, own: Prior, precision: str) -> dict[str, Callable[[], float]]:
    """What is measured of a prior: name to a function that measures it once."""
    size = own.input_shape[-1]
    ready = load_prior(own, preprocess=functools.partial(to_float, size=size))
    images = Repeated(random_images(min(options.images, 1024), size), options.images)
    rates: dict[str, Callable[[], float]] = {
        "bare forward": lambda: bare_forward(options, ready, precision),
        "pass, images in memory": lambda: labelling_pass(options, ready, images, precision),
        "build_targets, images in memory": lambda: whole_build(options, ready, images, precision),
    }
    if options.jpeg:
        photos = Repeated(Photos(min(options.images, 512)), options.images)
        rates["pass, JPEG decoded"] = lambda: labelling_pass(options, own, photos, precision)
    return rates


def measure_labelling(options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of every prior, in fp32 and bf16-mixed; and each as a share of the bare forward."""
    table: dict[str, Any] = {}
    for spec, precision in itertools.product(options.priors, ("32-true", "bf16-mixed")):
        free_memory(options)
        rates = rates_of(options, load_prior(spec, **({"image_size": options.size} if options.tiny else {})), precision)
        rounds = [{name: measure() for name, measure in rates.items()} for _ in range(options.rounds)]
        table.setdefault(spec, {})[precision] = rows = {
            name: {
                "images_per_second": statistics.median(turn[name] for turn in rounds),
                "share_of_bare_forward": statistics.median(turn[name] / turn["bare forward"] for turn in rounds),
            }
            for name in rates
        }
        for name, row in rows.items():
            rate, share = row["images_per_second"], row["share_of_bare_forward"]
            print(f"{spec:28s} {precision:10s} {name:32s} {rate:9.1f} images/s  {share:.3f} of bare", flush=True)
    return table


def measure_views(options: argparse.Namespace) -> dict[str, Any]:
    """Every kind of step in every mode, with `device_views` and without."""
    from device_views import compare, show

    table: dict[str, Any] = {}
    for name in options.modes:
        table[name] = compare(options, MODES[name])
        show(name, table[name])
    return table


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "steps": measure_steps,
    "labelling": measure_labelling,
    "views": measure_views,
}


def parse() -> argparse.Namespace:
    """The options; sizes that were not given are those of FULL or TINY."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help="steps, labelling, views; all without a name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs; no figures")
    parser.add_argument("--jpeg", action="store_true", help="also decode JPEG files in the labelling pass")
    parser.add_argument("--modes", nargs="*", choices=tuple(MODES), default=list(MODES))
    for name, value in FULL.items():
        kind = type(value[0] if isinstance(value, list) else value)
        kind = Path if name == "out" else kind
        shown = value.name if isinstance(value, Path) else value
        many = {"nargs": "+"} if isinstance(value, list) else {}
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"default: {shown}", **many)
    parser.set_defaults(backbone_kwargs=None)
    options = parser.parse_args()
    for name, value in (TINY if options.tiny else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.parts = options.parts or list(PARTS)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if min(options.warmup, options.steps, options.rounds, options.images) < 1:
        parser.error("--warmup, --steps, --rounds and --images are at least 1")
    if options.device == "cpu" and not options.tiny:
        parser.error("these sizes are for a GPU; --device cpu goes with --tiny")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; `--device cpu --tiny` runs the same code, small")
    return options


def main() -> None:
    options = parse()
    quiet_lightning()
    warnings.filterwarnings("ignore")
    settings = {name: getattr(options, name) for name in (*FULL, "modes", "device", "tiny", "jpeg") if name != "out"}
    settings |= {"tf32": {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}}
    result: dict[str, Any] = {"settings": settings}
    for part in options.parts:
        try:
            result[part] = PARTS[part](options)
        except torch.cuda.OutOfMemoryError as error:
            raise SystemExit(
                f"The GPU's memory is too small for the part `{part}`: lower --batch-size or --label-batch-size. "
                "Finished parts are written."
            ) from error
        if options.out is not None:  # after each part, so that none is lost
            head = header(seeds=[0])
            head["command"] = without_paths(head["command"], {"OUT": options.out})
            write_result(options.out, head, result)


if __name__ == "__main__":
    main()
