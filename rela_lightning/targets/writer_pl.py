"""The labelling pass for trainers of the `pytorch_lightning` package."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter

from rela_lightning.targets.embedding import LabellingSteps
from rela_lightning.targets.writer import ShardSteps


class LabellingModule(LabellingSteps, pl.LightningModule):
    """Labelling module for `pytorch_lightning`."""


class TargetWriter(ShardSteps, BasePredictionWriter):
    """Prediction writer for `pytorch_lightning`."""
