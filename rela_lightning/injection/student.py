"""The student's features: by our own call of the backbone, or read inside the user's step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from rela_lightning.batches import find_views
from rela_lightning.compat import eager
from rela_lightning.errors import ConfigError, DataError, InjectionError
from rela_lightning.injection.backbone import Backbone, find_layer
from rela_lightning.injection.discovery import Call, Discovery, never_called, never_passed_on, untrained
from rela_lightning.injection.resolution import fixed_size, shrink
from rela_lightning.injection.rows import RowMatcher, regular_rows
from rela_lightning.networks.names import Trains, guess_backbone, submodule_names, trainable, trained_by
from rela_lightning.networks.pooling import Pooling


class Features(NamedTuple):
    """What the backbone said of some rows.

    Attributes:
        values: `[R, F]`.
        rows: Sample in the batch of each row, int64 `[R]`.
        views: View of that sample, int64 `[R]`; None where views are not told apart.
    """

    values: Tensor
    rows: Tensor
    views: Tensor | None


class Reading(NamedTuple):
    """What can be read of one step.

    Attributes:
        any_calls: Tells whether the backbone was called with grad, since features were given if they were.
        features: Gives features of these calls, from the views in the batch and the number of samples.
        missing: Gives the error for a backbone that is not called in any step.
    """

    any_calls: Callable[[], bool]
    features: Callable[[Sequence[Tensor], int], Features]
    missing: Callable[[], InjectionError]


class Student:
    """Finds the backbone of a module and reads its features.

    Args:
        module: The user's module.
        backbone: Dotted path of the backbone, or `auto`.
        feature_layer: Dotted path of the layer to read; None reads the backbone's output.
        pooling: See `rela_lightning.networks.pooling.pool`.
        views: Dotted paths of the views in the batch; None finds them.
        image: Dotted path of the image in a sample, where labelling was told it.
        num_views: Views per sample in the transport phase.
        resolution: Height and width, pixels, of the views in phases of low resolution; None leaves them.
        row_layout: See `rela_lightning.injection.rows.match_rows`.
        own_forward: Whether the backbone is called once more beside the user's step, instead of recording its calls.
        optimizers: Gives the optimizers, once there are some.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        backbone: str = "auto",
        feature_layer: str | None = None,
        pooling: Pooling = "auto",
        views: Sequence[str] | None = None,
        image: str | None = None,
        num_views: int = 2,
        resolution: int | None = None,
        row_layout: Any = "auto",
        own_forward: bool = False,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]] = tuple,
    ) -> None:
        self._module = module
        self._name, self._feature_layer, self._pooling = backbone, feature_layer, pooling
        self._views, self._image, self._num_views, self._resolution = views, image, num_views, resolution
        self._rows = RowMatcher(row_layout)
        self._own_forward, self._optimizers = own_forward, optimizers
        self._calls_known, self._guesses, self._said = False, backbone == "auto", False
        self.backbone: Backbone | None = None
        """The backbone, once it is known."""

    @property
    def known(self) -> bool:
        """Whether the backbone is known, or will be by its name, before the user's step has called it."""
        return self.backbone is not None or self._name != "auto" or self._guess() is not None

    @property
    def trains(self) -> Trains:
        """Tells which parts of the module an optimizer moves."""
        return trained_by(self._optimizers(), self._module)

    def resolve(self) -> Backbone | None:
        """The backbone, if it is known without the user's step."""
        if self.backbone is None:
            name = self._guess() if self._name == "auto" else self._name
            if name is not None:
                self._adopt(name)
        return self.backbone

    def views_of(self, batch: Any, samples: int | None) -> list[Tensor]:
        """The views in a batch, see `find_views`."""
        return find_views(batch, samples, self._views, image=self._image)

    def first_of_each(self, view: Tensor, samples: int) -> Tensor:
        """One row for each sample of a view `[k B, C, H, W]`."""
        if view.shape[0] == samples:
            return view
        return view[:: view.shape[0] // samples] if self._rows.row_layout == "interleaved" else view[:samples]

    def own_call(
        self, backbone: Backbone, views: Sequence[Tensor], samples: int, *, low_resolution: bool = False
    ) -> Features:
        """Features of the first `num_views` views of full size, by our own call of the backbone."""
        largest = max(views, key=lambda view: (view.shape[-2:], view.shape[1])).shape[1:]  # masks have one channel
        single = (part for view in views if view.shape[1:] == largest for part in self._split(view, samples))
        chosen = list(itertools.islice(single, self._num_views))
        number = torch.arange(samples * len(chosen), device=chosen[0].device)
        rows, of_sample = number % samples, number // samples
        images = torch.cat(chosen) if len(chosen) > 1 else chosen[0]
        self._guesses = False
        if not low_resolution or self._resolution is None:
            return Features(backbone(images), rows, of_sample)
        small = shrink(images, self._resolution)
        try:
            return Features(backbone(small), rows, of_sample)
        except InjectionError as error:
            if not backbone.takes(small) and backbone.takes(images):
                raise fixed_size(images, self._resolution, error) from error
            raise

    @contextmanager
    def recording(self, views: Sequence[Tensor], *, detach: bool) -> Iterator[Reading]:
        """Record the calls that the user's step makes inside the block; what is given reads them.

        Args:
            views: The views in the batch.
            detach: Hand the caller features without gradient, so that its loss trains the heads alone.
        """
        if self._own_forward:
            yield Reading(
                lambda: False, lambda views, samples: self.own_call(self._needed(), views, samples), never_passed_on
            )
            return
        with ExitStack() as stack:
            known, own, discovery = self.backbone is not None, list[Call](), None
            if self.backbone is not None:
                own = stack.enter_context(self.backbone.recording(detach=detach))
            if not self._calls_known:
                layer = None if self._feature_layer is None else find_layer(self._module, self._feature_layer)
                discovery = Discovery(self._module, {view.shape[1] for view in views}, layer, self.trains)
                stack.enter_context(discovery.recording())
                stack.enter_context(eager())  # hooks that are gone after a step are nothing to compile for
            yield Reading(
                lambda: bool(own) or (not known and discovery is not None and discovery.network() is not None),
                lambda views, samples: self._read(self._calls(own, discovery), views, samples),
                lambda: never_called(self._called_name, [] if discovery is None else discovery.called),
            )

    def log_once(self, teachers: Sequence[str]) -> None:
        """Log what is read and how wide it is, and which teachers follow it, when it was read for the first time."""
        if self._said or self.backbone is None:
            return
        self._said = True
        follow = f" Following meanwhile: {', '.join(teachers)}." if teachers else ""
        rank_zero_info(f"ReLA reads {self.backbone.reads}; `feature_layer` reads another layer.{follow}")

    def check_deferred(self) -> None:
        """Read the checks left on the device: rows that changed their order.

        Raises:
            InjectionError: If they did.
        """
        self._rows.check_deferred()

    def remove(self) -> None:
        """Take everything off the module."""
        if self.backbone is not None:
            self.backbone.remove()
            self.backbone = None

    def _guess(self) -> str | None:
        return guess_backbone(self._module, self.trains)

    def _needed(self) -> Backbone:
        backbone = self.resolve()
        if backbone is None:
            raise ConfigError(
                "`own_forward` calls the backbone, and nothing in the module has the usual name of one.",
                expected="the name of the network that takes images",
                found='backbone="auto"',
                exists=submodule_names(self._module),
                do='pass backbone="..."',
            )
        return backbone

    def _adopt(self, name: str) -> None:
        if self.backbone is not None:
            self.backbone.remove()
        self.backbone = Backbone(self._module, name, feature_layer=self._feature_layer, pooling=self._pooling)
        if (self._guesses or trainable(self.backbone.network)) and not self.trains(self.backbone.network):
            raise untrained(name)

    @property
    def _called_name(self) -> str:
        return self._name if self.backbone is None else self.backbone.name

    def _calls(self, own: list[Call], discovery: Discovery | None) -> list[Call]:
        """The calls of the backbone in a step; where one that was guessed is not called, those of what is called."""
        if own:
            self._calls_known, calls = True, list(own)
            own.clear()
            return calls
        found = discovery.network() if self._guesses and discovery is not None else None
        if found is None or discovery is None:
            raise never_called(self._called_name, [] if discovery is None else discovery.called)
        self._adopt(found[0])
        self._calls_known = True
        discovery.forget()
        return found[1]

    def _read(self, calls: list[Call], views: Sequence[Tensor], samples: int) -> Features:
        backbone, number = self._needed(), itertools.count()
        rows = [
            torch.cat([self._rows(next(number), images, views, samples) for images in call.inputs]) for call in calls
        ]
        features = [backbone.features(call) for call in calls]
        rows = [self._repeated(order, len(part)) for order, part in zip(rows, features, strict=True)]
        return Features(torch.cat(features), torch.cat(rows), None)

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

    def _repeated(self, rows: Tensor, count: int) -> Tensor:
        """Rows of the features, where the backbone returns several for each image."""
        layout = self._rows.row_layout
        if count == len(rows) or count % len(rows) or layout == "auto":
            return rows
        return rows[regular_rows(count, len(rows), layout, rows.device)]
