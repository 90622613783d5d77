"""The paper's benchmark script: what it plans, and one step of all of it on small images."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from rela_lightning.cli import main
from tests.image_files import write_classes

SCRIPT = Path(__file__).parent.parent / "examples" / "paper" / "run.py"
QUIET = ["--", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("paper_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(script: Any, capsys: Any, *words: str) -> list[list[str]]:
    assert script.main([*words, "--dry-run"], execute=None) == 0
    return [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]


def test_the_whole_design_is_enumerated_once(script, capsys):
    plan = planned(script, capsys)
    fits = [words for words in plan if words[0] == "fit"]
    assert len(fits) == 4 * 2 * (4 + 4 * 8 * 2)  # data, methods, budgets alone, budgets with priors and switches
    assert len({words[2] for words in fits}) == len(fits)
    assert len([words for words in plan if words[0] == "targets"]) == 4 * 8
    assert len([words for words in plan if words[0] == "export"]) == 4
    assert len([words for words in plan if words[0] == "compare"]) == 4 * 2
    assert all(Path(words[1].removeprefix("--config=")).is_file() for words in fits)
    assert list(Path().iterdir()) == []


def test_a_run_is_its_config_and_what_differs(script, capsys):
    words = ["--data", "cifar100", "--methods", "dino", "--budgets", "20", "--priors", "byol-imagenet"]
    words += ["--switches", "adaptive", "--seeds", "3", "--root", "d", "--frozen-map", "--dry-run"]
    assert script.main([*words, "--", "--trainer.devices=4"], execute=None) == 0
    plan = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines()]
    assert all(("--trainer.devices=4" in step) == (step[0] == "fit") for step in plan)
    assert [step[0] for step in plan] == [
        "fit", "probe", "export", "targets", "fit", "probe", "fit", "probe", "fit", "probe", "compare"
    ]  # fmt: skip
    prior, rela = plan[0], plan[8]
    assert {"--data.root=d/imagenet", "--data.data_ratio=1", "--seed_everything=0"} <= set(prior)
    assert prior[1].endswith("byol_imagenet.yaml")
    assert rela[1].endswith("dino_cifar100.yaml")
    assert {"--data.root=d", "--data.data_ratio=0.2", "--seed_everything=3"} <= set(rela)
    assert "--trainer.callbacks.schedule=AuthorsRule" in rela
    assert "--trainer.callbacks.transport_optimizer=null" in rela
    spec = next(word for word in plan[3] if word.startswith("--prior="))
    assert spec == f"--prior=checkpoint:{plan[2][2]}"  # what was exported
    arch = json.loads(plan[3][2].removeprefix("--prior_kwargs="))
    assert (arch["arch"], arch["image_size"]) == ("torchvision:resnet50", 224)


def test_priors_of_our_own_have_the_normalisation_of_their_data(script):
    from rela_lightning import data

    for known in script.DATA.values():
        module = getattr(data, known.module)
        assert (module.default_size, module.default_mean, module.default_std) == (known.size, known.mean, known.std)


@pytest.mark.slow
def test_one_step_of_everything_and_what_is_done_is_skipped(script, capsys):
    """Targets, runs without and with ReLA, probes, export of our own prior, a report; then nothing is left."""
    for split, count in (("train", 12), ("test", 4)):
        write_classes(Path("data") / split, count)
    words = ["--data", "cifar10", "--methods", "byol", "--budgets", "50", "--priors", "random", "byol-cifar10"]
    words += ["--switches", "static", "--fast-dev-run", *QUIET]
    ran: list[str] = []

    def execute(command: list[str]) -> int:
        ran.append(command[0])
        return main(command)

    def stopping(command: list[str]) -> int:
        return 7 if command[0] == "probe" else main(command)

    assert script.main(words, execute=stopping) == 7  # the first run was trained, and stopped before its probe
    assert "start again" in capsys.readouterr().err
    assert script.main(words, execute=execute) == 0
    assert ran == ["probe", "export", "targets", "targets", *["fit", "probe"] * 3, "compare"]
    report = json.loads(Path("paper/reports/byol-cifar10/report.json").read_text())
    runs = {run["name"]: run for run in report["runs"]}
    assert len(runs) == 4
    prior = runs["byol-cifar10-50pct-byol-cifar10-static-seed0"]
    assert prior["prior"].startswith("checkpoint:") and prior["labelling_seconds"] > 0
    assert prior["schedule"] == "Switch"
    assert runs["byol-cifar10-50pct-random-static-seed0"]["prior"] == "random:lightly:resnet-18"
    assert runs["byol-cifar10-50pct-seed0"]["prior"] is None
    assert runs["byol-cifar10-50pct-seed0"]["budget"]["data_ratio"] == 0.5
    ran.clear()
    assert script.main(words, execute=execute) == 0
    assert ran == ["compare"]
    record = Path("paper/runs/byol-cifar10-50pct-seed0/run.json")
    run = json.loads(record.read_text())
    record.write_text(json.dumps({**run, "epochs": 0}))  # as if stopped in between
    capsys.readouterr()
    goes_on = planned(script, capsys, *words[:-3])
    assert goes_on[0][0] == "fit" and goes_on[0][-1] == "--ckpt_path=paper/runs/byol-cifar10-50pct-seed0"
