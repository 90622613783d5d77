"""The page that says which module works with which schedule: `python -m tests.zoo.table docs/compatibility.md`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.zoo import CASES, GROUPS, SCHEDULES, Case
from tests.zoo.run import Result, try_case, zoo_targets

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
Results = Mapping[tuple[str, str], Result]

_HEAD = """\
# What `ReLACallback` works with

Every module below is fitted for two epochs on real digits, once with `Switch(0.5)` (transport alone, then the
module's own step) and once with `Mix()` (both losses, to the end). A fit counts as working only if

- the phases fall on the planned steps, and the module's own step runs in those that are its own, no other;
- every row of features meets the target of its own image: the row is painted into the images, and what reaches the
  backbone is compared with the targets used;
- the backbone learns, heads stay as they are in the transport phase, teachers follow;
- afterwards nothing is left on the module, and its `state_dict` loads strictly into a fresh one.

{summary}

The column *Pass* holds the options that the module needs beside `targets`; everything else is the callback's default.
Where an option is needed, the callback refuses the run without it, with the error whose first line is quoted; the
lines after it name the option. Methods are written after the public API of lightly 1.6. Of its Lightning examples,
those of BEiT, Franca, SparK and SSL-EY need parts that this release does not contain. DDP, resume and precision have
tests of their own.

This page is written by `python -m tests.zoo.table docs/compatibility.md`, and a test fails when it is out of date.
"""


def run_all() -> dict[tuple[str, str], Result]:
    """Every case under every schedule."""
    with tempfile.TemporaryDirectory() as folder:
        targets = zoo_targets(Path(folder) / "targets")
        return {(n, s): try_case(case, s, targets) for n, case in CASES.items() for s in SCHEDULES}


def render(results: Results) -> str:
    """The page, as Markdown."""
    parts = [_HEAD.format(summary=_summary(results))]
    for group in GROUPS:
        parts.append(f"\n## {group}\n\n| Module | Batch | Schedule | Pass | Result |\n|---|---|---|---|---|\n")
        parts += [_rows(case, results) for case in CASES.values() if case.group == group]
    return "".join(parts)


def _summary(results: Results) -> str:
    plain = [n for n in CASES if all(results[n, s].works and not results[n, s].options for s in SCHEDULES)]
    refused = [f"{n} with {_LABELS[s]}" for (n, s), result in results.items() if not result.works]
    works = sum(all(results[n, s].works for s in SCHEDULES) for n in CASES)
    return (
        f"Of {len(CASES)} modules, {works} work under both schedules, {len(plain)} of them without any option. "
        f"Refused whatever is passed: {'; '.join(refused) or 'none'}."
    )


_LABELS = {"switch": "`Switch`", "mix": "`Mix`"}


def _rows(case: Case, results: Results) -> str:
    switch, mix = (results[case.name, schedule] for schedule in SCHEDULES)
    merged = [("both", switch)] if switch == mix else [(_LABELS["switch"], switch), (_LABELS["mix"], mix)]
    lines = []
    for label, result in merged:
        note = case.note if result.options or not result.works else ""
        cells = (case.name, f"`{case.batch}`", label, _options(result.options), _outcome(result, note))
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _options(options: Mapping[str, Any]) -> str:
    quoted = (f"`{k}={v!r}`".replace("'", '"') for k, v in options.items())
    return ", ".join(quoted) or "–"


def _outcome(result: Result, note: str) -> str:
    errors = "; ".join(f"*{error}*" for error in dict.fromkeys(result.errors))
    words = "works" if result.works else "refused"
    words += f"; without: {errors}" if errors and result.works else f": {errors}" if errors else ""
    return f"{words} ({note})" if note else words


def main(path: str) -> None:
    """Run the zoo and write the page."""
    import logging
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(render(run_all()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(PAGE))
