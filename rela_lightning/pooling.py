"""One vector per image from whatever a vision network returns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from rela_lightning.errors import ConfigError

Pooling = Literal["auto", "avg", "cls", "none"]
POOLINGS: tuple[str, ...] = ("auto", "avg", "cls", "none")
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding")
_KEYS = ("pooler_output", "x_norm_clstoken", "features", "last_hidden_state", "out")


def first_tensor(output: Any) -> Tensor:
    """The feature tensor inside a model output (tensor, tuple, dict or Hugging Face style object).

    Of the stages of a pyramid (timm's `features_only`, torchvision's feature extractor) the deepest counts.

    Raises:
        ConfigError: If there is no tensor, or several feature maps of which none is plainly the deepest.
    """
    if isinstance(output, Tensor):
        return output
    maps = feature_maps(output)
    if len(maps) > 1:
        return _deepest(maps)
    if isinstance(output, Mapping):
        for key in _KEYS:
            if isinstance(output.get(key), Tensor):
                return first_tensor(output[key])
        return first_tensor(list(output.values()))
    if isinstance(output, Sequence) and not isinstance(output, str):
        for item in output:
            if isinstance(item, (Tensor, Mapping, Sequence)) and not isinstance(item, str):
                return first_tensor(item)
    raise ConfigError(
        "The network's output holds no tensor to read features from.",
        expected="a tensor, or a tuple, list or dict that holds one",
        found=type(output).__name__,
        do="name the layer to read with `feature_layer`, or wrap the network so that it returns a tensor",
    )


def feature_maps(output: Any) -> list[Tensor]:
    """The maps `[B, F, H, W]` right inside a tuple, list or dict, if they are of different sizes; else none."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    if isinstance(output, Mapping) and any(isinstance(output.get(key), Tensor) for key in _KEYS):
        return []
    maps = [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
    return maps if len({value.shape[1:] for value in maps}) > 1 else []


def _deepest(maps: Sequence[Tensor]) -> Tensor:
    """The last stage, where each is no larger than the one before and has no fewer channels."""
    sizes = [(value.shape[1], -value.shape[2] * value.shape[3]) for value in maps]
    if all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(sizes)) and sizes[-1][0] > sizes[0][0]:
        return maps[-1]
    raise ConfigError(
        "The network returns several feature maps, and none is plainly the deepest.",
        expected="one map, or stages that get smaller and gain channels",
        found="; ".join(str(list(value.shape)) for value in maps),
        do="name the layer to read with `feature_layer`, or wrap the network so that it returns one",
    )


def pool(output: Any, mode: Pooling = "auto", *, has_cls_token: bool = True) -> Tensor:
    """Reduce a network's output to one feature vector per image.

    Args:
        output: Tensor `[B, F]` (kept), feature map `[B, F, H, W]` or token sequence `[B, N, F]`,
            or a tuple, list or dict that holds one.
        mode: `auto` averages maps and takes the class token of sequences (their mean without one);
            `avg` averages maps and sequences; `cls` takes the first token; `none` flattens.
        has_cls_token: Whether the first token of a sequence is a class token; read by `auto`.

    Returns:
        Float tensor `[B, F]`.

    Raises:
        ConfigError: For an unknown mode, or an output of any other rank.
    """
    if mode not in POOLINGS:
        raise ConfigError("Unknown pooling.", expected="one of the names below", found=mode, exists=POOLINGS)
    features = first_tensor(output)
    if features.ndim == 2:
        return features
    if mode == "none" and features.ndim > 2:
        return features.flatten(1)
    if features.ndim == 4:
        return features.mean(dim=(2, 3))
    if features.ndim == 3:
        if mode == "cls" or (mode == "auto" and has_cls_token):
            return features[:, 0]
        return features.mean(dim=1)
    raise ConfigError(
        "Features of this shape cannot be pooled.",
        expected="[B, F], [B, F, H, W] or [B, N, F]",
        found=list(features.shape),
        do="choose another layer with `feature_layer`",
    )


def has_cls_token(network: nn.Module) -> bool:
    """Whether a network's token sequence starts with a class token."""
    if getattr(network, "num_prefix_tokens", None) == 0:
        return False
    return any(name.rsplit(".", maxsplit=1)[-1] in _CLASS_TOKENS for name, _ in network.named_parameters())
