"""The device that a user names, and the one that a network is on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rela_lightning.errors import ConfigError


def device_of(device: str | torch.device) -> torch.device:
    """The device that is named; `auto` is the accelerator, if there is one.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, ...

    Raises:
        ConfigError: If there is no such device here.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise _missing(f"{device} ({error})"[:200]) from error
    if found.type == "meta":
        raise _missing(f"{device}, on which nothing is computed")
    return torch.device(device)


def home_of(network: nn.Module) -> torch.device:
    """The device of a network's parameters, or else of its buffers; the CPU for one without any."""
    tensors = itertools.chain(network.parameters(), network.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def moved(network: nn.Module, device: str | torch.device) -> Iterator[None]:
    """A network on another device inside the block; afterwards, also where that fails, it is where it was."""
    home = home_of(network)
    try:
        network.to(device)
        yield
    finally:
        network.to(home)


def _missing(found: str) -> ConfigError:
    return ConfigError("There is no such device.", expected="auto, cpu, cuda, cuda:1, mps, ...", found=found)
