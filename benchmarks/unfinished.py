"""A long run that is cut off goes on from an epoch's end, as if it had not been."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from rela_lightning.files import write_whole
from rela_lightning.runs.random_state import random_state, restore


class Unfinished(L.Callback):
    """Keeps a run in a file, every so many seconds at the end of an epoch, and the random state with it.

    What is random in the run has to come from the global random state, or from the number of the epoch, as views on
    the device do; callbacks have to keep their own state.

    Args:
        folder: Where the file lies while the run is under way.
        run: What makes a run the same run, as text.
        every: Seconds between two such times, at least.
    """

    def __init__(self, folder: Path, run: str, every: float = 120.0) -> None:
        self.path = folder / f".unfinished-{hashlib.sha256(run.encode()).hexdigest()[:16]}.ckpt"
        self.every, self.kept_at = every, time.perf_counter()
        self._random: dict[str, Any] | None = None

    @property
    def found(self) -> Path | None:
        """What there is to go on from."""
        return self.path if self.path.exists() else None

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Draw, after an interruption, as the run would have gone on to draw."""
        if self._random is not None:
            restore(self._random)
        self._random = None

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Keep the run, if it is time and there is more to come; a file that is cut off does not replace the last."""
        if time.perf_counter() - self.kept_at >= self.every and not trainer.should_stop:
            write_whole(self.path, trainer.save_checkpoint)
            self.kept_at = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The random state."""
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Wait for the first epoch to go on from it."""
        self._random = state_dict

    def forget(self) -> None:
        """The run is through."""
        self.path.unlink(missing_ok=True)
