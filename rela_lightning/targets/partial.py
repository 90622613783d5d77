"""The folder of a labelling pass under way, beside the store it will become."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rela_lightning.errors import TargetError

log = logging.getLogger("rela_lightning")

_FIELDS, _LOCK, _SECONDS = "fields.json", "lock", "seconds.txt"


def partial_folder(path: Path) -> Path:
    """Where the pass for the store at `path` keeps its rows until it is done."""
    return path.with_name(path.name + ".partial")


def prepare(folder: Path, fields: dict[str, Any]) -> None:
    """Make the folder ready for a pass: keep rows of an interrupted one, drop rows of another one.

    Args:
        folder: Created if missing.
        fields: What decides the features; rows are kept where it is the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / _FIELDS
    try:
        same = json.loads(note.read_text()) == fields
    except (OSError, ValueError):
        same = False
    if same:
        log.info("%s: going on with an interrupted pass", folder)
        return
    for old in folder.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != _LOCK:
            old.unlink()
    note.write_text(json.dumps(fields, indent=2))


def publish(built: Path, path: Path) -> None:
    """Rename a finished folder to its place; an older store there is removed afterwards."""
    old = _old(path)
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    built.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Undo a `publish` that was killed between its two renames."""
    old = _old(path)
    if old.exists() and not path.exists():
        old.rename(path)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


@contextmanager
def claimed(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the folder against other jobs; the operating system lets go of it if this process dies.

    Args:
        folder: Created if missing.
        wait: Wait for the other job instead of refusing.

    Raises:
        TargetError: If another job holds it and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with (folder / _LOCK).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise TargetError(
                    "Another job is building these targets.",
                    found=f"{folder / _LOCK} is held",
                    do="wait for it and call again, or give another path",
                ) from error
            log.warning("%s: another job is building these targets; waiting for it", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_seconds(folder: Path) -> float:
    """Seconds that earlier passes took."""
    try:
        return float((folder / _SECONDS).read_text())
    except (OSError, ValueError):
        return 0.0


def write_seconds(folder: Path, seconds: float) -> None:
    """Keep the seconds so far, for a pass that goes on later."""
    (folder / _SECONDS).write_text(f"{seconds:.3f}")
