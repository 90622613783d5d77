"""How a process that used gloo ends."""

from __future__ import annotations

import atexit
import sys

import torch


def destroy_at_exit() -> None:
    """Let a process that ends well close its gloo group first; repeated calls change nothing.

    A worker thread of gloo may still hold tensors of the last collective when Python shuts down, and
    then the finished process aborts ("terminate called without an active exception",
    https://github.com/pytorch/pytorch/pull/179291). PyTorch asks programs to destroy the group;
    Lightning does so for NCCL only.
    """
    atexit.unregister(_destroy)
    atexit.register(_destroy)


def _destroy() -> None:
    """Close the default group, unless an error ends the process: a collective may then never finish."""
    if hasattr(sys, "last_value") or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()
