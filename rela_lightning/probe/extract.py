"""Features and labels of a whole data set."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rela_lightning.batches import describe, find_images, find_labels, leaves
from rela_lightning.devices import device_of, home_of, moved
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.networks.encode import encode
from rela_lightning.networks.pooling import Pooling
from rela_lightning.progress import Progress

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_TYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def extract_features(
    backbone: nn.Module,
    dataset_or_loader: Any,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "32-true",
    pooling: Pooling = "auto",
    labels: int | str = "auto",
    progress: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Features and labels of a whole data set, in its order.

    The backbone is in eval mode while it runs; batch-norm statistics, modes and its device are the same
    afterwards.

    Args:
        backbone: Network that takes `[B, C, H, W]` float images.
        dataset_or_loader: Map-style data set whose items are `(image tensor, label)` or hold them, or an
            iterable of such batches, for instance a DataLoader (its own order and batch size count).
        batch_size: Images per forward; read for a data set.
        num_workers: Loader processes; read for a data set.
        device: Where to run; `auto` stays on the backbone's device, or takes the accelerator if the backbone
            is on the CPU and there is one.
        precision: Of the forward, in Lightning's words: `bf16-mixed` and `16-mixed` are quicker on a GPU, and round the
            features.
        pooling: See `rela_lightning.networks.pooling.pool`.
        labels: Where the labels are in a batch: a position, a key, a dotted path, or `auto`.
        progress: Name of the pass in a progress bar on stderr, for a data set; None shows none.

    Returns:
        Float32 features `[N, F]` and int64 labels `[N]`, both on the CPU.

    Raises:
        ConfigError: If there is no such precision or device.
        DataError: If items hold no image tensor or no labels, or there is no item.

    Example:
        >>> from rela_lightning.data import DigitsData
        >>> from rela_lightning.methods import build_backbone
        >>> backbone, feature_dim = build_backbone("lightly:resnet-9", width=0.125)
        >>> features, labels = extract_features(backbone, DigitsData().dataset("val", "probe"))
        >>> features.shape == (450, feature_dim)
        True
    """
    if precision not in _TYPES:
        raise ConfigError("Unknown precision.", found=precision, exists=tuple(_TYPES))
    rounded = _TYPES[precision]
    home, parts = home_of(backbone), {parameter.device for parameter in backbone.parameters()}
    target = home if device == "auto" and home.type != "cpu" else device_of(device)
    features: list[Tensor] = []
    found: list[Tensor] = []
    bar = Progress(progress, len(dataset_or_loader)) if progress and hasattr(dataset_or_loader, "__getitem__") else None
    with moved(backbone, target) if len(parts) < 2 else nullcontext(), bar or nullcontext():
        for batch in _batches(dataset_or_loader, batch_size, num_workers):
            images = find_images(batch)
            labels, rows = find_labels(batch, len(images), labels)
            with torch.autocast(target.type, rounded, enabled=rounded is not None):
                encoded = encode(backbone, images.to(target), pooling)
            features.append(encoded.float().cpu())
            found.append(rows.cpu())
            if bar is not None:
                bar.add(len(images))
    if not features:
        raise DataError("There is no image to extract features from.", found="an empty data set")
    return torch.cat(features), torch.cat(found)


def _batches(source: Any, batch_size: int, num_workers: int) -> Iterable[Any]:
    if not hasattr(source, "__getitem__"):
        return source  # type: ignore[no-any-return]
    if len(source) and not any(leaf.ndim >= 3 for _, leaf in leaves(source[0])):
        raise DataError(
            "The data set's items hold no image tensor.",
            expected="(image tensor [C, H, W], label)",
            found=", ".join(describe(source[0])) or "no tensor",
            do="give the data set a transform that ends in a float tensor",
        )
    # A loader draws a seed for its workers; from its own generator, the global random state stays.
    return DataLoader(source, batch_size=batch_size, num_workers=num_workers, generator=torch.Generator())
