"""One training step: the user's own, the transport loss, or both. The step object is also its result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.injection.discovery import never_passed_on
from rela_lightning.injection.graph import reached_parameters, unused_parameters, with_all_parameters
from rela_lightning.injection.phases import Phase
from rela_lightning.injection.student import Features, Student
from rela_lightning.injection.transport_head import TransportHead
from rela_lightning.targets.source import BatchRows

Lookup = Callable[[BatchRows, Tensor], Tensor | None]
"""Targets float32 `[B, n, D]` from where the batch came from and the first view in it; None while there are none."""


@dataclass(frozen=True)
class Parts:
    """What every step of a run is made of.

    Attributes:
        module: The user's module.
        student: Its backbone, and how its features are read.
        head: W and the transport loss.
        lookup: Targets of a batch.
        replace: Whether a transport-only step leaves the user's step out, or runs it and swaps its loss.
    """

    module: nn.Module
    student: Student
    head: TransportHead
    lookup: Lookup
    replace: bool

    @property
    def may_replace(self) -> bool:
        """Whether a transport-only step can leave the user's step out: the backbone is known by name."""
        return self.replace and self.student.known

    def check_deferred(self) -> None:
        """Read the checks left on the device: values that are not finite, rows that changed their order.

        Raises:
            InjectionError: For either.
        """
        self.head.check_deferred()
        self.student.check_deferred()


class Step:
    """One training step under the weights of a phase. Run once; afterwards, and in hooks meanwhile, it says what was.

    Args:
        parts: Of the run.
        rows: Where the batch came from.
        phase: Weights of both losses, and whether the user's step runs on detached features beside the transport loss,
            so that its own loss trains the heads alone.
        all_needed: Whether every parameter must have a gradient: DDP waits for each, and a gradient scaler for one in
            each of several optimizers.

    Attributes:
        phase: The phase above.
        samples: Samples in the batch.
        loss: Transport loss, detached; None while there is none.
        unused: Parameters that take no part.
        replaced: Whether the user's step was left out.
        backbone_error: For a step under manual optimization that had no use for the backbone, if all are like it.
    """

    def __init__(self, parts: Parts, rows: BatchRows, phase: Phase, *, all_needed: bool = False) -> None:
        self.phase, self.samples = phase, 1
        self.loss: Tensor | None = None
        self.unused: list[nn.Parameter] = []
        self.replaced = False
        self.backbone_error: InjectionError | None = None
        self._parts, self._rows, self._all_needed = parts, rows, all_needed
        self._kept: set[int] = set()  # parameters that losses of their own train in this step
        self._on_backward: Callable[[Tensor], Tensor] | None = None
        self._any_calls: Callable[[], bool] = bool

    def run(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the step.

        Args:
            step: The user's own `training_step`.
            args: Its positional arguments, the batch first.
            kwargs: Its keyword arguments.

        Returns:
            What the user's step would return, its loss replaced or extended.
        """
        if self.phase.weights.transport == 0.0:
            return step(*args, **kwargs)
        student, phase = self._parts.student, self.phase
        given = self._rows.indices
        views = student.views_of(
            args[0] if args else next(iter(kwargs.values())), None if given is None else len(given)
        )
        index = torch.arange(min(len(view) for view in views)) if given is None else given
        self.samples = len(index)
        targets = self._parts.lookup(self._rows, student.first_of_each(views[0], len(index)))
        if targets is None:
            return self._without_targets(step, args, kwargs)
        backbone = student.resolve()
        if phase.weights.transport_only and self._parts.replace and backbone is not None and not phase.warm_heads:
            self.replaced = True
            features = student.own_call(backbone, views, len(index), low_resolution=phase.low_resolution)
            return self._only(self._transport(features, targets, index))
        with student.recording(views, detach=phase.warm_heads) as reading:

            def combine(own: Tensor) -> Tensor:
                features = reading.features(views, len(index))
                return self._combined(own, self._transport(features, targets, index))

            self._on_backward, self._any_calls = combine, reading.any_calls
            output = step(*args, **kwargs)
            self._on_backward = None
            if self._automatic:
                return output if output is None else _with_loss(output, combine)  # None: the user skips this step
            if self.loss is None and reading.any_calls():
                raise never_passed_on()
            self.backbone_error = reading.missing() if self.loss is None else None
            return output

    def backward(self, loss: Tensor) -> Tensor:
        """The loss given to `manual_backward`.

        The first one in a step that reaches the backbone carries the transport loss; further ones that reach it
        get the SSL weight, which is 1 while heads are warmed. Another pass, after the gradients were set to None,
        begins anew, as that of SAM at other weights. A loss that does not reach the backbone, such as a probe's, stays
        as it is.
        """
        combine = self._on_backward
        if combine is None:
            return loss
        reached, hidden = reached_parameters(loss)
        if not hidden and not self._reaches_backbone(reached):
            self._kept |= reached
            self.unused = [p for p in self.unused if id(p) not in self._kept]
            return loss
        if self.loss is None or self._begins_anew():
            return combine(loss)
        return loss if self.phase.warm_heads else self.phase.weights.ssl * loss

    @property
    def _automatic(self) -> bool:
        return bool(self._parts.module.automatic_optimization)

    def _transport(self, features: Features, targets: Tensor, index: Tensor) -> Tensor:
        """Weighted transport loss.

        Who accumulates gradients under manual optimization divides the loss, where Lightning does it otherwise.
        """
        losses = 1 if self._automatic else self._parts.head.losses_per_step
        loss = self._parts.head.loss(features, targets, index)
        self.loss = loss.detach()
        return self.phase.weights.transport / losses * loss

    def _combined(self, own: Tensor, transport: Tensor) -> Tensor:
        weights = self.phase.weights
        if self.phase.warm_heads:
            return own + transport
        if weights.transport_only:
            return self._only(transport)
        return (own if weights.ssl == 1.0 else weights.ssl * own) + transport

    def _only(self, loss: Tensor) -> Tensor:
        """The transport loss alone; parameters it does not reach stay out of the optimizer step."""
        unused = unused_parameters(loss, self._parts.module.parameters(), all_needed=self._all_needed)
        self.unused = [p for p in unused if id(p) not in self._kept]
        return with_all_parameters(loss, self.unused) if self._all_needed else loss

    def _reaches_backbone(self, reached: set[int]) -> bool:
        backbone = self._parts.student.backbone
        return backbone is None or backbone.reaches(reached)  # not known yet: a loss through a submodule will tell

    def _begins_anew(self) -> bool:
        """Whether the backbone was called again, and holds no gradient of the pass before; W gives its own up then."""
        backbone = self._parts.student.backbone
        if backbone is None or not self._any_calls() or any(p.grad is not None for p in backbone.parameters()):
            return False
        self._parts.head.forget()
        return True

    def _without_targets(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step before there are targets: the user's own, or, in the transport phase, one that moves nothing."""
        weights = self.phase.weights
        if weights.transport_only:
            self.unused = [p for p in self._parts.module.parameters() if p.requires_grad]
            self.replaced = self._parts.replace
            if self._parts.replace:
                return with_all_parameters(torch.zeros((), device=self.unused[0].device), self.unused)
        self._on_backward = scaled = functools.partial(torch.mul, weights.ssl)
        output = step(*args, **kwargs)
        self._on_backward = None
        own = output is None or weights.ssl == 1.0 or not self._automatic
        return output if own else _with_loss(output, scaled)


def _with_loss(output: Any, combine: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return combine(output)
    if isinstance(output, Mapping) and isinstance(output.get("loss"), Tensor):
        return {**output, "loss": combine(output["loss"])}
    raise ConfigError(
        "The training step returned no loss to combine with.",
        expected="a tensor, a dict with a tensor under 'loss', or None to skip the step",
        found=type(output).__name__,
        do="return the loss from training_step",
    )
