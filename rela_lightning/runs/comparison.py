"""Several runs side by side: intervals of their accuracies, seeds of one setting as one row, and what differs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rela_lightning.runs.bill import mean_bill
from rela_lightning.runs.measures import ACCURACIES, MEASURES

Run = Mapping[str, Any]
SCORES = ("linear_top1", "knn_top1")
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% points of Student's t for 1 to 9 degrees of freedom."""
_Z95 = 1.96


def wilson(share: float, count: int) -> float:
    """Half the width of Wilson's 95% interval of a share that was counted, in `[0, 0.5]`.

    Args:
        share: Of rows that were right, in `[0, 1]`.
        count: Rows, >= 1.
    """
    z2 = _Z95**2
    return _Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)


def of_mean(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of a mean (Student's t) of two or more values."""
    freedom = len(values) - 1
    t = _T95[freedom - 1] if freedom <= len(_T95) else _Z95 * (1 + 1.2 / freedom)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def validation_images(run: Run) -> int | None:
    """How many images a run's accuracies were measured on; None where that is not known."""
    count = (run.get("protocol") or {}).get("validation_images")
    return count if isinstance(count, int) and count >= 1 else None


def counted_on(run: Run, name: str) -> int | None:
    """Images that an accuracy was measured on: the probe's, or those of the run's own validation for `top1`."""
    return run.get("validation_images") if name == "top1" else validation_images(run)


def with_interval(run: Run) -> dict[str, Any]:
    """The run with `interval`, of its validation images, where their number is known; a row of seeds keeps its own."""
    if "seeds" in run:
        return dict(run)
    counts = {name: counted_on(run, name) for name in (*SCORES, "top1") if run.get(name) is not None}
    known = {name: count for name, count in counts.items() if count}
    if not known:
        return dict(run)
    return {**run, "interval": {name: wilson(run[name], count) for name, count in known.items()}}


def as_probed(run: Run) -> dict[str, Any]:
    """The run as far as it had come when it was probed.

    Where `probed_steps` are not its `steps`, as of an earlier checkpoint or before it went on, its steps are those, its
    seconds those of its curve at that step, None where there was no point, and what took the whole run is left out.
    """
    steps, whole = run.get("probed_steps"), run.get("steps")
    if None in (steps, whole) or steps == whole:
        return dict(run)
    history = [point for point in run.get("history", []) if point["steps"] <= steps]
    seconds = next((point["seconds"] for point in history if point["steps"] == steps), None)
    switch = run.get("switch_seconds")
    switched = switch is not None and bool(history) and switch <= history[-1]["seconds"]
    setting = run.get("setting")
    return {
        **run,
        "steps": steps,
        "steps_of_run": whole,
        "seconds": seconds,
        "switch_seconds": switch if switched else None,
        "history": history,
        "setting": None if setting is None else f"{setting} at {steps} steps",
        **dict.fromkeys(("top1", "bill")),
    }


def grouped(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Runs of one `setting` and different `seed` as one row of means; the others as they are, with their interval.

    Args:
        runs: As in `rela_lightning.runs.report`; `setting` is equal for runs whose configs differ in seed alone, None
            where that is not known. A row of means, as an earlier report holds it, stays as it is.
    """
    groups: dict[Any, list[Run]] = {}
    for number, run in enumerate(runs):
        setting = run.get("setting") if "seeds" not in run else None
        groups.setdefault(number if setting is None else setting, []).append(run)
    rows: list[dict[str, Any]] = []
    for group in groups.values():
        different = len({run.get("seed") for run in group}) == len(group) > 1
        rows += [_as_one(group)] if different else [with_interval(run) for run in group]
    return rows


def _as_one(group: Sequence[Run]) -> dict[str, Any]:
    first = group[0]
    mean: dict[str, Any] = {
        name: statistics.fmean(run[name] for run in group)
        for name in (*MEASURES, "seconds", "labelling_seconds")
        if all(isinstance(run.get(name), (int, float)) for run in group)
    }
    few = [run["few_label_top1"]["mean"] for run in group if run.get("few_label_top1")]
    if len(few) == len(group):
        mean["few_label_top1"] = {"mean": statistics.fmean(few), "std": statistics.pstdev(few)}
    switches = [float(run["switch_seconds"]) for run in group if run.get("switch_seconds") is not None]
    return {
        **first,
        "seconds": None,  # unless all know theirs
        **mean,
        "name": f"{first['name']} ({len(group)} seeds)",
        "steps": round(statistics.fmean(run["steps"] for run in group)),
        "switch_seconds": statistics.fmean(switches) if len(switches) == len(group) else None,
        "seeds": [run.get("seed") for run in group],
        "steps_of_seeds": [run["steps"] for run in group],
        "interval": {
            name: of_mean([run[name] for run in group]) for name in ACCURACIES if isinstance(mean.get(name), float)
        },
        "bill": mean_bill([run.get("bill") or {} for run in group]),
        "history": _mean_history([run.get("history", []) for run in group]),
    }


def _mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Mean and standard deviation point by point; nothing where the runs were not measured at the same steps."""
    if len({tuple(point.get("steps") for point in history) for history in histories}) != 1:
        return []
    found = []
    for points in zip(*histories, strict=True):
        mean: dict[str, Any] = {"steps": points[0].get("steps")}
        mean["seconds"] = statistics.fmean(point["seconds"] for point in points)
        for name in SCORES:
            values = [point[name] for point in points if name in point]
            if len(values) == len(points):
                mean[name] = {"mean": statistics.fmean(values), "std": statistics.pstdev(values)}
        found.append(mean)
    return found


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before comparing the numbers: other steps, other data; and what the intervals are.

    Rows without any training are left out of steps and data.
    """
    found = []
    trained = [run for run in runs if run["steps"] > 0]
    steps = {run["name"]: f"{run['steps']:,}" for run in trained}
    if len(set(steps.values())) > 1:
        found.append(f"The runs made different numbers of steps: {_listed(steps)}.")
    uneven = {
        run["name"]: " and ".join(f"{each:,}" for each in run["steps_of_seeds"])
        for run in runs
        if len(set(run.get("steps_of_seeds", ()))) > 1
    }
    if uneven:
        said = _listed(uneven)
        found.append(f"Seeds of one row made different numbers of steps, and count alike in its means: {said}.")
    partly = {run["name"]: f"at {run['steps']:,} of {run['steps_of_run']:,}" for run in runs if "steps_of_run" in run}
    if partly:
        found.append(f"Not probed at the run's last step: {_listed(partly)}. Seconds are those noted then, if any.")
    data = {run["name"]: (run.get("data") or {}).get("name", "unknown") for run in trained}
    if len(set(data.values())) > 1:
        found.append(f"The runs were trained on different data: {_listed(data)}.")
    single = [run for run in runs if "interval" in run and "seeds" not in run]
    counts = {count for run in single for name in run["interval"] if (count := counted_on(run, name))}
    if counts:
        images = " or ".join(f"{count:,}" for count in sorted(counts))
        found.append(f"± of a single run: 95% interval of its {images} validation images (Wilson).")
    if any("seeds" in run for run in runs):
        found.append("± of several seeds: 95% interval of their mean (Student's t).")
    return found


def cost_to(run: Run, name: str, level: float, unit: Literal["seconds", "steps"] = "seconds") -> float | None:
    """What it took until an online probe first reached a level; None if it never did.

    Between two points of the history the accuracy is taken to rise evenly.

    Args:
        run: A run.
        name: Of the accuracy.
        level: In `[0, 1]`.
        unit: `seconds`, labelling included, or `steps` of the optimizer.
    """
    before: tuple[float, float] | None = None
    for point in run.get("history", []):
        if name not in point or unit not in point:
            continue
        value = point[name]["mean"] if isinstance(point[name], Mapping) else point[name]
        if value >= level:
            if before is None:
                return float(point[unit])
            share = (level - before[1]) / (value - before[1])
            return float(before[0] + share * (point[unit] - before[0]))
        before = point[unit], value
    return None


def reached(runs: Sequence[Run], level: float) -> list[str]:
    """A line for each probe that ran during training: when each run reached a level."""
    found = []
    for name in followed(runs):
        said = {}
        for run in runs:
            seconds = cost_to(run, name, level)
            missed = "never" if name in followed([run]) else "not followed"
            said[run["name"]] = missed if seconds is None else f"{seconds:.1f}"
        found.append(f"Seconds to {100 * level:g}% {MEASURES[name]} top-1: {_listed(said)}.")
    return found or [f"When {100 * level:g}% was reached is not known: no run was probed during training."]


def followed(runs: Sequence[Run]) -> list[str]:
    """The accuracies that were measured during training, of any run."""
    return [name for name in SCORES if any(name in point for run in runs for point in run.get("history", []))]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def limits(budget: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run was limited to, without the limits that were not set (None, and Lightning's -1)."""
    return {name: value for name, value in (budget or {}).items() if value not in (None, -1)}


def in_text(value: Any) -> str:
    """A JSON value as a reader says it: `solver adam, epochs 100`."""
    if isinstance(value, Mapping):
        parts = (
            f"{key} ({in_text(v)})" if isinstance(v, Mapping) else f"{key} {in_text(v)}" for key, v in value.items()
        )
        return ", ".join(parts)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(in_text(inner) for inner in value)
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
