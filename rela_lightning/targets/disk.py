"""Files that the operating system refuses to write, as errors that name the path and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rela_lightning.errors import TargetError
from rela_lightning.units import size

_KEPT = "the rows so far are kept, the same call goes on from there"
_ELSEWHERE = "give a path in a folder that you may write to: working files lie beside the targets"
_FULL = ("The disk is full.", f"free some space and call again ({_KEPT}), or give a path on another disk")
_REASONS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: ("Your share of the disk is full.", _FULL[1]),
    errno.EFBIG: ("Files of this size are not allowed here.", f"raise the limit (ulimit -f) and call again: {_KEPT}"),
    errno.EROFS: ("This place can only be read.", _ELSEWHERE),
    errno.EACCES: ("This place must not be written.", _ELSEWHERE),
    errno.EPERM: ("This place must not be written.", _ELSEWHERE),
    errno.ENAMETOOLONG: ("The path is too long for this file system.", "give a shorter one"),
    errno.ENOTDIR: ("A part of the path is a file.", "give a path whose parents are folders"),
    errno.EEXIST: ("A part of the path is a file.", "give a path whose parents are folders"),
    errno.EXDEV: ("The path is on another disk than the folder that holds it.", "give a path inside it"),
}
_OTHER = ("This place cannot be written.", _ELSEWHERE)


def free_bytes(path: Path) -> int | None:
    """Free bytes where `path` is or will be; None where the file system does not say."""
    place = path
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        return None
    return usage.free if usage.total else None


def refuse_full(path: Path, need: int) -> None:
    """Do nothing where `need` more bytes fit at `path`, or where the file system does not say.

    Raises:
        TargetError: Naming the bytes that are needed and those that are free.
    """
    free = free_bytes(path)
    if free is not None and free < need:
        raise TargetError(
            "There is too little space on the disk for these targets.",
            expected=f"{size(need)} free at {path}",
            found=f"{size(free)} free",
            do="free some space, or give a path on another disk",
        )


@contextmanager
def writing(path: Path, need: int | None = None) -> Iterator[None]:
    """Around whatever writes at `path`: what the operating system refuses becomes a TargetError.

    Args:
        path: Named in the error, beside the file that was refused.
        need: Bytes that the whole of it takes, if known; named where the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors puts a full disk into an error of its own
        problem, do = _REASONS.get(_number(error), _OTHER)
        full, free = problem == _FULL[0], free_bytes(path)
        raise TargetError(
            problem,
            expected=f"{size(need)} in all" if full and need else None,
            found=f"{_reported(error)}, at {path}" + (f" ({size(free)} free)" if full and free is not None else ""),
            do=do,
        ) from error


def _number(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"(?:os error|code:) (\d+)", str(error))
    return int(found[1]) if found else 0


def _reported(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror} ({error.filename})"
