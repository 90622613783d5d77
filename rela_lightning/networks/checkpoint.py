"""Weights from a file: safetensors, a plain state dict, or a Lightning checkpoint."""

from __future__ import annotations

import copy
import logging
import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rela_lightning.errors import NetworkError
from rela_lightning.networks.build import LIBRARIES, Built, build_network
from rela_lightning.weights import State, fill, refused_object, renamed, tensors_in

log = logging.getLogger("rela_lightning")

_NESTED = ("state_dict", "model_state_dict", "model", "module", "teacher")
_ENOUGH = 0.5  # share of the network's tensors that a file has to fill


def build(
    name: str,
    *,
    arch: str | nn.Module | None = None,
    prefix: str | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    **kwargs: Any,
) -> Built:
    """A network with the weights of a file.

    Args:
        name: Path of a `.safetensors`, `.pt`, `.pth` or `.ckpt` file.
        arch: The network: `timm:resnet18`, `torchvision:resnet18`, `open_clip:RN50`,
            `lightly:resnet-9`, or a module (which is copied).
        prefix: What its names start with in the file, such as `backbone.`; `None` finds the prefix
            under which most tensors fit.
        pretrained: Not read: the weights are always the file's.
        image_size: Side of the images, in pixels.
        kwargs: For the architecture, such as `width`.

    Raises:
        NetworkError: If the file is missing, holds pickled objects or does not fit the network.
    """
    if arch is None:
        raise NetworkError(
            "A checkpoint holds weights, not a network.",
            expected="`arch=`, a string with one of the sources below or an nn.Module",
            exists=LIBRARIES,
            do="write for example load_prior('checkpoint:byol.ckpt', arch='torchvision:resnet18')",
        )
    state = read_state(Path(name).expanduser())
    if isinstance(arch, nn.Module):
        if kwargs:
            raise NetworkError("A module takes no options for building it.", found=", ".join(kwargs))
        network, preprocess = copy.deepcopy(arch), None
    else:
        network, preprocess = build_network(arch, pretrained=False, image_size=image_size, **kwargs)
    load_weights(network, state, prefix=prefix, source=name)
    return Built(network, preprocess)


def read_state(path: Path) -> State:
    """The tensors of a file by name. Nothing in the file is run.

    Raises:
        NetworkError: If the file is missing, cannot be read, or holds objects or no tensors.
    """
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        raise NetworkError("There is no such weights file.", found=path, exists=near[:20])
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = refused_object(error)
        if named is None:
            raise NetworkError(
                "The weights file cannot be read.",
                expected="safetensors, or a state dict that torch.save wrote",
                found=f"{path}, which is neither",
            ) from error
        raise NetworkError(
            "The weights file holds pickled objects, which could run code when loaded.",
            expected="tensors only: safetensors, or a state dict",
            found=f"{path}: {named}",
            do="where you trust it, save its state_dict() with safetensors.torch.save_file",
        ) from error
    except Exception as error:
        raise NetworkError(
            "The weights file cannot be read.", found=f"{path}: {type(error).__name__}: {error}"
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> State:
    keys = list(content) if isinstance(content, Mapping) else [type(content).__name__]
    while isinstance(content, Mapping):
        tensors = tensors_in(content)
        inner = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), None)
        if inner is None and tensors:
            return tensors
        content = inner
    raise NetworkError(
        "The weights file holds no state dict.",
        expected="tensors by name, alone or under one of " + ", ".join(_NESTED),
        found=path,
        exists=keys[:20],
    )


def load_weights(network: nn.Module, state: State, *, prefix: str | None = None, source: str = "") -> None:
    """Fill a network with the tensors that fit, and log the names that are missing or left over.

    Args:
        network: Filled in place.
        state: Tensors by name.
        prefix: What the names start with; `None` finds it.
        source: Where the tensors came from, for messages.

    Raises:
        NetworkError: If a shape differs or fewer than half of the network's tensors are there.
    """
    own = network.state_dict()
    if prefix is None:
        prefix = _find_prefix(state, own)
    elif prefix and not prefix.endswith("."):
        prefix += "."
    found = renamed(state, lambda key: key.removeprefix(prefix) if key.startswith(prefix) else None)
    matched = renamed(found, lambda key: key if key in own or not key or key.endswith(".") else None)
    missing = [key for key in own if key not in matched]
    if len(matched) < _ENOUGH * len(own):
        raise NetworkError(
            f"{source} does not hold the weights of this network.",
            expected=f"{len(own)} tensors such as {', '.join(list(own)[:3])}",
            found=f"{len(matched)} of them under the prefix {prefix!r}",
            exists=list(state)[:12],
            do="give the right `arch=` and, where the names start with more, `prefix=`",
        )
    wrong = [f"{k} {list(v.shape)}, here {list(own[k].shape)}" for k, v in matched.items() if v.shape != own[k].shape]
    if wrong:
        raise NetworkError(
            f"{source} holds tensors of other shapes.",
            found="; ".join(wrong[:5]),
            do="give the options the network was built with (width, image_size, in_chans)",
        )
    fill(network, matched, strict=False)
    unexpected = [key for key in found if key not in own]
    log.info("%s: loaded %d of %d tensors, prefix %r", source, len(matched), len(own), prefix)
    if missing:
        log.warning("%s: %d tensors missing, left untrained: %s", source, len(missing), ", ".join(missing))
    if unexpected:
        log.warning("%s: %d tensors not used: %s", source, len(unexpected), ", ".join(unexpected))


def _find_prefix(state: State, own: Mapping[str, Tensor]) -> str:
    """The prefix under which most names and shapes fit; the first in the file where several do."""
    votes: Counter[str] = Counter()
    for key, value in state.items():
        parts = key.split(".")
        for start in range(len(parts)):
            name = ".".join(parts[start:])
            if name in own and own[name].shape == value.shape:
                votes[key[: len(key) - len(name)]] += 1
    if not votes:
        return ""
    best, count = votes.most_common(1)[0]  # ties keep the order of the file
    equal = [prefix for prefix, other in votes.items() if other == count]
    if len(equal) > 1:
        log.warning("weights fit under several prefixes (%s): took %r; choose with prefix=", ", ".join(equal), best)
    return best
