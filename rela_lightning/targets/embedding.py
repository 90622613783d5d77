"""The labelling module: a prior that embeds the rows that no shard holds yet, under `Trainer.predict`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from rela_lightning.priors.base import Prior
from rela_lightning.process_group import wait_at_exit
from rela_lightning.targets.keys import held_lines
from rela_lightning.targets.label_stream import LabelStream
from rela_lightning.targets.label_view import LabelItem, LabelView, embed
from rela_lightning.targets.partial import prepare
from rela_lightning.targets.plan import LabellingPlan, on_rank_zero
from rela_lightning.targets.shards import held_indices, missing_rows


class LabellingSteps:
    """What the labelling module of either Lightning tree does. Mixed into its LightningModule."""

    trainer: Any
    allow_zero_length_dataloader_with_multiple_devices = True  # fewer rows left than ranks

    def __init__(self, prior: Prior, plan: LabellingPlan) -> None:
        super().__init__()
        self.prior = prior
        self.plan = plan

    def setup(self, stage: str) -> None:
        """Let rank 0 make the folder ready before anybody reads it."""
        wait_at_exit()
        on_rank_zero(self.trainer, self._prepare)

    def predict_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the rows that no shard holds yet; of a stream, what it gives this rank."""
        plan, trainer = self.plan, self.trainer
        if plan.length is None:
            held = held_lines(plan.folder, np.unique(held_indices(plan.folder, plan.shape)))
            return self._loader(LabelStream(plan.dataset, self.prior.preprocess, self.plan.crops, held))
        rows = missing_rows(plan.folder, plan.length, plan.shape)
        split = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        view = LabelView(
            plan.dataset,
            self.prior.preprocess,
            rows[split.get("rank", 0) :: split.get("num_replicas", 1)],
            self.plan.crops,
        )
        # the rows are split already: a sampler of one replica keeps Lightning from splitting them again
        whole: DistributedSampler[Any] = DistributedSampler(view, num_replicas=1, rank=0, shuffle=False)
        return self._loader(view, sampler=whole)

    def _loader(self, view: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            view,
            batch_size=max(1, self.plan.batch_size // self.plan.shape.views),
            num_workers=self.plan.num_workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def predict_step(self, batch: LabelItem, batch_idx: int) -> tuple[LabelItem, Tensor]:
        """What the rows are, without their images, and features `[B, V, F]`."""
        return batch._replace(images=None), embed(self.prior, batch.images)

    def _prepare(self) -> None:
        self.plan.claim.take(wait=False)
        prepare(self.plan.folder, self.plan.fields, self.plan.bytes)


class LabellingModule(LabellingSteps, L.LightningModule):
    """Labelling module for `lightning.pytorch`."""
