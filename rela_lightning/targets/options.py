"""Whether the options of a build can work, before anything is done."""

from __future__ import annotations

from typing import Any

import torch

from rela_lightning.diagnostics.image_faults import LEAST_SAMPLES
from rela_lightning.errors import ConfigError
from rela_lightning.priors.base import Prior
from rela_lightning.targets.records import STORAGES, Storage
from rela_lightning.targets.reduce import STANDARDISATIONS


def as_width(target_dim: int | float | None) -> int | float | None:
    """A whole number above 1 is a width, also as a float: a parser that reads `int | float` may give 100.0 for 100."""
    if isinstance(target_dim, float) and target_dim > 1.0 and target_dim.is_integer():
        return int(target_dim)
    return target_dim


def check_options(
    *,
    prior: Prior,
    views: int,
    target_dim: int | float | None,
    standardise: str,
    storage_dtype: torch.dtype | str,
    batch_size: int,
    num_workers: int,
    check_images: int = 0,
    trainer: Any = None,
) -> Storage:
    """Refuse options that cannot work; the arguments are those of `build_targets`.

    Returns:
        The name of the storage type.

    Raises:
        ConfigError: Naming the option.
    """
    if isinstance(views, bool) or not isinstance(views, int) or views < 0:
        raise ConfigError("`views` counts crops of each image.", expected="an integer >= 0", found=views)
    share = isinstance(target_dim, float) and 0.0 < target_dim < 1.0
    width = isinstance(target_dim, int) and 1 <= target_dim <= prior.feature_dim
    if target_dim is not None and not (share or width):
        raise ConfigError(
            "`target_dim` is more than the prior gives." if target_dim > 1 else "`target_dim` is not a width.",
            expected=f"1 to {prior.feature_dim} (feature_dim of {prior.name}), a share in (0, 1), or None",
            found=target_dim,
        )
    if standardise not in STANDARDISATIONS:
        raise ConfigError(
            "Unknown standardisation.", expected="one of the names below", found=standardise, exists=STANDARDISATIONS
        )
    storage = next((name for name in STORAGES if name == str(storage_dtype).removeprefix("torch.")), None)
    if storage is None:
        raise ConfigError(
            "Unknown storage_dtype.", expected="one of the names below", found=storage_dtype, exists=STORAGES
        )
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            "Labelling needs images in a batch, and no fewer than 0 workers.",
            found=f"batch_size={batch_size}, num_workers={num_workers}",
        )
    if check_images != 0 and check_images < LEAST_SAMPLES:
        raise ConfigError(
            "`check_images` are too few to judge by.", expected=f"0, or {LEAST_SAMPLES} and more", found=check_images
        )
    precision = str(getattr(trainer, "precision", "32-true"))
    if precision.endswith("-true") and precision not in ("32-true", "64-true"):
        raise ConfigError(
            "This precision would round the prior's weights for good.",
            expected="32-true, bf16-mixed or 16-mixed",
            found=precision,
            do="make the labelling trainer with precision='bf16-mixed'",
        )
    return storage
