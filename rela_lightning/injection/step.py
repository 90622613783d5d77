"""What happens inside one training step: the user's own, the transport loss, or both."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rela_lightning.errors import ConfigError, DataError, InjectionError
from rela_lightning.injection.features import Backbone, Call, Discovery, guess_backbone, never_called
from rela_lightning.injection.graph import idle_parameters, reached_parameters, touch
from rela_lightning.injection.guard import FiniteGuard
from rela_lightning.injection.optim import TransportMap
from rela_lightning.injection.phases import Phase
from rela_lightning.injection.rows import RowMatcher, regular_rows
from rela_lightning.injection.views import find_views, shrink
from rela_lightning.pooling import Pooling
from rela_lightning.schedules import SSL_ONLY, Weights
from rela_lightning.transport import transport_loss

Lookup = Callable[[Tensor, Tensor], Tensor | None]
Calls = Callable[[], list[Call]]


class StepEngine:
    """Runs a step under the weights of a schedule.

    Args:
        module: The user's module.
        lookup: Targets float32 `[B, D]` from the data set rows `[B]` and the first view of a batch; None while
            there are none yet.
        transport: The map W.
        backbone: Dotted path of the backbone, or `auto`.
        feature_layer: Dotted path of the layer to read; None reads the backbone's output.
        pooling: See `rela_lightning.pooling.pool`.
        views: Dotted paths of the views in the batch; None finds them.
        num_views: Views per sample in the transport phase.
        resolution: Height and width, pixels, of the views in phases of low resolution; None leaves them.
        row_layout: See `rela_lightning.injection.rows.match_rows`.
        replace: Whether a transport-only step leaves the user's step out, or runs it and swaps its loss.
    """

    def __init__(
        self,
        module: nn.Module,
        lookup: Lookup,
        transport: TransportMap,
        *,
        backbone: str = "auto",
        feature_layer: str | None = None,
        pooling: Pooling = "auto",
        views: Sequence[str] | None = None,
        num_views: int = 2,
        resolution: int | None = None,
        row_layout: Any = "auto",
        replace: bool = True,
    ) -> None:
        self._module, self._lookup, self._transport = module, lookup, transport
        self._name, self._feature_layer, self._pooling = backbone, feature_layer, pooling
        self._views, self._num_views, self._resolution = views, num_views, resolution
        self._rows = RowMatcher(row_layout)
        self._replace = replace
        self._backbone: Backbone | None = None
        self.guard = FiniteGuard()
        self.samples = 1
        """Samples in the current batch."""
        self.loss: Tensor | None = None
        """Transport loss of the current step, detached; None while there is none."""
        self.idle: list[nn.Parameter] = []
        """Parameters that take no part in the current step."""
        self.replaced = False
        """Whether the current step left the user's step out."""
        self._on_backward: Callable[[Tensor], Tensor] | None = None
        self._targets = torch.empty(0)
        self._weights, self._warm_heads = SSL_ONLY, False
        self._kept: set[int] = set()  # parameters that losses of their own train in this step

    @property
    def may_replace(self) -> bool:
        """Whether a transport-only step can leave the user's step out: the backbone is known by name."""
        known = self._backbone is not None or self._name != "auto" or guess_backbone(self._module) is not None
        return self._replace and known

    def run(
        self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor | None,
        phase: Phase, *, distributed: bool,
    ) -> Any:  # fmt: skip
        """One training step.

        Args:
            step: The user's own `training_step`.
            args: Its positional arguments, the batch first.
            kwargs: Its keyword arguments.
            index: Data set rows of the batch, int64 `[B]`, on the CPU; None for data without an index.
            phase: Weights of both losses, and whether the user's step runs on detached features beside the
                transport loss, so that its own loss trains the heads alone.
            distributed: Whether every parameter must take part for the sake of DDP.

        Returns:
            What the user's step would return, its loss replaced or extended.
        """
        weights = self._weights = phase.weights
        self._warm_heads, self._kept = phase.warm_heads, set()
        self.loss, self.idle, self.replaced, self._on_backward = None, [], False, None
        if weights.transport == 0.0:
            return step(*args, **kwargs)
        batch = args[0] if args else next(iter(kwargs.values()))
        views = find_views(batch, None if index is None else len(index), self._views)
        index = torch.arange(min(len(view) for view in views)) if index is None else index
        self.samples = len(index)
        targets = self._lookup(index, self._first_of_each(views[0], len(index)))
        if targets is None:
            return self._without_targets(step, args, kwargs, weights)
        self._targets = targets
        self._resolve()
        if weights.transport_only and self._replace and self._backbone is not None and not phase.warm_heads:
            self.replaced = True
            loss = weights.transport * self._own_call(self._backbone, views, index, phase.low_resolution)
            return self._only(loss, distributed)
        with self._listen(detach=phase.warm_heads) as calls:

            def combine(own: Tensor) -> Tensor:
                loss = weights.transport * self._from_calls(calls(), views, index)
                if phase.warm_heads:
                    return own + loss
                if weights.transport_only:
                    return self._only(loss, distributed)
                return (own if weights.ssl == 1.0 else weights.ssl * own) + loss

            self._on_backward = combine
            output = step(*args, **kwargs)
            self._on_backward = None
            if self._module.automatic_optimization:
                return output if output is None else _with_loss(output, combine)  # None: the user skips this step
            if not self._added() and calls():
                raise _direct_backward()
            return output

    def _added(self) -> bool:
        """Whether the transport loss went into `manual_backward`."""
        return self.loss is not None

    def backward(self, loss: Tensor) -> Tensor:
        """The loss given to `manual_backward`.

        The first one in a step that reaches the backbone carries the transport loss; further ones that reach it
        get the SSL weight. A loss that does not reach it, such as a probe's, stays as it is.
        """
        combine = self._on_backward
        if combine is None:
            return loss
        reached, hidden = reached_parameters(loss)
        if not self._warm_heads and not hidden and not self._reaches_backbone(reached):
            self._kept |= reached
            self.idle = [p for p in self.idle if id(p) not in self._kept]
            return loss
        return combine(loss) if self.loss is None else self._weights.ssl * loss

    def _reaches_backbone(self, reached: set[int]) -> bool:
        if self._backbone is None:  # not known yet: a loss through a called submodule will tell
            return True
        return any(id(p) in reached for p in self._backbone.parameters())

    def _without_targets(
        self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], weights: Weights
    ) -> Any:
        """A step before there are targets: the user's own, or, in the transport phase, one that moves nothing."""
        if weights.transport_only:
            self.idle = [p for p in self._module.parameters() if p.requires_grad]
            self.replaced = self._replace
            if self._replace:
                return touch(torch.zeros((), device=self.idle[0].device), self.idle)
        self._on_backward = scaled = functools.partial(torch.mul, weights.ssl)
        output = step(*args, **kwargs)
        self._on_backward = None
        own = output is None or weights.ssl == 1.0 or not self._module.automatic_optimization
        return output if own else _with_loss(output, scaled)

    def _resolve(self) -> None:
        if self._backbone is None:
            name = guess_backbone(self._module) if self._name == "auto" else self._name
            if name is not None:
                self._adopt(name)

    def _adopt(self, name: str) -> Backbone:
        self._backbone = Backbone(self._module, name, feature_layer=self._feature_layer, pooling=self._pooling)
        return self._backbone

    @contextmanager
    def _listen(self, *, detach: bool) -> Iterator[Calls]:
        if self._backbone is not None:
            with self._backbone.listening(detach=detach) as calls:
                yield lambda: calls
            return
        discovery = Discovery(self._module)

        def discovered() -> list[Call]:
            name, calls = discovery.largest()
            self._adopt(name)
            return calls

        with discovery.listening():
            yield discovered

    def _only(self, loss: Tensor, distributed: bool) -> Tensor:
        idle = idle_parameters(loss, self._module.parameters(), distributed=distributed)
        self.idle = [p for p in idle if id(p) not in self._kept]
        return touch(loss, self.idle) if distributed else loss

    def _own_call(self, backbone: Backbone, views: list[Tensor], index: Tensor, low_resolution: bool) -> Tensor:
        largest = max(views, key=lambda view: (view.shape[-2:], view.shape[1])).shape[1:]  # masks have one channel
        single = (part for view in views if view.shape[1:] == largest for part in self._split(view, len(index)))
        chosen = list(itertools.islice(single, self._num_views))
        rows = torch.arange(len(index), device=chosen[0].device).repeat(len(chosen))
        images = torch.cat(chosen) if len(chosen) > 1 else chosen[0]
        if not low_resolution or self._resolution is None:
            return self._loss(backbone(images), rows, index)
        try:
            features = backbone(shrink(images, self._resolution))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise _fixed_size(images, self._resolution, error) from error
        return self._loss(features, rows, index)

    def _first_of_each(self, view: Tensor, samples: int) -> Tensor:
        if view.shape[0] == samples:
            return view
        return view[:: view.shape[0] // samples] if self._rows.row_layout == "interleaved" else view[:samples]

    def _split(self, view: Tensor, samples: int) -> Sequence[Tensor]:
        """Views of one row a sample."""
        count, layout = view.shape[0] // samples, self._rows.row_layout
        if count > 1 and layout == "auto":
            raise DataError(
                "A view in the batch has more rows than samples were drawn, in unknown order.",
                expected=f"{samples} rows, one a sample",
                found=f"{view.shape[0]} rows",
                do='say how they are ordered: row_layout="cat" (a b a b) or "interleaved" (a a b b)',
            )
        return [view[i::count] for i in range(count)] if layout == "interleaved" else torch.split(view, samples)

    def _from_calls(self, calls: list[Call], views: list[Tensor], index: Tensor) -> Tensor:
        if not calls or self._backbone is None:
            raise never_called(self._module, self._name if self._backbone is None else self._backbone.name)
        rows = [self._rows(number, call.inputs, views, len(index)) for number, call in enumerate(calls)]
        features = [self._backbone.features(call) for call in calls]
        rows = [self._repeated(order, len(part)) for order, part in zip(rows, features, strict=True)]
        return self._loss(torch.cat(features), torch.cat(rows), index)

    def _repeated(self, rows: Tensor, count: int) -> Tensor:
        """Rows of the features, where the backbone returns several for each image."""
        layout = self._rows.row_layout
        if count == len(rows) or count % len(rows) or layout == "auto":
            return rows
        return rows[regular_rows(count, len(rows), layout, rows.device)]

    def _loss(self, features: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        if features.shape[0] != rows.shape[0]:
            raise InjectionError(
                "The backbone returned another number of rows than it was given.",
                expected=f"{rows.shape[0]} rows of features",
                found=f"{features.shape[0]}",
                do='if each image has several rows, say how they are ordered: row_layout="cat" (a b a b) or '
                '"interleaved" (a a b b); else name the layer that returns one row per image with `feature_layer`',
            )
        linear = self._transport.build(features.shape[1], self._targets.shape[1], features.device)
        targets = self._targets[:, : linear.target_dim].to(features.device, non_blocking=True)
        mapped = linear(features)
        self.guard.watch(mapped, rows, index)
        loss = transport_loss(mapped, targets[rows])
        self.loss = loss.detach()
        return loss

    def look(self) -> None:
        """Look at what was left on the device: values that are not finite, rows that changed their order.

        Raises:
            InjectionError: For either.
        """
        self.guard.look()
        self._rows.look()

    def remove(self) -> None:
        """Take everything off the module."""
        if self._backbone is not None:
            self._backbone.remove()
            self._backbone = None


def _fixed_size(images: Tensor, resolution: int, error: Exception) -> ConfigError:
    return ConfigError(
        "The backbone does not take views of `transport_resolution`.",
        expected="a backbone that takes images of any size, as most convolutional nets do",
        found=f"views of {tuple(images.shape[-2:])} pixels shrunk to {resolution}: {error.__cause__ or error}",
        do="leave transport_resolution out, or build the backbone for any size (timm: dynamic_img_size=True)",
    )


def _direct_backward() -> InjectionError:
    return InjectionError(
        "Under manual optimization the transport loss is added where the loss goes through Lightning.",
        expected="self.manual_backward(loss)",
        found="a training step that called the backbone but not self.manual_backward",
        do="call self.manual_backward(loss) instead of loss.backward(), as Lightning asks for its precision too",
    )


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
