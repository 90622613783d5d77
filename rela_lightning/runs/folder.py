"""The folder of a run, with `config.yaml`, `run.json`, `checkpoints/` and `logs/`: new, or that of a resumed run."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from rela_lightning.compat import is_first_process
from rela_lightning.errors import ConfigError
from rela_lightning.runs.names import CONFIG, RECORD, RUNS
from rela_lightning.runs.read import find_run, read_run

_OF_A_START = (CONFIG, "hparams.yaml")  # files that a run has before its first step
_NO_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # what some file system refuses, and what leads elsewhere


def run_of(checkpoint: Path) -> Path | None:
    """The run's folder that a checkpoint lies in; None if it lies in none."""
    record = find_run(checkpoint.absolute().parent)
    return record.parent if record is not None else None


def choose_folder(given: str | None, name: str, resumed: Path | None, requested: str | None = None) -> Path:
    """The folder of a new run, or of the one that is resumed.

    A folder below `runs` is made at once, on the first process: of runs started together, each has its own.

    Args:
        given: Folder the user named, or None.
        name: Name of the run: `runs/<name>`, or where that is taken `runs/<name>-2` and so on.
        resumed: Checkpoint to go on from, or None.
        requested: Name the user asked for, or None.

    Raises:
        ConfigError: If the folder holds another run, the name is not valid for a folder, or not that of a resumed run.
    """
    before = run_of(resumed) if resumed is not None else None
    if given is not None:
        folder = Path(given)
        if (folder / RECORD).is_file() and (before is None or before != folder.absolute()):
            raise ConfigError(
                "The folder holds a run already.",
                expected="a new folder as trainer.default_root_dir",
                found=folder / RECORD,
                do=f"go on with that run by --resume {folder}, or name another folder",
            )
        return folder
    if before is not None:
        known = (before.name, read_run(before).get("name"))
        if requested is not None and requested not in known:
            raise ConfigError(
                "A run that is resumed keeps its name and its folder.",
                expected=f"--name {known[1]}, or --name null",
                found=requested,
                do="leave --resume and --ckpt_path out to start a run of that name, or name a new folder, to go on "
                f"there from the weights of this one, by --trainer.default_root_dir runs/{requested}",
            )
        return before
    if not name.strip(". ") or _NO_NAME.search(name):
        raise ConfigError(
            "The run's name is not valid for a folder.",
            expected="letters, digits, `-`, `+`, `_`, `.`, blanks",
            found=name,
        )
    names = (Path(RUNS) / (name if number == 1 else f"{name}-{number}") for number in range(1, 100_000))
    return next(folder for folder in names if _claim(folder))


def _claim(folder: Path) -> bool:
    """Whether the folder is ours now."""
    if not is_first_process():  # it decides; others write nothing
        return True
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def release_folder(folder: Path) -> None:
    """Take a folder away that was claimed for a run that never began: only what a start writes, nothing else."""
    if not is_first_process():
        return
    files = [file for file in folder.rglob("*") if not file.is_dir()]
    if any(file.name not in _OF_A_START for file in files):
        return
    for file in files:
        file.unlink()
    for place in (*sorted(folder.rglob("*"), reverse=True), folder, folder.parent):
        with suppress(OSError):  # not empty: another run's
            place.rmdir()
