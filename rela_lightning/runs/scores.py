"""Where the result of a probe goes: into the run's record what its own protocol gave, any other beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rela_lightning.files import write_whole
from rela_lightning.runs.measures import MEASURES
from rela_lightning.runs.names import RECORD
from rela_lightning.runs.read import read_run
from rela_lightning.runs.record import write_record

PROBED = "probe.json"


class Written(NamedTuple):
    """A result on disk.

    Attributes:
        file: Where it is.
        differences: In what its protocol differs from that of the run's own result; empty where it is the run's own.
    """

    file: Path
    differences: list[str]


def write_beside(result: Mapping[str, Any], folder: Path, name: str = PROBED) -> Written:
    """Write a result that belongs to no run."""
    return Written(_write(folder / name, result), [])


def write_of_run(
    result: Mapping[str, Any], run: Path, *, earlier: str | None, other_data: bool, overwrite: bool
) -> Written:
    """Write a run's result: `probe.json` and the scores of `run.json` for its own protocol, a file beside else.

    The first protocol that a run is probed by is its own, unless it was probed on other data.

    Args:
        result: `linear_top1`, `knn_top1`, `protocol`, ...
        run: Folder of the run.
        earlier: Name of a checkpoint that is not the run's last; None for the last.
        other_data: Whether the images are not those of the run's config.
        overwrite: Take this protocol for the run's own.
    """
    protocol = result["protocol"]
    record = read_run(run) if (run / RECORD).is_file() else {}
    known = record.get("protocol")
    differences = _differences(known, protocol) if known else ["data"] if other_data else []
    if overwrite and earlier is None:
        differences = []
    parts = [Path(PROBED).stem, *([earlier] if earlier is not None else [])]
    parts += [_tag(protocol)] if differences else []
    file = _write(run / f"{'-'.join(parts)}.json", result)
    if record and earlier is None and not differences:
        probed = [name for name in (*MEASURES, "spread") if name != "top1"]
        scores = {name: result[name] for name in probed if name in result}
        kept = {name: value for name, value in record.items() if name not in probed}
        write_record(run, {**kept, **scores, "protocol": protocol})
    return Written(file, differences)


def named_after(name: str) -> str:
    """`probe-timm-resnet50.json`: a file for the result of a prior."""
    return f"{Path(PROBED).stem}-{re.sub(r'[^A-Za-z0-9.+_]+', '-', name).strip('-')}.json"


def _write(file: Path, result: Mapping[str, Any]) -> Path:
    return write_whole(file, lambda to: to.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8"))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    ours, theirs = (json.loads(json.dumps(value)) for value in (one, other))
    return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


def _tag(protocol: Mapping[str, Any]) -> str:
    """Short and the same for the same protocol: `cifar100-1f3a`."""
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    return f"{str(protocol['data']).removesuffix('Data').lower()}-{digest[:4]}"
