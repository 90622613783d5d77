"""The logic of benchmarks/gpu_convergence.py, on tiny input."""

from __future__ import annotations

import pytest

from tests.benchmarks.calls import call, lines_of


def tiny(data_root):
    return "run", "--data", "fashion_mnist", "--data-root", data_root, "--device", "cpu", "--tiny", "--priors", "random"


def test_byol_alone_comes_first_then_what_the_aims_ask_of_each_prior(script):
    module = script("gpu_convergence")
    order = [(job.prior, job.share) for job in module.jobs(["strong", "weak"])]
    assert order[:3] == [(None, 1.0), ("strong", 0.1), ("weak", 0.5)]
    assert set(order[1:]) == {(prior, share) for prior in ("strong", "weak") for share in (0.1, 0.2, 0.5)}
    assert len(order) == 7


@pytest.mark.slow
def test_each_run_has_its_share_of_byols_time_and_none_is_made_twice(script, data_root, tmp_path, monkeypatch, capsys):
    module, out = script("gpu_convergence"), tmp_path / "results.jsonl"
    measured = module.step_seconds

    def large(*arguments):  # labelling is seconds, of hundreds
        assert all(seconds > 0 for seconds in measured(*arguments).values())
        return {"ssl": 100.0, "transport1": 40.0}

    monkeypatch.setattr(module, "step_seconds", large)
    words = *tiny(data_root), "--epochs", 4, "--out", out
    call(module, monkeypatch, *words, "--minutes", 1e9)
    found = lines_of(out)
    made = [(row["prior"], row["share"]) for row in found]
    assert made == [(None, 1.0), ("random", 0.1), ("random", 0.2), ("random", 0.5)]
    assert found[0]["steps"] == 16 and found[0]["labelling_seconds"] == 0
    for row in found:
        left = row["share"] * 1600 - row["labelling_seconds"]
        assert left - 100 <= row["training_seconds"] <= left and 0 <= row["linear_top1"] <= 1
    assert str(data_root) not in out.read_text()
    monkeypatch.setattr(module, "one_run", None)
    call(module, monkeypatch, *words, "--minutes", 1e9)
    call(module, monkeypatch, "report", "--out", out)
    assert len(lines_of(out)) == 4 and "BYOL alone, 100% of 1600 s, seed 0: linear" in capsys.readouterr().out


def test_runs_for_which_no_time_is_left_are_said(script, data_root, tmp_path, monkeypatch, capsys):
    module = script("gpu_convergence")
    monkeypatch.setattr(module, "step_seconds", lambda *_: {"ssl": 100.0, "transport1": 40.0})
    words = tiny(data_root)
    call(module, monkeypatch, *words, "--minutes", 1, "--out", tmp_path / "none.jsonl")
    assert capsys.readouterr().out.count("no time is left for") == 4 and not (tmp_path / "none.jsonl").exists()
