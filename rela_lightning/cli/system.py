"""What the operating system refuses, and text in another encoding: a plain error; output that nobody reads any more."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from rela_lightning.errors import ConfigError, ReLAError

_GO_ON = (
    "what was written before is kept: a run goes on from its last checkpoint by --resume runs/NAME, labelling by "
    "the same command"
)
_TYPED = {
    r"(?:\w+=\S+, )*\w+(?:=\S+)? \((--[^()]+)\)": r"\1",  # said in both ways: `overwrite=True (--overwrite true)`
    r"overwrite=True": "--overwrite true",
    r"build_targets\(prior, \w+, (?:path|URL)\)": "rela targets --prior PRIOR --data DATA --path FOLDER",
    r"call build_targets with the same arguments": "call rela targets with the same options",
    r"build_targets\(\.\.\., views=": "rela targets ... (--views ",
    r'build_targets\(\.\.\., image="([^"]+)"\), rela targets --image': r"--image \1",
    r"\bbuild_targets\b(?!\()": "rela targets",
    r'ReLACallback\("([^"]+)"\)': r"--trainer.callbacks.targets \1",
    r'ReLACallback\(prior="([^"]+)"\)': r"--trainer.callbacks.prior \1",
    r"write for example load_prior\('[^']+', arch='([^']+)'\)": r"for example --prior_kwargs '{arch: \1}'",
    r"`arch=`, a string with one of the sources below or an nn\.Module": "`arch` in --prior_kwargs, of a source below",
    r"`preprocess=`, or `image_size=`, `mean=` and `std=`": "`image_size`, `mean` and `std` in --prior_kwargs",
    r", an nn\.Module, or a list of these": ", or a list of these",
}
"""How messages of the library are typed in a shell: patterns, and what takes their place."""
_ELSEWHERE = "name a place that you may write to"
_HINTS = {
    errno.ENOSPC: f"free some space; {_GO_ON}",
    errno.EDQUOT: f"free some space; {_GO_ON}",
    errno.EFBIG: f"raise the limit (ulimit -f); {_GO_ON}",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENOTDIR: "a part of the path is a file: name another place",
    errno.EEXIST: "something of that name is there: name another place",
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer workers",
}
_WRITE_FAILED = re.compile(r"PytorchStreamWriter failed writing|basic_ios::clear|iostream error")  # torch's, of a file
_WRAPPED = "\nOriginal Traceback (most recent call last):\n"  # torch's, of an error in a worker process
System = (OSError, UnicodeError, RuntimeError)
"""Kinds of errors among which those of the operating system and of encodings are."""


def message_of(error: Exception) -> str:
    """What an error says, as words of a command, without the traceback that torch wraps around those of workers."""
    text = str(error)
    if _WRAPPED in text:
        text = re.split(r"(?m)^(?:\w+\.)*\w*Error: ", text)[-1].rstrip()
    for said, typed in _TYPED.items():
        text = re.sub(said, typed, text)
    return text


def system_error(error: BaseException, words: Sequence[str] = ()) -> ReLAError | None:
    """The error a user can act on; None for one that neither the operating system nor an encoding is behind.

    Args:
        error: What was raised.
        words: The words of the command, among them the files that it was given.
    """
    if isinstance(error, RuntimeError):
        if not _WRITE_FAILED.search(str(error)):
            return None
        first = error.__context__  # torch closes a file that could not be written, and fails once more
        if first is None or not isinstance(first, OSError):
            return ConfigError(
                "A file could not be written.", found=str(error).splitlines()[0], do=_HINTS[errno.ENOSPC]
            )
        error = first
    if isinstance(error, UnicodeError):
        return _encoding(error, words)
    return _refused(error) if isinstance(error, OSError) else None


def _refused(error: OSError) -> ReLAError:
    if error.errno is None:  # of a library, or from another process
        return ReLAError(message_of(error))
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
    return ConfigError(
        f"The operating system refuses: {error.strerror}.",
        found=", ".join(names) or _place(error),
        do=_HINTS.get(error.errno or 0),
    )


def _encoding(error: UnicodeError, words: Sequence[str]) -> ReLAError:
    if isinstance(error, UnicodeEncodeError):
        bad = error.object[error.start : error.end]
        return ConfigError(
            f"This system's encoding, {error.encoding}, has no place for some letters.",
            found=f"{ascii(bad)[:80]}, {_place(error)}",
            do="set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8",
        )
    found, place = str(error), _place(error)
    if isinstance(error, UnicodeDecodeError):
        found = f"byte {error.object[error.start]:#04x} at position {error.start}"
        given = (Path(word.partition("=")[2] or word) for word in words)
        place = next((str(file) for file in given if _holds(file, error.object)), place)
    return ConfigError(
        f"A file or a name is not text in {getattr(error, 'encoding', 'this encoding')}.",
        found=f"{found}, {place}",
        do="save it as UTF-8; where it is UTF-8, set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8",
    )


def _holds(file: Path, content: bytes) -> bool:
    try:
        return content in file.read_bytes()
    except OSError:
        return False


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"in {frames[-1].filename}, line {frames[-1].lineno}" if frames else "nothing more is known"


def check_writable(folders: Iterable[Path]) -> None:
    """Write and remove a nameless file in each folder, which is made if it is missing.

    Raises:
        OSError: Naming the folder, if nothing can be written there.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error


class _Written(io.FileIO):
    """A stream whose reader may leave, or whose disk may fill: what is written then is dropped."""

    problem: OSError | None = None

    def write(self, data: object) -> int:
        """Write, or keep the first problem; a reader who left is not a problem."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.problem = self.problem or error
            return memoryview(data).nbytes  # type: ignore[arg-type]


class Output:
    """The process's output from here on: a command ends by itself, not because nobody reads what it says.

    Letters that the encoding of the terminal does not have are written as their numbers.
    """

    def __init__(self) -> None:
        self._raw = [self._replace("stdout"), self._replace("stderr")]

    @staticmethod
    def _replace(name: str) -> _Written | None:
        old: TextIO | None = getattr(sys, name)
        try:
            number = old.fileno() if old is not None else -1
        except (OSError, ValueError):  # no file: replaced by somebody
            return None
        if old is None or number < 0:
            return None
        old.flush()
        raw = _Written(number, "wb", closefd=False)
        buffer = io.BufferedWriter(raw)
        setattr(sys, name, io.TextIOWrapper(
            buffer, encoding=old.encoding, errors="backslashreplace", line_buffering=True
        ))  # fmt: skip
        return raw

    def check(self) -> None:
        """Nothing, where all was written or nobody reads it.

        Raises:
            OSError: What the system said instead, such as that the disk is full.
        """
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for raw, name in zip(self._raw, ("standard output", "standard error"), strict=True):
            if raw is not None and raw.problem is not None:
                raise OSError(raw.problem.errno, raw.problem.strerror, name) from raw.problem
