"""Arithmetic of a prior's forward, for the bill of labelling."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rela_lightning.compat import is_compiled
from rela_lightning.priors.base import Prior


def with_flops(prior: Prior, embed: Callable[[], Tensor]) -> tuple[Tensor, int | None]:
    """Features, and the FLOPs that they took, by torch's counter.

    Args:
        prior: What `embed` runs.
        embed: Gives the features. It is called once more where the counter gets in its way.

    Returns:
        None for the FLOPs of a network that the counter cannot look into, such as a compiled one.
    """
    if is_compiled(prior):
        return embed(), None
    try:
        with FlopCounterMode(display=False) as counter:
            features = embed()
    except Exception:  # of a network that bears no watching; an error of its own comes again
        return embed(), None
    return features, int(counter.get_total_flops())
