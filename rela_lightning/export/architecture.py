"""The plain network that exported weights belong to: how it is built, and whether they fit it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn

from rela_lightning.compat import eager
from rela_lightning.errors import ConfigError, ReLAError
from rela_lightning.export.inputs import inputs_of
from rela_lightning.export.sequence import by_own_names, recognised
from rela_lightning.export.source import Source, read_source, unwrapped
from rela_lightning.networks.backbones import build_plain, spec_of
from rela_lightning.networks.encode import encode
from rela_lightning.rng import preserved_rng
from rela_lightning.weights import State, fill, mismatch

_WEIGHTS = ("weights", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "progress")


class Recipe(NamedTuple):
    """How `build_backbone` makes the network, without its library's weights."""

    name: str
    kwargs: dict[str, Any]
    cifar_stem: bool

    @property
    def source(self) -> str:
        """`torchvision`, `timm`, `lightly` or another that `build_network` knows."""
        return spec_of(self.name).partition(":")[0]

    @property
    def model(self) -> str:
        """The network's name in its library, without a tag of torchvision's weights."""
        name = spec_of(self.name).partition(":")[2]
        return name.partition("/")[0] if self.source == "torchvision" else name

    def build(self) -> nn.Module:
        """An untrained network; the random state stays as it was.

        Raises:
            NetworkError: If there is no such network, or the options are not its own.
        """
        with preserved_rng():
            return build_plain(self.name, cifar_stem=self.cifar_stem, **self.kwargs)


class Plain(NamedTuple):
    """The plain network with the exported weights, and its recipe where there is one."""

    network: nn.Module | None
    recipe: Recipe | None
    state: State
    """The weights by the names of that network."""


def recipe_of(hyper: Mapping[str, Any]) -> Recipe | None:
    """The recipe in the hyper-parameters of `rela_lightning.methods`; None in those of another module.

    Of a network that a run has trained, it is the recipe of that run.
    """
    name, kwargs = hyper.get("backbone"), hyper.get("backbone_kwargs") or {}
    if not isinstance(name, str) or not isinstance(kwargs, Mapping):
        return None
    if name.startswith("run:"):
        with suppress(ReLAError):  # moved since
            return recipe_of(read_source(name.removeprefix("run:")).hyper)
    return make_recipe(name, kwargs, bool(hyper.get("cifar_stem", False)))


def make_recipe(name: str, kwargs: Mapping[str, Any], cifar_stem: bool) -> Recipe:
    """A recipe that downloads nothing: options that ask for the library's weights are left out."""
    return Recipe(name, {key: value for key, value in kwargs.items() if key not in _WEIGHTS}, cifar_stem)


def plain_network(
    source: Source,
    key: str,
    state: State,
    architecture: str | nn.Module | None = None,
    *,
    backbone_kwargs: Mapping[str, Any] | None = None,
    cifar_stem: bool = False,
    image_size: int | None = None,
) -> Plain:
    """The network to which the weights belong.

    What hyper-parameters or names say of it is compared with the module, where there is one: a network that was changed
    after it was built has the same tensors and other features, and is taken as it is.

    Args:
        source: Where the weights are from.
        key: What was exported of it.
        state: The weights.
        architecture: Name for `build_backbone`, or a network; None takes it from the hyper-parameters, or from the
            module.
        backbone_kwargs: For `build_backbone`, beside a name.
        cifar_stem: For `build_backbone`, beside a name.
        image_size: Side of the images, pixels, where it is given.

    Returns:
        The network with the weights, float32, in eval mode, on the CPU; None where nothing says what it is.

    Raises:
        ConfigError: If the weights do not fit the architecture that was asked for.
    """
    if (backbone_kwargs or cifar_stem) and not isinstance(architecture, str):
        raise ConfigError("backbone_kwargs and cifar_stem go with an `architecture` by name.", found=architecture)
    if isinstance(architecture, nn.Module):
        given = copy.deepcopy(unwrapped(architecture))
        named = by_own_names(state, given) or state
        return Plain(_filled(given, named, type(architecture).__name__), None, named)
    if architecture is not None:
        recipe = make_recipe(architecture, backbone_kwargs or {}, cifar_stem)
        built = recipe.build()
        named = by_own_names(state, built) or state
        return Plain(_filled(built, named, architecture), recipe, named)
    own = None if source.module is None else copy.deepcopy(_inside(source.module, key))
    for recipe, named in _guesses(source, state):
        try:
            built = _filled(recipe.build(), named, recipe.name)
        except ReLAError:  # another module's `backbone`, or a class that builds its own
            continue
        size = inputs_of(built, source.facts, image_size=image_size).size or usual_size(recipe)
        if own is None or same_features(built, own.cpu().float(), size):
            return Plain(built, recipe, named)
    if own is not None:
        with suppress(ReLAError):  # compiled deeper inside, so that names differ
            return Plain(_filled(own, state, key), None, state)
    return Plain(None, None, state)


def _guesses(source: Source, state: State) -> Iterator[tuple[Recipe, State]]:
    """What the network may be, and the weights by its names."""
    found = recognised(state)
    if found is not None:
        name, named = found
        yield make_recipe(name, {}, cifar_stem=False), named
    saved = recipe_of(source.hyper)
    if saved is not None:
        yield saved, state


def usual_size(recipe: Recipe | None) -> int:
    """Side of the images where nothing else says it, pixels."""
    return 32 if recipe is not None and (recipe.cifar_stem or recipe.source == "lightly") else 224


def same_features(network: nn.Module, other: nn.Module, size: int) -> bool:
    """Whether two networks, float32 and on the CPU, give the same pooled features of a random image.

    Args:
        network: One that says how many channels it takes.
        other: Of anybody.
        size: Side of the image, pixels.
    """
    channels = inputs_of(network, {}).channels
    image = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    try:
        with eager():
            ours, theirs = encode(network, image), encode(other, image)
    except Exception:  # a network of somebody else's may raise anything
        return False
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def _inside(module: nn.Module, key: str) -> nn.Module:
    node = unwrapped(module)
    for part in key.split(".") if key else ():
        node = unwrapped(getattr(node, part))
    return node


def _filled(network: nn.Module, state: State, name: str) -> nn.Module:
    problem = mismatch(network.state_dict(), state)
    if problem is not None:
        raise ConfigError(
            f"The weights are not those of {name or 'the network'}.",
            expected=f"{len(network.state_dict())} tensors, and no others, of the same shapes",
            found=problem,
            do="give the architecture they were trained in, without classifier, with its `backbone_kwargs` and "
            "`cifar_stem`; and check that `key` names the backbone alone",
        )
    network = network.cpu().float().eval().requires_grad_(False)
    fill(network, state)
    return network


def missing_keys(recipe: Recipe, state: State) -> list[str]:
    """Names in the state dict of the library's own network that are not exported: its classifier's.

    None but for torchvision and lightly: other networks are built without one, as timm's with `num_classes=0`.
    """
    if recipe.source not in ("torchvision", "lightly"):
        return []
    with preserved_rng():
        if recipe.source == "lightly":
            from lightly.models import ResNetGenerator

            full: nn.Module = ResNetGenerator(recipe.model, **recipe.kwargs)
        else:
            from torchvision import models

            full = models.get_model(recipe.model, **recipe.kwargs)
    return [name for name in full.state_dict() if name not in state]


def timm_name(plain: Plain) -> str | None:
    """The timm model that loads these weights and computes the same; None if there is none.

    timm's networks are their own; of torchvision's those count that timm has under the same name, with the same
    tensors and, on a random image, the same features.
    """
    network, recipe, state = plain
    if network is None or recipe is None or recipe.cifar_stem or recipe.source in ("lightly", "own"):
        return None
    if recipe.source == "timm":
        return recipe.model.partition(".")[0]
    import timm

    if recipe.kwargs or not timm.is_model(recipe.model):
        return None
    with preserved_rng():
        twin = timm.create_model(recipe.model, num_classes=0)
    if mismatch(twin.state_dict(), state) is not None:
        return None
    fill(twin, state)
    return recipe.model if same_features(network, twin, 224) else None
