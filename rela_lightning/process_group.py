"""How a process that used gloo ends."""

from __future__ import annotations

import atexit
import time

import torch

_SECONDS = 0.25


def wait_at_exit() -> None:
    """Let a process with a gloo group wait a moment before Python shuts down; repeated calls change nothing.

    A worker thread of gloo drops the tensors of the last collective after that has returned, and needs
    the interpreter for it. If it comes when Python is shutting down, the finished process aborts
    ("terminate called without an active exception", https://github.com/pytorch/pytorch/pull/179291).
    Lightning leaves gloo's group open. Closing it here would be no remedy: in older releases of PyTorch
    that waits for the same thread while holding the interpreter, for ever
    (https://github.com/pytorch/pytorch/pull/154976).
    """
    atexit.unregister(_wait)
    atexit.register(_wait)


def _wait() -> None:
    """Leave the interpreter to other threads for a moment, if there is a gloo group."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and "gloo" in distributed.get_backend():
        time.sleep(_SECONDS)
