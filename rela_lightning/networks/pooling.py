"""One vector per image from whatever a vision network returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from rela_lightning.batches import leaves
from rela_lightning.errors import ConfigError

Pooling = Literal["auto", "avg", "cls", "none", "channels_first", "channels_last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
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
    if features.ndim == 3:
        return features.shape[1]
    channels = channel_axis(features.shape[1:]) or 1
    return features[0].numel() // features.shape[channels]


def check_pooling(mode: str) -> None:
    """Refuse a mode that `pool` does not know.

    Raises:
        ConfigError: Naming those it knows.
    """
    if mode not in POOLINGS:
        raise ConfigError("Unknown pooling.", expected="one of the names below", found=mode, exists=POOLINGS)


def pool(
    output: Any,
    mode: Pooling = "auto",
    *,
    has_cls_token: bool = True,
    image_size: Sequence[int] | None = None,
    made_by: nn.Module | None = None,
) -> Tensor:
    """Reduce a network's output to one feature vector per image.

    Args:
        output: Tensor `[B, F]` (kept), feature map `[B, F, H, W]` or `[B, H, W, F]`, token sequence `[B, N, F]` or
            `[B, F, N]`, or a tuple, list or dict that holds some, see `select`.
        mode: `auto` averages maps and takes the class token of sequences (their mean without one);
            `avg` averages maps and sequences; `cls` takes the first token of sequences; `channels_first` and
            `channels_last` are `avg` of `[B, F, ...]` and of `[B, ..., F]`, whatever the shape looks like;
            `none` flattens.
        has_cls_token: Whether the first token of a sequence is a class token; read by `auto`.
        image_size: Height and width of the images, by which maps are told apart, see `channel_axis`; None for squares.
        made_by: What returned the output. The widths of its layers tell which axis holds the channels, see
            `feature_axis`.

    Returns:
        Float tensor `[B, F]`.

    Raises:
        ConfigError: For an unknown mode, an output of any other rank, or one whose channels cannot be told.
    """
    check_pooling(mode)
    features = first_tensor(output)
    if features.ndim == 2:
        return features
    if mode == "none" and features.ndim > 2:
        return features.flatten(1)
    if features.ndim == 3 and (mode == "cls" or (mode == "auto" and has_cls_token)):
        return features[:, 0]
    if features.ndim not in (3, 4):
        raise ConfigError(
            "Features of this shape cannot be pooled.",
            expected="[B, F], [B, F, H, W], [B, H, W, F], [B, N, F] or [B, F, N]",
            found=list(features.shape),
            do="choose another layer with `feature_layer`",
        )
    if mode in ("channels_first", "channels_last"):
        channels: int | None = 1 if mode == "channels_first" else features.ndim - 1
    else:
        channels = feature_axis(features.shape[1:], image_size, made_by)
    if channels is None:
        sequence = features.ndim == 3
        raise ConfigError(
            f"It cannot be told which axis of this {'sequence' if sequence else 'map'} holds the channels.",
            expected="[B, N, F] or [B, F, N], where some layer gives F features and none gives N"
            if sequence
            else "[B, F, H, W] or [B, H, W, F], where H and W are to each other as the sides of the images",
            found=list(features.shape),
            do='say which: pooling="channels_first" or pooling="channels_last"',
        )
    return features.mean(dim=[axis for axis in range(1, features.ndim) if axis != channels])


def feature_axis(
    shape: Sequence[int], image_size: Sequence[int] | None = None, made_by: nn.Module | None = None
) -> int | None:
    """Which axis of a map or sequence `[B, *shape]` holds the channels: by its shape, and by the widths of layers.

    The channels of a sequence come last; those of a map come where `channel_axis` says, or first where it does not.
    Both can mislead: a sequence may be `[B, F, N]`, and a map `[B, 8, 8, 4]` of 8 channels with another stride along
    the width looks like one of 4 channels. So channels come last only where a layer that works on the last axis
    (linear, layer norm) gives that many, or where no layer gives as many as the first axis has.

    Args:
        shape: The two or three sizes after that of the batch.
        image_size: Height and width of the images, see `channel_axis`.
        made_by: What returned the output; None where it is not known.

    Returns:
        The axis; None where it cannot be told.
    """
    last = len(shape)
    axis = last if last == 2 else channel_axis(shape, image_size)
    impossible = image_size is not None and last == 3 and (shape[1] > image_size[0] or shape[2] > image_size[1])
    if made_by is None or axis == 1 or (axis == last and impossible):
        return axis
    on_last, others = _widths(made_by)
    if axis is None:
        return 1 if on_last.isdisjoint(shape) else None
    if shape[-1] in on_last or shape[0] not in on_last | others:
        return last
    return None if on_last or shape[-1] in others else 1


def channel_axis(shape: Sequence[int], image_size: Sequence[int] | None = None) -> int | None:
    """Which axis of a map `[B, *shape]` holds the channels, as its other two shrink with the image.

    Height and width of a map are to each other as those of the image, up to rounding, and not larger than they.

    Args:
        shape: The three sizes after that of the batch.
        image_size: Height and width of the images; None for squares of any size.

    Returns:
        1 for `[B, F, H, W]`, 3 for `[B, H, W, F]`; None where both could be.
    """
    height, width = image_size or (1, 1)
    places = {1: (shape[1], shape[2]), 3: (shape[0], shape[1])}

    def same_ratio(h: int, w: int) -> bool:
        return h * width == w * height

    def near_ratio(h: int, w: int) -> bool:
        return (h - 1) * width <= (w + 1) * height and (w - 1) * height <= (h + 1) * width

    def within(h: int, w: int) -> bool:
        return image_size is None or (h <= height and w <= width)

    for fits in (same_ratio, near_ratio, within):
        places = {axis: place for axis, place in places.items() if fits(*place)} or places
    return next(iter(places)) if len(places) == 1 or max(shape) == 1 else None


class Widths(NamedTuple):
    """Sizes that a network's layers give to the axis they work on."""

    on_last: frozenset[int]
    """Linear layers and layer norms: of the last axis."""
    others: frozenset[int]
    """Convolutions, batch norms, and what networks of timm say of themselves."""


_known: WeakKeyDictionary[nn.Module, Widths] = WeakKeyDictionary()


def _widths(network: nn.Module) -> Widths:
    """The widths of a network's layers, read once: features are pooled at each step."""
    if network not in _known:
        _known[network] = Widths(
            _stated(network, "out_features", "normalized_shape"), _stated(network, "out_channels", "num_features")
        )
    return _known[network]


def _stated(network: nn.Module, *names: str) -> frozenset[int]:
    found = [getattr(layer, name, None) for layer in network.modules() for name in names]
    widths = [value[-1] if isinstance(value, tuple) and value else value for value in found]
    return frozenset(width for width in widths if isinstance(width, int))


def has_cls_token(network: nn.Module) -> bool:
    """Whether a network's token sequence starts with a class token."""
    if getattr(network, "num_prefix_tokens", None) == 0:
        return False
    return any(name.rsplit(".", maxsplit=1)[-1] in _CLASS_TOKENS for name, _ in network.named_parameters())
