"""The paper's benchmark script: what it plans, and one step of all of it on small images."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rela_lightning import methods
from rela_lightning.cli import main
from tests.image_files import write_classes

SCRIPT = Path(__file__).parent.parent / "examples" / "paper" / "run.py"
BYOL = ["--data", "cifar10", "--methods", "byol", "--switches", "static"]
QUIET = ["--", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def script() -> Any:
    sys.path.insert(0, str(SCRIPT.parent))  # as for a script: `cost` lies beside it
    spec = importlib.util.spec_from_file_location("paper_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_run"] = module
    spec.loader.exec_module(module)
    sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(script: Any, capsys: Any, *words: str) -> list[list[str]]:
    assert script.main([*words, "--dry-run"], execute=None) == 0
    return commands(capsys.readouterr().out)


def commands(said: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in said.splitlines() if not line.startswith("#")]


def rows(said: str) -> dict[str, list[str]]:
    """The table at the end: name, and its columns of runs, hours and disk."""
    found = [re.fullmatch(r"#   (\S.*?) +(\d+) +([\d.]+) +([\d.]+ [kMGT]B)", line) for line in said.splitlines()]
    return {row[1]: [row[2], row[3], row[4]] for row in found if row is not None}


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
    words = ["--data", "cifar100", "--methods", "dino", "--budgets", "20", "--priors", "none", "byol-imagenet"]
    words += ["--switches", "adaptive", "--seeds", "3", "--root", "d", "--frozen-map", "--dry-run"]
    assert script.main([*words, "--", "--trainer.devices=4"], execute=None) == 0
    plan = commands(capsys.readouterr().out)
    assert all(("--trainer.devices=4" in step) == (step[0] == "fit") for step in plan)
    assert [step[0] for step in plan] == ["fit", "export", "targets", "fit", "probe", "fit", "probe", "compare"]
    prior, rela = plan[0], plan[5]
    assert {"--data.root=d/imagenet", "--data.data_ratio=1", "--seed_everything=0"} <= set(prior)
    assert prior[1].endswith("byol_imagenet.yaml")
    assert rela[1].endswith("dino_cifar100.yaml")
    assert {"--data.root=d", "--data.data_ratio=0.2", "--seed_everything=3"} <= set(rela)
    assert "--trainer.callbacks.schedule=AuthorsRule" in rela
    assert "--trainer.callbacks.transport_optimizer=null" in rela
    spec = next(word for word in plan[2] if word.startswith("--prior="))
    assert spec == f"--prior=checkpoint:{plan[1][2]}"  # what was exported
    arch = json.loads(plan[2][2].removeprefix("--prior_kwargs="))
    assert (arch["arch"], arch["image_size"]) == ("torchvision:resnet50", 224)


def test_priors_of_our_own_have_the_normalisation_of_their_data(script):
    from rela_lightning import data

    for known in script.DATA.values():
        module = getattr(data, known.module)
        assert (module.default_size, module.default_mean, module.default_std) == (known.size, known.mean, known.std)


def test_only_what_was_asked_for_is_planned(script, capsys):
    words = [*BYOL, "--budgets", "10", "--priors"]
    assert [step[0] for step in planned(script, capsys, *words, "none")] == ["fit", "probe"]
    assert [step[0] for step in planned(script, capsys, *words, "random")] == ["targets", "fit", "probe"]
    needed = planned(script, capsys, *words, "byol-cifar10")  # a prior that is trained here, and not probed
    assert [step[0] for step in needed] == ["fit", "export", "targets", "fit", "probe"]
    weights = Path(needed[1][2])
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert [step[0] for step in planned(script, capsys, *words, "byol-cifar10")] == ["targets", "fit", "probe"]


def test_options_of_labelling_and_probing_reach_their_commands(script, capsys):
    words = ["--data", "imagenet", "--methods", "byol", "--budgets", "10", "--switches", "static"]
    words += ["--priors", "random", "clip-rn50", "--label-devices", "8", "--label-precision", "bf16-mixed"]
    words += ["--pass-batch-size", "512", "--workers", "12", "--probe-device", "cuda:1"]
    plan = planned(script, capsys, *words)
    random, clip, probe = plan[0], plan[1], plan[3]
    assert "--trainer.precision=32-true" in random and "--trainer.precision=bf16-mixed" in clip
    assert {"--trainer.devices=8", "--batch_size=512", "--num_workers=12"} <= set(random) & set(clip)
    assert {"--device=cuda:1", "--batch_size=512", "--num_workers=12"} <= set(probe)


@pytest.mark.slow
def test_the_planned_commands_are_parsed(script, capsys):
    words = [*BYOL, "--budgets", "10", "--priors", "clip-rn50"]
    for command in planned(script, capsys, *words):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--print_config"])
        said = capsys.readouterr()
        assert stop.value.code == 0, said.err


def test_what_a_plan_takes(script, capsys):
    """By hand: 50,000 images, 100 epochs; 1.8 million images an hour in training, 0.36 in labelling and probing."""
    words = [*BYOL, "--budgets", "10", "50", "--seeds", "0", "1"]
    words += ["--priors", "none", "random", "--training-rate", "500", "--labelling-rate", "100", "--dry-run"]
    assert script.main(words, execute=None) == 0
    said = capsys.readouterr().out
    training, probing, labelling = 2 * (0.1 + 0.5) * 5e6 / 1.8e6, 4 * 6e4 / 3.6e5, 5e4 / 3.6e5
    found = rows(said)
    assert list(found) == ["none", "random", "10%", "50%", "labelling", "in all"]
    assert found["none"][:2] == ["4", f"{training + probing:.1f}"]
    assert found["random"][:2] == ["4", f"{training + probing + labelling:.1f}"]
    assert found["10%"][:2] == ["4", f"{2 * 2 * 5e5 / 1.8e6 + probing:.1f}"]
    assert found["in all"][:2] == ["8", f"{2 * (training + probing) + labelling:.1f}"]
    assert found["none"][2] == "792.0 MB"  # four checkpoints
    assert "500 images a second, as given" in said and "guess" not in said
    assert script.main([word for word in words if word not in ("--labelling-rate", "100")], execute=None) == 0
    assert "hours of labelling: a guess" in capsys.readouterr().out


@pytest.mark.slow
def test_checkpoints_are_as_large_as_the_plan_says(script, tmp_path):
    """Bytes of a checkpoint of model and optimizer, as torch saves it."""
    cost = script.cost
    for name, kind in (("byol", "BYOL"), ("dino", "DINO")):
        for data in ("cifar10", "tiny_imagenet", "imagenet"):
            file = SCRIPT.parent / f"{name}_{data}.yaml"
            options = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"]
            options.pop("optimizer")
            module = getattr(methods, kind)(**options)
            optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad])
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            torch.save([module.state_dict(), optimizer.state_dict()], tmp_path / "both")
            assert (tmp_path / "both").stat().st_size == pytest.approx(cost.FACTS[data].checkpoint[name], rel=0.01)


@pytest.mark.slow
def test_one_step_of_everything_and_what_is_done_is_skipped(script, capsys):
    """Targets, runs without and with ReLA, probes, export of our own prior, a report; then nothing is left."""
    for split, count in (("train", 12), ("test", 4)):
        write_classes(Path("data") / split, count)
    words = ["--data", "cifar10", "--methods", "byol", "--budgets", "50", "--priors", "none", "random"]
    words += ["byol-cifar10"]
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
    assert ran == ["probe", *["fit", "probe"] * 2, "compare"]
    report = json.loads(Path("paper/reports/byol-cifar10/report.json").read_text())
    runs = {run["name"]: run for run in report["runs"]}
    assert len(runs) == 3
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
