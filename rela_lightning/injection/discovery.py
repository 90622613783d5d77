"""Which part of a foreign module is its backbone: by its usual name, or by what the training step calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.networks.names import Trains, trainable
from rela_lightning.networks.pooling import first_tensor

_MOST_NAMED = 5


class Call(NamedTuple):
    """One call of the backbone: what went in, each `[R, C, H, W]` (several where it takes a list), what came out."""

    inputs: list[Tensor]
    output: Any


def images_in(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor] | None:
    """The images that a network is called on: the first tensor `[R, C, H, W]`, or the first list of such."""
    for value in (*args, *kwargs.values()):
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        if several and all(isinstance(part, Tensor) and part.ndim == 4 for part in several):
            return several
    return None


class Discovery:
    """Which submodules the user's step calls with gradients, on images and on what was made of them.

    Args:
        module: The user's module.
        channels: Numbers of channels that images have.
        layer: The layer that is read instead of what a call returns; None for the latter.
        trains: Tells which submodules an optimizer moves: no others count, such as the network of a loss.
    """

    def __init__(
        self,
        module: nn.Module,
        channels: Collection[int],
        layer: nn.Module | None = None,
        trains: Trains = trainable,
    ) -> None:
        self._module, self._channels, self._layer = module, {1, 3, *channels}, layer
        self._trains = trains
        self._calls: dict[str, list[Call]] = {}
        self._afterwards: dict[str, None] = {}  # called on maps or tokens
        self._sizes: dict[str, int] = {}  # parameters that are trained
        self._layer_output: Any = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the calls of every submodule that holds parameters, inside the block."""
        handles = [] if self._layer is None else [self._layer.register_forward_hook(self._on_layer)]
        own = {
            part: sum(p.numel() for p in part.parameters(recurse=False)) if self._trains(part) else 0
            for part in self._module.modules()
        }
        for name, sub in self._module.named_modules():
            self._sizes[name] = sum(own[part] for part in sub.modules())
            if name and any(True for _ in sub.parameters()):
                handles.append(sub.register_forward_hook(self._hook(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_layer(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._layer_output = output

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = output if self._layer is None else self._layer_output
            if not torch.is_grad_enabled() or not _is_feature(output):
                return
            images = images_in(args, kwargs)
            if images is not None and images[0].shape[1] in self._channels:
                if read is not None:
                    self._calls.setdefault(name, []).append(Call(images, read))
            elif any(isinstance(a, Tensor) and a.ndim in (3, 4) for a in (*args, *kwargs.values())):
                self._afterwards[name] = None

        return hook

    def network(self) -> tuple[str, list[Call]] | None:
        """Name and calls of the submodule called on images of which most is trained.

        Returns:
            None where there is none, or where it is only the beginning: more parameters than it has were called
            afterwards, on maps or tokens, as in a step that calls the parts of a network one by one. Where nothing that
            is trained was called, the outermost of what was.
        """
        if not self._calls:
            return None
        name = max(self._calls, key=lambda called: (self._sizes[called], -called.count(".")))
        rest = [other for other in _outermost(self._afterwards) if not f"{other}.".startswith(f"{name}.")]
        if sum(self._sizes[other] for other in rest) > self._sizes[name]:
            return None
        return name, self._calls[name]

    def forget(self) -> None:
        """Go on as if nothing had been called on images."""
        self._calls = {}

    @property
    def called(self) -> list[str]:
        """What was called with gradients: on images, then on what was made of them; the largest first, a few."""
        names = _outermost([*self._calls, *self._afterwards])
        names = [name for name in names if self._sizes[name]] or names
        return sorted(names, key=lambda name: (name not in self._calls, -self._sizes[name]))[:_MOST_NAMED]


def _outermost(names: Collection[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _is_feature(output: Any) -> bool:
    """Whether a call returned something to train by: not a loss, not an object of another kind."""
    try:
        tensor = first_tensor(output)
    except ConfigError:
        return False
    return tensor.ndim >= 2 and tensor.requires_grad


def never_called(name: str, called: Sequence[str]) -> InjectionError:
    """The error for a backbone that the step did not call with gradients.

    Args:
        name: What was taken for the backbone.
        called: What was called with gradients.
    """
    return InjectionError(
        f"The backbone ({name}) was never called with gradients on images inside the training step.",
        expected="one call on images, as in `self.backbone(images)`",
        found=f"calls of {', '.join(called)}" if called else "no call at all; reentrant checkpointing hides calls",
        do='name what is called: backbone="encoder", or a method: backbone="backbone.encode"; where the step calls a '
        "network part by part (patch_embed, blocks), own_forward=True calls it once more, as a whole",
    )


def untrained(name: str) -> InjectionError:
    """The error for a backbone that no optimizer moves."""
    return InjectionError(
        f"The backbone ({name}) is in no optimizer, so nothing would train it.",
        expected="a network whose parameters configure_optimizers hands to an optimizer",
        found="only others",
        do="name the student with `backbone`, or give its parameters to the optimizer",
    )


def never_passed_on() -> InjectionError:
    """The error for a loss under manual optimization that does not go through Lightning."""
    return InjectionError(
        "Under manual optimization the transport loss is added where the loss goes through Lightning.",
        expected="self.manual_backward(loss)",
        found="a training step that called the backbone but not self.manual_backward",
        do="call self.manual_backward(loss) instead of loss.backward(), as Lightning asks for its precision too",
    )
