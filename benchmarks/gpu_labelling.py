"""Part of gpu.py: images a second of labelling, beside the prior's bare forward."""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_steps import Repeated, random_images
from speed import Meter, Window, autocast, free_memory, trainer_of
from targets import Photos
from torch import Tensor

from rela_lightning import build_targets, load_prior
from rela_lightning.priors import Prior
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.embedding import LabellingModule
from rela_lightning.targets.label_view import DrawnCrops
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.plan import LabellingPlan
from rela_lightning.targets.shards import Shape
from rela_lightning.targets.writer import TargetWriter

PRECISIONS = ("32-true", "bf16-mixed")


def names(options: argparse.Namespace) -> list[str]:
    """Each prior in each precision."""
    return [", ".join(pair) for pair in itertools.product(options.priors, PRECISIONS)]


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Images a second of a prior in a precision; and each as a share of the bare forward."""
    spec, precision = name.split(", ")
    free_memory(options)
    rates = rates_of(options, load_prior(spec, **({"image_size": options.size} if options.tiny else {})), precision)
    rounds = [{rate: once() for rate, once in rates.items()} for _ in range(options.rounds)]
    return {
        rate: {
            "images_per_second": statistics.median(turn[rate] for turn in rounds),
            "share_of_bare_forward": statistics.median(turn[rate] / turn["bare forward"] for turn in rounds),
        }
        for rate in rates
    }


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


def to_float(image: Any, size: int) -> Tensor:
    """The least that preprocessing can be: uint8 to [0, 1]; black for the image of another kind a prior is tried on."""
    ready = isinstance(image, Tensor) and image.shape[-1] == size
    return image.float().div_(255) if ready else torch.zeros(3, size, size)


def bare_forward(options: argparse.Namespace, prior: Prior, precision: str) -> float:
    """Images a second of the prior's forward, nothing else."""
    prior.to(options.device)
    batch = torch.rand(options.label_batch_size, *prior.input_shape, device=options.device)
    meter, batches = Meter(options.device), max(options.images // options.label_batch_size, 1)
    with autocast(options.device, precision):
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
            dataset,
            len(dataset),
            claim,
            {},
            options.label_batch_size,
            options.workers,
            time.time(),
            shape,
            DrawnCrops(0),
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


def lines(table: dict[str, Any]) -> list[str]:
    """A line for each rate."""
    return [
        f"{rate:32s} {row['images_per_second']:9.1f} images/s  {row['share_of_bare_forward']:.3f} of bare"
        for rate, row in table.items()
    ]
