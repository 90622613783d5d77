from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from rela_lightning.data.sampler import BudgetSampler
from rela_lightning.errors import ConfigError
from rela_lightning.injection.tagging import check_plain_sampler
from tests.parts import make_digits


def epoch(sampler, number):
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize(
    ("num_samples", "ratio", "replicas"), [(100, 0.1, 1), (103, 0.5, 4), (50, 1.0, 3), (7, 0.01, 7), (9, 0.9, 2)]
)
def test_ranks_are_disjoint_and_of_equal_length(num_samples, ratio, replicas):
    samplers = [BudgetSampler(num_samples, ratio, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    parts = [epoch(sampler, 3) for sampler in samplers]
    per_rank = max(1, round(ratio * num_samples) // replicas)
    assert [len(part) for part in parts] == [per_rank] * replicas == [len(sampler) for sampler in samplers]
    union = {index for part in parts for index in part}
    assert len(union) == per_rank * replicas
    assert min(union) >= 0
    assert max(union) < num_samples


def test_ranks_share_one_draw():
    whole = epoch(BudgetSampler(60, 0.5), 2)
    parts = [epoch(BudgetSampler(60, 0.5, num_replicas=3, rank=rank), 2) for rank in range(3)]
    assert [index for row in zip(*parts, strict=True) for index in row] == whole


def test_each_epoch_is_another_draw_and_each_seed_another_sequence():
    sampler = BudgetSampler(1000, 0.1)
    draws = [tuple(epoch(sampler, number)) for number in range(10)]
    other = [tuple(epoch(BudgetSampler(1000, 0.1, seed=1), number)) for number in range(10)]
    assert len({*draws, *other}) == 20  # nor is seed 1 seed 0 moved by an epoch
    assert list(sampler) == list(draws[-1])  # the epoch alone decides, not how often it was asked


def test_the_same_after_recreation_whatever_the_global_state():
    torch.manual_seed(0)
    first = epoch(BudgetSampler(500, 0.3, seed=5), 17)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert epoch(BudgetSampler(500, 0.3, seed=5), 17) == first
    assert torch.equal(before, torch.get_rng_state())


def test_coverage_is_uniform_over_epochs():
    sampler, counts, epochs = BudgetSampler(200, 0.1), torch.zeros(200), 2000
    for number in range(epochs):
        counts[epoch(sampler, number)] += 1
    # each sample: binomial(2000, 0.1), mean 200, sd 13.4; chi-square over 200 cells has mean 199 * 0.9, sd 18
    chi_square = ((counts - 200) ** 2 / 200).sum().item()
    assert abs(chi_square - 199 * 0.9) < 5 * 18
    assert counts.min() > 0


def test_lightning_turns_the_epoch():
    import lightning.pytorch as L

    seen = []

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            seen.append((self.current_epoch, tuple(batch[:, 0].int().tolist())))
            return self.layer(batch).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.arange(40.0).unsqueeze(1)
    loader = DataLoader(data, batch_size=10, sampler=BudgetSampler(40, 0.25))
    L.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(
        Net(), loader
    )
    assert seen == [(number, tuple(epoch(BudgetSampler(40, 0.25), number))) for number in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 10, "ratio": 0.0}, "0 < ratio <= 1"),
        ({"num_samples": 10, "ratio": 1.5}, "1.5"),
        ({"num_samples": 10, "ratio": float("nan")}, "0 < ratio <= 1"),
        ({"num_samples": 2, "ratio": 1.0, "num_replicas": 3}, "at least 3 samples"),
        ({"num_samples": 10, "ratio": 0.5, "num_replicas": 2, "rank": 2}, "rank 2"),
        ({"num_samples": 10, "ratio": 0.5, "seed": -1}, "seed >= 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BudgetSampler(**options)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda data: DistributedSamplerWrapper(WeightedRandomSampler(torch.ones(64), 64), num_replicas=1, rank=0),
        lambda data: RandomSampler(data, replacement=True),
        lambda data: RandomSampler(data, num_samples=10),
        lambda data: (row for row in range(64)),  # without a length
    ],
)
def test_data_ratio_refuses_every_sampler_of_the_users(sampler: Any) -> None:
    data = make_digits(64)
    with pytest.raises(ConfigError, match="data_ratio"):
        check_plain_sampler(DataLoader(data, sampler=sampler(data)))
