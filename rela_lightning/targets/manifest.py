"""`manifest.json`: the record of a store, with a check sum of its own and of the projection beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rela_lightning.errors import TargetError
from rela_lightning.fingerprint.settings import FORMAT
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.records import STORAGES

MANIFEST, TARGETS, PROJECTION, KEYS = "manifest.json", "targets.npy", "projection.safetensors", "keys.npy"
FILES = (MANIFEST, TARGETS, PROJECTION, KEYS)
"""All the files that a store can have; only that of a stream has keys."""
MADE_BY = "rela_lightning"
_AGAIN = "build the targets again with overwrite=True"
_NEEDED: dict[str, type] = {
    "fingerprint": str, "prior": str, "length": int, "views": int, "dim": int, "settings": dict, "sample": dict,
    "projection_sum": str, "targets_bytes": int,
}  # fmt: skip

_SHAPE = ("length", "views", "dim", "targets_bytes")


class Opened(NamedTuple):
    """The targets that a folder held when its manifest was read, to tell whether it still holds them.

    Files are opened when they are first read, in a loader's worker at each start of an epoch; by then another job may
    have put other targets at the path. What decides every row is compared, not the files' inodes and times: a copy of
    the folder on another machine holds the same targets.
    """

    folder: Path
    fingerprint: str
    projection_sum: str

    @classmethod
    def of(cls, folder: Path, manifest: Mapping[str, Any]) -> Opened:
        """Those of a manifest that was read from the folder."""
        return cls(folder, manifest["fingerprint"], manifest["projection_sum"])

    def check(self) -> None:
        """Refuse a file that was opened just now if it is not of these targets.

        Called once it is open: the manifest is taken away before any other file is replaced, and comes last.

        Raises:
            TargetError: If others are in the folder, or are being put there.
        """
        try:
            found = Opened.of(self.folder, json.loads((self.folder / MANIFEST).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        if found != self:
            raise TargetError(
                "The targets were built again, or removed, after they were opened.",
                expected=f"those of fingerprint {self.fingerprint[:12]} in {self.folder}",
                found="none" if found is None else f"others, of fingerprint {found.fingerprint[:12]}",
                do="start again, with the targets that are there now; while a job reads targets, build others at "
                "another path",
            )


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Write the manifest of a store whose other files are in the folder already."""
    made = {
        "made_by": MADE_BY,
        **content,
        "targets_bytes": (folder / TARGETS).stat().st_size,
        "projection_sum": _sum((folder / PROJECTION).read_bytes()),
    }
    if (folder / KEYS).is_file():
        made["keys_bytes"] = (folder / KEYS).stat().st_size
    text = json.dumps({**made, "sum": _sum(_canonical(made))}, indent=2)
    (folder / MANIFEST).write_text(text)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a complete store.

    The rows are not read: `RowReader` checks each when it is.

    Raises:
        TargetError: If there is none, it is of another format, something is missing, or anything was changed.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise _missing(path)
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        version = manifest["settings"]["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TargetError(f"{file} is not a manifest of targets.", found=repr(error), do=_AGAIN) from error
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise TargetError(
            f"The targets at {path} have another format.",
            expected=f"version {FORMAT}",
            found=f"version {version}" + (", written by a newer rela_lightning" if newer else ""),
            do="update rela_lightning"
            if newer
            else f"{_AGAIN}: the images are embedded anew, and checked sums, crops "
            "and the order of the rows are kept with them",
        )
    stated = manifest.pop("sum", None)
    if stated != _sum(_canonical(manifest)):
        raise TargetError(
            f"The manifest {file} has changed since it was written.",
            expected="a file that agrees with its check sum",
            found="one that does not",
            do=f"restore it from a copy, or {_AGAIN}",
        )
    odd = [key for key, kind in _NEEDED.items() if type(manifest.get(key)) is not kind]
    if odd or not _possible(**{key: manifest[key] for key in _SHAPE}):
        raise TargetError(
            f"{file} is not a manifest of targets.",
            found=", ".join(f"{key}={manifest.get(key)!r:.60}" for key in odd or _SHAPE),
            do=_AGAIN,
        )
    if manifest["settings"].get("storage_dtype") not in STORAGES:
        raise TargetError(
            f"The targets at {path} are kept in a type that is not known.",
            expected=", ".join(STORAGES),
            found=manifest["settings"].get("storage_dtype"),
            do=f"update rela_lightning, or {_AGAIN}",
        )
    _check_files(path, manifest)
    return manifest


def _possible(length: int, views: int, dim: int, targets_bytes: int) -> bool:
    """Whether a file of that size can hold such rows, at one byte a number or more."""
    return min(length, dim) > 0 <= views and length * (1 + views) * dim <= targets_bytes


def _check_files(path: Path, manifest: dict[str, Any]) -> None:
    projection = path / PROJECTION
    for name, key in ((TARGETS, "targets_bytes"), (KEYS, "keys_bytes")):
        size = (path / name).stat().st_size if (path / name).is_file() else 0
        bytes_there = manifest.get(key, size)
        if size != bytes_there:
            raise TargetError(
                f"The targets at {path} are incomplete.",
                expected=f"{name} of {bytes_there} bytes",
                found=f"{size} bytes",
                do=f"restore it from a copy, or {_AGAIN}",
            )
    if not projection.is_file() or _sum(projection.read_bytes()) != manifest["projection_sum"]:
        raise TargetError(
            f"The projection of the targets at {path} is missing, or has changed since it was written.",
            expected=f"{PROJECTION} as it was written",
            found="another file" if projection.is_file() else "none",
            do=f"restore it from a copy, or {_AGAIN}",
        )


def _missing(path: Path) -> TargetError:
    unfinished = partial_folder(path).is_dir()
    return TargetError(
        "The build of these targets is incomplete." if unfinished else "There is no target store here.",
        expected=f"a folder with {MANIFEST}, written by build_targets",
        found=f"{partial_folder(path)}, an interrupted build" if unfinished else path,
        exists=_near(path),
        do="call build_targets with the same arguments again: it goes on where it stopped"
        if unfinished
        else "build_targets(prior, dataset, path), with a path at which there is nothing else",
    )


def _near(path: Path) -> list[str] | None:
    """What is in the folder; of one that is missing or empty, the folders beside it that do hold targets."""
    inside = sorted(p.name for p in path.iterdir())[:12] if path.is_dir() else []
    if inside or not path.parent.is_dir():
        return inside or None
    beside = sorted(str(p.parent) for p in path.parent.glob(f"*/{MANIFEST}"))[:12]
    return beside or None


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
