"""Interrupted passes, overwriting, and several jobs at one folder."""

from __future__ import annotations

import shutil
import threading
import time

import lightning.pytorch as L
import numpy as np
import pytest
import torch

from rela_lightning import build_targets
from rela_lightning.errors import TargetError
from rela_lightning.targets import TargetStore
from rela_lightning.targets.claim import Claim
from rela_lightning.targets.partial import partial_folder
from rela_lightning.targets.shards import Shape
from tests.test_targets import Digits, pixel_prior


@pytest.fixture(scope="module")
def prior():
    return pixel_prior()


def test_a_job_waits_for_another_one_and_takes_its_targets(tmp_path, prior, caplog):
    def other_job():
        with Claim(partial_folder(tmp_path / "t")) as claim:
            claim.take(wait=True)
            started.set()
            while "waiting for it" not in caplog.text:
                time.sleep(0.01)
            shutil.copytree(done.path, tmp_path / "t")

    done, started = build_targets(prior, Digits(), tmp_path / "done"), threading.Event()
    calls = prior.network.calls
    thread = threading.Thread(target=other_job)
    thread.start()
    started.wait()
    store = build_targets(prior, Digits(), tmp_path / "t")
    thread.join()
    assert prior.network.calls == calls and store.fingerprint == done.fingerprint


def test_overwrite_keeps_the_old_targets_until_the_new_are_done(tmp_path, prior):
    old = build_targets(prior, Digits(), tmp_path / "t")
    failing = Digits(200)
    failing.fail_at = 191  # not in the sample that is read before the pass
    with pytest.raises(KeyError):
        build_targets(prior, failing, tmp_path / "t", overwrite=True)
    assert TargetStore(tmp_path / "t").fingerprint == old.fingerprint
    assert partial_folder(tmp_path / "t").exists()
    new = build_targets(prior, Digits(200), tmp_path / "t", overwrite=True)
    assert len(new) == 200
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


class Fragile(Digits):
    """Fails once, in the middle of the pass."""

    def __getitem__(self, row):
        if self.fail_at is not None and len(self.reads) > self.fail_at:
            raise RuntimeError("interrupted")
        return super().__getitem__(row)


@pytest.mark.parametrize("after", [90, 140, 231])
def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, after):
    prior, whole = pixel_prior(), build_targets(pixel_prior(), Fragile(200), tmp_path / "whole", batch_size=16)
    dataset = Fragile(200)
    dataset.fail_at = after  # 73 reads are the sample
    with pytest.raises(RuntimeError, match="interrupted"):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    assert prior.network.calls < 200
    assert not (tmp_path / "t").exists()
    with pytest.raises(TargetError, match="incomplete"):
        TargetStore(tmp_path / "t")
    written = np.fromfile(partial_folder(tmp_path / "t") / "index-00000.bin", Shape(1, 20).entry)
    assert len(written) == prior.network.calls
    dataset.fail_at = None
    store = build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    assert prior.network.calls == 232  # every row exactly once, and 32 for `rounding`
    assert (store.path / "targets.npy").read_bytes() == (whole.path / "targets.npy").read_bytes()
    assert store.fingerprint == whole.fingerprint


def test_a_torn_row_is_embedded_again(tmp_path):
    prior, dataset = pixel_prior(), Fragile(200)
    dataset.fail_at = 140
    with pytest.raises(RuntimeError):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    partial = partial_folder(tmp_path / "t")
    with (partial / "rows-00000.bin").open("ab") as rows, (partial / "index-00000.bin").open("ab") as index:
        rows.write(b"\1" * 37)  # killed in the middle of a row
        index.write(b"\1\0\0")
    dataset.fail_at = None
    store = build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    whole = build_targets(pixel_prior(), Fragile(200), tmp_path / "whole", batch_size=16)
    assert torch.equal(store[torch.arange(200)], whole[torch.arange(200)])


def test_rows_of_another_prior_are_not_gone_on_with(tmp_path):
    dataset, other = Fragile(200), pixel_prior(mean=[0.3])
    dataset.fail_at = 140
    with pytest.raises(RuntimeError):
        build_targets(pixel_prior(), dataset, tmp_path / "t", batch_size=16)
    dataset.fail_at = None
    store = build_targets(other, dataset, tmp_path / "t", batch_size=16)
    assert other.network.calls == 232 and store.prior_identity == other.identity


def test_other_output_settings_reuse_the_rows_of_an_interrupted_pass(tmp_path):
    prior, dataset = pixel_prior(), Fragile(200)
    dataset.fail_at = 140
    with pytest.raises(RuntimeError):
        build_targets(prior, dataset, tmp_path / "t", batch_size=16)
    dataset.fail_at = None
    assert build_targets(prior, dataset, tmp_path / "t", target_dim=4, batch_size=16).dim == 4
    assert prior.network.calls == 232  # 32 of them for `rounding`


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, prior):
    store = build_targets(prior, Digits(), tmp_path / "t")
    old = partial_folder(store.path) / "old"
    with Claim(old.parent) as claim:
        claim.take(wait=False)
        store.path.rename(old)
    assert not store.path.exists()
    assert build_targets(prior, Digits(), tmp_path / "t").fingerprint == store.fingerprint


def test_a_second_job_is_kept_off_the_folder(tmp_path, prior):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    with Claim(partial_folder(tmp_path / "t")) as claim:
        claim.take(wait=False)
        with pytest.raises(TargetError, match="Another job"):
            build_targets(prior, Digits(), tmp_path / "t", trainer=trainer)
    assert len(build_targets(prior, Digits(), tmp_path / "t", trainer=trainer)) == 40
