"""One callback base class for `lightning.pytorch` and `pytorch_lightning` at once.

A callback of one tree is refused by the other when passed alone or through LightningCLI, so ours
derives from the Callback of every tree that imports.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = ["NAMESPACES", "DualCallback"]

NAMESPACES: tuple[str, ...] = tuple(
    name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.split(".", maxsplit=1)[0])
)

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback as DualCallback
else:
    DualCallback = type(
        "DualCallback",
        tuple(import_module(f"{name}.callbacks").Callback for name in NAMESPACES),
        {"__doc__": "Callback of every installed Lightning tree.", "__module__": __name__},
    )
