"""Processes forked from this one: nothing is imported anew, as an interpreter of its own would."""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.strategies import DDPStrategy, Strategy

_GRACE = 30.0  # seconds that a rank has to end once another has failed


class Rank(NamedTuple):
    """How a rank ended: its exit code, and what it wrote to stdout and stderr."""

    code: int | None
    output: str


def two_ranks(run: Callable[..., Any], *arguments: Any, timeout: float = 600.0) -> list[Rank]:
    """Call a function on ranks 0 and 1, where a Trainer of two devices under plain `ddp` takes them for its own.

    Args:
        run: What each rank does; what it raises is printed, and its exit code is 1. A number that it returns is the
            exit code.
        arguments: Of `run`.
        timeout: Seconds after which ranks are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return forks(*(functools.partial(_rank, rank, port, run, arguments) for rank in (0, 1)), timeout=timeout)


def fresh() -> BaseContext:
    """Processes that are given what they get pickled, and import our package anew, as spawned ones do.

    They begin as copies of an interpreter that imported what takes seconds and is not ours, and computed nothing.
    """
    context = multiprocessing.get_context("forkserver")
    heavy = ["lightly.models", "lightning.pytorch", "sklearn.datasets", "timm", "torchvision.transforms.v2"]
    context.set_forkserver_preload(heavy)
    return context


def by_name(environment: dict[str, str], name: str, *arguments: Any) -> Any:
    """Call a function by its full name, for what an import of its module would settle: the environment comes first."""
    os.environ |= environment
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)(*arguments)


def spawned() -> Strategy:
    """`ddp_spawn` on two processes of `fresh`."""
    return DDPStrategy(start_method=fresh().get_start_method())


def forks(*runs: Callable[[], Any], timeout: float = 600.0) -> list[Rank]:
    """Call functions side by side, each in a process of its own that begins as a copy of this one."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(runs))]
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=_process, args=each) for each in zip(files, runs, strict=True)]
        gc.collect()
        gc.freeze()  # what ends threads when it is collected, as a session of ONNX Runtime, would wait there for ever
        for process in processes:
            process.start()
        gc.unfreeze()
        end = time.monotonic() + timeout
        while any(process.is_alive() for process in processes) and time.monotonic() < end:
            processes[0].join(0.05)
            if any(process.exitcode for process in processes):
                end = min(end, time.monotonic() + _GRACE)
        for process in processes:
            process.kill()
            process.join()
        return [Rank(process.exitcode, file.read_text()) for process, file in zip(processes, files, strict=True)]


def succeeded(run: Callable[..., None], *arguments: Any) -> list[str]:
    """What the ranks wrote; a failure is shown."""
    ranks = two_ranks(run, *arguments)
    assert [rank.code for rank in ranks] == [0, 0], "\n".join(rank.output[-3000:] for rank in ranks)
    return [rank.output for rank in ranks]


def _rank(number: int, port: int, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"}
    return run(*arguments)


def _process(file: Path, run: Callable[[], Any]) -> None:
    written = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout = sys.__stdout__ = os.fdopen(os.dup(written), "w", buffering=1)
    sys.stderr = sys.__stderr__ = os.fdopen(os.dup(written), "w", buffering=1)
    for name in (None, "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "rela_lightning"):
        for handler in logging.getLogger(name).handlers:  # those of pytest collect, those of Lightning hold its stderr
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.stderr
    importlib.reload(warnings)  # those are written too, not collected
    sys.exit(run())
