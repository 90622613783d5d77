"""The labelling pass on a trainer: the user's, or a quiet one for one device that says how far it is."""

from __future__ import annotations

import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch

from rela_lightning.compat import NAMESPACES, OWN_WARNINGS
from rela_lightning.devices import home_of
from rela_lightning.priors.base import Prior
from rela_lightning.progress import Progress
from rela_lightning.targets.embedding import LabellingModule
from rela_lightning.targets.label_stream import LabelStream
from rela_lightning.targets.plan import LabellingPlan, on_rank_zero
from rela_lightning.targets.writer import TargetWriter


def label(prior: Prior, plan: LabellingPlan, trainer: Any, finish: Callable[[torch.device, float], None]) -> None:
    """Run the pass on the trainer, then `finish` on its rank 0.

    Args:
        prior: Network that embeds.
        plan: What to embed, and where to.
        trainer: Of either Lightning tree; its callbacks are left out, and its progress bar, where it has one, gives
            way to ours. None makes one for one device.
        finish: Called with the device of the pass, and the time at which it ended.
    """
    with _quiet(own=trainer is None):
        told = trainer is None or trainer.progress_bar_callback is not None
        trainer = _own_trainer() if trainer is None else trainer
        module_class, writer_class = steps_for(trainer)
        module, writer = module_class(prior, plan), writer_class(plan)
        callbacks, home = trainer.callbacks, home_of(prior)
        trainer.callbacks = [LabellingProgress(), writer] if told and trainer.is_global_zero else [writer]
        try:
            trainer.predict(module, return_predictions=False)
            ended = time.time()
            on_rank_zero(trainer, functools.partial(finish, trainer.strategy.root_device, ended))
        finally:
            trainer.callbacks = callbacks
            prior.to(home)


class LabellingProgress(L.Callback):
    """How far the pass is, in images of all devices."""

    _progress: Progress | None = None

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the rows that no earlier pass has left; of a stream nobody knows them."""
        dataset = trainer.predict_dataloaders.dataset
        self._progress = Progress("labelling", None if isinstance(dataset, LabelStream) else len(dataset))

    def on_predict_batch_end(  # noqa: PLR0917
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count a batch."""
        if self._progress is not None:
            self._progress.add(len(batch.row) * trainer.world_size)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the terminal in order, also after an error."""
        if self._progress is not None:
            self._progress.close()


def _own_trainer() -> Any:
    return L.Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


@contextmanager
def _quiet(*, own: bool) -> Iterator[None]:
    """Keep Lightning's advice on loaders away, and its banner where the trainer is ours."""
    from lightning.fabric.utilities.warnings import PossibleUserWarning

    chatter = [logging.getLogger(name) for name in NAMESPACES]  # the trees share one of their loggers
    levels = [logger.level for logger in chatter]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        for message in (".*does not have many workers.*", ".*infer the batch indices.*", *OWN_WARNINGS):
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in chatter if own else ():
                logger.setLevel(max(logger.level, logging.WARNING))
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)


def steps_for(trainer: Any) -> tuple[type[Any], type[Any]]:
    """Labelling module and writer of the trainer's own Lightning tree."""
    if any(kind.__module__.startswith("pytorch_lightning.") for kind in type(trainer).__mro__):
        from rela_lightning.targets import writer_pl

        return writer_pl.LabellingModule, writer_pl.TargetWriter
    return LabellingModule, TargetWriter
