"""One vector per image from whatever a vision network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from rela_lightning.batches import leaves
from rela_lightning.errors import ConfigError

Pooling = Literal["auto", "avg", "cls", "none"]
POOLINGS: tuple[str, ...] = ("auto", "avg", "cls", "none")
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding")
_KEYS = ("pooler_output", "x_norm_clstoken", "features", "last_hidden_state", "out")


def first_tensor(output: Any) -> Tensor:
    """The feature tensor inside a model output, see `select`."""
    return select(output)[0]


def select(output: Any) -> tuple[Tensor, str]:
    """The feature tensor inside a model output, and which one of several it is, in words.

    Args:
        output: A tensor, or a tuple, list, dict, dataclass or Hugging Face style object that holds some.

    Returns:
        The tensor under a usual key, else the first one; of several maps or token sequences the deepest, which is the
        one of fewest positions, the last among equals. The words are empty where there was no choice to make.

    Raises:
        ConfigError: If there is no tensor.
    """
    if isinstance(output, Tensor):
        return output, ""
    if isinstance(output, Mapping):
        for key in _KEYS:
            if isinstance(output.get(key), Tensor):
                return output[key], ""
    elif isinstance(output, (list, tuple)) and output and isinstance(output[0], Mapping):
        return select(output[0])
    parts = [part for _, part in leaves(output) if part.is_floating_point()]
    if not parts:
        raise ConfigError(
            "The network's output holds no tensor to read features from.",
            expected="a tensor, or a tuple, list or dict that holds one",
            found=type(output).__name__,
            do="name the layer to read with `feature_layer`, or wrap the network so that it returns a tensor",
        )
    first = next((part for part in parts if part.ndim > 1), parts[0])
    alike = [part for part in parts if part.ndim == first.ndim]
    if first.ndim in (3, 4) and len(alike) > 1:
        kind = "maps" if first.ndim == 4 else "token sequences"
        return min(reversed(alike), key=_positions), f"the deepest of {len(alike)} {kind}"
    return first, f"the first of {len(alike)} outputs" if len(alike) > 1 else ""


def _positions(features: Tensor) -> int:
    return features.shape[1] if features.ndim == 3 else features.shape[2] * features.shape[3]


def check_pooling(mode: str) -> None:
    """Refuse a mode that `pool` does not know.

    Raises:
        ConfigError: Naming those it knows.
    """
    if mode not in POOLINGS:
        raise ConfigError("Unknown pooling.", expected="one of the names below", found=mode, exists=POOLINGS)


def pool(output: Any, mode: Pooling = "auto", *, has_cls_token: bool = True) -> Tensor:
    """Reduce a network's output to one feature vector per image.

    Args:
        output: Tensor `[B, F]` (kept), feature map `[B, F, H, W]` or token sequence `[B, N, F]`,
            or a tuple, list or dict that holds some, see `select`.
        mode: `auto` averages maps and takes the class token of sequences (their mean without one);
            `avg` averages maps and sequences; `cls` takes the first token; `none` flattens.
        has_cls_token: Whether the first token of a sequence is a class token; read by `auto`.

    Returns:
        Float tensor `[B, F]`.

    Raises:
        ConfigError: For an unknown mode, or an output of any other rank.
    """
    check_pooling(mode)
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
