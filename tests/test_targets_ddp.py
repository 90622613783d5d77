"""Labelling on two processes: every row once, the same store as on one."""

from __future__ import annotations

import functools
import importlib

import numpy as np
import pytest

from rela_lightning import build_targets
from rela_lightning.errors import ReLAError
from rela_lightning.targets.partial import partial_folder
from tests.ranks import spawned, two_ranks
from tests.test_targets import Digits, pixel_prior


def label(path, *, strategy="ddp", tree="lightning.pytorch", count=40, fail_at=None):
    """What each rank does, and says."""
    trainer = importlib.import_module(tree).Trainer(
        accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    dataset, prior = Digits(count), pixel_prior()
    dataset.fail_at = fail_at
    try:
        store = build_targets(prior, dataset, path, trainer=trainer, batch_size=4)
    except ReLAError as error:
        print(f"refused {str(error).splitlines()[0]}")
        raise SystemExit(3) from error
    print(f"rows {len(store)} forwards {prior.network.calls}")


def run(path, **options):
    return two_ranks(functools.partial(label, path, **options))


def load(path):
    return np.load(path / "targets.npy")["target"].astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, tree", [("ddp", "lightning.pytorch"), ("ddp", "pytorch_lightning"), ("spawned", "lightning.pytorch")]
)
def test_two_processes_write_what_one_does(tmp_path, strategy, tree):
    if strategy == "ddp":
        ranks = run(tmp_path / "two", tree=tree, count=41)
        assert [rank.code for rank in ranks] == [0, 0], ranks
        lines = sorted(line for rank in ranks for line in rank.output.splitlines() if line.startswith("rows"))
        # each embedded its own half, rank 0 another 32 for `rounding`, and rank 1 returned a store too
        assert lines == ["rows 41 forwards 20", "rows 41 forwards 53"]
    else:
        label(tmp_path / "two", strategy=spawned(), tree=tree, count=41)
    alone = build_targets(pixel_prior(), Digits(41), tmp_path / "one")
    np.testing.assert_allclose(load(tmp_path / "two"), load(alone.path), atol=2e-3)
    assert not partial_folder(tmp_path / "two").exists()


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_left(tmp_path):
    broken = run(tmp_path / "t", count=200, fail_at=191)  # 191 is outside the sampled rows
    assert any(rank.code for rank in broken)
    assert len(list(partial_folder(tmp_path / "t").glob("rows-*.bin"))) == 2
    prior = pixel_prior()
    store = build_targets(prior, Digits(200), tmp_path / "t", batch_size=4)
    assert 0 < prior.network.calls < 200
    alone = build_targets(pixel_prior(), Digits(200), tmp_path / "one")
    np.testing.assert_allclose(load(store.path), load(alone.path), atol=2e-3)


@pytest.mark.slow
def test_every_rank_refuses_what_rank_0_refuses(tmp_path):
    build_targets(pixel_prior(), Digits(40), tmp_path / "t", standardise="none", target_dim=1)
    for refused in run(tmp_path / "t"):
        assert refused.code == 3 and "refused The targets at" in refused.output
