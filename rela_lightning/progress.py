"""How far a long pass over images is: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

FIRST, LEAST, SHARE = 10.0, 30.0, 0.05
"""Seconds to the first line, fewest seconds between two, and the share of the time so far that is waited at least."""


class Progress:
    """Progress of one pass over images, on stderr: images so far, images a second, time left.

    Where stderr is a terminal, a bar. Elsewhere (a job's log, a pipe, a notebook) a line after ten seconds and then
    every half minute, less often the longer it takes; a short pass says nothing. A context manager.

    Args:
        name: What is done, such as `labelling`.
        total: Images of the pass; None where nobody knows.
        stream: Where to; stderr unless given.
        clock: Seconds, rising.
    """

    def __init__(
        self, name: str, total: int | None, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name, self.total, self.done = name, total, 0
        self._stream, self._clock = stream or sys.stderr, clock
        self._started, self._due = clock(), FIRST
        self._advance = self._bar() if self._stream.isatty() else self._line

    def add(self, images: int) -> None:
        """Count images that are done."""
        self.done += images
        self._advance(images)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""

    def _line(self, _: int) -> None:
        seconds = self._clock() - self._started
        if seconds >= self._due:
            self._due = seconds + max(LEAST, SHARE * seconds)
            self._stream.write(in_words(self.name, self.done, self.total, seconds) + "\n")
            self._stream.flush()

    def _bar(self) -> Callable[[int], Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images, {task.fields[rate]} a second,"),
            TimeRemainingColumn(),
        )
        bar = Bar(*columns, console=Console(file=self._stream))
        task = bar.add_task(self.name, total=self.total, rate="-")
        bar.start()
        self.close = bar.stop  # type: ignore[method-assign]

        def advance(images: int) -> None:
            seconds = max(self._clock() - self._started, 1e-9)
            bar.update(task, advance=images, rate=f"{self.done / seconds:,.0f}")

        return advance


def in_words(name: str, done: int, total: int | None, seconds: float) -> str:
    """One line: `labelling: 12,800 of 50,000 images, 410 a second, 0:01:30 left`.

    Args:
        name: What is done.
        done: Images so far, 1 or more.
        total: Images in all; None where nobody knows.
        seconds: Time so far, above 0.
    """
    rate = done / seconds
    often = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
    if total is None:
        return f"{name}: {done:,} images, {often} a second"
    left = round((total - done) / rate)
    clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
    return f"{name}: {done:,} of {total:,} images, {often} a second, {clock} left"
