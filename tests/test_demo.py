"""The demo compares like with like, shows what came out, and takes nothing but its time."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open

from rela_lightning import load_prior
from rela_lightning.cli import main
from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS, demo, quiet
from rela_lightning.errors import ConfigError
from tests.ranks import Rank, forks

pytestmark = pytest.mark.usefixtures("all_images")

ROOT = Path(__file__).resolve().parent.parent


def shorter(*words: str) -> int:
    """The command with fewer probes."""
    from rela_lightning.demo import training

    training.SNAPSHOTS, training.FOLDS = 2, 2
    os.environ["COLUMNS"] = "80"
    return main(words)


def rela(*words: str) -> Rank:
    """In a process of its own, without a terminal."""
    return forks(functools.partial(shorter, *words), timeout=900.0)[0]


# ---- the shipped prior ---------------------------------------------------------------------------------


def test_the_shipped_prior_is_small_complete_and_says_where_it_is_from(caplog):
    assert PRIOR_FILE.stat().st_size <= 1_000_000
    with safe_open(PRIOR_FILE, "pt") as file:
        made = file.metadata()
        names = set(file.keys())
    assert "Fashion-MNIST" in made["data"]
    assert "MIT" in made["data_licence"]
    assert made["made_by"] == "benchmarks/train_demo_prior.py"
    assert float(made["test_top1"]) > 0.9
    with caplog.at_level(logging.INFO, "rela_lightning"):
        prior = load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS)
    assert prior.feature_dim == 128
    loaded = prior.network.state_dict()
    assert {key.rpartition("network.")[2] for key in loaded} == names
    assert all(torch.isfinite(value.float()).all() for value in loaded.values())


@pytest.mark.slow
def test_the_shipped_prior_knows_more_of_digits_than_random_weights():
    from rela_lightning.demo.compare import RANDOM, RELA, demo_prior
    from rela_lightning.demo.training import Evaluation

    evaluation = Evaluation()
    shipped, random = demo_prior(RELA, 0), demo_prior(RANDOM, 0)
    known, unknown = (evaluation.probe(prior, prior.preprocess) for prior in (shipped, random))
    assert known["few_label_top1"]["mean"] > unknown["few_label_top1"]["mean"]
    assert known["knn_top1"] > unknown["knn_top1"]


def test_the_random_prior_is_not_the_students_own_start():
    from rela_lightning.demo.compare import RANDOM, demo_prior
    from rela_lightning.demo.training import build_byol

    start = build_byol(0).backbone.conv1.weight
    again = build_byol(0).backbone.conv1.weight
    prior = demo_prior(RANDOM, 0)
    first = next(value for key, value in prior.network.state_dict().items() if key.endswith("conv1.weight"))
    assert torch.equal(start, again)
    assert not torch.equal(start, first)


# ---- the parts -----------------------------------------------------------------------------------------


def test_views_differ_but_never_flip_a_digit():
    from PIL import Image

    from rela_lightning.demo.training import TwoViews

    left = Image.new("RGB", (32, 32))
    left.paste((255, 255, 255), (0, 0, 16, 32))  # bright on the left
    torch.manual_seed(0)
    for _ in range(50):
        one, two = TwoViews()(left)
        assert one.shape == two.shape == (3, 32, 32)
        assert not torch.equal(one, two)
        assert one[..., 4:16].mean() > one[..., 16:28].mean()


def test_the_recorder_copies_at_its_moments_and_notes_the_switch():
    from rela_lightning.demo.training import Recorder

    class Fake:
        global_step = 0
        callback_metrics: ClassVar[dict[str, torch.Tensor]] = {}
        backbone = torch.nn.Linear(2, 2)

    told: list[float] = []
    recorder = Recorder(5.0, [1.0, 5.0, 6.0, 6.5, 9.0], told.append)
    assert recorder.moments == [6.0, 6.5, 9.0]  # nothing to copy while labelling
    clock = iter([0.0, 2.0, 5.0])  # training seconds: nothing due, two moments passed at once, one more
    for step, spent in enumerate(clock):
        Fake.global_step = step
        Fake.callback_metrics = {"rela/phase": torch.tensor(0.0 if step == 0 else 2.0)}
        recorder.started = time.perf_counter() - spent
        recorder.on_train_batch_end(Fake, Fake, None, None, step)
        with torch.no_grad():
            Fake.backbone.weight.add_(1.0)
    assert [snapshot.steps for snapshot in recorder.snapshots] == [1, 2]
    assert [round(snapshot.seconds) for snapshot in recorder.snapshots] == [7, 10]
    first, second = (snapshot.weights["weight"] for snapshot in recorder.snapshots)
    assert torch.allclose(second - first, torch.ones(2, 2))  # copies, not the live weights
    assert round(recorder.switch_seconds or 0) == 7
    assert [round(seconds) for seconds in told] == [5, 7, 10]


@pytest.mark.slow
def test_the_probes_agree_with_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    from rela_lightning.demo.training import Evaluation, build_byol

    evaluation = Evaluation()
    backbone = build_byol(0).backbone.eval()
    with torch.no_grad():
        x, test_x = (backbone(data.tensors[0]).double() for data in (evaluation.train, evaluation.test))
    mean, std = x.mean(0), x.std(0, correction=0)
    std[std < 1e-6] = 1.0  # dead dimensions of untrained weights
    oracle = LogisticRegression(C=1.0, max_iter=5000).fit((x - mean) / std, evaluation.train.tensors[1])
    expected = oracle.score((test_x - mean) / std, evaluation.test.tensors[1])
    found = evaluation.probe(backbone)
    assert found["linear_top1"] == pytest.approx(expected, abs=2 / 450)
    assert 0.2 < found["few_label_top1"]["mean"] < found["linear_top1"]


def test_quiet_puts_levels_and_filters_back():
    logger = logging.getLogger("lightning.pytorch")
    level, filters = logger.level, list(warnings.filters)
    with pytest.raises(RuntimeError), quiet():
        assert logger.level == logging.ERROR
        raise RuntimeError
    assert logger.level == level
    assert list(warnings.filters) == filters


# ---- the command ---------------------------------------------------------------------------------------


def test_the_command_knows_the_demo_and_its_version(capsys):
    assert main(["demo", "--help"]) == 0
    assert "--seconds" in capsys.readouterr().out
    for words, said in (["--help"], "demo"), (["--version"], "rela "):
        with pytest.raises(SystemExit):
            main(words)
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "0"], "budget of a run"),
        (["--seconds", ".inf"], "budget of a run"),
        (["--seed", "-1"], "`seed` is out of range"),
        (["--out", __file__], "`out` is a file"),
    ],
)
def test_bad_options_get_a_short_message_and_exit_code_2(arguments, said, capsys):
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "expected:" in error
    assert "Traceback" not in error


def test_unknown_commands_and_options_exit_with_code_2(capsys):
    for arguments in (["nope"], ["demo", "--sedonds", "3"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_a_budget_that_labelling_uses_up_is_refused():
    from rela_lightning.demo.training import train

    with pytest.raises(ConfigError, match="labelling the images alone"):
        train("x", None, labelling=6.0, seconds=10.0, seed=0, tick=lambda _: None)


def test_without_scikit_learn_the_demo_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(Exception, match=r"rela-lightning\[demo\]"):
        demo(str(tmp_path / "out"), seconds=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_demo_compares_like_with_like(tmp_path):
    out, seconds = tmp_path / "out", 6  # of fewer, labelling would take more than half
    done = rela("demo", "--out", str(out), "--seconds", str(seconds), "--seed", "3")
    while "The budget is too small" in done.output:  # on a busy machine, once for each of the two that are labelled
        seconds = 1 + 2 * int(re.findall(r"more than (\d+) seconds", done.output)[0])
        done = rela("demo", "--out", str(out), "--seconds", str(seconds), "--seed", "3")
    assert done.code == 0, done.output[-3000:]
    report = json.loads((out / "report.json").read_text())
    runs = {run["name"]: run for run in report["runs"]}
    assert list(runs) == ["untrained", "prior alone", "byol", "byol+rela", "byol+rela (random prior)"]
    for name, run in runs.items():
        assert name in done.output
        assert run["name"] in (out / "report.md").read_text()
        assert {"linear_top1", "knn_top1", "few_label_top1", "steps", "seconds"} <= set(run)
    for name in ("byol", "byol+rela", "byol+rela (random prior)"):
        run = runs[name]
        assert f"Probing {name}, " in done.output  # no terminal: a line for each part
        assert run["seconds"] >= seconds
        assert run["history"][0]["linear_top1"] == runs["untrained"]["linear_top1"]  # the same initial weights
        assert run["history"][0]["seconds"] == run["labelling_seconds"]
        assert run["history"][-1]["seconds"] == run["seconds"]
        assert run["history"][-1]["steps"] == run["steps"] > 0
        assert len(run["history"]) >= 3
    assert runs["byol"]["labelling_seconds"] == 0
    assert runs["byol"]["switch_seconds"] is None
    accelerated = runs["byol+rela"]
    assert accelerated["labelling_seconds"] < accelerated["switch_seconds"] < accelerated["seconds"]
    assert report["protocol"]["seed"] == 3 and "held-out" in report["protocol"]["why then"]
    assert len(list((out / "targets").iterdir())) == 2
    assert (out / "curves.png").stat().st_size > 10_000
    for chatter in ("Tip", "GPU available", "Warning", "max_time", "Time limit", "workers"):
        assert chatter not in done.output


def test_its_page_quotes_the_committed_result():
    from rela_lightning.runs.report import check_runs

    report = json.loads((ROOT / "benchmarks" / "results" / "demo" / "report.json").read_text())
    check_runs(report["runs"])
    page = (ROOT / "docs" / "demo.md").read_text()
    for run in report["runs"]:
        few, linear, knn = run["few_label_top1"], 100 * run["linear_top1"], 100 * run["knn_top1"]
        row = f"| {100 * few['mean']:.1f} ± {100 * few['std']:.1f} | {linear:.1f} | {knn:.1f} | {run['seconds']:.1f} |"
        assert row in page
    assert report["protocol"]["command"] in page
