"""Networks compiled in place: ReLA is nothing that they are compiled for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rela_lightning import ReLACallback
from rela_lightning.schedules import Mix, TransportOnly
from tests.modules import byol, simclr
from tests.test_callback import fit, loader, seeded


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs(targets: Any, *, in_place: bool = True, **options: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """How many graphs two epochs were compiled into, and the weights after them."""
    found: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    module = seeded(byol)
    if in_place:
        module.backbone.compile(backend=backend)
    else:
        module.backbone = torch.compile(module.backbone, backend=backend)
    fit(module, *([ReLACallback(targets, **options)] if options else []), data=loader(), max_epochs=2)
    return len(found), module.state_dict()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_step_that_looks_for_the_backbone_compiles_nothing_more(targets64: Any, in_place: bool) -> None:
    plain, _ = graphs(targets64, in_place=in_place)
    with_rela, _ = graphs(targets64, in_place=in_place, schedule=Mix())
    assert 0 < with_rela <= plain


def test_compiled_training_is_the_same(targets64: Any) -> None:
    _, compiled = graphs(targets64, schedule=Mix())
    module = seeded(byol)
    fit(module, ReLACallback(targets64, schedule=Mix()), data=loader(), max_epochs=2)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(compiled[name], value, msg=name)


@pytest.mark.parametrize("schedule", [Mix, TransportOnly])
def test_a_module_compiled_as_a_whole_trains_the_same(targets64: Any, schedule: Any) -> None:
    plain, whole = seeded(simclr), seeded(simclr)
    fit(plain, ReLACallback(targets64, schedule=schedule()), data=loader(), max_epochs=2)
    fit(
        torch.compile(whole, backend="eager"), ReLACallback(targets64, schedule=schedule()), data=loader(), max_epochs=2
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value), name
