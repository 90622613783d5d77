"""Image files under a folder, and the folders that are classes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from rela_lightning.errors import DataError

SHOWN = 5
"""Names that a message lists at most."""
_NO_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
"""Formats that Pillow knows by name, and reads with other programs or not at all."""
_BESIDE = {
    "", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".log", ".py",
    ".sh", ".npy", ".npz", ".pt", ".pth", ".mat", ".pkl", ".parquet", ".zip", ".tar", ".gz", ".lock", ".db", ".ini",
}  # fmt: skip
"""What usually lies beside images, and is left out without a word."""


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that Pillow can read here, lower case, with their dot; plugins are counted in."""
    from PIL import Image

    known = Image.registered_extensions()  # loads all plugins
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NO_PHOTOS)


def check_folder(path: Path) -> Path:
    """The path itself, if it is a folder.

    Raises:
        DataError: If it is a file, or not there; then what lies beside it is listed.
    """
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(
            "The data folder is a file.", expected="a folder", found=path, do="unpack it, or name the folder it is in"
        )
    beside = path.absolute().parent
    raise DataError(
        "The data folder is not there.",
        expected="an existing folder",
        found=path,
        exists=listing(beside) if beside.is_dir() else None,
        do="check the path; relative paths start at the current folder",
    )


def list_images(folder: Path) -> list[str]:
    """Paths of all image files under a folder, relative to it, with `/`, sorted.

    Links to folders are followed, but for those that lead back to a folder they lie in. A warning counts the files
    whose suffix belongs neither to an image that Pillow can read nor to what usually lies beside images; another one
    counts files without a suffix, if one of the first is an image.
    """
    names: list[str] = []
    bare: list[str] = []  # without a suffix
    others: Counter[str] = Counter()
    for prefix, files in _walk(folder, (folder.resolve(),)):
        for name in files:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  # a name, not a path
            if not suffix:
                bare.append(prefix + name)
            if suffix in image_suffixes():
                names.append(prefix + name)
            elif suffix not in _BESIDE:
                others[suffix] += 1
    if names and others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(SHOWN))
        rank_zero_warn(f"Files under {folder} are left out, as Pillow reads no images with these suffixes: {counts}.")
    if names and any(_opens(folder / name) for name in sorted(bare)[:SHOWN]):
        rank_zero_warn(
            f"{len(bare)} files under {folder} have no suffix and are left out, images too: {first_few(bare)}."
        )
    return sorted(names)


def _opens(file: Path) -> bool:
    """Whether a file begins as an image that Pillow can read."""
    from PIL import Image

    try:
        if not file.is_file():  # a pipe would wait for its writer
            return False
        with file.open("rb") as opened:
            Image.open(opened)
    except Exception:  # of its many plugins
        return False
    return True


def class_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, sorted; hidden ones, and links that lead back, left out."""
    return sorted(entry.name for entry in _folders(root, (root.resolve(),)))


def has_images(folder: Path) -> bool:
    """Whether image files lie in a folder itself."""
    return any(Path(name).suffix.lower() in image_suffixes() for name in _files(folder))


def hidden(name: str) -> bool:
    """Whether a file or folder is left out by its name."""
    return name.startswith((".", "__"))


def listing(folder: Path) -> list[str]:
    """Some names in a folder."""
    return sorted(entry.name for entry in folder.iterdir() if not hidden(entry.name))[:12]


def first_few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _walk(folder: Path, inside: tuple[Path, ...], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """Prefix and file names of a folder and of those in it; `inside` holds the real folders on the way here."""
    yield prefix, list(_files(folder))
    for entry in _folders(folder, inside):
        yield from _walk(entry, (*inside, entry.resolve()), f"{prefix}{entry.name}/")


def _files(folder: Path) -> Iterator[str]:
    return (entry.name for entry in os.scandir(folder) if not hidden(entry.name) and not _is_folder(entry))


def _folders(folder: Path, inside: tuple[Path, ...]) -> list[Path]:
    found = [Path(entry.path) for entry in os.scandir(folder) if not hidden(entry.name) and _is_folder(entry)]
    return [entry for entry in found if not entry.is_symlink() or entry.resolve() not in inside]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
