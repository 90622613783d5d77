"""The benchmark that kills commands: it tells a whole result from a broken one, and labelling survives a kill."""

from __future__ import annotations

import json
import os
import signal

import pytest

from rela_lightning.cli import main
from tests.benchmarks.calls import call
from tests.ranks import forks
from tests.test_cli import PRIOR


@pytest.fixture
def known(script, tmp_path):
    killed = script("killed")
    job = killed.Job(["begin"], lambda folder: ["again"], lambda folder: read(folder / "result"))
    return killed, job, killed.Undisturbed(tmp_path, 1.0, "whole")


def read(path):
    return path.read_text() if path.exists() else None


def rela(left, calls):
    """A command that is killed, or ends, leaving a text under the final name."""

    def run(words, folder, until=None):
        calls.append(words[0])
        text = left[len(calls) - 1]
        if text is not None:
            (folder / "result").write_text(text)
        return 0 if until is None else -signal.SIGKILL

    return run


@pytest.mark.parametrize(
    ("left", "called", "complaints"),
    [
        ([None, None, "whole"], ["begin", "again", "again"], 0),
        (["whole"], ["begin"], 0),
        (["half"], ["begin"], 2),
        ([None, "half"], ["begin", "again"], 2),
        ([None, None, "another"], ["begin", "again", "again"], 1),
        ([None, None, None], ["begin", "again", "again"], 1),
    ],
)
def test_a_result_that_is_not_the_undisturbed_one_is_told(known, tmp_path, monkeypatch, left, called, complaints):
    killed, job, undisturbed = known
    (tmp_path / "log.txt").touch()
    calls: list[str] = []
    monkeypatch.setattr(killed, "rela", rela(left, calls))
    kills, wrong = killed.killed(job, undisturbed, tmp_path, [0.2, 0.8])
    assert (calls, len(wrong)) == (called, complaints) and kills == min(2, len(calls))


def forked(words, folder, until=None):
    """The command in a copy of this process, so that it is killed while it labels and not while it is imported."""

    def command():
        os.chdir(folder)
        return main(words)

    [done] = forks(command, timeout=until or 600.0)
    with (folder / "log.txt").open("a") as log:
        log.write(done.output)
    return done.code


def test_a_command_is_run_and_killed_in_a_process_of_its_own(script, tmp_path):
    rela = script("killed").rela
    assert rela(["--help"], tmp_path) == 0 and "targets" in (tmp_path / "log.txt").read_text()
    assert rela(["demo"], tmp_path, until=0.0) == -signal.SIGKILL


@pytest.mark.slow
def test_labelling_that_is_killed_ends_as_if_nothing_had_been(script, monkeypatch, tmp_path):
    killed = script("killed")
    words = [*PRIOR, killed.DIGITS, "--views=1", "--batch_size=32", "--path=targets"]
    monkeypatch.setitem(killed.JOBS, "targets", killed.JOBS["targets"]._replace(command=["targets", *words]))
    monkeypatch.setattr(killed, "rela", forked)
    call(script("killed"), monkeypatch, "--kills", 1, "--jobs", "targets", "--out", tmp_path / "killed.json")
    found = json.loads((tmp_path / "killed.json").read_text())["result"]
    assert found["kills"] == {"targets": 1} and found["wrong"] == []
