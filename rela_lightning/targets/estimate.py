"""What labelling will cost, from a short timing: seconds, disk and memory."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader

from rela_lightning.data.copies import copied
from rela_lightning.data.raw import check_length, past_cache
from rela_lightning.devices import moved
from rela_lightning.fingerprint.dataset import sampled_rows
from rela_lightning.memory import peak_memory
from rela_lightning.priors.base import Prior
from rela_lightning.rng import preserved_rng
from rela_lightning.targets.label_view import DrawnCrops, LabelView, embed
from rela_lightning.targets.options import as_width, check_options
from rela_lightning.targets.records import Storage, record_type
from rela_lightning.targets.reduce import pca, project, projection, streaming_moments
from rela_lightning.targets.rounding import embed_exactly, sampled
from rela_lightning.targets.shards import Shape, pass_bytes

_LEAST_SECONDS, _MOST_BATCHES = 4.0, 64
"""Batches are timed until both are enough: so many seconds, and three of them; never more than the most."""
_MANIFEST, _COMPONENT = 24_500, 25
"""Bytes of a manifest, about, and of the share of each component in it."""


class Estimate(NamedTuple):
    """What labelling will take on this machine.

    Attributes:
        images: Images N of the data set.
        images_per_second: Reading, preprocessing and embedding, all views of an image together.
        seconds: The whole of `build_targets`.
        store_bytes: Files of the finished store.
        working_bytes: Files of the pass beside it, until it is finished.
        memory_bytes: Largest resident memory of the process so far, which held a whole batch; None where the system
            does not tell.
        device: Where the prior ran.
    """

    images: int
    images_per_second: float
    seconds: float
    store_bytes: int
    working_bytes: int
    memory_bytes: int | None
    device: str


def estimate_targets(
    prior: Prior,
    dataset: Any,
    *,
    views: int = 0,
    target_dim: int | float | None = None,
    storage_dtype: Storage = "float16",
    batch_size: int = 256,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
) -> Estimate:
    """Time a few batches of a labelling pass, and the parts that come once; nothing is written.

    Args:
        prior: From `load_prior`.
        dataset: As for `build_targets`.
        views: Crops K of each image beside the whole.
        target_dim: Columns of a target; a share of the variance, as the timed images have it; None for all.
        storage_dtype: `float16`, `float32` or `int8`.
        batch_size: Images (each view is one) in one forward of the prior.
        num_workers: Worker processes that read images.
        device: Where the prior runs.

    Raises:
        ConfigError: For options that `build_targets` refuses too.
        DataError: If the data set has no length or indices, or rows that are not images.
    """
    target_dim = as_width(target_dim)
    storage = check_options(
        prior=prior,
        views=views,
        target_dim=target_dim,
        standardise="shrunk",
        storage_dtype=storage_dtype,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    device = torch.device(device)
    with preserved_rng():
        length, shape = check_length(dataset), Shape(1 + views, prior.feature_dim)
        begun = time.perf_counter()
        _ = prior.identity
        once = time.perf_counter() - begun
        crops, dataset = DrawnCrops(views), past_cache(copied(dataset))
        with moved(prior, device):
            rows = np.asarray(sampled_rows(length, min(length, _MOST_BATCHES * batch_size)))
            view = LabelView(dataset, prior.preprocess, rows, crops)
            rate, features = _pass(prior, view, device, batch_size, num_workers)
            begun, again = time.perf_counter(), np.asarray(sampled(length, shape.views))
            part = again[: max(1, len(again) // 8)]
            embed_exactly(prior, LabelView(copied(dataset), prior.preprocess, part, crops), device)
            once += (time.perf_counter() - begun) * len(again) / len(part)
    most = max(1, length * shape.views - 1)
    columns = min(_columns(features, target_dim), most)
    each, solving = _reduction(features, columns)
    seconds = once + solving + length * (1 / rate + each * shape.views)
    kept = length * shape.views * record_type(columns, storage).itemsize + 8 * shape.dim * columns
    kept += _MANIFEST + _COMPONENT * min(shape.dim, most)
    return Estimate(length, rate, seconds, kept, pass_bytes(length, shape), peak_memory(), str(device))


def _pass(
    prior: Prior, view: LabelView, device: torch.device, batch_size: int, num_workers: int
) -> tuple[float, Tensor]:
    """Images a second after the first batch, which warms up, and the features `[n, F]` that were made."""
    size = max(1, batch_size // len(view[0].crops))
    loader = DataLoader(view, batch_size=size, num_workers=num_workers, generator=torch.Generator())
    made, counted, begun, first = [], 0, 0.0, 0.0
    start = time.perf_counter()
    with torch.inference_mode():
        for number, batch in enumerate(loader):
            made.append(embed(prior, move_data_to_device(batch.images, device)).flatten(0, 1).float().cpu())
            if number == 0:
                begun = time.perf_counter()
                first = begun - start
                continue
            counted += len(batch.row)
            if number >= 3 and time.perf_counter() - begun > _LEAST_SECONDS:
                break
    spent = time.perf_counter() - begun
    return (counted / spent if counted else len(view) / first), torch.cat(made)


def _columns(features: Tensor, target_dim: int | float | None) -> int:
    """Columns of a target; of a share of the variance those that these features `[n, F]` need."""
    if isinstance(target_dim, float):
        return pca(streaming_moments([features])).first(target_dim).components.shape[1]
    return features.shape[1] if target_dim is None else target_dim


def _reduction(features: Tensor, columns: int) -> tuple[float, float]:
    """Seconds a row of covariance and projection, and seconds of the eigenvectors."""
    rows = features.repeat(max(1, -(-2048 // len(features))), 1)[:2048]
    begun = time.perf_counter()
    total = streaming_moments([rows])
    covariance = time.perf_counter() - begun
    begun = time.perf_counter()
    by = projection(pca(total))
    solving = time.perf_counter() - begun
    narrow = by._replace(components=by.components[:, :columns], scales=by.scales[:columns])
    begun = time.perf_counter()
    project(rows, narrow)
    return (covariance + time.perf_counter() - begun) / len(rows), solving
