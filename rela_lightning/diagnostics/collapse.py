"""Whether a run's features collapse: to a point, or to a few directions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from rela_lightning.batches import find_views
from rela_lightning.compat import logged_step
from rela_lightning.diagnostics.spread import alignment, effective_rank, feature_deviation, uniformity
from rela_lightning.errors import ConfigError
from rela_lightning.networks.pooling import Pooling
from rela_lightning.probe.callbacks import FeatureCallback, gathered

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

LEAST_DEVIATION = 0.02
"""Below it the features of all images are the same: cosines between them are above .9996."""
LEAST_RANK_SHARE = 0.2
"""Features have lost most of what they held where the directions beside the first are less than this share of what they
were at their most."""
REMEDY = (
    "Look for a missing stop-gradient, teacher update or predictor, or a weak repulsion (small batches, a small "
    "variance term); lower the learning rate or lengthen its warm-up; or give a prior's targets a share to the end: "
    "ReLACallback(targets, schedule=Mix()). Collapsed features seldom recover: go on from an earlier checkpoint."
)


def spread_of(features: Tensor) -> dict[str, float]:
    """The four measures of features `[N, V, F]` of V views of each image; alignment needs two views."""
    first = features[:, 0]
    measured = {
        "effective_rank": effective_rank(first),
        "deviation": feature_deviation(first),
        "uniformity": uniformity(first),
    }
    if features.shape[1] > 1:
        measured["alignment"] = alignment(first, features[:, 1])
    return measured


def collapse(measured: dict[str, float], highest_rank: float) -> str | None:
    """What has gone wrong, in a sentence; None where nothing has.

    Args:
        measured: Of `spread_of`.
        highest_rank: Largest effective rank of the run so far.
    """
    deviation, rank = measured["deviation"], measured["effective_rank"]
    if deviation < LEAST_DEVIATION:
        return (
            f"The backbone gives all images nearly the same features (deviation {deviation:.2g}; 1 is evenly spread)."
        )
    if rank - 1 < LEAST_RANK_SHARE * (highest_rank - 1):
        return f"The backbone's features have shrunk to {rank:.1f} effective directions, from {highest_rank:.1f}."
    return None


class CollapseMonitor(FeatureCallback):
    """Logs how a run's features are spread, and warns, once, when they collapse.

    At the first step and at every `every_n_steps`-th after it, it takes the images of as many training batches as make
    `num_samples` (over all processes; at most an epoch's), under the views that training shows, and runs the backbone
    on the first view, and on the second if it is another one: in eval mode and without gradients. No label is read. The
    run's gradients, batch-norm statistics and random state stay as they were, nothing is in its checkpoints.

    Logged, as soon as measured and as the epoch's mean: `features/effective_rank` (RankMe), `features/deviation`,
    `features/uniformity` and, with two views that differ, `features/alignment`; see the functions of those names.
    Features that are not finite are logged as NaN. A second one in a run logs as `features_2/...`, and so on.

    Args:
        every_n_steps: Training batches from one measurement to the next.
        num_samples: Images that are measured. The effective rank is at most their number; more of them than the
            features are wide is best.
        backbone: Dotted path of the network (or method) that is called; `auto` tries the usual names and takes the
            student.
        pooling: See `rela_lightning.networks.pooling.pool`.

    Raises:
        ConfigError: For values out of range, or a backbone that is not there.
        DataError: If a batch holds no images.

    Example:
        `Trainer(callbacks=[CollapseMonitor(every_n_steps=500)])`
    """

    logs_as = "features"

    def __init__(
        self,
        *,
        every_n_steps: int = 200,
        num_samples: int = 1024,
        backbone: str = "auto",
        pooling: Pooling = "auto",
    ) -> None:
        super().__init__(backbone=backbone, pooling=pooling)
        if every_n_steps < 1 or num_samples < 2:
            raise ConfigError(
                "The monitor's settings cannot work.",
                expected="every_n_steps >= 1, num_samples >= 2",
                found=f"every_n_steps={every_n_steps}, num_samples={num_samples}",
            )
        self.every_n_steps = every_n_steps
        self.num_samples = num_samples
        self._forget()

    def _forget(self) -> None:
        self._batches = 0
        self._rows: list[Tensor] = []
        self._highest_rank = 0.0
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin with nothing seen."""
        super().setup(trainer, pl_module, stage)
        self._forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the module and of its features."""
        super().teardown(trainer, pl_module, stage)
        self._forget()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the batch where one is due; measure when there are enough."""
        due = self._rows or self._batches % self.every_n_steps == 0
        self._batches += 1
        if not due:
            return
        views = find_views(batch, None)
        alike = [view for view in views if view.shape == views[0].shape][:2]
        alike = alike[:1] if torch.equal(alike[0], alike[-1]) else alike  # the transport phase shows one view twice
        self._rows.append(torch.stack([self.features(trainer, pl_module, view) for view in alike], dim=1))
        single = [rows for rows in self._rows if rows.shape[1] == 1]
        counts = torch.tensor([sum(map(len, self._rows)), sum(map(len, single))], device=self._rows[0].device)
        held, without_pair = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # the same on all ranks
        if held >= self.num_samples or len(self._rows) >= trainer.num_training_batches:
            views_kept = 1 if without_pair else 2
            features = gathered(trainer, torch.cat([rows[:, :views_kept] for rows in self._rows]))
            self._rows = []
            self._log(trainer, pl_module, features)

    def _log(self, trainer: Trainer, pl_module: LightningModule, features: Tensor) -> None:
        """Measure features `[N, V, F]` of all ranks, log, and warn where it has to be."""
        if len(features) < 2:
            return
        if bool(features.isfinite().all()):
            measured = spread_of(features)
            self._highest_rank = max(self._highest_rank, measured["effective_rank"])
            self._warn(collapse(measured, self._highest_rank), trainer.global_step)
        else:
            measured = dict.fromkeys(("effective_rank", "deviation", "uniformity"), math.nan)
            self._warn("The backbone gives NaN or infinity.", trainer.global_step)
        named = {f"{self.prefix}/{name}": value for name, value in measured.items()}
        for (
            name,
            value,
        ) in named.items():  # for checkpoints and early stopping; loggers get each measurement at its step
            pl_module.log(name, value, on_step=False, on_epoch=True, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(named, step=logged_step(trainer))

    def _warn(self, problem: str | None, step: int) -> None:
        if problem is not None and not self._warned:
            self._warned = True
            rank_zero_warn(f"Step {step}: {problem} {REMEDY}")
