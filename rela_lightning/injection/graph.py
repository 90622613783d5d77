"""Which parameters a loss reaches, and keeping the others out of the step."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from rela_lightning.compat import REENTRANT
from rela_lightning.errors import InjectionError


def reached_parameters(loss: Tensor) -> tuple[set[int], bool]:
    """Ids of the leaf tensors in the graph of `loss`, and whether a part of the graph is hidden.

    Reentrant activation checkpointing hides the parameters below it.
    """
    reached: set[int] = set()
    hidden = False
    seen = set()
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            reached.add(id(variable))
        hidden = hidden or node.name() == REENTRANT
        pending.extend(parent for parent, _ in node.next_functions)
    return reached, hidden


def unused_parameters(loss: Tensor, parameters: Iterable[nn.Parameter], *, all_needed: bool) -> list[nn.Parameter]:
    """Trainable parameters that `loss` does not reach; none where the graph hides some.

    Args:
        loss: Of the step.
        parameters: Those of the module.
        all_needed: Whether each of them must have a gradient, so that those that are hidden have to be known.

    Raises:
        InjectionError: If all are needed and reentrant checkpointing hides some.
    """
    reached, hidden = reached_parameters(loss)
    if hidden and all_needed:
        raise InjectionError(
            "Reentrant activation checkpointing hides parameters, and each needs a gradient here: for DDP, or for a "
            "gradient scaler in manual optimization.",
            expected="torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
            found="use_reentrant=True",
            do="use non-reentrant checkpointing",
        )
    if hidden:
        return []
    return [p for p in parameters if p.requires_grad and id(p) not in reached]


def with_all_parameters(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """`loss` plus a zero that every parameter takes part in, so that each has a gradient."""
    for parameter in parameters:
        loss = loss + 0.0 * parameter.sum()
    return loss
