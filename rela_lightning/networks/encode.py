"""Features of a backbone that is only read: eval mode, no gradients, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rela_lightning.errors import ConfigError
from rela_lightning.networks.names import BACKBONE_NAMES, guess_backbone, submodule_names
from rela_lightning.networks.pooling import Pooling, first_tensor, has_cls_token, pool

_IMAGE_SIZES = (32, 224, 64, 96, 28, 128, 256, 336, 384)


class Encoder(NamedTuple):
    """What is called on images, and the network it belongs to (the same, unless a method is called)."""

    call: Callable[[Tensor], Any]
    network: nn.Module


def find_backbone(module: nn.Module, name: str = "auto") -> Encoder:
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
            "The backbone was not found.",
            expected=name if name else f"one of the usual names ({', '.join(BACKBONE_NAMES)})",
            found=f"a {type(module).__name__} without it",
            exists=submodule_names(module),
            do='name it, for example backbone="encoder", or where a network is asked for give that itself',
        )
    return Encoder(found, network)


@contextmanager
def evaluation(network: nn.Module, device: torch.device) -> Iterator[None]:
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


def pooled(network: nn.Module, output: Any, images: Tensor, pooling: Pooling = "auto") -> Tensor:
    """Features `[B, F]` from what a network made of images; a class token is read only where the network has one."""
    features = first_tensor(output)
    has_token = features.ndim == 3 and has_cls_token(network)
    return pool(features, pooling, has_cls_token=has_token, image_size=images.shape[-2:], made_by=network)


def encode(backbone: Encoder | nn.Module, images: Tensor, pooling: Pooling = "auto") -> Tensor:
    """Features of images, with the backbone in eval mode and left as it was.

    Args:
        backbone: A network, or what `find_backbone` returned.
        images: `[B, C, H, W]` on the backbone's device.
        pooling: See `rela_lightning.networks.pooling.pool`.

    Returns:
        Detached features `[B, F]` in the backbone's own dtype.
    """
    call, network = (backbone, backbone) if isinstance(backbone, nn.Module) else backbone
    with evaluation(network, images.device):
        output = first_tensor(call(images)).detach()
    return pooled(network, output, images, pooling)


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
