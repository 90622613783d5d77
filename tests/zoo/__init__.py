"""SSL modules as people write them, each a case that `ReLACallback` must serve, or refuse with a remedy."""

from tests.zoo import backbones, clustering, compiled, contrastive, distillation, libraries, masked, redundancy, shapes
from tests.zoo.case import CASES, SCHEDULES, Case

GROUPS = (
    contrastive.GROUP,
    distillation.GROUP,
    redundancy.GROUP,
    clustering.GROUP,
    masked.GROUP,
    libraries.SOLO,
    libraries.STABLE,
    shapes.GROUP,
    backbones.GROUP,
    compiled.GROUP,
)

__all__ = ["CASES", "GROUPS", "SCHEDULES", "Case"]
