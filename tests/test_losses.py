"""The losses of the transport phase against restatements in numpy, scikit-learn and lightly; how they are named."""

from __future__ import annotations

import functools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from lightly.loss import NTXentLoss
from scipy.special import log_softmax, logsumexp
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from rela_lightning.errors import ConfigError
from rela_lightning.losses import (
    NAMED,
    Contrastive,
    LossSpec,
    Relational,
    SmoothL1,
    contrastive,
    cosine,
    relational,
    resolve_loss,
    smooth_l1,
)
from rela_lightning.transport import transport_loss

FUNCTIONS = {"cosine": cosine, "contrastive": contrastive, "smooth_l1": smooth_l1, "relational": relational}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    return rows(9, 5), rows(9, 5, seed=1)


def test_cosine_is_the_transport_loss(pair: Any) -> None:
    assert torch.equal(cosine(*pair), transport_loss(*pair))
    assert torch.equal(resolve_loss("cosine")(*pair), transport_loss(*pair))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_contrastive_is_cross_entropy_over_the_batch(pair: Any, temperature: float) -> None:
    scores = cosine_similarity(*(part.double().numpy() for part in pair)) / temperature
    wanted = np.mean([logsumexp(row) - row[i] for i, row in enumerate(scores)])
    assert contrastive(*pair, temperature=temperature).item() == pytest.approx(wanted, rel=1e-5)
    assert Contrastive(temperature)(*pair).item() == pytest.approx(wanted, rel=1e-5)


def test_contrastive_agrees_with_lightly(pair: Any) -> None:
    """lightly's NT-Xent with a memory bank: its keys are the pair's own target and the bank, so one row at a time."""
    mapped, targets = pair
    found = []
    for i in range(len(mapped)):
        theirs = NTXentLoss(temperature=0.1, memory_bank_size=(len(mapped) - 1, 5))
        theirs.memory_bank.bank = F.normalize(torch.cat([targets[:i], targets[i + 1 :]]), dim=1)
        found.append(theirs(mapped[i : i + 1], targets[i : i + 1]))
    assert contrastive(mapped, targets).item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-5)


def test_targets_of_other_ranks_are_negatives(pair: Any) -> None:
    """Two ranks that hand each other their targets have, on average, the loss of the whole batch."""
    mapped, targets = pair
    whole = contrastive(mapped, targets)
    parts = [contrastive(mapped[:4], targets[:4], negatives=targets[4:]) * 4]
    parts += [contrastive(mapped[4:], targets[4:], negatives=targets[:4]) * 5]
    assert (sum(parts) / 9).item() == pytest.approx(whole.item(), rel=1e-5)
    assert contrastive(mapped[:4], targets[:4]).item() < parts[0].item() / 4, "more negatives, a harder task"


def test_the_same_image_twice_is_no_negative(pair: Any) -> None:
    mapped, targets = pair
    mapped, targets = torch.cat([mapped, mapped[:1] + 0.5]), torch.cat([targets, targets[:1]])
    scores = cosine_similarity(mapped.double().numpy(), targets.double().numpy()) / 0.1
    scores[0, 9] = scores[9, 0] = -np.inf
    assert contrastive(mapped, targets).item() == pytest.approx(-np.diag(log_softmax(scores, axis=1)).mean(), rel=1e-5)
    elsewhere = contrastive(mapped[:9], targets[:9], negatives=targets[9:])
    wanted = -np.diag(log_softmax(scores[:9], axis=1)).mean()
    assert elsewhere.item() == pytest.approx(wanted, rel=1e-5), "nor where another rank has it"
    mapped.requires_grad_()
    contrastive(mapped, targets).backward()
    assert mapped.grad is not None and mapped.grad.isfinite().all()


def test_contrastive_keeps_its_bounds() -> None:
    targets = torch.eye(8)
    assert contrastive(targets, targets).item() < 1e-3
    worst = contrastive(-targets, targets, temperature=0.1).item()
    assert math.log(8) < worst <= math.log(8) + 2 / 0.1


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_smooth_l1_is_squared_below_beta_and_absolute_above(pair: Any, beta: float) -> None:
    difference = np.abs(pair[0].double().numpy() - pair[1].double().numpy())
    wanted = np.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta).mean()
    assert smooth_l1(*pair, beta=beta).item() == pytest.approx(wanted, rel=1e-5)
    assert SmoothL1(beta)(*pair).item() == pytest.approx(wanted, rel=1e-5)
    assert smooth_l1(2 * pair[0], pair[1]) != smooth_l1(*pair), "lengths count"


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_relational_compares_similarities_row_by_row(pair: Any, temperature: float) -> None:
    wanted = []
    ours, theirs = (cosine_similarity(part.double().numpy()) / temperature for part in pair)
    for i in range(9):
        others = np.arange(9) != i
        p, q = log_softmax(ours[i, others]), log_softmax(theirs[i, others])
        wanted.append((np.exp(q) * (q - p)).sum())
    assert relational(*pair, temperature=temperature).item() == pytest.approx(np.mean(wanted), rel=1e-4)
    assert Relational(temperature)(*pair).item() == pytest.approx(np.mean(wanted), rel=1e-4)


def test_relational_does_not_see_a_rotation(pair: Any) -> None:
    rotation, _ = torch.linalg.qr(rows(5, 5, seed=2))
    assert relational(pair[1] @ rotation * 3, pair[1]).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_reach_the_features_and_lower_the_loss(pair: Any, name: str) -> None:
    mapped, targets = pair[0].clone().requires_grad_(), pair[1]
    before = loss = resolve_loss(name)(mapped, targets)
    for _ in range(20):
        (gradient,) = torch.autograd.grad(loss, mapped)
        assert (gradient.norm(dim=1) > 0).all()
        mapped = (mapped - 0.1 * gradient / gradient.norm(dim=1, keepdim=True)).detach().requires_grad_()
        loss = resolve_loss(name)(mapped, targets)
    assert loss < before
    assert torch.autograd.gradcheck(
        lambda rows: _in_double(name, rows, targets.double()), pair[0].double().requires_grad_()
    )


def _in_double(name: str, mapped: Tensor, targets: Tensor) -> Tensor:
    """The loss itself in float64: its `.float()` is left out, so that finite differences can be taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", lambda self: self)
        return FUNCTIONS[name](mapped, targets)


@pytest.mark.parametrize("name", ["contrastive", "relational"])
def test_one_row_has_nothing_to_be_compared_with(name: str) -> None:
    mapped = rows(1, 5).requires_grad_()
    loss = FUNCTIONS[name](mapped, rows(1, 5, seed=1))
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(mapped.grad, torch.zeros(1, 5))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_out_as_float32(pair: Any, name: str, dtype: torch.dtype) -> None:
    half = [part.to(dtype) for part in pair]
    exact = FUNCTIONS[name](*(part.float() for part in half))
    loss = resolve_loss(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*half)
        own = resolve_loss(lambda mapped, targets: (mapped @ targets.T).mean())(*half)
    assert found.dtype == torch.float32 and torch.equal(found, exact), "autocast is off inside"
    assert own.dtype == torch.float32 and torch.equal(own, (half[0].float() @ half[1].float().T).mean())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_that_do_not_pair_up_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"features \[4, 3\], targets \[4, 2\]"):
        FUNCTIONS[name](rows(4, 3), rows(4, 2))
    with pytest.raises(ConfigError, match="do not pair up"):
        resolve_loss(name)(rows(4, 3), rows(5, 3))


def test_negatives_of_another_width_are_refused(pair: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[M, 5\]"):
        contrastive(*pair, negatives=rows(3, 4))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "warm", True])
def test_options_out_of_range_are_refused(pair: Any, value: Any) -> None:
    for make in (Contrastive, Relational, SmoothL1):
        with pytest.raises(ConfigError, match="above 0"):
            make(value)
    for call in (contrastive, relational):
        with pytest.raises(ConfigError, match="temperature"):
            call(*pair, temperature=value)
    with pytest.raises(ConfigError, match="beta"):
        smooth_l1(*pair, beta=value)
    with pytest.raises(ConfigError, match="weight of cosine"):
        resolve_loss({"cosine": value})


def test_a_name_means_its_function(pair: Any) -> None:
    for name, function in FUNCTIONS.items():
        assert torch.equal(resolve_loss(name)(*pair), function(*pair))
    assert set(FUNCTIONS) == set(NAMED)


def test_sums_are_weighted(pair: Any) -> None:
    wanted = 2 * cosine(*pair) + 0.5 * relational(*pair)
    assert torch.allclose(resolve_loss({"cosine": 2, "relational": 0.5})(*pair), wanted)
    assert torch.allclose(resolve_loss(["cosine", "smooth_l1"])(*pair), cosine(*pair) + smooth_l1(*pair))


def test_negatives_reach_the_parts_that_take_them(pair: Any) -> None:
    more = rows(3, 5, seed=2)
    assert resolve_loss("contrastive").takes_negatives and not resolve_loss("cosine").takes_negatives
    assert not resolve_loss(["cosine", "relational"]).takes_negatives
    loss = resolve_loss(["cosine", "contrastive"])
    assert loss.takes_negatives
    assert torch.allclose(loss(*pair, more), cosine(*pair) + contrastive(*pair, negatives=more))
    assert torch.equal(resolve_loss("relational")(*pair, more), relational(*pair))


class Own:
    """A loss of a user that wants the other ranks' targets."""

    takes_negatives = True

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        return (mapped - targets).square().mean() + (0.0 if negatives is None else negatives.mean())


def test_a_callable_is_called(pair: Any) -> None:
    more = rows(3, 5, seed=2)
    assert torch.equal(resolve_loss(F.mse_loss)(*pair, more), F.mse_loss(*pair))
    assert torch.equal(resolve_loss(Own())(*pair, more), F.mse_loss(*pair) + more.mean())
    assert resolve_loss(Own()).takes_negatives and not resolve_loss(F.mse_loss).takes_negatives
    loss = resolve_loss("contrastive")
    assert resolve_loss(loss) is loss
    part = resolve_loss(functools.partial(contrastive, temperature=0.3))
    assert torch.equal(part(*pair), contrastive(*pair, temperature=0.3))


@pytest.mark.parametrize("result", [torch.zeros(3), 0.5, None, torch.tensor(1)])
def test_a_callable_that_gives_no_scalar_is_refused(pair: Any, result: Any) -> None:
    with pytest.raises(ConfigError, match="scalar float tensor"):
        resolve_loss(lambda mapped, targets: result)(*pair)


@pytest.mark.parametrize("spec", ["cosin", {"cosine": 1.0, "l2": 1.0}, ["infonce"], {}, [], None, 3, Contrastive, [2]])
def test_what_names_no_loss_is_refused_with_the_names(spec: Any) -> None:
    with pytest.raises(ConfigError, match="cosine, contrastive, smooth_l1, relational"):
        resolve_loss(spec)


@pytest.mark.parametrize("spec", [*FUNCTIONS, {"cosine": 1.0, "contrastive": 0.1}, F.mse_loss, Own(), Contrastive(0.3)])
def test_a_loss_pickles(pair: Any, spec: Any) -> None:
    loss = resolve_loss(spec)
    assert torch.equal(pickle.loads(pickle.dumps(loss))(*pair), loss(*pair))


class Configured:
    """A class with a loss among its options."""

    def __init__(self, loss: LossSpec = "cosine") -> None:
        self.loss = resolve_loss(loss)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("contrastive", contrastive),
        ("{cosine: 1.0, relational: 0.5}", lambda a, b: cosine(a, b) + 0.5 * relational(a, b)),
        ("[cosine, smooth_l1]", lambda a, b: cosine(a, b) + smooth_l1(a, b)),
        (
            "{class_path: rela_lightning.losses.Contrastive, init_args: {temperature: 0.3}}",
            functools.partial(contrastive, temperature=0.3),
        ),
        ("{class_path: torch.nn.MSELoss}", F.mse_loss),
    ],
)
def test_a_loss_can_be_written_in_yaml(pair: Any, text: str, wanted: Any) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Configured, "made")
    config = parser.parse_string(f"made: {{loss: {text}}}")
    again = parser.parse_string(parser.dump(config))
    for parsed in (config, again):
        assert torch.allclose(parser.instantiate_classes(parsed).made.loss(*pair), wanted(*pair))
