"""Files at a URL (`s3://`, `gs://`, `memory://`, `file://`, whatever fsspec knows), read and written whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec

from rela_lightning.errors import ConfigError


def is_url(path: object) -> bool:
    """Whether a path is a URL. A `Path` never is: it has one slash where a URL has two."""
    return isinstance(path, str) and "://" in path


class Remote:
    """A folder at a URL.

    Args:
        url: The folder, with its protocol.

    Raises:
        ConfigError: If the protocol is not known, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"The URL {url} cannot be opened.",
                expected="a protocol that fsspec knows, with its package installed",
                found=" ".join(str(error).split()),
                do="pip install s3fs (s3://), gcsfs (gs://) or adlfs (abfs://)",
            ) from error

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Names of the files and folders in it, sorted; empty where there is none."""
        self._system.invalidate_cache()
        if not self._system.exists(self._root):
            return []
        found = self._system.ls(self._root, detail=False)
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found} - {""})

    def is_folder(self, name: str) -> bool:
        """Whether something in it is a folder."""
        return bool(self._system.isdir(self._at(name)))

    def read(self, name: str) -> bytes:
        """The content of a file; a FileNotFoundError where there is none."""
        self._system.invalidate_cache()
        content: bytes = self._system.cat_file(self._at(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a small file."""
        self._system.makedirs(self._root, exist_ok=True)
        self._system.pipe_file(self._at(name), content)

    def download(self, name: str, file: Path) -> None:
        """Copy a file to the disk."""
        self._system.get_file(self._at(name), str(file))

    def upload(self, file: Path, name: str) -> None:
        """Copy a file from the disk."""
        self._system.makedirs(self._root, exist_ok=True)
        self._system.put_file(str(file), self._at(name))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if name in self.names():
            self._system.rm_file(self._at(name))


def write_at(url: str, write: Callable[[Path], object], *, names: Sequence[str] = (), overwrite: bool) -> str:
    """Write a file, or the files of a folder, on this machine, then copy them to a URL.

    Args:
        url: Of the file or folder.
        write: Writes to the path it is given.
        names: For a folder, the files that will be in it; other files at the URL stay.
        overwrite: Replace files that are there.

    Returns:
        The URL.

    Raises:
        ConfigError: If a file is there and may not be replaced, or a folder is in its place. Nothing is written then.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    place = Remote(url if names else parent)
    taken = [each for each in place.names() if each in (names or (name,))]
    folders = [each for each in taken if place.is_folder(each)]
    if folders:
        raise ConfigError("The output is a folder.", expected="the name of a file", found=f"{place.url}/{folders[0]}")
    if taken and not overwrite:
        raise ConfigError(
            "The output is there already.",
            found=f"{place.url}/{taken[0]}",
            do="give another URL, or pass overwrite=True (--overwrite true) to replace it",
        )
    with TemporaryDirectory() as made:
        out = Path(made) / name
        write(out)
        for each in names or (name,):
            place.upload(out / each if names else out, each)
    return url
