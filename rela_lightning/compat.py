"""Both trees of Lightning, and every private name of Lightning and torch that this package depends on.

A callback of one tree is refused by the other when passed alone or through LightningCLI, and a data module always; so
ours derive from the classes of every tree that imports. Names that begin with an underscore may move in any release:
each is used here and nowhere else, and `tests/test_compat.py` has a test for each.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, dataloader

from rela_lightning.errors import ReLAError

__all__ = [
    "CLI_HOOKS",
    "COMPILED",
    "NAMESPACES",
    "OWN_WARNINGS",
    "REENTRANT",
    "SAVE_BEST",
    "DualCallback",
    "DualDataModule",
    "command_arguments",
    "copied_loader",
    "eager",
    "forget_hyper_parameters",
    "is_first_process",
    "keep_module_versions",
    "lerp_together",
    "logged_step",
    "module_versions",
    "picklable_default",
    "planned_steps",
    "private",
    "remove_forward_hooks",
    "show_loaders",
    "steps_of_epochs",
    "tensor_version",
    "timers",
    "training_loaders",
    "uncompiled",
]

T = TypeVar("T")

OWN_WARNINGS = (".*LeafSpec.*", ".*across ranks is zero.*")
"""What Lightning warns of itself: its use of torch, and the empty list of loaders of a module without any."""

NAMESPACES: tuple[str, ...] = tuple(
    name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.split(".", maxsplit=1)[0])
)

if TYPE_CHECKING:
    from lightning.pytorch import Callback as DualCallback
    from lightning.pytorch import LightningDataModule as DualDataModule
else:

    def _of_every_tree(name: str, base: str) -> type:
        bases = tuple(getattr(import_module(tree), base) for tree in NAMESPACES)
        said = {"__doc__": f"{base} of every installed Lightning tree.", "__module__": __name__}
        return type(name, bases, said)

    DualCallback = _of_every_tree("DualCallback", "Callback")
    DualDataModule = _of_every_tree("DualDataModule", "LightningDataModule")

SAVE_BEST = "_save_topk_checkpoint"
"""Of ModelCheckpoint, whose hooks also write the checkpoints that need no metric."""
CLI_HOOKS = ("_prepare_subcommand_parser", "_dump_config", "_parse_ckpt_path")
"""Methods of LightningCLI that our command overrides."""
COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module it wraps, also in the names of a state dict."""
REENTRANT = "CheckpointFunctionBackward"
"""The node by which reentrant activation checkpointing hides a part of the graph."""


def picklable_default(option: str) -> Callable[[type[T]], type[T]]:
    """Decorates a class whose keyword option has a lambda as its default, so that the default pickles.

    A lambda in the signature is what LightningCLI can print and change the options of. It becomes an attribute of the
    class, `default_<option>`, by which pickle finds it.
    """

    def decorate(cls: type[T]) -> type[T]:
        default = (cls.__init__.__kwdefaults__ or {})[option]
        default.__qualname__ = f"{cls.__qualname__}.default_{option}"
        setattr(cls, f"default_{option}", staticmethod(default))
        return cls

    return decorate


def private(owner: Any, name: str) -> Any:
    """An attribute that may be gone in another release.

    Raises:
        ReLAError: If it is.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        kind = type(owner)
        raise ReLAError(
            f"This release of {kind.__module__.split('.')[0]} has changed, and this package does not know it yet.",
            expected=f"{kind.__name__}.{name}",
            found=f"a {kind.__module__}.{kind.__name__} without it",
            do="install the release before, and file a bug with these lines",
        ) from error


def timers(callbacks: Iterable[Any]) -> list[tuple[Any, float]]:
    """The Timers of either tree that have a limit, by which `max_time` works, and the limit in seconds."""
    found = [(callback, private(callback, "_duration")) for callback in callbacks if _is(callback, "Timer")]
    return [(timer, float(seconds)) for timer, seconds in found if seconds is not None]


def _is(callback: Any, name: str) -> bool:
    """Whether a callback is one of Lightning's of a name, of either tree."""
    return any(
        base.__name__ == name and base.__module__.startswith(tuple(f"{name}." for name in NAMESPACES))
        for base in type(callback).__mro__
    )


def is_first_process() -> bool:
    """Whether this process writes for all: of rank 0, as far as Lightning knows ranks by now."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def planned_steps(trainer: Any) -> float:
    """Optimizer steps of the whole run, once its data are set up; infinity where no end is planned, or nobody knows.

    For a loader without a length, Lightning gives `max_steps`, also where that is -1 because epochs are planned.
    """
    steps = float(trainer.estimated_stepping_batches)
    if _accumulation(trainer) is not None and trainer.max_epochs > 0 and math.isfinite(trainer.num_training_batches):
        steps = steps_of_epochs(trainer, trainer.max_epochs)  # Lightning takes the present number of batches for all
        steps = steps if trainer.max_steps < 0 else min(steps, float(trainer.max_steps))
    return math.inf if steps < 0 else steps


def steps_of_epochs(trainer: Any, epochs: float) -> float:
    """Optimizer steps of the first epochs of a run, whole or not, once its data are set up.

    Gradients may be accumulated over another number of batches from some epoch on (`GradientAccumulationScheduler`).
    """
    plan = _accumulation(trainer) or {0: trainer.accumulate_grad_batches}
    starts = sorted(plan)
    each = {start: math.ceil(trainer.num_training_batches / plan[start]) for start in starts}
    until = zip(starts, [*starts[1:], math.inf], strict=True)
    return float(sum(max(min(end, epochs) - start, 0) * each[start] for start, end in until))


def _accumulation(trainer: Any) -> dict[int, int] | None:
    """Batches to a step, by the epoch from which on; None where their number never changes."""
    found = (callback for callback in trainer.callbacks if _is(callback, "GradientAccumulationScheduler"))
    return next((dict(callback.scheduling) for callback in found), None)


def logged_step(trainer: Any) -> int:
    """The step at which Lightning gives loggers what the batch under way logs.

    It counts batches whose gradients were stepped by, however many optimizers there are, and grows after the batch;
    `global_step` counts the steps of each optimizer.
    """
    return int(private(trainer.fit_loop.epoch_loop, "_batches_that_stepped"))


def training_loaders(trainer: Any) -> Any:
    """The CombinedLoader that `fit` iterates; None before there is one."""
    return private(trainer.fit_loop, "_combined_loader") if hasattr(trainer, "fit_loop") else None


def show_loaders(combined: Any, loaders: list[Any]) -> None:
    """Let `trainer.train_dataloader` be other loaders than those that `fit` iterates.

    Args:
        combined: The CombinedLoader that `fit` iterates.
        loaders: One for each of its own.
    """
    iterated = private(combined, "_flattened")
    combined.flattened = loaders
    combined._flattened = iterated


def copied_loader(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A shallow copy of a loader with other attributes, which DataLoader refuses to set after construction."""
    private(loader, "_iterator")
    copied = copy.copy(loader)
    begun = private(dataloader, "_BaseDataLoaderIter")
    anew = {name: _Anew(copied) for name, held in vars(loader).items() if isinstance(held, (begun, _Anew))}
    vars(copied).update(anew | changes | {"_iterator": None})
    return copied


class _Anew:
    """The iterator of a loader that keeps one for all epochs (as timm's), begun with the first batch asked for."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._batches is None:
            self._batches = DataLoader.__iter__(self._loader)
        return next(self._batches)


def command_arguments(cli: Any, command: str) -> Iterable[str]:
    """Arguments of a Trainer's method that a command of a LightningCLI passes on."""
    found: Iterable[str] = private(cli, "_subcommand_method_arguments")[command]
    return found


def forget_hyper_parameters(module: Any, names: Iterable[str]) -> None:
    """Take options out of what `save_hyperparameters` has kept, where it was called."""
    for kept in (getattr(module, "_hparams", None), getattr(module, "_hparams_initial", None)):
        for name in names:
            if kept is not None and name in kept:
                del kept[name]


def remove_forward_hooks(module: nn.Module, kind: type) -> None:
    """Take the forward hooks of one class off a module and its submodules, copies made during training included."""
    for part in module.modules():
        hooks, with_kwargs = private(part, "_forward_hooks"), private(part, "_forward_hooks_with_kwargs")
        for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
            del hooks[key]
            with_kwargs.pop(key, None)


def lerp_together(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each tensor by a share `weight` of the way to its end, in place, in one call on the device."""
    private(torch, "_foreach_lerp_")(tensors, ends, weight)


def eager() -> AbstractContextManager[Any]:
    """Inside, networks run as they were written, also those that are compiled; torch < 2.6 knows no way."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else cast("AbstractContextManager[Any]", stance("force_eager"))


def uncompiled(module: Any) -> Any:
    """The module inside what `torch.compile` returned; any other as it is."""
    return getattr(module, COMPILED, module)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile is at work in a module or a part of it."""
    return any(hasattr(part, COMPILED) or private(part, "_compiled_call_impl") is not None for part in module.modules())


def tensor_version(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 where torch does not count."""
    return -1 if tensor.is_inference() else int(private(tensor, "_version"))


def module_versions(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The versions of modules that `Module.state_dict()` keeps beside its tensors; empty in a plain dict."""
    found: Mapping[str, Any] = getattr(state, "_metadata", {})
    return found


def keep_module_versions(state: OrderedDict[str, Tensor], versions: Mapping[str, Any]) -> None:
    """Give a dict of tensors the versions of modules, as `Module.load_state_dict` reads them."""
    if versions:
        state._metadata = OrderedDict(versions)  # type: ignore[attr-defined]
