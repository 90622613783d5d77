"""What a zoo case is, and how a module becomes one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

SCHEDULES = ("switch", "mix")
CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    """One module of the zoo.

    Attributes:
        name: Its row in the table.
        body: The class, without its LightningModule base, so that it can be built in either namespace.
        group: Heading it appears under.
        batch: Shape of the batch, in words.
        views: Makes the views of one PIL image; called once a run.
        called: Dotted path of what the training step calls on images.
        settles: What the callback settles on under a schedule, where it is not what is called.
        teachers: Submodules that must follow in the transport phase.
        wrap: From `(image, label, row)` to what the data set returns.
        collate: Collate function of the loader.
        needs: For each schedule, the remedies that one refusal after the other must ask for.
        advised: Options always passed: it runs without them, but reads something else.
        own_steps: Steps run by the module itself out of the transport steps (1 where the first looks around).
        swaps: Whether the module's own step runs in the transport phase too.
        refused: Schedules that cannot work, whatever is passed, and what the refusal must mention.
        finish: Applied to the built module, for example `torch.compile`.
        note: What a user should know, for the table.
    """

    name: str
    body: type
    group: str
    batch: str
    views: Callable[[], Callable[[Any], Any]]
    called: str = "backbone"
    settles: Mapping[str, str] = field(default_factory=dict)
    teachers: tuple[str, ...] = ()
    wrap: Callable[[Any, int, int], Any] | None = None
    collate: Callable[[Any], Any] | None = None
    needs: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    advised: Mapping[str, Any] = field(default_factory=dict)
    own_steps: int = 0
    swaps: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Any], Any] | None = None
    note: str = ""

    def build(self, namespace: str = "lightning.pytorch") -> Any:
        """The module, a LightningModule of `namespace`, counting its own steps in `steps_run`."""
        base = import_module(namespace).LightningModule
        count = _count if self.finish is None else torch.compiler.disable(_count)
        counted = {"training_step": _counted(self.body.training_step, count)}
        module = type(self.body.__name__, (self.body, base), counted)()
        vars(module)["steps_run"] = []
        return module


def _count(module: Any) -> None:
    module.steps_run.append(1)


def _counted(step: Callable[..., Any], count: Callable[[Any], None]) -> Callable[..., Any]:
    @functools.wraps(step)
    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        count(self)
        return step(self, *args, **kwargs)

    return counting


def zoo(name: str, group: str, **options: Any) -> Callable[[type], type]:
    """Register the decorated class as a case."""

    def register(body: type) -> type:
        if name in CASES:
            raise ValueError(f"two zoo cases are called {name!r}")
        CASES[name] = Case(name, body, group, **options)
        return body

    return register
