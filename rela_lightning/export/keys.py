"""Which tensors of a state dict are the backbone's, and what they are called in the plain network."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from rela_lightning.compat import COMPILED
from rela_lightning.errors import ConfigError
from rela_lightning.networks.names import guess_backbone, submodule_names, unnamed_backbone
from rela_lightning.weights import State, changed, renamed

_PARALLEL = "module"
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside its `module`
_TEACHER = ("teacher", "momentum", "target", "ema", "encoder_k")
_STUDENT = ("student", "online", "encoder_q")
_UNAMBIGUOUS = ("backbone", "student_backbone", "online_backbone", "encoder_q")


def tidy(state: State) -> State:
    """The same tensors without the wrappers' names: `_orig_mod.` (torch.compile) anywhere, `module.` in front."""
    clean = renamed(state, lambda name: ".".join(part for part in name.split(".") if part != COMPILED))
    inside = {name: value for name, value in clean.items() if name != _COUNTER}
    if inside and all(name.startswith(f"{_PARALLEL}.") for name in inside):
        return tidy(renamed(clean, lambda name: None if name == _COUNTER else name.removeprefix(f"{_PARALLEL}.")))
    return clean


def cut(state: State, key: str) -> State:
    """The tensors under a submodule, by their names in it; all of them for an empty key.

    Args:
        state: Tensors by name, tidy.
        key: Dotted path of the submodule.

    Returns:
        Detached copies on the CPU, contiguous, in the order of the state dict.

    Raises:
        ConfigError: If there is nothing under the key, listing what exists.
    """
    prefix = f"{key}." if key else ""
    found = renamed(state, lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None)
    if not found:
        raise ConfigError(
            "There is no such submodule to export.",
            expected="the name of one with parameters",
            found=key,
            exists=submodule_names(module_tree(state)),
            do="pass one of the names listed as `key`",
        )
    return changed(tidy(found), lambda value: value.detach().cpu().clone().contiguous())


def find_key(state: State, key: str = "auto", *, frozen: Collection[str] | None = None, whole: bool = False) -> str:
    """Where the backbone is.

    Args:
        state: Tensors by name, tidy.
        key: Dotted path of a submodule, `""` for the whole, or `auto` for the usual names; of a student and
            its teacher the student.
        frozen: Names of the tensors that are not trained, where that is known; else the names tell.
        whole: The state may be the backbone itself: only names that leave no doubt are taken for a part of it.

    Raises:
        ConfigError: If no usual name is there, listing what exists.
    """
    if key != "auto":
        return ".".join(part for part in key.split(".") if part and part != COMPILED)
    found = guess_backbone(module_tree(state, teacher_names(state) if frozen is None else frozen))
    if whole and (found or "").split(".")[0] not in _UNAMBIGUOUS:
        return ""
    if found is None:
        found_here = "none of them" if state else "no tensors at all"
        do = 'name it: key="my_encoder"; key="" exports everything'
        raise unnamed_backbone("The backbone to export was not found.", module_tree(state), do, found_here)
    return found


def teacher_names(state: State) -> set[str]:
    """Tensors that belong to a teacher, by name: called so, or the unnamed twin of one called a student."""
    tops: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, value in state.items():
        top, _, rest = name.partition(".")
        tops.setdefault(top, []).append((rest, value.shape))
    students = [shapes for top, shapes in tops.items() if any(hint in top for hint in _STUDENT)]
    teachers = {
        top
        for top, shapes in tops.items()
        if any(hint in top.split("_") or hint == top for hint in _TEACHER)
        or (not any(hint in top for hint in _STUDENT) and shapes in students)
    }
    return {name for name in state if name.partition(".")[0] in teachers}


def module_tree(state: State, frozen: Collection[str] = ()) -> nn.Module:
    """Empty modules nested as the names say, holding the tensors: enough to look submodules up.

    Args:
        state: Tensors by name; not copied.
        frozen: Names of those that are not trained.
    """
    root = nn.Module()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        node = root
        for part in parents:
            if not isinstance(getattr(node, part, None), nn.Module):
                setattr(node, part, nn.Module())
            node = node.get_submodule(part)
        trained = value.is_floating_point() and name not in frozen
        setattr(node, leaf, nn.Parameter(value.detach(), requires_grad=trained))
    return root
