"""Networks wrapped as `nn.Sequential(*list(network.children())[:-1])`: their tensors by the network's own names.

That is the commonest way to cut a classifier off, and leaves numbers where the network has names: `4.0.conv1.weight` is
`layer1.0.conv1.weight`.
"""

from __future__ import annotations

import torch
from torch import nn

from rela_lightning.weights import State, mismatch, renamed

USUAL = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip
"""Networks of torchvision whose children, called one after the other, are the network."""
_IN_ALL = "4.0.conv1.weight"  # of all of these, so that no other network waits for ten to be built


def is_numbered(state: State) -> bool:
    """Whether every tensor lies in a child that has a number for a name."""
    return bool(state) and all(name.partition(".")[0].isdecimal() for name in state)


def by_own_names(state: State, network: nn.Module) -> State | None:
    """The tensors under the names of the network whose children were numbered; None if they are not its own.

    Args:
        state: Tensors by name.
        network: The network without its classifier.
    """
    if not is_numbered(state):
        return None
    children = [name for name, _ in network.named_children()]

    def own(name: str) -> str | None:
        number, _, rest = name.partition(".")
        if not number:  # the whole, to which metadata may belong
            return name
        return f"{children[int(number)]}.{rest}" if int(number) < len(children) else None

    named = renamed(state, own)
    fits = len(named) == len(state) and mismatch(network.state_dict(), named) is None
    return named if fits else None


def recognised(state: State) -> tuple[str, State] | None:
    """The network of torchvision that the numbered tensors are of, and the tensors by its names; None without one."""
    if not is_numbered(state) or _IN_ALL not in state:
        return None
    from torchvision.models import get_model

    for name in USUAL:
        with torch.device("meta"):
            network = get_model(name)
        network.fc = nn.Identity()
        named = by_own_names(state, network)
        if named is not None:
            return name, named
    return None
