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


def unused_parameters(loss: Tensor, parameters: Iterable[nn.Parameter], *, distributed: bool) -> list[nn.Parameter]:
    """Trainable parameters that `loss` does not reach; none where the graph hides some.

    Raises:
        InjectionError: Under DDP, if reentrant checkpointing hides parameters.
    """
    reached, hidden = reached_parameters(loss)
    if hidden and distributed:
        raise InjectionError(
            "Reentrant activation checkpointing hides parameters, so DDP cannot be told which take part.",
            expected="torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
            found="use_reentrant=True",
            do="use non-reentrant checkpointing",
        )
    if hidden:
        return []
    return [p for p in parameters if p.requires_grad and id(p) not in reached]


def with_all_parameters(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """`loss` plus a zero that every parameter takes part in, so that DDP sees a gradient for each."""
    for parameter in parameters:
        loss = loss + 0.0 * parameter.sum()
    return loss
