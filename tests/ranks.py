"""Two processes of one job, forked from this one: nothing is imported anew, as an interpreter of its own would."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_GRACE = 30.0  # seconds that a rank has to end once another has failed


class Rank(NamedTuple):
    """How a rank ended: its exit code, and what it wrote to stdout and stderr."""

    code: int | None
    output: str


def two_ranks(run: Callable[..., None], *arguments: Any, timeout: float = 600.0) -> list[Rank]:
    """Call a function on ranks 0 and 1, where a Trainer of two devices under plain `ddp` takes them for its own.

    Args:
        run: What each rank does; what it raises is printed, and its exit code is 1.
        arguments: Of `run`.
        timeout: Seconds after which ranks are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in (0, 1)]
        fork = multiprocessing.get_context("fork")
        ranks = [fork.Process(target=_rank, args=(rank, port, files[rank], run, arguments)) for rank in (0, 1)]
        gc.collect()
        gc.freeze()  # what ends threads when it is collected, as a session of ONNX Runtime, would wait there for ever
        for process in ranks:
            process.start()
        gc.unfreeze()
        end = time.monotonic() + timeout
        while any(process.is_alive() for process in ranks) and time.monotonic() < end:
            ranks[0].join(0.05)
            if any(process.exitcode for process in ranks):
                end = min(end, time.monotonic() + _GRACE)
        for process in ranks:
            process.kill()
            process.join()
        return [Rank(process.exitcode, file.read_text()) for process, file in zip(ranks, files, strict=True)]


def succeeded(run: Callable[..., None], *arguments: Any) -> list[str]:
    """What the ranks wrote; a failure is shown."""
    ranks = two_ranks(run, *arguments)
    assert [rank.code for rank in ranks] == [0, 0], "\n".join(rank.output[-3000:] for rank in ranks)
    return [rank.output for rank in ranks]


def _rank(number: int, port: int, file: Path, run: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    written = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(written), "w", buffering=1) for _ in range(2))
    for name in (None, "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "rela_lightning"):
        for handler in logging.getLogger(
            name
        ).handlers:  # those of pytest collect, and those of Lightning hold its stderr
            if isinstance(handler, logging.StreamHandler):
                handler.stream = sys.stderr
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"}
    run(*arguments)
