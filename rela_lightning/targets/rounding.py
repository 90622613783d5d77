"""Rounding of a labelling pass: how far its features are from strict float32, and the components it drowns.

Mixed precision and TF32 round far more coarsely than float32. Standardisation would blow that up to targets.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import default_collate

from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.dataset import sampled_rows
from rela_lightning.priors.base import Prior
from rela_lightning.priors.flops import with_flops
from rela_lightning.targets.label_view import LabelItem, embed
from rela_lightning.targets.reduce import PCA, Moments

MAX_ROUNDING = 0.02
"""Largest share of a component's variance that may be rounding. At 2% the cosine of a target with the exact one is
.99: `1 / sqrt(1 + share)`."""
_BATCH = 32


def sampled(length: int, views: int = 1) -> list[int]:
    """The images to embed once more: an eighth of them, within what gives 32 to 256 rows, spread evenly.

    Args:
        length: Number of images.
        views: Rows of each image.
    """
    rows = min(max(length * views // 8, 32), 256)
    return sampled_rows(length, -(-rows // views))


@contextmanager
def strict_float32(device_type: str) -> Iterator[None]:
    """Autocast off, and products of float32 tensors not rounded to TF32 or bfloat16; undone at the end.

    Args:
        device_type: Such as `cpu` or `cuda`.
    """
    switches = _switches()
    try:
        for change, _, strict in switches:
            change(strict)
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for change, before, _ in switches:
            change(before)


def _switches() -> list[tuple[Callable[[Any], Any], Any, Any]]:
    """What makes float32 products coarse: how to set it, what it is now, what it has to be."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # since torch 2.9, which refuses to mix it with the older ones
        parts = [getattr(library, kind) for library in (backends.cudnn, backends.mkldnn) for kind in ("conv", "rnn")]
        parts += [backends.cuda.matmul, backends.mkldnn.matmul]
        return [(functools.partial(setattr, part, "fp32_precision"), part.fp32_precision, "ieee") for part in parts]
    return [
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), "highest"),
        (functools.partial(setattr, backends.cudnn, "allow_tf32"), backends.cudnn.allow_tf32, False),
    ]


def exactly(prior: Prior, images: Any) -> Tensor:
    """Features float32 `[B, F]` of what a prior takes, computed in strict float32.

    Args:
        prior: On the device to use. Weights of less than float32 are taken to float32 for it.
        images: A batch for the prior, on that device.
    """
    device = (images[0] if isinstance(images, (list, tuple)) else images).device
    if any(p.is_floating_point() and p.itemsize < 4 for p in prior.parameters()):
        prior = copy.deepcopy(prior).float()
    with strict_float32(device.type):
        features: Tensor = prior(images)
    return features


class Exact(NamedTuple):
    """Images embedded in strict float32.

    Attributes:
        images: Their rows.
        features: Float32 `[n, V, F]`, on the CPU.
        flops: Of one view of one image; None where they cannot be counted.
    """

    images: list[int]
    features: Tensor
    flops: float | None


def embed_exactly(prior: Prior, items: Iterable[LabelItem], device: torch.device) -> Exact:
    """Embed images in strict float32.

    Args:
        prior: The prior; it is moved to `device`.
        items: The images, one or more, such as a `LabelView`.
        device: Where to compute.
    """
    prior.to(device)
    rows, features, rest, flops = list[int](), list[Tensor](), iter(items), None
    while batch := list(itertools.islice(rest, _BATCH)):
        rows += [int(item.row) for item in batch]
        moved = move_data_to_device(default_collate([item.images for item in batch]), device)
        forward = functools.partial(embed, functools.partial(exactly, prior), moved)
        found, counted = (forward(), None) if features else with_flops(prior, forward)
        flops = flops if counted is None else counted / found[..., 0].numel()
        features.append(found.cpu())
    return Exact(rows, torch.cat(features), flops)


class Rounding(NamedTuple):
    """What a pass rounded away.

    Attributes:
        rows: Rows that were embedded twice.
        share: Share of the variance of all components together that is rounding.
        largest_kept_share: The same of the worst component that is kept.
        dropped_dimensions: Components that are not kept for it.
    """

    rows: int
    share: float
    largest_kept_share: float
    dropped_dimensions: int


def without_rounding(result: PCA, difference: Moments) -> tuple[PCA, Rounding]:
    """The components in which rounding is at most a share `MAX_ROUNDING` of the variance.

    Args:
        result: Principal components of the pass's features.
        difference: Moments of the pass's features less the exact ones, of the same images. Their mean, which all
            rows share, is no noise.

    Returns:
        These components, in the same order, and what was found.

    Raises:
        TargetError: If none is left.
    """
    noise = difference.scatter / max(difference.count - 1, 1)
    shares = ((result.components.T @ noise) * result.components.T).sum(dim=1) / result.variance
    clear = shares <= MAX_ROUNDING
    if not bool(clear.any()):
        raise TargetError(
            "The features of this pass are rounding noise: the same images embedded in float32 differ.",
            expected=f"a direction in which rounding is at most {MAX_ROUNDING:.0%} of the variance",
            found=f"{float(shares.min()):.0%} in the best of {len(shares)}",
            do="label in 32-bit precision; check that the data set gives the same image at each reading",
        )
    kept = result._replace(components=result.components[:, clear], variance=result.variance[clear])
    found = float(noise.trace()) / result.total, float(shares[clear].max()), int((~clear).sum())
    return kept, Rounding(difference.count, *found)
