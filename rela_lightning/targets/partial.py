"""The rows of a labelling pass under way, in a hidden folder beside the store they will become."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from rela_lightning.targets.claim import HOME
from rela_lightning.targets.disk import refuse_full, writing

log = logging.getLogger("rela_lightning")

_FIELDS, _SECONDS = "fields.json", "seconds.txt"
WORKING = (_FIELDS, _SECONDS, "where.npy", "rows-*.bin", "index-*.bin", "keys-*.txt")
"""The files of a pass. Only these are ever removed from its folder: a new one needs its name here."""


def place_of(path: str | Path) -> Path:
    """`path` in full, with `~` and links followed: a link to a folder stands for that folder."""
    return Path(os.path.realpath(Path(path).expanduser()))


def partial_folder(path: str | Path) -> Path:
    """Where the pass for the store at `path` keeps its rows until it is done."""
    place = place_of(path)
    return place.parent / HOME / place.name


def prepare(folder: Path, fields: dict[str, Any], need: int = 0) -> None:
    """Make the folder ready for a pass: keep rows of an interrupted one, drop rows of another one.

    Args:
        folder: Must exist and be claimed.
        fields: What decides the features; rows are kept where it is the same.
        need: Bytes that the files of the whole pass take.

    Raises:
        TargetError: If the pass does not fit on the disk.
    """
    note = folder / _FIELDS
    try:
        same = json.loads(note.read_text()) == fields
    except (OSError, ValueError):
        same = False
    with writing(folder, need):
        if not same:
            clear(folder)
        refuse_full(folder, need - sum(file.stat().st_size for file in _files(folder)))
        if same:
            log.info("%s: going on with an interrupted pass", folder)
        else:
            note.write_text(json.dumps(fields, indent=2))


def clear(folder: Path) -> None:
    """Remove the files of a pass, by name."""
    for file in _files(folder):
        file.unlink()


def read_seconds(folder: Path) -> float:
    """Seconds that earlier passes took."""
    try:
        return float((folder / _SECONDS).read_text())
    except (OSError, ValueError):
        return 0.0


def write_seconds(folder: Path, seconds: float) -> None:
    """Keep the seconds so far, for a pass that goes on later."""
    with writing(folder):
        (folder / _SECONDS).write_text(f"{seconds:.3f}")


def _files(folder: Path) -> list[Path]:
    return [file for pattern in WORKING for file in folder.glob(pattern)]
