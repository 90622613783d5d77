"""Files that appear whole or not at all, and never in place of another unasked."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from rela_lightning.errors import ConfigError


def check_free(files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write where something is.

    Raises:
        ConfigError: If a file is there and may not be replaced, or a folder is in its place.
    """
    for file in files:
        if file.is_dir():
            raise ConfigError("The output is a folder.", expected="the name of a file", found=file)
        parent = next(folder for folder in file.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise ConfigError("A folder of the output is a file.", found=parent, do="give another path")
        if file.exists() and not overwrite:
            raise ConfigError(
                "The output is there already.",
                found=file,
                do="give another path, or pass overwrite=True (--overwrite true) to replace it",
            )


def write_whole(file: Path, write: Callable[[Path], object]) -> Path:
    """Write beside the file, then rename: a failure leaves no half of it, and the old one as it was.

    Args:
        file: Where it ends up; folders are made.
        write: Writes to the path it is given.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.{secrets.token_hex(4)}.partial{file.suffix}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        write(partial)
        partial.chmod(mode)  # that of any new file: some libraries write what nobody else may read
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def write_json(file: Path, content: object) -> Path:
    """Write content as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    return write_whole(file, lambda to: to.write_text(text, encoding="utf-8"))
