"""Manual optimization that never steps, or never uses the backbone, is refused after some batches."""

from __future__ import annotations

from rela_lightning.errors import InjectionError
from rela_lightning.injection.step import Step

_MOST = 50  # batches that may pass: some methods train another part first


class Patience:
    """Counts batches in a row without an optimizer step, and those without use for the backbone."""

    def __init__(self) -> None:
        self._unstepped = self._unheard = 0

    def update(self, step: Step, *, stepped: bool, accumulate: int) -> None:
        """After a batch.

        Args:
            step: The training step of this batch.
            stepped: Whether an optimizer has stepped since the last decision.
            accumulate: Batches whose gradients are accumulated.

        Raises:
            InjectionError: If too many batches have passed.
        """
        self._unheard = 0 if step.unheard is None else self._unheard + 1
        if step.unheard is not None and self._unheard > _MOST:
            raise step.unheard
        self._unstepped = 0 if stepped or step.loss is None else self._unstepped + 1
        if self._unstepped > _MOST + accumulate:
            raise InjectionError(
                "No optimizer step came through Lightning, so the transport map is not trained and no phase ends.",
                expected="self.optimizers() and optimizer.step()",
                found=f"{self._unstepped} batches without one, as with self.optimizers(use_pl_optimizer=False)",
                do="step the optimizers that self.optimizers() returns",
            )
