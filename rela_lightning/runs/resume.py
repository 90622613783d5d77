"""Which checkpoint a run goes on from, and whether it belongs to the module: told before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from rela_lightning.errors import ConfigError
from rela_lightning.runs.names import CONFIG, RUNS
from rela_lightning.runs.read import find_checkpoint, find_run, read_checkpoint, read_run
from rela_lightning.weights import mismatch

_WORDS = ("best", "last")  # Lightning's words for a checkpoint of the same process


def resumed(words: Sequence[str], command: str = "fit") -> list[str]:
    """Words of `rela fit` with the config and the checkpoint of a run in place of `--resume RUN`.

    Args:
        words: Words after the command. Options and configs of theirs come later than the run's config, and so change
            it; the checkpoint comes last, as no config may take it away (`ckpt_path: null`).
        command: The command; only `fit` resumes.

    Raises:
        ConfigError: If there is no such run, it has no config, a checkpoint is named too, or the command is another.
    """
    at = next((number for number, word in enumerate(words) if word.partition("=")[0] == "--resume"), None)
    if at is None:
        return list(words)
    if command != "fit":
        raise ConfigError(
            f"`rela {command}` resumes nothing.",
            found=words[at],
            do="pass the run's config.yaml by --config and its folder by --ckpt_path",
        )
    name, given = words[at].partition("=")[1:]
    value = given if name else next(iter(words[at + 1 : at + 2]), "")
    rest = [*words[:at], *words[at + (1 if name else 2) :]]
    folder = next((place for place in (Path(value).expanduser(), Path(RUNS) / value) if place.is_dir()), None)
    if not value or folder is None or not (folder / CONFIG).is_file():
        runs = sorted(str(path.parent) for path in Path(RUNS).glob(f"*/{CONFIG}"))
        raise ConfigError(
            "`--resume` needs the folder of a run.",
            expected=f"a folder with {CONFIG}, as `rela fit` writes it",
            found=value or "nothing",
            exists=runs[:20],
        )
    other = next((word for word in rest if word.partition("=")[0] == "--ckpt_path"), None)
    if other is not None:
        raise ConfigError(
            "`--resume` goes on from a run's last checkpoint, `--ckpt_path` from the one it names.",
            expected="one of them",
            found=f"--resume {value} and {other}",
            do=f"for another checkpoint of that run pass --config {folder / CONFIG} in place of --resume",
        )
    return ["--config", str(folder / CONFIG), *rest, "--ckpt_path", str(folder)]


def checkpoint_file(given: Any) -> Path | None:
    """The file behind `--ckpt_path`: the file itself, or the last checkpoint of a run's folder.

    Returns:
        None for nothing, for Lightning's `hpc` and for addresses, which Lightning resolves.

    Raises:
        ConfigError: If there is no such file, or a word that names no run.
    """
    if given in _WORDS and not Path(given).exists():
        raise ConfigError(
            f"`--ckpt_path {given}` does not say of which run: training would start afresh.",
            expected="the folder of a run, for its last checkpoint, or a checkpoint file",
            found=given,
            do="pass for example --ckpt_path runs/NAME",
        )
    if not given or given == "hpc" or "://" in str(given) or str(given).startswith("registry"):
        return None
    return find_checkpoint(Path(given).expanduser())


def check_belongs(module: LightningModule, file: Path) -> None:
    """Refuse a checkpoint whose tensors are not those of the module, or that holds objects.

    Modules that build themselves later (`configure_model`), rewrite checkpoints (`on_load_checkpoint`) or are not
    strict are left to Lightning.

    Raises:
        ConfigError: Naming the method that wrote it, and what differs.
    """
    content = read_checkpoint(  # also of modules that are not checked: before 2.6, Lightning would build any object
        file,
        do="start afresh without --ckpt_path; `save_hyperparameters(ignore=[...])` keeps objects out of the next one",
    )
    later = any(
        getattr(type(module), hook) is not getattr(LightningModule, hook)
        for hook in ("configure_model", "on_load_checkpoint")
    )
    if later or not module.strict_loading:
        return
    saved, own = content.get("state_dict"), module.state_dict()
    if not isinstance(saved, dict):
        raise ConfigError("This is no checkpoint of a training run.", expected="one of Lightning's", found=file)
    difference = mismatch(own, saved)
    if difference is None:
        return
    here, writer = type(module).__name__, _writer(content, file)
    raise ConfigError(
        f"The checkpoint was written by another method, {writer}."
        if writer not in (here, None)
        else f"The checkpoint does not fit this {here}.",
        expected=f"a checkpoint of {here} with the same options",
        found=f"{file}: {difference}",
        do=f"pass --model {writer} to go on with that run, or leave --ckpt_path out"
        if writer not in (here, None)
        else "go on with the config.yaml of that run, or leave --ckpt_path out",
    )


def _writer(content: dict[str, Any], file: Path) -> str | None:
    """Name of the class that wrote a checkpoint, where that is known."""
    hyper = content.get("hyper_parameters") or {}
    record = find_run(file.absolute().parent)
    known = read_run(record).get("method") if record is not None else None
    name = known or hyper.get("_class_path")
    return str(name).rsplit(".", 1)[-1] if name else None
