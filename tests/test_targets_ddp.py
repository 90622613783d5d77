"""Labelling on two processes: every row once, the same store as on one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rela_lightning import build_targets
from rela_lightning.targets.partial import partial_folder
from tests.test_targets import Digits, pixel_prior

SCRIPT = """
    import os
    import sys
    import torch
    torch.set_num_threads(1)
    import {tree} as L
    from rela_lightning import build_targets
    from rela_lightning.errors import ReLAError
    from tests.test_targets import Digits, pixel_prior

    if __name__ == "__main__":
        dataset, prior = Digits({count}), pixel_prior()
        dataset.fail_at = {fail_at}
        trainer = L.Trainer(
            accelerator="cpu", devices=2, strategy="{strategy}", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )
        try:
            store = build_targets(prior, dataset, sys.argv[1], trainer=trainer, batch_size=4)
        except ReLAError as error:
            os.write(1, f"refused {{str(error).splitlines()[0]}}\\n".encode())  # in one go: two processes write
            raise SystemExit(3)
        os.write(1, f"rows {{len(store)}} forwards {{prior.network.calls}}\\n".encode())
"""


def run(tmp_path, path, *, strategy="ddp", tree="lightning.pytorch", count=40, fail_at=None):
    script = tmp_path / "label.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tree=tree, strategy=strategy, count=count, fail_at=fail_at)))
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, str(script), str(path)], cwd=root, capture_output=True, text=True, timeout=300,
        env={**__import__("os").environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


def load(path):
    return np.load(path / "targets.npy")["target"].astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, tree", [("ddp", "lightning.pytorch"), ("ddp", "pytorch_lightning"), ("ddp_spawn", "lightning.pytorch")]
)
def test_two_processes_write_what_one_does(tmp_path, strategy, tree):
    done = run(tmp_path, tmp_path / "two", strategy=strategy, tree=tree, count=41)
    assert done.returncode == 0, done.stderr[-3000:]
    if strategy == "ddp":  # each rank embedded its own half, and rank 1 returned a store too
        lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rows"))
        assert lines == ["rows 41 forwards 20", "rows 41 forwards 53"]  # 32 on rank 0 for `rounding`
    alone = build_targets(pixel_prior(), Digits(41), tmp_path / "one")
    np.testing.assert_allclose(load(tmp_path / "two"), load(alone.path), atol=2e-3)
    assert not partial_folder(tmp_path / "two").exists()


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_left(tmp_path):
    broken = run(tmp_path, tmp_path / "t", count=200, fail_at=191)  # 191 is outside the sampled rows
    assert broken.returncode != 0
    assert len(list(partial_folder(tmp_path / "t").glob("rows-*.bin"))) == 2
    prior = pixel_prior()
    store = build_targets(prior, Digits(200), tmp_path / "t", batch_size=4)
    assert 0 < prior.network.calls < 200
    alone = build_targets(pixel_prior(), Digits(200), tmp_path / "one")
    np.testing.assert_allclose(load(store.path), load(alone.path), atol=2e-3)


@pytest.mark.slow
def test_every_rank_refuses_what_rank_0_refuses(tmp_path):
    build_targets(pixel_prior(), Digits(40), tmp_path / "t", standardise="none", target_dim=1)
    refused = run(tmp_path, tmp_path / "t")
    assert refused.returncode == 3 and "refused The targets at" in refused.stdout
