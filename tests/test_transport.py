import numpy as np
import pytest
import torch

from rela_lightning import LinearTransport, transport_loss
from rela_lightning.errors import ConfigError


def test_loss_is_mean_one_minus_cosine() -> None:
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    expected = np.mean([1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(h, y, strict=True)])
    assert transport_loss(torch.tensor(h), torch.tensor(y)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("factor, value", [(1.0, 0.0), (3.0, 0.0), (-1.0, 2.0)])
def test_loss_range_and_scale(factor: float, value: float) -> None:
    y = torch.randn(4, 3)
    assert transport_loss(factor * y, y).item() == pytest.approx(value, abs=1e-6)


def test_loss_is_float32_for_half_inputs() -> None:
    y = torch.randn(4, 3)
    assert transport_loss(y.bfloat16(), y).dtype == torch.float32


def test_loss_refuses_unpaired_rows() -> None:
    with pytest.raises(ConfigError, match=r"features \[4, 3\], targets \[4, 2\]"):
        transport_loss(torch.randn(4, 3), torch.randn(4, 2))


def test_map_is_linear_float32_under_autocast_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    linear = LinearTransport(6, 4, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(linear.linear.weight, LinearTransport(6, 4, seed=3).linear.weight)
    assert not torch.equal(linear.linear.weight, LinearTransport(6, 4, seed=4).linear.weight)
    h = torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mapped = linear(h)
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(mapped, h @ linear.linear.weight.T + linear.linear.bias)
