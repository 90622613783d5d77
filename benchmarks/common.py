"""What every benchmark says of itself: when, on what, with which versions, by which command."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("rela-lightning", "torch", "torchvision", "lightning", "lightly", "timm", "open_clip_torch", "numpy")


def header(*, seeds: Sequence[int] = ()) -> dict[str, Any]:
    """Date, hardware, versions, command line and seeds of this run.

    Args:
        seeds: Every seed the benchmark used.

    Returns:
        A dict for JSON: `date` (UTC, ISO 8601), `commit`, `hardware` (`cpu`, `cores`, `ram_gb`,
        `gpu`), `threads`, `versions`, `command`, `seeds`.
    """
    return {
        "date": date(),
        "commit": _commit(),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "ram_gb": _ram_gb(), "gpu": _gpus()},
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "command": _command(),
        "seeds": list(seeds),
    }


def date() -> str:
    """Now, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def write_result(path: str | Path, head: dict[str, Any], result: dict[str, Any]) -> Path:
    """Write `{**head, "result": result}` as JSON and print where it went."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**head, "result": result}, indent=2) + "\n")
    print(path)
    return path


def quiet_lightning() -> None:
    """Keep Lightning's banners and advice out of a benchmark's output."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*(workers|litlogger|litmodels).*")


def _command() -> str:
    """The command line, with the script's path relative to the repository."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parents[1]
    name = script.relative_to(root) if script.is_relative_to(root) else script.name
    return " ".join(["python", str(name), *sys.argv[1:]])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _ram_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[str]:
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
