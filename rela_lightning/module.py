"""The same engine from the module's side, for those who configure modules rather than callbacks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from rela_lightning.callback import ReLACallback
from rela_lightning.compat import forget_hyper_parameters, picklable_default
from rela_lightning.errors import InjectionError
from rela_lightning.networks.encode import pooled
from rela_lightning.networks.pooling import Pooling
from rela_lightning.optim import with_scheduler
from rela_lightning.schedules import TransportOnly
from rela_lightning.targets import TargetStore


def _configure_callbacks(callback: ReLACallback, module: Any) -> list[Any]:
    """The module's own callbacks and ours. Module level, so that the module pickles."""
    own = type(module).configure_callbacks(module)
    return [*(own if isinstance(own, Sequence) else [own]), callback]


def accelerate(
    method: LightningModule, targets: str | Path | TargetStore | None = None, **options: Any
) -> LightningModule:
    """Attach ReLA to a module; every Trainer that fits it gets the callback.

    Nothing else changes: same class, same parameters, same checkpoints. In LightningCLI this function is a
    `model.class_path`, its `init_args` being the method and the callback's options.

    Args:
        method: Any SSL module of either Lightning namespace.
        targets: Folder written by `build_targets`, or an open `TargetStore`.
        options: Options of `ReLACallback`.

    Returns:
        The same object.

    Raises:
        InjectionError: If the module is accelerated already, or is no LightningModule.

    Example:
        >>> from rela_lightning.methods import SimCLR
        >>> module = accelerate(SimCLR("lightly:resnet-9"), "targets/clip-b16")
        >>> # L.Trainer(max_epochs=100).fit(module, loader)
    """
    if not hasattr(method, "training_step"):
        raise InjectionError(
            "Only a LightningModule can be accelerated.",
            expected="a module with a training_step, of lightning.pytorch or pytorch_lightning",
            found=type(method).__name__,
            do="pass the method that is trained, not its network",
        )
    if "configure_callbacks" in vars(method):
        raise InjectionError(
            "This module is accelerated already.",
            expected="a module that accelerate() has not seen",
            found=type(method).__name__,
            do="build a new one to change the options",
        )
    callback = ReLACallback(targets, **options)
    method.configure_callbacks = functools.partial(_configure_callbacks, callback, method)  # type: ignore[method-assign]
    return method


class ReLAMixin:
    """Put before a method class to give it ReLA: `class FastBYOL(ReLAMixin, BYOL)`.

    Works for modules of either namespace. The class keeps its own arguments and takes two more.

    Args:
        args: Arguments of the method.
        targets: Folder written by `build_targets`, or an open `TargetStore`.
        rela: Options of `ReLACallback`, by name.
        kwargs: Keyword arguments of the method.

    Example:
        >>> from rela_lightning.methods import BYOL
        >>> class FastBYOL(ReLAMixin, BYOL): ...
        >>> # FastBYOL("lightly:resnet-18", targets="targets/clip-b16", rela={"loss": "contrastive"})
    """

    def __init__(
        self,
        *args: Any,
        targets: str | Path | TargetStore | None = None,
        rela: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        # objects: the plain class could not load a checkpoint that holds them
        forget_hyper_parameters(self, ("targets", "rela"))
        self._rela: Any = functools.partial(ReLACallback, targets, **(rela or {}))

    def configure_callbacks(self) -> list[Any]:
        """The method's own callbacks and ReLA's."""
        own = super().configure_callbacks()  # type: ignore[misc]
        if isinstance(self._rela, functools.partial):  # built when fitted: loading a checkpoint needs no targets
            self._rela = self._rela()
        return [*(own if isinstance(own, Sequence) else [own]), self._rela]


@picklable_default("optimizer")
class ReLAModule(LightningModule):
    """Trains a backbone by transport alone: cached targets, one linear map, no SSL method.

    Views are the float image tensors of the batch, as made by the data set's own transform.

    Args:
        backbone: Network from images `[B, C, H, W]` to features, maps or tokens.
        targets: Folder written by `build_targets`, or an open `TargetStore`.
        optimizer: Builds the backbone's optimizer.
        lr_scheduler: Builds its scheduler, stepped each epoch, `rela_lightning.optim.WarmupCosine` each optimizer step;
            None keeps the rate.
        pooling: See `rela_lightning.networks.pooling.pool`.
        num_views: Views per image that are used.
        rela: Further options of `ReLACallback`, by name.

    Example:
        >>> from rela_lightning.methods import build_backbone
        >>> backbone, feature_dim = build_backbone("lightly:resnet-9", width=0.125)
        >>> module = ReLAModule(backbone, "targets/clip-b16")
        >>> # L.Trainer(max_epochs=20).fit(module, loader_of_views)
    """

    def __init__(
        self,
        backbone: nn.Module,
        targets: str | Path | TargetStore,
        *,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-2),
        lr_scheduler: LRSchedulerCallable | None = None,
        pooling: Pooling = "auto",
        num_views: int = 1,
        rela: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._pooling: Pooling = pooling
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        options = {"schedule": TransportOnly(), "transform": None, "teachers": [], **(rela or {})}
        self._rela = ReLACallback(targets, backbone="backbone", pooling=pooling, num_views=num_views, **options)

    def configure_callbacks(self) -> list[Any]:
        """ReLA's callback."""
        return [self._rela]

    def forward(self, images: Tensor) -> Tensor:
        """Features `[B, F]` of images `[B, C, H, W]`."""
        return pooled(self.backbone, self.backbone(images), images, self._pooling)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Replaced by the transport step; reached only if the callback is missing."""
        raise InjectionError(
            "ReLAModule has no loss of its own.",
            expected="its callback, attached through configure_callbacks, with a schedule that keeps transport on",
            found="a training step without it",
            do="fit with the Trainer of lightning.pytorch; keep the default schedule, TransportOnly()",
        )

    def configure_optimizers(self) -> Any:
        """The backbone's optimizer and scheduler."""
        optimizer = self._optimizer(self.backbone.parameters())
        scheduler = self._lr_scheduler(optimizer) if self._lr_scheduler is not None else None
        return with_scheduler(self, optimizer, scheduler)
