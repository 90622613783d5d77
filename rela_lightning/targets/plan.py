"""What one labelling pass does, and work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rela_lightning.errors import TargetError
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.label_view import CropsOf
from rela_lightning.targets.shards import Shape, pass_bytes


@dataclass(frozen=True)
class LabellingPlan:
    """What one pass does.

    Attributes:
        dataset: The user's data set, or the `Stream` of one that is iterated.
        length: Number of its rows; None for a stream, which nobody has counted.
        claim: On the folder where the shards go; rank 0 takes it, if it is not held.
        fields: What decides the features, see `rela_lightning.fingerprint.settings`.
        batch_size: Images in one forward of the prior: rows, times the views of each.
        num_workers: Worker processes of the loader.
        started: `time.time()` when labelling began.
        shape: Of a row.
        crops: Those of an image that are embedded.
    """

    dataset: Any
    length: int | None
    claim: Claim
    fields: dict[str, Any]
    batch_size: int
    num_workers: int
    started: float
    shape: Shape
    crops: CropsOf

    @property
    def folder(self) -> Path:
        """Where the shards go."""
        return self.claim.folder

    @property
    def bytes(self) -> int:
        """What the files of the pass take; 0 where nobody knows."""
        return 0 if self.length is None else pass_bytes(self.length, self.shape)


def on_rank_zero(trainer: Any, work: Callable[[], None]) -> None:
    """Run `work` on rank 0 while the other ranks wait; if it fails, it fails on all of them."""
    problem: Exception | None = None
    if trainer.is_global_zero:
        try:
            work()
        except Exception as error:  # the others must not wait for ever
            problem = error
    message = trainer.strategy.broadcast("" if problem is None else str(problem) or repr(problem), src=0)
    if problem is not None:
        raise problem
    if message:
        raise TargetError(message)
