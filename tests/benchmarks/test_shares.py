"""The logic of benchmarks/shares.py, on tiny input."""

from __future__ import annotations

import pstats

import pytest

from tests.benchmarks.calls import call


def test_seconds_of_a_function_hold_what_it_calls_and_those_of_a_file_what_is_its_own(script):
    shares = script("shares")
    stats = pstats.Stats()
    step, other, built_in = ("/x/injection/optim.py", 3, "step"), ("/x/injection/optim.py", 9, "other"), ("~", 0, "mul")
    stats.stats = {  # calls, calls, own seconds, cumulative seconds, by whom
        step: (1, 1, 1.0, 6.0, {}),
        other: (1, 1, 2.0, 5.0, {step: (1, 1, 2.0, 5.0)}),
        built_in: (2, 2, 7.0, 7.0, {other: (1, 1, 3.0, 3.0), ("/x/else.py", 1, "f"): (1, 1, 4.0, 4.0)}),
    }
    assert shares.seconds_of(stats, shares.Function("injection/optim.py", "step")) == 6
    assert shares.seconds_of(stats, shares.Function("injection/optim.py")) == 1 + 2 + 3


@pytest.mark.slow
def test_a_profile_names_every_part_of_each_kind_of_step(script, tmp_path, monkeypatch):
    shares, out = script("shares"), tmp_path / "shares.txt"
    monkeypatch.setattr(shares, "KINDS", ("alone", "transport, one view"))
    call(shares, monkeypatch, "--steps", 2, "--batch-size", 4, "--out", out)
    text = out.read_text()
    assert str(tmp_path) not in text and "command: python benchmarks/shares.py" in text
    table = {line[:30].strip(): line[30:].split() for line in text.splitlines() if line[:30].strip() in shares.PARTS}
    assert list(table) == list(shares.PARTS)
    for part, (alone, transport) in table.items():
        if part.startswith("ReLA") and "logging" not in part:
            assert alone == "0.00%" != transport, part
        elif not part.startswith("ReLA"):
            assert alone != "0.00%" != transport, part
