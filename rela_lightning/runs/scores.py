"""Where the result of a probe goes: into the run's record what its own protocol gave, any other beside it.

No result takes the place of another unasked, only of the same, measured again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from rela_lightning.files import write_json
from rela_lightning.runs.measures import OF_PROBES
from rela_lightning.runs.names import RECORD
from rela_lightning.runs.read import read_run
from rela_lightning.runs.record import write_record

PROBED = "probe.json"
_SUBJECT = ("name", "checkpoint", "prior_kwargs")  # what a result is of


class Written(NamedTuple):
    """A result on disk.

    Attributes:
        file: Where it is.
        kept: The file that is kept for another result, where this one lies beside it; else `file`.
        differences: In what the other result differs; empty where this one lies in its own place.
    """

    file: Path
    kept: Path
    differences: list[str]


def write_beside(result: Mapping[str, Any], folder: Path, name: str = PROBED, *, overwrite: bool = False) -> Written:
    """Write a result that is no run's own.

    It takes the place of the same result, measured again; one of another run, prior, checkpoint or protocol is left as
    it is, and this one lies beside.

    Args:
        result: `name`, `checkpoint`, `protocol`, ...
        folder: Folder to write; made if missing.
        name: Name of the file.
        overwrite: Take the place of any other result too.
    """
    place = folder / name
    differences = _differences(_read(place), result) if place.exists() and not overwrite else []
    return Written(write_json(_beside(place, result) if differences else place, result), place, differences)


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
    if earlier is not None:
        return write_beside(result, run, f"{Path(PROBED).stem}-{earlier}.json", overwrite=overwrite)
    protocol, own = result["protocol"], run / PROBED
    record = read_run(run) if (run / RECORD).is_file() else {}
    known = record.get("protocol") or _read(own).get("protocol")  # a run that went on has a new record
    differences = _differences({"protocol": known}, {"protocol": protocol}) if known else ["data"] if other_data else []
    if differences and not overwrite:
        return Written(write_json(_beside(own, result), result), own, differences)
    write_json(own, result)
    if record:
        probed = (*OF_PROBES, "spread", "probed_steps")
        scores = {name: result[name] for name in probed if name in result}
        kept = {name: value for name, value in record.items() if name not in probed}
        write_record(run, {**kept, **scores, "protocol": protocol})
    return Written(own, own, [])


def named_after(name: str) -> str:
    """`probe-timm-resnet50.json`: a file for the result of a prior."""
    return f"{Path(PROBED).stem}-{re.sub(r'[^A-Za-z0-9.+_]+', '-', name).strip('-')}.json"


def _read(file: Path) -> dict[str, Any]:
    """A result; nothing where there is none, or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two results are not the same, measured again: of what, or by which protocol."""
    ours, theirs = (
        {**{name: result.get(name) for name in _SUBJECT}, **json.loads(json.dumps(result.get("protocol") or {}))}
        for result in (one, other)
    )
    return [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]


def _beside(place: Path, result: Mapping[str, Any]) -> Path:
    """The first file after a place, `probe-cifar100-1f3a.json` and so on, that is free or holds the same result."""
    protocol = result["protocol"]
    digest = hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()
    name = f"{place.stem}-{str(protocol['data']).removesuffix('Data').lower()}-{digest[:4]}"
    files = (place.with_name(f"{name}.json" if number == 1 else f"{name}-{number}.json") for number in count(1))
    return next(file for file in files if not file.exists() or not _differences(_read(file), result))
