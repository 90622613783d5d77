"""`rela compare`: runs as a table, a plot and JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rela_lightning.errors import ConfigError
from rela_lightning.files import check_free
from rela_lightning.naming import distinct
from rela_lightning.runs.comparison import as_probed, grouped, in_text, limits, notes, reached, with_interval
from rela_lightning.runs.measures import OF_PROBES, measured
from rela_lightning.runs.names import RECORD, RUNS, SIMILARITY
from rela_lightning.runs.read import read_run, setting_of

REPORT = "report.json"


def compare(
    runs: list[str],
    out: str = "comparison",
    title: str = "ReLA",
    *,
    reach: float | None = None,
    similarity: bool = False,
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
        similarity: Draw too how similar what the runs' backbones see is, each to each, into the same folder
            (`similarity.png`); `rela similarity` does so for priors and earlier checkpoints as well. It builds the runs
            and runs them on 1,000 validation images of the first.
        overwrite: Replace a report in that folder.

    Raises:
        ConfigError: If there are fewer than two runs, one of them is no run or was not probed, they were probed in
            different ways, or `similarity` has fewer than two folders of runs.
    """
    from rich.console import Console

    from rela_lightning.runs.report import check_runs, print_table, units, write_report

    if reach is not None and not 0 < reach < 1:
        raise ConfigError("`--reach` is an accuracy.", expected="a number in (0, 1), such as 0.5", found=reach)
    paths = [Path(given).expanduser() for given in runs]
    _check_are_runs(paths)
    models = [str(path) for path in paths if path.is_dir() and (path / RECORD).is_file()]
    if similarity and len(models) < 2:
        raise ConfigError(
            "`--similarity` is of what runs see.",
            expected=f"two or more folders of runs, with {RECORD}",
            found=", ".join(models) or "none",
            do="rela similarity compares priors and checkpoints too",
        )
    found = [run for path in paths for run in _read(path)]
    if len(found) < 2:
        raise ConfigError("A comparison needs runs.", expected="two or more", found=f"{len(found)}: {', '.join(runs)}")
    _check_probed(found)
    check_runs(_distinct(found))
    _check_alike(found)
    folder = Path(out).expanduser()
    if similarity:
        check_free([folder / name for name in SIMILARITY], overwrite=overwrite)  # before the report
    if (folder / REPORT).exists() and not overwrite:
        raise ConfigError(
            "There is a report already.",
            expected="a new folder by --out",
            found=folder / REPORT,
            do="pass --overwrite true",
        )
    named = _distinct(grouped(found))
    if len(named) < 2:
        named = _distinct([with_interval(run) for run in found])  # seeds alone: nothing to set them against
    remarks = [*notes(named), *(reached(named, reach) if reach is not None else [])]
    protocol = {
        "probe": found[0]["protocol"],
        "curves": "online probes during training, where there were any; the table is measured afterwards",
        "budgets": {run["name"]: limits(run["budget"]) for run in named if run.get("budget")},
    }
    console = Console(markup=False)
    files = write_report(named, protocol, folder, title=title, notes=remarks, reach=reach)
    print_table(named, title=title)
    for remark in (units(named), *remarks):
        console.print(remark, style="dim")
    console.print(f"Report: {files[0]}", soft_wrap=True)
    if similarity:
        from rela_lightning.cli.similarity import similarity as draw

        draw(models, out=out, overwrite=overwrite)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / name for name in (RECORD, REPORT) if (path / name).is_file()]


def _check_are_runs(paths: list[Path]) -> None:
    """Name all that are none, and the runs and reports around them."""
    missing = [path for path in paths if not _files(path)]
    if not missing:
        return
    places = {place for path in missing for place in (path, path.parent, Path(RUNS)) if place.is_dir()}
    near = {str(folder) for place in places for folder in place.iterdir() if folder.is_dir() and _files(folder)}
    raise ConfigError(
        "This is neither a run nor a report." if len(missing) == 1 else "These are neither runs nor reports.",
        expected=f"folders with {RECORD} or {REPORT}, or such files",
        found=", ".join(str(path) if path.exists() else f"nothing at {path}" for path in missing),
        exists=sorted(near)[:20],
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
    if "seconds" not in content and "protocol" in content and (folder / RECORD).is_file():  # what a probe found
        record = read_run(folder)
        content = {**{name: value for name, value in record.items() if name not in OF_PROBES}, **content}
    if content.get("steps") != 0:  # no prior, and no untrained network: what took training has its setting
        content |= setting_of(folder)
    content = as_probed(content)
    return [{"protocol": {}, **_named(content, path)}]


def _named(run: Any, path: Path) -> dict[str, Any]:
    if not isinstance(run, dict) or not isinstance(run.get("name"), str):
        raise ConfigError("The run has no name.", expected=f"{RECORD} or {REPORT} as rela writes it", found=path)
    return {**run, "source": str(path)}


def _check_probed(runs: list[dict[str, Any]]) -> None:
    """Refuse runs that were not probed; a classifier that was trained with the backbone counts among its like."""
    some = any(run["protocol"] for run in runs)
    unprobed = (run["source"] for run in runs if not measured(run) or (some and not run["protocol"]))
    missing = list(dict.fromkeys(unprobed))
    if missing:
        raise ConfigError(
            "A run was not probed: there is nothing to compare it by.",
            expected=f"what `rela probe` writes into {RECORD}",
            found=", ".join(missing),
            do="; ".join(f"rela probe {source}" for source in missing),
        )


def _check_alike(runs: list[dict[str, Any]]) -> None:
    """Refuse runs whose numbers mean different things."""
    first, *others = ({**run["protocol"], "features": None} for run in runs)
    for run, protocol in zip(runs[1:], others, strict=True):
        different = [key for key in {**first, **protocol} if first.get(key) != protocol.get(key)]
        if different:
            raise ConfigError(
                "The runs were probed in different ways: their accuracies cannot be compared.",
                expected=f"{runs[0]['source']}: {_said(first, different[:3])}",
                found=f"{run['source']}: {_said(protocol, different[:3])}",
                do="rela probe each with the same options",
            )


def _said(protocol: dict[str, Any], keys: list[str]) -> str:
    """Parts of a protocol in words, `no seeds` where it has none of that name."""
    return ", ".join(f"no {key}" if protocol.get(key) is None else in_text({key: protocol[key]}) for key in keys)


def _distinct(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one name get that of their folder beside it, and a number where that is the same too."""
    counts = Counter(run["name"] for run in runs)
    beside = [
        run["name"] if counts[run["name"]] == 1 else f"{run['name']} ({Path(run['source']).name})" for run in runs
    ]
    return [{**run, "name": name} for run, name in zip(runs, distinct(beside), strict=True)]
