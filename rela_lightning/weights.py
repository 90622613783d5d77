"""Tensors by name, with the versions that some modules keep beside them.

`Module.state_dict()` notes the version of each module in the attribute `_metadata` of the dict it returns, and a few
(torchvision's MNASNet) do not load without it. A plain dict of the same tensors has lost it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from rela_lightning.compat import keep_module_versions, module_versions

State = dict[str, Tensor]


def tensors_in(content: Mapping[Any, Any]) -> State:
    """The tensors of a dict, by name, with its versions."""
    return renamed(content, lambda name: name)


def renamed(content: Mapping[Any, Any], name: Callable[[str], str | None]) -> State:
    """The tensors of a dict under other names, and the versions of modules likewise.

    Args:
        content: Values by name; those that are no tensors are left out.
        name: From a tensor's name to the new one; None leaves it out. Called with `module.` for a module.
    """
    found: OrderedDict[str, Tensor] = OrderedDict()
    for old, value in content.items():
        new = name(str(old)) if isinstance(value, Tensor) else None
        if new is not None:
            found[new] = value
    paths = {name(f"{old}." if old else ""): kept for old, kept in module_versions(content).items()}
    keep_module_versions(found, {new.removesuffix("."): kept for new, kept in paths.items() if new is not None})
    return found


def changed(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """Other tensors under the same names, with the same versions."""
    found = OrderedDict((name, change(value)) for name, value in state.items())
    keep_module_versions(found, module_versions(state))
    return found


def fill(network: nn.Module, state: State, *, strict: bool = True) -> None:
    """Load tensors into a network; where they came without versions, they are taken to be of its own."""
    whole = OrderedDict(state)
    keep_module_versions(whole, module_versions(state) or module_versions(network.state_dict()))
    network.load_state_dict(whole, strict=strict)


def refused_object(error: Exception) -> str | None:
    """The class that `torch.load(weights_only=True)` refused to build; None if the file is broken in another way."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named and named.group(1)


def mismatch(own: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    """What keeps tensors from loading strictly, in a few words; None if they load.

    Args:
        own: The state dict of the network.
        given: The tensors, by name.
    """
    shapes = [
        f"{name} {list(given[name].shape)}, here {list(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    kinds = (
        ("missing", [name for name in own if name not in given]),
        ("not of this module", [name for name in given if name not in own]),
        ("of another shape", shapes),
    )
    found = [f"{len(names)} tensors {kind}, as {', '.join(names[:3])}" for kind, names in kinds if names]
    return "; ".join(found) or None
