"""Several jobs at one path: one at a time, and none loses what another one made."""

from __future__ import annotations

import functools
import multiprocessing
import pickle
import threading

import numpy as np
import pytest
import torch

from rela_lightning import build_targets
from rela_lightning.errors import TargetError
from rela_lightning.targets import TargetStore
from rela_lightning.targets.claim import LOCK, Claim
from tests.ranks import forks
from tests.test_targets import Digits, pixel_prior
from tests.test_targets_folders import names

pytest.importorskip("fcntl")


def test_one_at_a_time_though_each_takes_the_folder_away_at_its_end(tmp_path):
    folder, inside, most = tmp_path / "a" / ".rela_lightning" / "t", [], []

    def job(number):
        for _ in range(50):
            with Claim(folder) as claim:
                claim.take(wait=True)
                inside.append(number)
                (folder / "rows-00000.bin").write_bytes(b"")
                most.append(len(inside))
                (folder / "rows-00000.bin").unlink()
                inside.remove(number)

    (tmp_path / "a").mkdir()
    threads = [threading.Thread(target=job, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 400 and not list((tmp_path / "a").iterdir())


def test_a_lock_whose_folder_went_while_it_was_waited_for_does_not_count(tmp_path):
    folder, took = tmp_path / ".rela_lightning" / "t", threading.Event()

    def waits():
        with Claim(folder) as second:
            second.take(wait=True)
            assert (folder / LOCK).exists()  # and not only the file that was opened first
            took.set()
            done.wait(10)

    done = threading.Event()
    with Claim(folder) as first:
        first.take(wait=True)
        thread = threading.Thread(target=waits)
        thread.start()
        assert not took.wait(0.2)
    assert took.wait(10)
    with Claim(folder) as third, pytest.raises(TargetError, match="Another job"):
        third.take(wait=False)
    done.set()
    thread.join()
    assert not list(tmp_path.iterdir())


def test_a_claim_is_taken_once_and_travels_unheld(tmp_path):
    with Claim(tmp_path / ".rela_lightning" / "t") as claim:
        other = pickle.loads(pickle.dumps(claim))  # as ddp_spawn does with the plan of a pass
        claim.take(wait=False)
        claim.take(wait=False)
        with pytest.raises(TargetError, match="Another job"):
            other.take(wait=False)
    other.take(wait=False)
    other.release()


def together(path, *options):
    """Build in processes that begin at the same moment, by dimensions and whether to overwrite; what each says."""
    begin = multiprocessing.get_context("fork").Barrier(len(options))

    def job(dim, overwrite):
        prior = pixel_prior()
        begin.wait(60)
        try:
            store = build_targets(prior, Digits(400), path, batch_size=4, target_dim=dim, overwrite=overwrite)
            print(f"built {store.dim} {prior.network.calls}")
        except TargetError as error:
            print(f"refused {str(error).splitlines()[0]}")

    ended = forks(*(functools.partial(job, *each) for each in options))
    assert [one.code for one in ended] == [0] * len(options), ended
    return sorted(one.output.splitlines()[-1] for one in ended)


@pytest.mark.slow
def test_processes_with_the_same_settings_label_once(tmp_path):
    said = together(tmp_path / "t", *[(3, False)] * 3)
    assert said == ["built 3 0", "built 3 0", "built 3 450"] and names(tmp_path) == ["t"]


@pytest.mark.slow
def test_processes_with_other_settings_refuse_or_replace_and_leave_a_whole_store(tmp_path):
    said = together(tmp_path / "t", (3, False), (4, False))
    assert said[0].startswith("built") and "another target_dim" in said[1] and names(tmp_path) == ["t"]
    said = together(tmp_path / "t", (5, True), (6, True))
    assert said == ["built 5 450", "built 6 450"] and names(tmp_path) == ["t"]
    dim = TargetStore(tmp_path / "t").dim
    alone = build_targets(pixel_prior(), Digits(400), tmp_path / "alone", target_dim=dim, batch_size=4)
    rows = torch.arange(400)
    np.testing.assert_allclose(TargetStore(tmp_path / "t")[rows], alone[rows], atol=2e-3)
