"""The claim on a working folder: whose it is, and that one job at a time uses it.

Working files lie in `.rela_lightning/<name>` beside the store `<name>`. The lock in there also is the mark that the
folder is ours: it is the first file written and the last removed. A folder without it is somebody else's.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rela_lightning.errors import TargetError
from rela_lightning.targets.disk import writing

log = logging.getLogger("rela_lightning")

HOME = ".rela_lightning"
LOCK = "made_by_rela_lightning.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


class Claim:
    """Holds a working folder against other jobs; the operating system releases it if this process dies.

    Leaving a `with` block releases it. Where the system has no file locks (Windows, some network disks), nothing
    is excluded.

    Args:
        folder: `.rela_lightning/<name>`; created when taken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: IO[Any] | None = None

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this object holds the folder."""
        return self._handle is not None

    def take(self, *, wait: bool) -> None:
        """Create the folder and hold it; nothing where it is held already.

        Args:
            wait: Wait for the other job instead of refusing.

        Raises:
            TargetError: If another job holds it and `wait` is False, if the folder is not ours, or if the place cannot
                be written.
        """
        with writing(self.folder):
            while self._handle is None:
                handle = self._open()
                try:
                    self._lock(handle, wait)
                    if _is_at(handle, self.folder / LOCK):
                        self._handle = handle
                finally:
                    if self._handle is None:  # refused, or the lock of a folder that the other job took away
                        handle.close()

    def release(self) -> None:
        """Release it; a folder that holds nothing but the lock is removed."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with suppress(OSError):  # a tidy end is no reason to fail
            if [file.name for file in self.folder.iterdir()] == [LOCK]:
                (self.folder / LOCK).unlink()
        _unlock(handle)
        handle.close()
        _remove_empty(self.folder)

    def _open(self) -> IO[Any]:
        tries = 20
        while True:
            try:
                refuse_foreign(self.folder)
                self.folder.mkdir(parents=True, exist_ok=True)
                return (self.folder / LOCK).open("a")
            except (FileNotFoundError, FileExistsError):  # another job may just have taken the folder away
                tries -= 1
                if not tries or not self.folder.parent.parent.is_dir():
                    raise
            except OSError:
                _remove_empty(self.folder)
                raise

    def _lock(self, handle: IO[Any], wait: bool) -> None:
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise TargetError(
                    "Another job is building these targets.",
                    found=f"{self.folder / LOCK} is held",
                    do="wait for it and call again, or give another path",
                ) from error
            log.warning("%s: another job is building these targets; waiting for it", self.folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning("%s: this disk has no locks; do not build these targets twice at once", self.folder)


def refuse_foreign(folder: Path) -> None:
    """Do nothing if the hidden folder is missing or all that is in it is ours.

    Args:
        folder: `.rela_lightning/<name>`.

    Raises:
        TargetError: Naming what is not ours.
    """
    home = folder.parent
    try:
        foreign = [home.name] if home.is_symlink() else [each.name for each in os.scandir(home) if not _is_ours(each)]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        foreign = [home.name]
    if foreign and os.path.lexists(home):  # below a file there is no home either
        raise TargetError(
            f"{home} is for the working files of build_targets, and holds something else.",
            expected=f"folders with {LOCK}, or nothing",
            found=", ".join(sorted(foreign)[:12]),
            do="move that away, or give a path in another folder; nothing here was changed",
        )


def _remove_empty(folder: Path) -> None:
    for each in (folder, folder.parent):
        with suppress(OSError):  # of others by now, or not empty
            each.rmdir()


def _is_ours(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir(follow_symlinks=False):
        return False
    try:
        names = [file.name for file in Path(entry).iterdir()]
    except FileNotFoundError:  # taken away meanwhile
        return True
    return not names or LOCK in names


def _is_at(handle: IO[Any], path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _unlock(handle: IO[Any]) -> None:
    """Unlock at once: worker processes may still have the file open."""
    try:
        import fcntl
    except ImportError:
        return
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
