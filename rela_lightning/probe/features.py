"""Features of a backbone that is only looked at: eval mode, no gradients, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rela_lightning.batches import describe, leaves
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.injection.discovery import BACKBONE_NAMES, guess_backbone, submodule_names
from rela_lightning.pooling import Pooling, first_tensor, has_cls_token, pool
from rela_lightning.probe.batches import find_images, find_labels

_IMAGE_SIZES = (32, 224, 64, 96, 28, 128, 256, 336, 384)


class Backbone(NamedTuple):
    """What is called on images, and the network it belongs to (the same, unless a method is called)."""

    call: Callable[[Tensor], Any]
    network: nn.Module


def find_backbone(module: nn.Module, name: str = "auto") -> Backbone:
    """The backbone inside a module.

    Args:
        module: Any module, for instance the user's LightningModule.
        name: Dotted path of a submodule, or of a method of one (`"backbone.encode"`); `auto` tries the usual
            names (`backbone`, `encoder`, `student_backbone`, `online_backbone`, `encoder_q`, `model`, ...).

    Raises:
        ConfigError: If there is none, listing the submodules.
    """
    found: Any = None
    if name == "auto":
        name = guess_backbone(module) or next(
            (usual for usual in BACKBONE_NAMES if isinstance(getattr(module, usual, None), nn.Module)), ""
        )
    node: Any = module
    network = module
    for part in name.split(".") if name else ():
        node = getattr(node, part, None)
        network = node if isinstance(node, nn.Module) else network
        found = node
    if not callable(found):
        raise ConfigError(
            "The backbone to probe was not found.",
            expected=name if name else f"one of the usual names ({', '.join(BACKBONE_NAMES)})",
            found=f"a {type(module).__name__} without it",
            exists=submodule_names(module),
            do='name it, for example backbone="encoder"',
        )
    return Backbone(found, network)


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without gradients; afterwards each submodule's mode and the random state are as before."""
    modes = [(sub, sub.training) for sub in network.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        try:
            for sub, _ in modes:
                sub.training = False
            yield
        finally:
            for sub, mode in modes:
                sub.training = mode


def pooled(network: nn.Module, output: Any, pooling: Pooling = "auto") -> Tensor:
    """Features `[B, F]` from a network's output; a class token is read only where the network has one."""
    features = first_tensor(output)
    sequence = features.ndim == 3
    has_token = sequence and has_cls_token(network)
    return pool(features, pooling, has_cls_token=has_token)


def encode(backbone: Backbone | nn.Module, images: Tensor, pooling: Pooling = "auto") -> Tensor:
    """Features of images, with the backbone in eval mode and left as it was.

    Args:
        backbone: A network, or what `find_backbone` returned.
        images: `[B, C, H, W]` on the backbone's device.
        pooling: See `rela_lightning.pooling.pool`.

    Returns:
        Detached features `[B, F]` in the backbone's own dtype.
    """
    call, network = (backbone, backbone) if isinstance(backbone, nn.Module) else backbone
    with undisturbed(network, images.device):
        output = first_tensor(call(images)).detach()
    return pooled(network, output, pooling)


def measure_feature_dim(backbone: nn.Module, pooling: Pooling = "auto") -> int:
    """Width F of the features `[B, F]`, from a dry run on one black image.

    The image has as many channels as the first convolution takes, and the first of several usual sizes that
    the network accepts (its own, where it states one).

    Raises:
        ConfigError: If the network accepts none.
    """
    conv = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    channels = conv.in_channels if conv is not None else 3
    weight = next(backbone.parameters(), torch.empty(0))
    stated = getattr(backbone, "image_size", None) or (getattr(backbone, "pretrained_cfg", None) or {}).get(
        "input_size", (0,)
    )
    own = stated if isinstance(stated, int) else stated[-1]
    problem: Exception | None = None
    for size in dict.fromkeys((*_IMAGE_SIZES, own) if conv is None else (own, *_IMAGE_SIZES)):
        if size:
            image = torch.zeros(1, channels, size, size, device=weight.device, dtype=weight.dtype)
            try:
                return int(encode(backbone, image, pooling).shape[1])
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ConfigError) as error:
                problem = problem or error
    raise ConfigError(
        "The width of the backbone's features could not be measured.",
        expected=f"a network that takes images [B, {channels}, H, W] of one of the sizes {_IMAGE_SIZES}",
        found=f"{type(problem).__name__}: {problem}",
        do="pass feature_dim",
    ) from problem


def extract_features(
    backbone: nn.Module,
    dataset_or_loader: Any,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    device: str | torch.device = "auto",
    pooling: Pooling = "auto",
    labels: int | str = "auto",
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
        pooling: See `rela_lightning.pooling.pool`.
        labels: Where the labels are in a batch: a position, a key, a dotted path, or `auto`.

    Returns:
        Float32 features `[N, F]` and int64 labels `[N]`, both on the CPU.

    Raises:
        DataError: If items hold no image tensor or no labels, or there is no item.
    """
    homes = {parameter.device for parameter in backbone.parameters()} or {torch.device("cpu")}
    home = next(iter(homes))
    target = _pick_device(home) if device == "auto" else torch.device(device)
    features: list[Tensor] = []
    found: list[Tensor] = []
    move = homes != {target} and len(homes) == 1
    try:
        if move:
            backbone.to(target)
        for batch in _batches(dataset_or_loader, batch_size, num_workers):
            images = find_images(batch)
            labels, rows = find_labels(batch, len(images), labels)
            features.append(encode(backbone, images.to(target), pooling).float().cpu())
            found.append(rows.cpu())
    finally:
        if move:
            backbone.to(home)
    if not features:
        raise DataError("There is no image to extract features from.", found="an empty data set")
    return torch.cat(features), torch.cat(found)


def _pick_device(home: torch.device) -> torch.device:
    if home.type != "cpu":
        return home
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if torch.backends.mps.is_available() else home


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
