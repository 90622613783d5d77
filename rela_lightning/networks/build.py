"""One grammar for naming a network: `<source>:<name>`, with or without its library's weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from torch import nn

from rela_lightning.errors import NetworkError, ReLAError, nearest_names
from rela_lightning.networks.preprocess import Preprocess

LIBRARIES: dict[str, str] = {
    "open_clip": "<arch>/<tag>",
    "timm": "<model>",
    "torchvision": "<model>/<weights>",
    "lightly": "<resnet>",
}
"""Where architectures come from, and how each names them."""
UNTRAINED = ("lightly",)
"""Those of them that publish no weights."""
SOURCES: tuple[str, ...] = (*LIBRARIES, "checkpoint", "run", "own", "random")
"""What may stand before the colon. One file each in this folder."""


class Built(NamedTuple):
    """A network without its classifier, and the preprocessing it was trained with (None where none is known)."""

    network: nn.Module
    preprocess: Preprocess | None


class Builder(Protocol):
    """What the file of each source offers as `build`."""

    def __call__(self, name: str, *, pretrained: bool, image_size: int | None, **kwargs: Any) -> Built:
        """Build the network called `name`, with the library's weights or untrained."""


def build_network(spec: str, *, pretrained: bool = False, image_size: int | None = None, **kwargs: Any) -> Built:
    """Build the network that a string names.

    Args:
        spec: `open_clip:<arch>/<tag>`, `timm:<model>`, `torchvision:<model>/<weights>`, `lightly:<resnet>`,
            `checkpoint:<file>` (with `arch=`), `run:<folder>` for what a run of `rela fit` has trained,
            `own:<module>.<class>`, or `random:<any of the libraries>` (with `seed=`).
        pretrained: Load the library's weights. Of no effect on the other sources, which say it themselves.
        image_size: Side of the square images to prepare the network for, in pixels.
        kwargs: Passed on to the source, in the end to the library's own factory.

    Raises:
        NetworkError: For a source or name that does not exist, or if the library fails.
    """
    source, colon, name = spec.partition(":")
    if not colon or not name or source not in SOURCES:
        raise NetworkError(
            "There is no such network.",
            expected="<source>:<name> with one of the sources below",
            found=spec,
            exists=SOURCES,
            do="write for example timm:resnet18, or hand over the nn.Module itself",
        )
    build: Builder = importlib.import_module(f"rela_lightning.networks.{source}").build
    with _errors_named(spec, pretrained):
        return build(name, pretrained=pretrained, image_size=image_size, **kwargs)


def unknown(kind: str, name: str, names: Iterable[str], *, do: str | None = None) -> NetworkError:
    """The error for a name that a library does not have, with the nearest names it has."""
    return NetworkError(
        f"Unknown {kind}.",
        expected="one of the names below, or another of the library's",
        found=name or "(nothing)",
        exists=nearest_names(name, sorted(names)),
        do=do,
    )


@contextmanager
def _errors_named(spec: str, pretrained: bool) -> Iterator[None]:
    """Turn whatever a library raises (no connection, wrong option, missing package) into a NetworkError."""
    try:
        yield
    except ReLAError:
        raise
    except Exception as error:
        raise NetworkError(
            f"{spec} could not be {'loaded' if pretrained else 'built'}.",
            found=f"{type(error).__name__}: {error}",
            do="check the options; where the weights cannot be downloaded, use checkpoint:<file> with arch="
            if pretrained
            else "check the name and the options",
        ) from error
