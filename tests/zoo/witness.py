"""Independent witnesses of a fit: which rows the backbone saw, which targets they met, what is left behind."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from rela_lightning import TargetStore
from rela_lightning.data.transforms import TransportViews
from rela_lightning.injection import transport_head
from tests.zoo.data import ROWS, paint, painted_rows


def split_path(module: nn.Module, path: str) -> tuple[nn.Module, str | None]:
    """The submodule on a dotted path, and the name of its method where the path ends in one."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            return module.get_submodule(".".join(parts[:count])), ".".join(parts[count:]) or None
        except AttributeError:
            continue
    raise AttributeError(path)


class Rows:
    """Rows painted in the images that reach the backbone with grad, beside the rows of the targets used."""

    def __init__(self, targets: Any) -> None:
        self.known = TargetStore(targets)[torch.arange(ROWS)]
        self.seen: list[int] = []
        self.matched: list[int] = []

    def see(self, *args: Any, **kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            crops = value if isinstance(value, (list, tuple)) else [value]
            images = [crop for crop in crops if isinstance(crop, Tensor) and crop.ndim == 4]
            if images and torch.is_grad_enabled():
                self.seen += [row for crop in images for row in painted_rows(crop.detach())]
                return

    @contextmanager
    def watching(self, module: nn.Module, called: str) -> Iterator[None]:
        """Look at every call of `called`, and at every transport loss."""
        owner, method = split_path(module, called)
        real_pair, real_views = transport_head.pair, TransportViews.__call__

        def pair(targets: Tensor, features: Any) -> Tensor:
            targets = real_pair(targets, features)
            equal = (targets[:, None] == self.known[None, :, : targets.shape[1]]).all(dim=2)
            assert bool((equal.sum(dim=1) == 1).all()), "a target that is no row of the store"
            used = equal.int().argmax(dim=1).tolist()
            assert self.seen, f"targets were used, but {called} was not called with grad"
            assert used == self.seen * (len(used) // len(self.seen)), "features and targets of different rows"
            self.matched.append(len(used))
            self.seen = []
            return targets

        def views(transform: Any, image: Any, crops: Any = None) -> Any:
            return paint(real_views(transform, image, crops), image)

        handles = []
        if method is None:
            handles.append(owner.register_forward_hook(_only(owner, self.see), with_kwargs=True))
        else:
            original = getattr(owner, method)

            def spying(*args: Any, **kwargs: Any) -> Any:
                self.see(*args, **kwargs)
                return original(*args, **kwargs)

            vars(owner)[method] = spying
        try:
            with (
                mock.patch.object(transport_head, "pair", pair),
                mock.patch.object(TransportViews, "__call__", views),
            ):
                yield
        finally:
            for handle in handles:
                handle.remove()
            if method is not None:
                vars(owner).pop(method)


def _only(owner: nn.Module, see: Any) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module is owner:  # copies of the backbone keep the hook
            see(*args, **kwargs)

    return hook


class Watch(L.Callback):
    """What the callback logs, which backbone it settled on, and the weights after the first epoch."""

    def __init__(self, rela: Any, rows: Rows) -> None:
        self.rela, self.rows = rela, rows
        self.phases: list[float] = []
        self.losses: list[float] = []
        self.names: set[str] = set()
        self.middle: dict[str, Tensor] = {}

    def on_train_batch_start(self, *args: Any) -> None:
        self.rows.seen = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.phases.append(float(trainer.callback_metrics["rela/phase"]))
        self.losses.append(float(trainer.callback_metrics["rela/loss"]))
        if self.rela._run.parts.student.backbone is not None:
            self.names.add(self.rela._run.parts.student.backbone.name)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 0:
            self.middle = weights(module)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


# What Lightning itself leaves on a module: hyperparameters, and the compiled methods of a compiled one.
_LIGHTNINGS = {"_hparams", "_compiler_ctx", "_is_torch_compile", "_compile_kwargs"} | {
    "forward", "training_step", "validation_step", "test_step", "predict_step"
}  # fmt: skip


def attributes(module: nn.Module) -> dict[str, set[str]]:
    """Instance attributes of every submodule, less those that Lightning leaves."""
    return {name: set(vars(sub)) - _LIGHTNINGS for name, sub in module.named_modules()}


def left_behind(module: nn.Module) -> list[str]:
    """Hooks and wrapped methods of ours that are still on the module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = []
    for name, sub in module.named_modules():
        hooks = [hook for kind in kinds for hook in getattr(sub, kind).values()]
        found += [f"{name}: {what}" for what in (*hooks, *vars(sub).values()) if _is_ours(what)]
    return found


def _is_ours(what: Any) -> bool:
    return callable(what) and _written_by_us(inspect.unwrap(what, stop=_written_by_us))


def _written_by_us(what: Any) -> bool:
    function = getattr(what, "__func__", what)
    home = getattr(function, "__globals__", {}).get("__name__", type(what).__module__)
    return home.split(".")[0] == "rela_lightning"
