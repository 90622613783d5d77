"""The model zoos a prior can come from: one adapter each, under one signature."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from torch import nn

from rela_lightning.errors import PriorError, nearest_names
from rela_lightning.priors.preprocess import Preprocess

ZOOS: tuple[str, ...] = ("open_clip", "timm", "torchvision", "lightly")


class Architecture(NamedTuple):
    """A network without its head, and the preprocessing it carries (`None` if it carries none)."""

    network: nn.Module
    preprocess: Preprocess | None


class Builder(Protocol):
    """What each adapter offers as `build`."""

    def __call__(self, name: str, *, pretrained: bool, image_size: int | None, **kwargs: Any) -> Architecture:
        """Build the network called `name`, with the zoo's weights or untrained."""


def build_architecture(spec: str, *, pretrained: bool, image_size: int | None = None, **kwargs: Any) -> Architecture:
    """Build `<zoo>:<name>`.

    Args:
        spec: Such as `timm:resnet18`; the zoos are `open_clip`, `timm`, `torchvision`, `lightly`.
        pretrained: Load the zoo's weights; otherwise the network is untrained.
        image_size: Side of the square images to prepare the network for, in pixels.
        kwargs: Passed on to the zoo's own factory.

    Raises:
        PriorError: For a zoo or name that does not exist, or if the zoo fails.
    """
    zoo, colon, name = spec.partition(":")
    if not colon or not name or zoo not in ZOOS:
        raise PriorError(
            "There is no such architecture.",
            expected="<zoo>:<name> with one of the zoos below",
            found=spec,
            exists=ZOOS,
            do="write for example timm:resnet18, or hand over the nn.Module itself",
        )
    build: Builder = importlib.import_module(f"rela_lightning.priors.{zoo}").build
    with _named(spec, pretrained):
        return build(name, pretrained=pretrained, image_size=image_size, **kwargs)


def unknown(kind: str, name: str, names: Iterable[str], *, do: str | None = None) -> PriorError:
    """The error for a name that a zoo does not have, with the nearest names it has."""
    return PriorError(
        f"Unknown {kind}.",
        expected="one of the names below, or another of the zoo's",
        found=name or "(nothing)",
        exists=nearest_names(name, sorted(names)),
        do=do,
    )


@contextmanager
def _named(spec: str, pretrained: bool) -> Iterator[None]:
    """Turn whatever a zoo raises (no network, wrong option, missing package) into a PriorError."""
    try:
        yield
    except PriorError:
        raise
    except Exception as error:
        raise PriorError(
            f"{spec} could not be {'loaded' if pretrained else 'built'}.",
            found=f"{type(error).__name__}: {error}",
            do="check the options; where the weights cannot be downloaded, use checkpoint:<file> with arch="
            if pretrained
            else "check the name and the options",
        ) from error
