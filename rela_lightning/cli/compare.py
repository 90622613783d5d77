"""`rela compare`: runs as a table, a plot and JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rela_lightning.errors import ConfigError
from rela_lightning.naming import distinct
from rela_lightning.runs.comparison import grouped, notes, reached, with_interval
from rela_lightning.runs.measures import measured
from rela_lightning.runs.names import RECORD
from rela_lightning.runs.read import read_run, setting_of

REPORT = "report.json"


def compare(
    runs: list[str],
    out: str = "comparison",
    title: str = "ReLA",
    reach: float | None = None,
    overwrite: bool = False,
) -> None:
    """Put runs side by side: prints a table, writes `report.md`, `report.json` and `curves.png`.

    Runs must have been probed in the same way (`rela probe RUN`). Seconds are training plus labelling. Runs whose
    configs differ in the seed alone are one row, of means. Beside each accuracy stands its 95% interval.

    Args:
        runs: Folders of runs, or of reports (`rela demo`, `rela compare`), or their JSON files; a run's
            `probe-....json` stands for the run as it was probed there, and that of a prior or of an untrained
            backbone (`rela probe RUN --untrained true`) for what was there before any training.
        out: Folder to write.
        title: Heading.
        reach: Say and draw (`costs.png`) when each run reached this top-1, in `(0, 1)`, where probes ran during
            training.
        overwrite: Replace a report in that folder.

    Raises:
        ConfigError: If there are fewer than two runs, one of them is no run or was not probed, or they were probed in
            different ways.
    """
    from rich.console import Console

    from rela_lightning.runs.report import check_runs, to_table, write_report

    if (Path(out) / REPORT).exists() and not overwrite:
        raise ConfigError(
            "There is a report already.", expected="a new folder", found=Path(out) / REPORT, do="pass --overwrite true"
        )
    if reach is not None and not 0 < reach < 1:
        raise ConfigError("`reach` is an accuracy.", expected="a number in (0, 1), such as 0.5", found=reach)
    paths = [Path(given).expanduser() for given in runs]
    for path in paths:
        _check_is_run(path)
    found = [run for path in paths for run in _read(path)]
    if len(found) < 2:
        raise ConfigError("A comparison needs runs.", expected="two or more", found=f"{len(found)}: {', '.join(runs)}")
    check_runs(_distinct(found))
    _check_alike(found)
    named = _distinct(grouped(found))
    if len(named) < 2:
        named = _distinct([with_interval(run) for run in found])  # seeds alone: nothing to set them against
    remarks = [*notes(named), *(reached(named, reach) if reach is not None else [])]
    protocol = {
        "probe": found[0]["protocol"],
        "curves": "online probes during training, where there were any; the table is measured afterwards",
        "budgets": {run["name"]: run.get("budget") for run in named},
    }
    console = Console()
    files = write_report(named, protocol, out, title=title, notes=remarks, reach=reach)
    console.print(to_table(named, title=title))
    console.print("Accuracies are top-1 in %. Seconds are training plus labelling; probing is left out.", style="dim")
    for remark in remarks:
        console.print(remark, style="dim")
    console.print(f"Report: {files[0]}", soft_wrap=True)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / name for name in (RECORD, REPORT) if (path / name).is_file()]


def _check_is_run(path: Path) -> None:
    if not _files(path):
        raise ConfigError(
            "This is neither a run nor a report.",
            expected=f"a folder with {RECORD} or {REPORT}",
            found=path if path.exists() else f"nothing at {path}",
            exists=sorted(entry.name for entry in path.iterdir())[:12] if path.is_dir() else None,
        )


def _read(path: Path) -> list[dict[str, Any]]:
    """The runs of a folder or file."""
    files = _files(path)
    try:
        content = json.loads(files[0].read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError("The file is no JSON.", found=f"{files[0]}: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError("The file is neither a run nor a report.", found=files[0])
    if "runs" in content:
        known = content.get("protocol", {})
        return [{"protocol": known.get("probe", known), **_named(run, path)} for run in content["runs"]]
    folder = files[0].parent
    if "seconds" not in content and "protocol" in content and (folder / RECORD).is_file():  # a probe beside a run's own
        content = {**read_run(folder), **content}
    if content.get("steps") != 0:  # no prior, and no untrained network: what took training has its setting
        content |= setting_of(folder)
    if not measured(content):
        raise ConfigError(
            "The run was not probed.", expected="a measure in its run.json", found=path, do=f"rela probe {path}"
        )
    return [{"protocol": {}, **_named(content, path)}]


def _named(run: Any, path: Path) -> dict[str, Any]:
    if not isinstance(run, dict) or not isinstance(run.get("name"), str):
        raise ConfigError("The run has no name.", expected=f"{RECORD} or {REPORT} as rela writes it", found=path)
    return {**run, "source": str(path)}


def _check_alike(runs: list[dict[str, Any]]) -> None:
    """Refuse runs whose numbers mean different things."""
    first, *others = ({**run["protocol"], "features": None} for run in runs)
    for run, protocol in zip(runs[1:], others, strict=True):
        different = [key for key in {**first, **protocol} if first.get(key) != protocol.get(key)]
        if different:
            raise ConfigError(
                "The runs were probed in different ways: their accuracies cannot be compared.",
                expected=f"{runs[0]['source']}: " + ", ".join(f"{key} {first.get(key)}" for key in different[:3]),
                found=f"{run['source']}: " + ", ".join(f"{key} {protocol.get(key)}" for key in different[:3]),
                do="rela probe each with the same options",
            )


def _distinct(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one name get that of their folder beside it, and a number where that is the same too."""
    counts = Counter(run["name"] for run in runs)
    beside = [
        run["name"] if counts[run["name"]] == 1 else f"{run['name']} ({Path(run['source']).name})" for run in runs
    ]
    return [{**run, "name": name} for run, name in zip(runs, distinct(beside), strict=True)]
