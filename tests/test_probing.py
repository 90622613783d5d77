"""What a failing backbone is told apart from: an error that is not about the call is let through as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rela_lightning import ReLACallback
from rela_lightning.errors import ConfigError, InjectionError
from rela_lightning.schedules import TransportOnly
from tests.modules import byol
from tests.parts import TinyBackbone
from tests.test_callback import fit, seeded


class Fails(nn.Module):
    """Raises `error` at a call where `when(images, number of calls before)` holds."""

    def __init__(self, error: Exception, when: Any) -> None:
        super().__init__()
        self.net, self.error, self.when, self.calls = TinyBackbone(), error, when, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.when(images, self.calls - 1):
            raise self.error
        return self.net(images)


def run(error: Exception, when: Any, targets64: Any, **options: Any) -> Any:
    module = seeded(byol)
    module.backbone = Fails(error, when)
    return fit(module, ReLACallback(targets64, schedule=TransportOnly(), teachers=[], **options))


LOW: dict[str, Any] = {"transport_resolution": 8}


@pytest.mark.parametrize("options", [{}, LOW])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_is_out_of_memory(error: Any, options: Any, targets64: Any) -> None:
    with pytest.raises(type(error)) as caught:
        run(error, lambda images, calls: True, targets64, **options)
    assert caught.value is error


@pytest.mark.parametrize("options", [{}, LOW])
@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory: 1 GB"), ValueError("bad"), KeyError("x")])
def test_what_befalls_a_whole_batch_only_is_not_about_the_call(error: Any, options: Any, targets64: Any) -> None:
    with pytest.raises(type(error)) as caught:
        run(error, lambda images, calls: len(images) > 2, targets64, **options)
    assert caught.value is error


@pytest.mark.parametrize("options", [{}, LOW])
def test_what_comes_after_a_call_that_went_well_is_let_through(options: Any, targets64: Any) -> None:
    error = RuntimeError("a node is lost")
    with pytest.raises(RuntimeError) as caught:
        run(error, lambda images, calls: calls >= 2, targets64, **options)
    assert caught.value is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes"), TypeError("arguments"), AttributeError("last_hidden"), IndexError("1")]
)
def test_a_network_that_takes_no_images_alone_is_named(error: Any, targets64: Any) -> None:
    with pytest.raises(InjectionError, match="cannot be called on the views alone") as caught:
        run(error, lambda images, calls: True, targets64)
    assert str(error) in str(caught.value) and caught.value.__cause__ is error


def test_small_views_are_blamed_only_where_full_ones_are_taken(targets64: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)does not take views of `transport_resolution`.*size"):
        run(RuntimeError("size"), lambda images, calls: images.shape[-1] == 8, targets64, **LOW)
    with pytest.raises(InjectionError, match="cannot be called on the views alone"):
        run(RuntimeError("size"), lambda images, calls: True, targets64, **LOW)


def test_a_frozen_network_is_no_question_of_resolution(targets64: Any) -> None:
    module = seeded(byol)
    module.backbone.requires_grad_(False)
    with pytest.raises(InjectionError, match="no feature that requires grad"):
        fit(module, ReLACallback(targets64, schedule=TransportOnly(), backbone="backbone", teachers=[], **LOW))


def test_errors_of_the_modules_own_step_are_its_own(targets64: Any) -> None:
    class Broken(type(byol())):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        fit(seeded(Broken), ReLACallback(targets64, step="swap_loss"))
