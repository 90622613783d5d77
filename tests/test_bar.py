"""The bar of `rela fit`: images a second of the batches since the last validation."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from rela_lightning.cli import bar
from rela_lightning.cli.bar import FitProgressBar
from tests.modules import byol
from tests.test_callback import fit


class Watched(FitProgressBar):
    """Keeps what it shows; the clock goes on by a second a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[dict[str, Any]] = []
        self._console_kwargs = {"file": io.StringIO(), "force_terminal": True}

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        found = super().get_metrics(trainer, pl_module)
        self.shown.append(found)
        return found


def test_the_bar_shows_images_a_second_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10_000))
    monkeypatch.setattr(bar, "time", SimpleNamespace(perf_counter=lambda: next(seconds) / 4))
    watched = Watched()
    fit(byol(), watched, max_epochs=1, enable_progress_bar=True)
    rates = {found["images/s"] for found in watched.shown if "images/s" in found}
    assert rates == {"64"}  # 16 images a batch, four batches a second
