"""Is this prior worth it, and does training go well? Measures of features and targets that need no labels.

Names are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rela_lightning._lazy import lazy

if TYPE_CHECKING:
    from rela_lightning.diagnostics.collapse import CollapseMonitor
    from rela_lightning.diagnostics.fitness_check import Fitness, fitness
    from rela_lightning.diagnostics.image_faults import Finding
    from rela_lightning.diagnostics.linear_map import representation_similarity, transport_distance
    from rela_lightning.diagnostics.ranking import rank_priors
    from rela_lightning.diagnostics.ranking_table import PriorRanking, PriorRow
    from rela_lightning.diagnostics.similarity import linear_cka, mutual_knn
    from rela_lightning.diagnostics.spread import alignment, effective_rank, feature_deviation, uniformity

_EXPORTS = {
    "CollapseMonitor": ".collapse",
    "Finding": ".image_faults",
    "Fitness": ".fitness_check",
    "PriorRanking": ".ranking_table",
    "PriorRow": ".ranking_table",
    "alignment": ".spread",
    "effective_rank": ".spread",
    "feature_deviation": ".spread",
    "fitness": ".fitness_check",
    "linear_cka": ".similarity",
    "mutual_knn": ".similarity",
    "rank_priors": ".ranking",
    "representation_similarity": ".linear_map",
    "transport_distance": ".linear_map",
    "uniformity": ".spread",
}
__getattr__, __dir__ = lazy(__name__, _EXPORTS)

__all__ = [
    "CollapseMonitor",
    "Finding",
    "Fitness",
    "PriorRanking",
    "PriorRow",
    "alignment",
    "effective_rank",
    "feature_deviation",
    "fitness",
    "linear_cka",
    "mutual_knn",
    "rank_priors",
    "representation_similarity",
    "transport_distance",
    "uniformity",
]
