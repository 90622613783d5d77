"""Which part of a foreign module is its backbone, by its usual name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from rela_lightning.errors import ConfigError

BACKBONE_NAMES = (
    "backbone", "encoder", "student_backbone", "online_backbone", "encoder_q", "student", "online_encoder",
    "online_network", "anchor_backbone", "model", "net", "network", "trunk", "feature_extractor",
)  # fmt: skip
_HOLDERS = ("student", "online_network", "model", "net", "network")  # may hold backbone and projector

Trains = Callable[[nn.Module], bool]
"""Whether training moves a part of a module."""


def submodule_names(module: nn.Module) -> list[str]:
    """Names of the submodules that hold parameters, at most 40, outermost first."""
    names = [n for n, m in module.named_modules() if n and _has_parameters(m)]
    return sorted(names, key=lambda name: name.count("."))[:40]


def unnamed_backbone(problem: str, module: nn.Module, do: str, found: str | None = None) -> ConfigError:
    """The error where no submodule has a usual name."""
    usual = f"one of the usual names ({', '.join(BACKBONE_NAMES)})"
    return ConfigError(problem, expected=usual, found=found, exists=submodule_names(module), do=do)


def trainable(module: nn.Module) -> bool:
    """Whether a parameter requires gradients: all there is to go by without optimizers."""
    return any(parameter.requires_grad for parameter in module.parameters())


def trained_by(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module) -> Trains:
    """Tells whether one of the optimizers moves a part of a module.

    Where none of them holds a parameter of the module (there are no optimizers, or they hold sharded copies), whatever
    requires gradients counts.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    moved = {id(p) for p in module.parameters() if p.requires_grad and id(p) in held}
    return (lambda part: any(id(p) in moved for p in part.parameters())) if moved else trainable


def shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the state dict: equal for two copies of a network."""
    return [(name, tuple(value.shape)) for name, value in module.state_dict().items()]


def guess_backbone(module: nn.Module, trains: Trains = trainable) -> str | None:
    """The backbone by its usual name; the student, where that name holds a teacher, or both; None if unnamed."""
    for name in BACKBONE_NAMES:
        candidate = getattr(module, name, None)
        if not isinstance(candidate, nn.Module) or not _has_parameters(candidate):
            continue
        student = name if trains(candidate) else _student_of(module, candidate, trains)
        if student is not None:
            return _inside(student, module.get_submodule(student), trains)
    return None


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _student_of(module: nn.Module, teacher: nn.Module, trains: Trains) -> str | None:
    wanted = shapes(teacher)
    for name, sub in module.named_modules():
        if sub is not teacher and trains(sub) and shapes(sub) == wanted:
            return str(name)
    return None


def _inside(name: str, network: nn.Module, trains: Trains) -> str:
    """The student inside a network that wraps it beside its teacher, the backbone inside one that adds a projector."""
    parts = dict(network.named_children())
    for part in ("student", *(["backbone"] if name.rpartition(".")[2] in _HOLDERS else [])):
        if part in parts and trains(parts[part]):
            return _inside(f"{name}.{part}", parts[part], trains)
    return name
