"""How a process that used gloo ends, where this package trained, labelled or probed in it.

A worker thread of gloo drops the tensors of the last collective after that has returned, and needs the interpreter
for it. If it comes when Python is shutting down, the finished process aborts ("terminate called without an active
exception", https://github.com/pytorch/pytorch/pull/179291). Lightning leaves gloo's group open. Closing it here would
be no remedy: in older releases of PyTorch that waits for the same thread while holding the interpreter, for ever
(https://github.com/pytorch/pytorch/pull/154976). So the process waits a moment.
"""

from __future__ import annotations

import atexit
import functools
import sys
import time

_SECONDS = 0.25


@functools.cache
def wait_at_exit() -> None:
    """Have this process wait a moment at its end, if it has a gloo group then; asked for once, whoever calls again."""
    atexit.register(_wait)


def _wait() -> None:
    """Leave the interpreter to other threads for a moment, if there is a gloo group."""
    distributed = sys.modules.get("torch.distributed")  # not imported here: `rela --help` needs no torch
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if "gloo" in distributed.get_backend():
        time.sleep(_SECONDS)
