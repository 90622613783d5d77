"""Runs to a report: a table, `report.json`, `report.md`, `curves.png` and `costs.png`.

A *run* is a dict. Seconds are wall-clock seconds of training plus labelling and leave probing out, so that
curves of an accelerated run start where its labelling ends.

| key | value |
|---|---|
| `name` | unique, non-empty |
| `seconds` | training + labelling, >= 0; None where it is not known, as of an earlier checkpoint |
| `labelling_seconds` | time taken to build the targets, 0 to `seconds` |
| `steps` | optimizer steps, >= 0 |
| `linear_top1`, `knn_top1` | top-1 accuracies in `[0, 1]` of probes |
| `few_label_top1` | `{"mean": 0..1, "std": >= 0}` |
| `top1` | that of a classifier that was trained with the backbone |
| `effective_rank`, `feature_deviation`, `uniformity` | where there are no labels, see `rela_lightning.diagnostics` |
| `switch_seconds` | when SSL took over, on the axis of `seconds`; None or left out if it never did |
| `interval` | half the width of a 95% interval by the name of an accuracy, or left out |
| `history` | list of points `{"seconds", "steps", "linear_top1", "knn_top1", "few_label_top1"}` in order of time; |
| | an accuracy may be `{"mean", "std"}` there |

Of the measures a run has at least one; the others are None or left out.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rela_lightning.errors import ConfigError
from rela_lightning.runs.bill import bill_table
from rela_lightning.runs.comparison import in_text
from rela_lightning.runs.measures import ACCURACIES, LABEL_FREE, MEASURES, as_text, measured, of_any

if TYPE_CHECKING:
    from rich.table import Table

Run = Mapping[str, Any]
_NAME_WIDTH = 12  # letters of a name that a line of the table has at least
_REPORTED = ("rela-lightning", "torch", "lightning", "lightly", "torchvision", "numpy")


def check_runs(runs: Sequence[Run]) -> None:
    """Refuse runs that a reader would misread.

    Raises:
        ConfigError: Naming the run and the key that is missing or out of range.

    Example:
        >>> run = {"name": "byol", "seconds": 60.0, "labelling_seconds": 0.0, "steps": 1, "knn_top1": 0.5}
        >>> check_runs([{**run, "history": []}])
    """
    if not runs:
        raise ConfigError("A report needs runs.", expected="at least one run", found="none")
    names = [run.get("name") for run in runs]
    for number, run in enumerate(runs):
        name = run.get("name")
        if not isinstance(name, str) or not name:
            raise ConfigError(f"Run {number} has no `name`.", expected="a non-empty string", found=name)
        if names.count(name) > 1:
            raise ConfigError("Two runs share a name.", expected="unique names", found=name, exists=names)
        seconds = run.get("seconds", math.nan)
        if seconds is not None:
            _in_range(name, "seconds", seconds, math.inf)
        _in_range(name, "steps", run.get("steps"), math.inf)
        known = measured(run)
        if not known:
            raise ConfigError(f"Run {name!r} was not measured.", expected="one of the keys below", exists=MEASURES)
        for key in known:
            if key != "few_label_top1":
                _in_range(name, key, run[key], 1 if key in ACCURACIES else math.inf)
        _in_range(name, "labelling_seconds", run.get("labelling_seconds"), math.inf if seconds is None else seconds)
        if run.get("switch_seconds") is not None:
            _in_range(name, "switch_seconds", run["switch_seconds"], math.inf)
        _check_spread(name, run.get("few_label_top1"))
        _check_history(name, run.get("history"))


def _in_range(name: str, key: str, value: Any, ceiling: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    least = -math.inf if key in LABEL_FREE else 0
    if not is_number or not math.isfinite(value) or not least <= value <= ceiling:
        limit = "a finite number >= 0" if math.isinf(ceiling) else f"a number in [0, {ceiling:g}]"
        raise ConfigError(f"Run {name!r}: `{key}` is missing or out of range.", expected=limit, found=value)


def _check_spread(name: str, spread: Any) -> None:
    if spread is None:
        return
    if not isinstance(spread, Mapping):
        raise ConfigError(
            f"Run {name!r}: `few_label_top1` holds a mean and its spread.",
            expected='{"mean": 0..1, "std": >= 0}',
            found=spread,
        )
    _in_range(name, "few_label_top1.mean", spread.get("mean"), 1)
    _in_range(name, "few_label_top1.std", spread.get("std"), 1)


def _check_history(name: str, history: Any) -> None:
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise ConfigError(
            f"Run {name!r}: `history` is missing.",
            expected="a list of points, [] for a run without any",
            found=history,
        )
    before = 0.0
    for number, point in enumerate(history):
        if not isinstance(point, Mapping):
            raise ConfigError(f"Run {name!r}: history[{number}] is no point.", expected="a dict", found=point)
        _in_range(name, f"history[{number}].seconds", point.get("seconds"), math.inf)
        if point["seconds"] < before:
            raise ConfigError(
                f"Run {name!r}: `history` runs backwards at point {number}.",
                expected=f"seconds >= {before:g}",
                found=point["seconds"],
            )
        before = point["seconds"]
        for key in ("linear_top1", "knn_top1"):
            if isinstance(point.get(key), Mapping):
                _check_spread(name, point[key])
            elif key in point:
                _in_range(name, f"history[{number}].{key}", point[key], 1)
        _check_spread(name, point.get("few_label_top1"))


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that do the arithmetic."""
    found = {"python": platform.python_version()}
    for package in _REPORTED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _header(runs: Sequence[Run]) -> list[str]:
    return ["run", *(MEASURES[name] for name in of_any(runs)), "seconds", "labelling", "steps"]


def _cells(runs: Sequence[Run]) -> Iterator[list[str]]:
    """One row of text a run: accuracies in percent, times in seconds."""
    names = of_any(runs)
    for run in runs:
        seconds = "-" if run["seconds"] is None else f"{run['seconds']:.1f}"
        cost = [seconds, f"{run['labelling_seconds']:.1f}", f"{run['steps']:,}"]
        yield [run["name"], *(as_text(run, name) for name in names), *cost]


def units(runs: Sequence[Run]) -> str:
    """What the figures of a table are."""
    accuracies = "Accuracies are top-1 in percent. " if any(name in ACCURACIES for name in of_any(runs)) else ""
    return f"{accuracies}Seconds are training plus labelling; probing is left out."


def to_table(runs: Sequence[Run], *, title: str | None = None) -> Table:
    """A rich table with one row a run: top-1 in percent, seconds, steps. Names fold where there is no room."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    check_runs(runs)
    above = None if title is None else Text(title)  # names are no markup
    table = Table(title=above, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)  # fits 80 columns
    header, rows = _header(runs), list(_cells(runs))
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    table.add_column(header[0], overflow="fold", min_width=min(widths[0], _NAME_WIDTH))
    for heading, width in zip(header[1:], widths[1:], strict=True):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_table(runs: Sequence[Run], *, title: str | None = None) -> None:
    """Print the table; where the figures alone are wider than the page its lines are too, as none is cut."""
    from rich.console import Console

    table = to_table(runs, title=title)
    least = sum((column.min_width or 0) + 2 for column in table.columns)
    Console(width=max(Console().width, least)).print(table)


def to_dict(runs: Sequence[Run], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What `report.json` holds: `{"runs", "protocol", "versions"}`.

    Raises:
        ConfigError: For runs that `check_runs` refuses.
    """
    check_runs(runs)
    return {"runs": [dict(run) for run in runs], "protocol": dict(protocol), "versions": versions()}


def to_markdown(
    runs: Sequence[Run],
    protocol: Mapping[str, Any],
    *,
    title: str,
    curves: str | None,
    costs: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The report as Markdown: table, pictures, protocol, versions.

    Args:
        runs: Runs as described above.
        protocol: What was done, name to value; printed as a list in this order.
        title: Heading of the page.
        curves: File name of the picture of accuracies, or None without one.
        costs: That of what it took to reach an accuracy.
        notes: What a reader must know before comparing the numbers.
    """
    check_runs(runs)
    lines = [f"# {title}", "", *_markdown([_header(runs), *_cells(runs)])]
    lines += ["", units(runs), ""]
    lines += [text for note in notes for text in (note, "")]
    bill = bill_table(runs)
    if bill:
        lines += ["## What it took", "", *_markdown(bill), ""]
        lines += ["FLOPs are by torch's counter, those of training on one device; memory is of tensors on a GPU,"]
        lines += ["else of the process.", ""]
    if curves is not None:
        lines += [f"![Probe accuracy against seconds]({curves})", ""]
    if costs is not None:
        lines += [f"![Seconds and steps until an accuracy was reached]({costs})", ""]
    lines += ["## Protocol", "", *(f"- **{key}**: {in_text(value)}" for key, value in protocol.items()), ""]
    lines += ["## Versions", "", ", ".join(f"{key} {value}" for key, value in versions().items()), ""]
    return "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, whose first row is the header."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" + "|---:" * (len(rows[0]) - 1) + "|", *lines[1:]]


def write_report(
    runs: Sequence[Run],
    protocol: Mapping[str, Any],
    folder: str | Path,
    *,
    title: str = "ReLA",
    notes: Sequence[str] = (),
    reach: float | None = None,
) -> list[Path]:
    """Write `report.json`, `report.md` and, where matplotlib is installed, `curves.png` and `costs.png`.

    Args:
        runs: Runs as described in this module.
        protocol: What was done, name to value; JSON types only.
        folder: Folder to write into; made if missing.
        title: Heading of the page and of the picture.
        notes: What a reader must know before comparing the numbers.
        reach: Draw `costs.png`, seconds and steps until each run reached this top-1, in `(0, 1)`, where probes ran
            during training; None leaves it out.

    Returns:
        The files written, `report.md` first. Without matplotlib (the extra `plot`) there are no
        pictures among them.

    Raises:
        ConfigError: For runs that `check_runs` refuses; nothing is written then.

    Example:
        >>> run = {"name": "byol", "seconds": 60.0, "labelling_seconds": 0.0, "steps": 100, "knn_top1": 0.5}
        >>> run["history"] = []
        >>> written = write_report([run], {"data": "digits"}, "report")
        >>> written[0].name
        'report.md'
    """
    from rela_lightning.runs.plots import draw_costs, draw_curves

    text = json.dumps(to_dict(runs, protocol), indent=2, allow_nan=False)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    curves, costs = folder / "curves.png", folder / "costs.png"
    for picture in (curves, costs):
        picture.unlink(missing_ok=True)  # never an older run's picture beside this run's table
    drawn = [curves] if draw_curves(runs, curves, title=title) else []
    drawn += [costs] if reach is not None and draw_costs(runs, reach, costs, title=title) else []
    names = [picture.name if picture in drawn else None for picture in (curves, costs)]
    page = to_markdown(runs, protocol, title=title, curves=names[0], costs=names[1], notes=notes)
    written = [folder / "report.md", folder / "report.json"]
    written[0].write_text(page, encoding="utf-8")
    written[1].write_text(text + "\n", encoding="utf-8")
    return [*written, *drawn]
