"""The rows of a ranking of priors, the advice that follows from them, and how they are shown."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rela_lightning.units import duration

if TYPE_CHECKING:
    from rich.table import Table

MARGIN = 1.1
"""A prior has to be above the better control by this factor; priors within it of the best count as its equals."""
DEAR = 0.2
"""Share of the budget above which the cost of labelling is remarked on."""


@dataclass(frozen=True)
class PriorRow:
    """One prior, measured on a sample.

    Attributes:
        name: Of the prior.
        control: Whether it is one of the two that know nothing.
        parameters: Of its network. To take the largest is the plain rule that a ranking has to beat.
        feature_dim: Width of its features.
        target_dim: Columns left after the noise cut (and the student's width).
        labelling_seconds: To embed the whole data set in one process on this machine: reading, preprocessing, forward.
        disk_bytes: Of the targets, in float16, without crops.
        budget_share: Labelling as a share of the planned seconds of training; None where these were not given.
        richness: Effective rank of the features after the noise cut.
        stability: Mean cosine of a view's target with its image's; 0 is chance, 1 the same.
        stable_directions: Directions of the targets that survive a change of view: the sum over columns of their
            correlation between image and view. Richness and stability in one number; the order.
        agreement: With each other prior and control: shared nearest neighbours, 0 at chance, 1 the same.
        distance_before: `transport_distance` from the student's features, as they are, to the targets; None without
            a student.
        loss_after: Transport loss on held-out images after the student's short training; None without one. Poor
            targets are easy to follow: read it beside `stable_directions`.
    """

    name: str
    control: bool
    parameters: int
    feature_dim: int
    target_dim: int
    labelling_seconds: float
    disk_bytes: int
    budget_share: float | None
    richness: float
    stability: float
    stable_directions: float
    agreement: dict[str, float]
    distance_before: float | None
    loss_after: float | None


@dataclass(frozen=True)
class PriorRanking:
    """Priors in order, the two controls last. `print` and `rich.print` show it.

    Attributes:
        rows: In order.
        num_samples: Images that were looked at.
        length: Images in the data set.
        num_views: Images of which a view was drawn.
    """

    rows: tuple[PriorRow, ...]
    num_samples: int
    length: int
    num_views: int

    @property
    def best(self) -> PriorRow | None:
        """The prior to take: the cheapest of those that are as good as the best; None if no one beats the controls."""
        candidates = [row for row in self.rows if not row.control]
        floor = max(0.0, *(row.stable_directions for row in self.rows if row.control))
        first = candidates[0]
        if first.stable_directions < MARGIN * floor:
            return None
        equals = [row for row in candidates if MARGIN * row.stable_directions >= first.stable_directions]
        return min(equals, key=lambda row: row.labelling_seconds)

    @property
    def advice(self) -> str:
        """One line: which prior, and why."""
        control = max((row for row in self.rows if row.control), key=lambda row: row.stable_directions)
        first, best = self.rows[0], self.best
        if best is None:
            return (
                f"None is better than {control.name}: {first.stable_directions:.0f} directions of the targets of "
                f"{first.name} survive a change of view, and {control.stable_directions:.0f} of its own. Look for a "
                "prior that was trained on images more like these, or train without one."
            )
        reason = (
            f"{best.stable_directions:.0f} directions of its targets survive a change of view, against "
            f"{control.stable_directions:.0f} for {control.name}"
        )
        if best is not first:
            reason += (
                f"; {first.name} has {first.stable_directions:.0f}, but takes {duration(first.labelling_seconds, 1)}"
            )
        cost = f"labelling takes {duration(best.labelling_seconds, 1)} here"
        if best.budget_share is not None:
            cost += f", {best.budget_share:.1%} of the budget"
            cost += " (dear: does it serve several runs?)" if best.budget_share > DEAR else ""
        return f"Take {best.name}: {reason}; {cost}."

    def to_dict(self) -> dict[str, Any]:
        """Rows and advice in primitives."""
        return {**asdict(self), "best": None if self.best is None else self.best.name, "advice": self.advice}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self) -> Table:
        """The table, with the advice below it."""
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=f"{self.num_samples} of {self.length} images, {self.num_views} with a view; no labels",
            caption=Text(self.advice),
        )
        table.add_column("prior", overflow="fold")
        columns = [(title, show) for title, show, needs in _COLUMNS if any(needs(row) for row in self.rows)]
        for title, _ in columns:
            table.add_column(title, justify="right")
        for number, row in enumerate(self.rows):
            last = number + 1 < len(self.rows) and not row.control and self.rows[number + 1].control
            cells = [Text(show(row)) for _, show in columns]
            table.add_row(Text(row.name), *cells, end_section=last, style="dim" if row.control else None)
        return table

    def __str__(self) -> str:
        """The table as plain text, as wide as it needs to be."""
        from rich.console import Console

        stream = io.StringIO()
        Console(file=stream, width=160, color_system=None).print(self)
        return stream.getvalue().rstrip()


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _agrees(row: PriorRow) -> str:
    """The largest agreement, which says what the prior is most like."""
    other = max(row.agreement, key=lambda name: row.agreement[name])
    return f"{row.agreement[other]:.2f} {other}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def _always(_: PriorRow) -> bool:
    return True


_COLUMNS: tuple[tuple[str, Any, Any], ...] = (
    ("stable\ndirections", lambda row: f"{row.stable_directions:.1f}", _always),
    ("richness", lambda row: f"{row.richness:.0f} of {row.feature_dim}", _always),
    ("stability", lambda row: _number(row.stability), _always),
    ("most like", _agrees, _always),
    ("parameters", lambda row: f"{row.parameters / 1e6:.1f} M", _always),
    ("student,\nbefore", lambda row: _number(row.distance_before), lambda row: row.distance_before is not None),
    ("student,\nafter", lambda row: _number(row.loss_after), lambda row: row.loss_after is not None),
    ("labelling", lambda row: duration(row.labelling_seconds, 1), _always),
    ("of the\nbudget", lambda row: _number(row.budget_share, ".1%"), lambda row: row.budget_share is not None),
    ("disk", lambda row: _bytes(row.disk_bytes), _always),
)
