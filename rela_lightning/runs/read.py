"""A run's folder as it is found: its record, and its last checkpoint. Nothing in a file is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from rela_lightning.errors import ConfigError
from rela_lightning.runs.names import CONFIG, RECORD, REQUEUED
from rela_lightning.weights import refused_object


def find_checkpoint(path: Path) -> Path:
    """The file itself, or the last checkpoint of a run folder.

    That is the one its `run.json` names, or a newer one that Lightning saved when Slurm's time was up; else, in the
    folder with the newest `*.ckpt`, the newest `last*.ckpt` or the newest of all.

    Raises:
        ConfigError: If there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        near = sorted(p.name for p in path.parent.glob("[!.]*"))[:20] if path.parent.is_dir() else []
        raise ConfigError(
            "There is no such checkpoint.", expected="a checkpoint file or a run folder", found=path, exists=near
        )
    named = find_run(path)
    wanted = read_run(named).get("checkpoint") if named is not None else None
    if named is not None and wanted:
        file = _named_in(named, str(wanted))
        if file is not None:
            saved = [file, *named.parent.glob(REQUEUED)]
            return max(saved, key=lambda each: each.stat().st_mtime)
    files = [file for file in path.rglob("*.ckpt") if file.is_file()]
    files.sort(key=lambda file: (file.stat().st_mtime, file.name))
    if not files:
        raise _no_checkpoint(path)
    beside = [file for file in files if file.parent == files[-1].parent]
    return ([file for file in beside if file.name.startswith("last")] or beside)[-1]


def _named_in(run: Path, wanted: str) -> Path | None:
    """The checkpoint that a `run.json` names, if it lies in the run's folder.

    Raises:
        ConfigError: If it lies elsewhere.
    """
    folder = run.parent.resolve()
    places = (run.parent / wanted, run.parent / Path(wanted).name)
    file = next((place for place in places if place.is_file() and place.resolve().is_relative_to(folder)), None)
    if file is None and places[0].is_file():
        raise ConfigError(
            f"{RECORD} names a checkpoint outside the run's folder, and is not followed there.",
            expected=f"a checkpoint below {run.parent}",
            found=wanted,
            do="pass that checkpoint itself, if you trust it",
        )
    return file


def _no_checkpoint(path: Path) -> ConfigError:
    sharded = [folder.name for folder in (path, *path.rglob("*.ckpt")) if folder.suffix == ".ckpt"]
    return ConfigError(
        "The folder holds no checkpoint.",
        expected="a file *.ckpt, as Lightning's ModelCheckpoint writes it",
        found=f"{path}, with the sharded checkpoint {sharded[0]}" if sharded else path,
        exists=sorted(file.name for file in path.iterdir())[:20],
        do="consolidate the shards into one file first (`lightning consolidate`)"
        if sharded
        else "give the folder of a run, or the checkpoint file itself",
    )


def find_run(folder: Path) -> Path | None:
    """`run.json` of a run folder, or of the folder of its checkpoints; None without one."""
    folder = folder.absolute()
    around = [folder, folder / "checkpoints", *([folder.parent] if folder.name == "checkpoints" else [])]
    return next((place / RECORD for place in around if (place / RECORD).is_file()), None)


def read_run(run: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of a `run.json`; nothing of None.

    Args:
        run: The file, a folder with it, or its content.

    Raises:
        ConfigError: If it is not there, or no JSON object.
    """
    if run is None or isinstance(run, Mapping):
        return dict(run or {})
    path = Path(run).expanduser()
    file = (find_run(path) or path / RECORD) if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("The run's facts cannot be read.", expected=RECORD, found=f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError("The run's facts are no JSON object.", found=f"{file}: {type(content).__name__}")
    return content


def read_config(config: Path) -> dict[str, Any]:
    """The options in a run's `config.yaml`.

    Raises:
        ConfigError: If it is no YAML, or holds no options.
        OSError: If it cannot be read.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise ConfigError("The run's config is no YAML.", found=f"{config}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError("The run's config holds no options.", found=f"{config}: {type(content).__name__}")
    return content


def setting_of(folder: Path) -> dict[str, Any]:
    """`setting`, equal for runs whose configs differ in seed and name alone, and `seed`; nothing without a config."""
    try:
        config = read_config(folder / CONFIG)
    except (OSError, ValueError):  # ConfigError is one
        return {}
    trainer = {name: value for name, value in (config.get("trainer") or {}).items() if name != "default_root_dir"}
    rest = {
        name: value for name, value in config.items() if name not in ("seed_everything", "name", "ckpt_path", "resume")
    }
    text = json.dumps({**rest, "trainer": trainer}, sort_keys=True, default=str)
    return {"setting": hashlib.sha256(text.encode()).hexdigest(), "seed": config.get("seed_everything")}


def read_checkpoint(path: Path, *, do: str | None = None) -> dict[str, Any]:
    """The content of a file of tensors and plain values, by name; nothing if it is of another shape.

    Args:
        path: The file.
        do: What to do about one that holds objects; None for the advice that suits an export.

    Raises:
        ConfigError: If it is no such file, or holds objects.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader of pickles lets errors of every kind through
        named = refused_object(error)
        if named is None:
            reason = str(error).partition("\n")[0][:200]
            raise ConfigError(
                "The checkpoint cannot be read.",
                expected="a file written by Lightning or torch.save",
                found=f"{path}: {type(error).__name__}" + (f": {reason}" if "weights_only" not in reason else ""),
            ) from error
        raise ConfigError(
            "The checkpoint holds pickled objects, which could run code when loaded.",
            expected="tensors, numbers, strings, lists and dicts",
            found=f"{path}: {named}",
            do=do
            or "where you trust it, load the module yourself and pass it to rela_lightning.export_backbone; "
            "`save_hyperparameters(ignore=[...])` keeps objects out of the next one",
        ) from error
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
