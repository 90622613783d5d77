"""What the benchmarks of speed share: how a step is computed, how it is timed, and what it could take at best."""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch

from rela_lightning import load_prior, methods
from rela_lightning.priors import Prior


class Mode(NamedTuple):
    """How the step is computed."""

    precision: Any = "32-true"
    channels_last: bool = False
    compiled: bool = False


MODES = {
    "fp32": Mode(),
    "fp32, channels-last": Mode(channels_last=True),
    "fp32, compiled": Mode(compiled=True),
    "fp32, channels-last, compiled": Mode(channels_last=True, compiled=True),
    "bf16": Mode("bf16-mixed"),
    "bf16, channels-last": Mode("bf16-mixed", channels_last=True),
    "bf16, channels-last, compiled": Mode("bf16-mixed", channels_last=True, compiled=True),
}


class Seconds(NamedTuple):
    """What a step or an image takes: on the clock, and of this process's processors."""

    wall: float
    processor: float
    bytes: int | None = None  # peak on the device


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

    def each(self, count: int, held: int = 0) -> Seconds:
        """The share of one of `count` steps or images; the peak is what came on top of `held` bytes."""
        peak = None if self.bytes is None else self.bytes - held
        return Seconds(self.seconds / count, self.processor_seconds / count, peak)


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
    module = methods.BYOL(options.backbone, backbone_kwargs=options.backbone_kwargs, cifar_stem=options.cifar_stem)
    if mode.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if mode.compiled:
        for network in (module.backbone, module.teacher_backbone):
            network.compile(backend=options.compiler)
    return module


def small_prior() -> Prior:
    """Untrained, and 512 wide, as CLIP's."""
    return load_prior("random:lightly:resnet-9", image_size=32, mean=0.5, std=0.5, seed=0)


def autocast(device: str, precision: str) -> Any:
    """What Lightning's `bf16-mixed` does around a step; nothing otherwise."""
    return torch.autocast(device, torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()


def bare(options: argparse.Namespace, mode: Mode, *, views: int, teacher: bool) -> Seconds:
    """A step of the backbone alone: forward and backward of each view, the teacher's forward; no head, no optimizer.

    The batch stays on the device, so this is what a training step could take at best.
    """
    held, meter = free_memory(options), Meter(options.device)
    module = build(options, mode).to(options.device).train()
    images = torch.rand(options.batch_size, 3, options.size, options.size, device=options.device)
    if mode.channels_last:
        images = images.to(memory_format=torch.channels_last)
    for step in range(options.warmup + options.steps):
        if step == options.warmup:
            meter.start()
        with autocast(options.device, mode.precision):
            loss = torch.stack([module.backbone(images).float().mean() for _ in range(views)]).sum()
            with torch.no_grad():
                for _ in range(views if teacher else 0):
                    module.teacher_backbone(images)
        loss.backward()
        module.zero_grad(set_to_none=True)
    meter.stop()
    return meter.each(options.steps, held)


def summary(rows: Sequence[Seconds], against: Sequence[Seconds], images: int = 1) -> dict[str, Any]:
    """Medians over the rounds, and of the ratios to what ran beside it in each round.

    Args:
        rows: Seconds of a step in each round.
        against: Seconds of what it is compared with, in the same rounds.
        images: In a step.
    """
    wall = statistics.median(row.wall for row in rows)
    ratios = [
        [own / other for own, other in zip(row[:2], base[:2], strict=True)]
        for row, base in zip(rows, against, strict=True)
    ]
    peaks = [row.bytes / 2**20 for row in rows if row.bytes is not None]
    return {
        "seconds_per_step": wall,
        "processor_seconds_per_step": statistics.median(row.processor for row in rows),
        "images_per_second": images / wall,
        "ratio": statistics.median(ratio for ratio, _ in ratios),
        "processor_ratio": statistics.median(ratio for _, ratio in ratios),
        "ratio_of_each_round": [round(ratio, 4) for ratio, _ in ratios],
        "peak_mib": round(max(peaks), 1) if peaks else None,
    }
