"""What is at the path of a store: ours or not, and how a new store replaces an old one.

Files move one by one and only by the names of `STORE_FILES`, so that whatever else is in a folder stays, and the folder
itself too. The manifest goes first and comes last: without it there is no store. The steps, in the working folder:

1. `new` holds the finished store. The old one moves to `old`.
2. `new` becomes `ready`: from here on the new store counts.
3. The files in `ready` move to the path. `old` and the rows of the pass are removed, then `ready`.

A kill before the second step leaves the old store to be moved back; after it, the third is done again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rela_lightning.errors import TargetError
from rela_lightning.targets.claim import HOME, Claim
from rela_lightning.targets.disk import writing
from rela_lightning.targets.manifest import FILES, MADE_BY, MANIFEST
from rela_lightning.targets.partial import clear

STORE_FILES = (*(name for name in FILES if name != MANIFEST), MANIFEST)
"""The files that a store can have, the manifest last. Only these are ever moved or removed at a path."""
_NEW, _READY, _OLD = "new", "ready", "old"


def settle(place: Path, claim: Claim, *, overwrite: bool) -> bool:
    """Finish what a killed job left and see what is at `place`, where only targets that we wrote may be.

    Args:
        place: See `rela_lightning.targets.partial.place_of`.
        claim: On its working folder; taken for a moment if a killed job left something to do.
        overwrite: Whether targets there will be replaced; then nothing else may be in the folder.

    Returns:
        Whether a store is there.

    Raises:
        TargetError: If something else is there; it is left as it is.
    """
    with writing(place):
        if any((claim.folder / name).is_dir() for name in (_READY, _OLD)):
            held = claim.held
            claim.take(wait=True)
            try:
                _recover(claim.folder, place)
            finally:
                if not held:
                    claim.release()
        return _holds_store(place, overwrite)


def new_folder(folder: Path) -> Path:
    """An empty folder for the files of a store that is being made, inside the working folder."""
    new = folder / _NEW
    _remove(new)
    new.mkdir(exist_ok=True)
    return new


def publish(folder: Path, place: Path) -> None:
    """Put the store in `new_folder(folder)` in the place of whatever store is at `place`, and end the pass."""
    new, old = folder / _NEW, folder / _OLD
    for name in _present(new):
        with (new / name).open("rb+") as file:
            os.fsync(file.fileno())  # some disks say only now that they are full
    try:
        if _present(place):
            old.mkdir(exist_ok=True)
            _move(reversed(STORE_FILES), place, old)
        new.rename(folder / _READY)
    finally:
        _recover(folder, place)


def _recover(folder: Path, place: Path) -> None:
    """Do the rest of a `publish`, or undo it, by how far it came."""
    ready, old = folder / _READY, folder / _OLD
    source = ready if ready.is_dir() else old
    if _present(source):
        place.mkdir(parents=True, exist_ok=True)
        _move(STORE_FILES, source, place)
    if source == ready:
        _remove(old)
        clear(folder)
    _remove(source)


def _move(names: Iterable[str], source: Path, target: Path) -> None:
    for name in names:
        if not (source / name).is_file():
            continue
        if os.path.lexists(target / name):
            raise TargetError(
                "Another file is in the place of a file of these targets.",
                expected=f"nothing at {target / name}",
                found=f"its own file waits at {source / name}",
                do="move what is there away and call again",
            )
        (source / name).rename(target / name)


def _remove(folder: Path) -> None:
    """Remove the files of a store by name, and the folder if nothing else is in it."""
    for name in _present(folder):
        (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


def _present(folder: Path) -> list[str]:
    return [name for name in STORE_FILES if (folder / name).is_file()]


def _holds_store(place: Path, overwrite: bool) -> bool:
    """Whether a store that we wrote is at `place`; anything else but an empty folder is refused, by name."""
    if HOME in place.parts:
        raise TargetError(f"{HOME} is for working files.", found=place, do="give a path outside it")
    if not os.path.lexists(place):
        _refuse_unwritable(place.parent)
        return False
    names = sorted(entry.name for entry in os.scandir(place)) if place.is_dir() else None
    if names is None or (names and not _is_ours(place)):
        raise TargetError(
            f"There is something else at {place}; it is left as it is.",
            expected="nothing, an empty folder, or targets that build_targets made",
            found="a file" if names is None else "a folder with other things in it",
            exists=None if names is None else names[:12],
            do="give another path, for example a new folder inside it" if names else "give another path",
        )
    other = [name for name in names if name not in STORE_FILES or not _is_plain(place / name)]
    if overwrite and other:
        raise TargetError(
            f"There is more than targets at {place}; all of it is left as it is.",
            expected=f"only {', '.join(STORE_FILES)}",
            found=", ".join(other[:12]),
            do="move these to another place and call again, or give another path",
        )
    if overwrite or not names:
        if os.path.ismount(place):  # the working files beside it would be on another disk
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(place))
        _refuse_unwritable(place)
        _refuse_unwritable(place.parent)
    return bool(names)


def _is_ours(place: Path) -> bool:
    """Whether the manifest in a folder parses and says that we made it; the first format said so by its fields."""
    try:
        return made_by_us((place / MANIFEST).read_bytes())
    except (FileNotFoundError, IsADirectoryError):
        return False


def made_by_us(content: bytes) -> bool:
    """Whether the content of a manifest parses and says that we made it."""
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(manifest, dict):
        return False
    settings = manifest.get("settings")
    first = "fingerprint" in manifest and isinstance(settings, dict) and "format_version" in settings
    return first or manifest.get("made_by") == MADE_BY


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _refuse_unwritable(folder: Path) -> None:
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))
