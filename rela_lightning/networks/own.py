"""Networks of the user's own, by the dotted path of their class or of a function that makes one."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from rela_lightning.config import defined_in
from rela_lightning.errors import NetworkError, nearest_names
from rela_lightning.networks.build import Built


def is_path(name: str) -> bool:
    """Whether a name is a dotted path: `mynet.MyNet`."""
    parts = name.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts)


def build(name: str, *, pretrained: bool = False, image_size: int | None = None, **kwargs: Any) -> Built:
    """Import what a path names and call it.

    Args:
        name: `<module>.<class or function>`.
        pretrained: Not read: the weights are whatever the user's code gives.
        image_size: Not read.
        kwargs: Handed on to it.

    Raises:
        NetworkError: If it cannot be imported or called, or is no network.
    """
    module, _, called = name.rpartition(".")
    try:
        owner = importlib.import_module(module)
        if not hasattr(owner, called):
            raise NetworkError(
                f"The module {module} has no {called}.",
                expected="a class or function that gives an nn.Module",
                found=name,
                exists=nearest_names(called, defined_in(module)),
            )
        network = getattr(owner, called)(**kwargs)
    except NetworkError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise NetworkError(
            f"The network {name} could not be built.",
            expected="<module>.<class or function> that gives an nn.Module; or for a library's <source>:<name>",
            found=f"{type(error).__name__}: {error}",
            do="see that the module can be imported from here, and which options the class takes",
        ) from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{name} gives no network.", expected="an nn.Module", found=type(network).__name__)
    return Built(network, None)
