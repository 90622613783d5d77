"""What there is to export: a checkpoint, a run folder or a module, and what is known of its making."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from torch.optim.swa_utils import AveragedModel

from rela_lightning.compat import uncompiled
from rela_lightning.export.keys import tidy
from rela_lightning.networks.checkpoint import read_state
from rela_lightning.runs.read import find_checkpoint, find_run, read_checkpoint, read_run
from rela_lightning.weights import State, tensors_in


class Source(NamedTuple):
    """Tensors by name, and what is known of them."""

    state: State
    hyper: dict[str, Any]
    """Hyper-parameters saved with the module."""
    facts: dict[str, Any]
    """What the model card may state: the keys of `run.json`, and `steps_of_weights`."""
    module: nn.Module | None = None
    frozen: frozenset[str] | None = None
    """Names of tensors that are not trained, buffers among them; None where that is unknown."""
    lightning: bool = True
    """Whether it is a training module, with heads beside the backbone, and not perhaps a bare network."""


def read_source(checkpoint: str | Path | nn.Module, run: str | Path | Mapping[str, Any] | None = None) -> Source:
    """Read what is to be exported. Nothing in a file is run.

    Args:
        checkpoint: Lightning checkpoint, weights file, run folder, or a module.
        run: `run.json`, its folder, or its content; None looks beside the checkpoint.

    Raises:
        ConfigError: If there is no checkpoint, or it cannot be read.
        PriorError: If a file that is no Lightning checkpoint holds no tensors.
    """
    if isinstance(checkpoint, nn.Module):
        source, beside = _of_module(checkpoint), None
    else:
        given = Path(checkpoint).expanduser()
        path = find_checkpoint(given)
        source, beside = _of_file(path), find_run(path.parent)
        if beside is None and given.is_dir():
            beside = find_run(given)
    facts = read_run(beside if run is None else run)
    facts["method"] = facts.get("method") or source.facts.get("method")
    return source._replace(facts={**source.facts, **facts})


def _of_module(module: nn.Module) -> Source:
    tensors = tensors_in(module.state_dict())
    parameters = dict(module.named_parameters(remove_duplicate=False))
    trained = tidy({name: value for name, value in parameters.items() if value.requires_grad})
    inner = unwrapped(module)
    lightning = hasattr(inner, "training_step")
    state = tidy(tensors)
    return Source(
        state,
        dict(getattr(inner, "hparams", {})) if lightning else {},
        {"method": type(inner).__name__, "steps_of_weights": _global_step(inner)} if lightning else {},
        module=inner,
        frozen=frozenset(state) - frozenset(trained) if trained else None,  # all frozen, for inference, says nothing
        lightning=lightning,
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside the wrappers of torch.compile, DDP, DataParallel and weight averaging."""
    inner = uncompiled(module)
    if isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
        inner = inner.module
    return module if inner is module else unwrapped(inner)


def _global_step(module: nn.Module) -> int | None:
    with suppress(AttributeError, RuntimeError):  # no Lightning module, or not attached to a trainer
        return int(module.trainer.global_step) or None  # type: ignore[union-attr, arg-type]
    return None


def _of_file(path: Path) -> Source:
    content = {} if path.suffix == ".safetensors" else read_checkpoint(path)
    state = content.get("state_dict")
    if "pytorch-lightning_version" not in content or not isinstance(state, Mapping):
        return Source(tidy(read_state(path)), {}, {}, lightning=False)
    hyper = dict(content.get("hyper_parameters") or {})
    class_path = hyper.get("_class_path")
    facts = {
        "method": str(class_path).rsplit(".", maxsplit=1)[-1] if class_path else None,
        "steps_of_weights": content.get("global_step"),
    }
    return Source(tidy(tensors_in(state)), hyper, facts)
