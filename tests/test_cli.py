"""The `rela` command: LightningCLI with our names, a run's folder, and what follows from it."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only

import rela_lightning
from rela_lightning.cli import COMMANDS, main, with_names
from rela_lightning.cli.compare import compare
from rela_lightning.runs.folder import choose_folder
from rela_lightning.runs.rebuild import build, find_subject

SMALL = [
    "--model.backbone=lightly:resnet-9",
    "--model.backbone_kwargs={width: 0.125}",
    "--data=rela_lightning.data.DigitsData",
    "--data.batch_size=64",
    "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
BYOL = ["fit", "--model=rela_lightning.methods.BYOL", *SMALL]
PRIOR = ["--prior=random:lightly:resnet-9", "--prior_kwargs={width: 0.125, image_size: 32, mean: 0.5, std: 0.5}"]
DIGITS = "--data=rela_lightning.data.DigitsData"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def record(folder: str) -> dict:
    return json.loads((Path(folder) / "run.json").read_text())


def printed(words: list[str], capsys) -> dict:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


# ---- one run ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_one_folder_and_goes_on_where_it_stopped(capsys):
    assert main([*BYOL, "--trainer.max_epochs=1", "--seed_everything=3"]) == 0
    assert "runs/byol-digits" in capsys.readouterr().out
    first = record("runs/byol-digits")
    assert (first["method"], first["steps"], first["epochs"], first["prior"]) == ("BYOL", 2, 1, None)
    assert first["data"]["name"] == "DigitsData"
    assert first["budget"]["max_epochs"] == 1
    assert first["seconds"] > first["labelling_seconds"] == 0
    assert (Path("runs/byol-digits") / first["checkpoint"]).is_file()
    assert yaml.safe_load(Path("runs/byol-digits/config.yaml").read_text())["seed_everything"] == 3
    assert list(Path("runs/byol-digits/logs").glob("*"))
    assert not Path("lightning_logs").exists()

    again = ["fit", "--config=runs/byol-digits/config.yaml", "--trainer.max_epochs=2", "--ckpt_path=runs/byol-digits"]
    assert main(again) == 0
    second = record("runs/byol-digits")
    assert (second["steps"], second["epochs"]) == (4, 2)
    assert second["seconds"] > first["seconds"]
    saved = torch.load("runs/byol-digits/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert [entry.name for entry in Path("runs").iterdir()] == ["byol-digits"]


def test_a_second_run_takes_a_folder_of_its_own():
    assert choose_folder(None, "byol", None) == Path("runs/byol")
    assert choose_folder(None, "byol", None) == Path("runs/byol-2")  # also while the first has written nothing yet
    Path("runs/byol/run.json").write_text("{}")
    assert choose_folder(None, "byol", Path("runs/byol/checkpoints/last.ckpt")) == Path("runs/byol").absolute()
    assert choose_folder("elsewhere", "byol", None) == Path("elsewhere")


def test_other_processes_of_a_run_make_no_folder(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert choose_folder(None, "byol", None) == Path("runs/byol")
    assert not Path("runs").exists()


class Interrupted(Callback):
    """Stops the second epoch as Ctrl-C or a killed process would: no more hooks that write."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise RuntimeError("killed")


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_the_record_of_its_whole_epochs():
    with pytest.raises(RuntimeError, match="killed"):
        main([*BYOL, "--trainer.max_epochs=3", "--trainer.callbacks+=tests.test_cli.Interrupted"])
    killed = record("runs/byol-digits")
    assert (killed["epochs"], killed["steps"]) == (1, 2)
    assert main(["probe", "runs/byol-digits", "--epochs=5"]) == 0  # the checkpoint is found
    assert 0 < record("runs/byol-digits")["linear_top1"] <= 1


@pytest.mark.slow
def test_the_record_names_the_last_checkpoint_and_an_earlier_one_is_probed_apart():
    words = [
        "--trainer.max_epochs=2", "--name=r", "--trainer.callbacks+=ModelCheckpoint",
        "--trainer.callbacks.monitor=train_loss", "--trainer.callbacks.mode=max", "--trainer.callbacks.save_last=true",
        "--trainer.callbacks.filename=best-{epoch}", "--trainer.callbacks.save_top_k=2",
        "--trainer.callbacks.dirpath=runs/r/checkpoints",
    ]  # fmt: skip
    assert main([*BYOL, *words]) == 0
    run = record("runs/r")
    assert run["checkpoint"] == "checkpoints/last.ckpt"
    assert run["budget"]["max_steps"] is None
    early = "runs/r/checkpoints/best-epoch=0.ckpt"
    assert main(["probe", early, "--epochs=5", "--device=cpu"]) == 0
    assert "linear_top1" not in record("runs/r")  # its steps and seconds are those of the end
    found = json.loads(Path("runs/r/probe-best-epoch=0.json").read_text())
    assert found["checkpoint"].endswith("best-epoch=0.ckpt") and (found["probed_steps"], run["steps"]) == (2, 4)
    assert main(["probe", "runs/r", "--epochs=5", "--device=cpu"]) == 0
    assert json.loads(Path("runs/r/probe.json").read_text())["linear_top1"] == record("runs/r")["linear_top1"]


@pytest.mark.slow
def test_probes_log_beside_each_other_and_a_second_loader():
    words = [
        "--trainer.max_epochs=1", "--name=s", "--trainer.callbacks+=KNNProbe", "--trainer.callbacks.max_bank=192",
        "--trainer.callbacks+=OnlineLinearProbe", "--trainer.callbacks.num_classes=10",
    ]  # fmt: skip
    assert main(["fit", "--model=rela_lightning.methods.Supervised", "--model.num_classes=10", *SMALL, *words]) == 0
    [point] = record("runs/s")["history"]
    saved = torch.load("runs/s/checkpoints/last.ckpt", weights_only=True)
    config = yaml.safe_load(Path("runs/s/config.yaml").read_text())
    module, data = build(Path("runs/s/config.yaml"))
    module.load_state_dict(saved["state_dict"])
    module.eval()
    from sklearn.neighbors import KNeighborsClassifier

    from rela_lightning.probe import extract_features

    rows = [row * 450 // 192 for row in range(192)]  # three whole batches
    x, y = extract_features(module.backbone, data.dataset("train", "probe"))
    test_x, test_y = extract_features(module.backbone, data.dataset("val", "probe"))
    wanted = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x[rows], y[rows])
    assert point["knn_top1"] == pytest.approx(wanted.score(test_x, test_y), abs=3 / 450)
    head = next(state["head"] for key, state in saved["callbacks"].items() if "OnlineLinearProbe" in key)
    linear = (test_x @ head["weight"].T + head["bias"]).argmax(1)
    assert point["linear_top1"] == pytest.approx((linear == test_y).double().mean().item(), abs=2 / 450)
    assert len(config["trainer"]["callbacks"]) == 2


@pytest.mark.slow
def test_a_validation_without_a_probe_is_no_point_of_the_history():
    probes = ["--trainer.callbacks+=KNNProbe", "--trainer.callbacks.every_n_epochs=2"]
    assert (
        main(["fit", "--model=rela_lightning.methods.BYOL", *SMALL, "--trainer.max_epochs=3", "--name=k", *probes]) == 0
    )
    assert record("runs/k")["steps"] == 6 and [point["steps"] for point in record("runs/k")["history"]] == [4]


@pytest.mark.slow
def test_validate_reads_the_checkpoint_and_leaves_nothing_behind(capsys):
    supervised = ["--model=rela_lightning.methods.Supervised", "--model.num_classes=10", *SMALL]
    assert main(["fit", *supervised, "--trainer.max_epochs=1", "--name=s"]) == 0
    assert main(["validate", *supervised, "--ckpt_path=runs/s", "--trainer.limit_val_batches=1"]) == 0
    assert "val_top1" in capsys.readouterr().out
    assert sorted(entry.name for entry in Path().iterdir()) == ["runs"]


@pytest.mark.slow
def test_the_callback_from_the_command_line_with_short_names(targets):
    words = [
        "fit", "--model=rela_lightning.methods.BYOL", *SMALL, "--trainer.max_epochs=2", "--name=fast",
        "--trainer.callbacks+=rela_lightning.ReLACallback", f"--trainer.callbacks.targets={targets}",
        "--trainer.callbacks.schedule=Switch", "--trainer.callbacks.schedule.at=0.5",
        "--trainer.callbacks.transport_optimizer.lr=0.002",
        "--trainer.callbacks+=KNNProbe", "--trainer.callbacks.k=5",
    ]  # fmt: skip
    assert main(words) == 0
    run = record("runs/fast")
    assert run["prior"] == "random:lightly:resnet-9"
    assert run["schedule"] == "Switch"
    store = json.loads((targets / "manifest.json").read_text())
    assert run["labelling_seconds"] == store["labelling_seconds"]
    assert run["labelling_seconds"] < run["switch_seconds"] < run["seconds"]
    assert [point["steps"] for point in run["history"]] == [2, 4]
    assert all(0 < point["knn_top1"] <= 1 for point in run["history"])
    assert yaml.safe_load(Path("runs/fast/config.yaml").read_text())["trainer"]["callbacks"][0]["init_args"][
        "transport_optimizer"
    ] == {"class_path": "torch.optim.AdamW", "init_args": _has(lr=0.002)}
    saved = torch.load("runs/fast/checkpoints/last.ckpt", weights_only=True)
    assert any("ReLACallback" in key for key in saved["callbacks"])


class _has(dict):
    """Equal to every dict that has these items."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and all(other.get(key) == value for key, value in self.items())

    __hash__ = None


@pytest.mark.slow
def test_accelerate_is_a_model_and_its_run_can_be_probed(targets):
    config = {
        "model": {
            "class_path": "rela_lightning.accelerate",
            "init_args": {
                "method": {
                    "class_path": "rela_lightning.methods.SimSiam",
                    "init_args": {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.125}},
                },
                "targets": str(targets),
                "schedule": {"class_path": "rela_lightning.schedules.Switch", "init_args": {"at": 0.4}},
            },
        },
        "data": {"class_path": "rela_lightning.data.DigitsData", "init_args": {"batch_size": 64}},
        "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config=c.yaml"]) == 0
    assert record("runs/simsiam+rela-digits")["prior"] == "random:lightly:resnet-9"
    subject = find_subject("runs/simsiam+rela-digits")
    saved = torch.load(subject.checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(subject.network.conv1.weight, saved["backbone.conv1.weight"])


@pytest.mark.slow
def test_fast_dev_run_writes_nothing():
    assert main([*BYOL, "--trainer.fast_dev_run=true"]) == 0
    assert list(Path().iterdir()) == []


# ---- targets, probe, compare -------------------------------------------------------------------------------


@pytest.mark.slow
def test_targets_probe_and_compare_make_one_story(targets, plain, capsys):
    from rela_lightning import TargetStore

    assert len(TargetStore(targets)) == 450
    words = ["--trainer.callbacks+=rela_lightning.ReLACallback", f"--trainer.callbacks.targets={targets}"]
    assert main([*BYOL, "--trainer.max_epochs=1", "--name=rela", *words]) == 0
    for name in ("plain", "rela"):
        assert main(["probe", f"runs/{name}", "--solver=lbfgs", "--l2=100", "--device=cpu"]) == 0
    assert main(["compare", "runs/plain", "runs/rela", "--out=report"]) == 0
    shown = capsys.readouterr().out
    assert "plain" in shown
    report = json.loads(Path("report/report.json").read_text())
    for run in report["runs"]:
        probed = json.loads(Path(f"runs/{run['name']}/probe.json").read_text())
        assert run["linear_top1"] == record(f"runs/{run['name']}")["linear_top1"] == probed["linear_top1"]
        assert f"{100 * run['knn_top1']:.1f}" in shown
    assert report["protocol"]["probe"]["linear"]["solver"] == "lbfgs"
    assert main(["compare", "report", "runs/plain", "--out=more"]) == 0  # a report is a list of runs; names stay apart
    assert len({run["name"] for run in json.loads(Path("more/report.json").read_text())["runs"]}) == 3


@pytest.mark.slow
def test_the_probe_agrees_with_scikit_learn_and_a_prior_sees_its_own_preprocessing():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    from rela_lightning import load_prior
    from rela_lightning.data import Digits
    from rela_lightning.probe import extract_features

    words = [PRIOR[0].removeprefix("--prior="), PRIOR[1], DIGITS, "--solver=lbfgs", "--k=1", "--standardise=true"]
    assert main(["probe", *words]) == 0
    found = json.loads(next(Path().glob("probe-*.json")).read_text())
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=0.5, std=0.5)
    (x, y), (test_x, test_y) = (
        extract_features(prior, Digits(s, transform=prior.preprocess)) for s in ("train", "test")
    )
    nearest = KNeighborsClassifier(1, metric="cosine").fit(x, y).score(test_x, test_y)
    assert found["knn_top1"] == pytest.approx(nearest, abs=2 / 450)
    scale = np.where(x.std(0, correction=0) > 1e-6, x.std(0, correction=0), 1.0)
    linear = LogisticRegression(C=1.0, max_iter=3000).fit((x - x.mean(0)) / scale, y)
    assert found["linear_top1"] == pytest.approx(linear.score((test_x - x.mean(0)) / scale, test_y), abs=3 / 450)


# ---- configs -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_command_prints_a_config_that_it_reads(capsys):
    for command in COMMANDS:
        model = ["--model=rela_lightning.methods.BYOL"] if command in ("fit", "validate", "test", "predict") else []
        start = ["lightly:resnet-9"] if command == "finetune" else []
        config = printed([command, *start, *model, "--print_config"], capsys)
        Path("c.yaml").write_text(yaml.safe_dump(config))
        assert printed([command, *start, "--config=c.yaml", "--print_config"], capsys) == config
        assert command != "demo" or config == {"out": "rela_demo", "seconds": 36.0, "seed": 0}


def test_later_values_win_and_the_environment_counts(capsys, monkeypatch):
    Path("c.yaml").write_text("{out: a, seconds: 5}")
    monkeypatch.setenv("RELA_DEMO__SEED", "4")
    config = printed(["demo", "--config=c.yaml", "--seconds=7", "--print_config"], capsys)
    assert config == {"out": "a", "seconds": 7.0, "seed": 4}
    monkeypatch.setenv("RELA_FIT__TRAINER__MAX_EPOCHS", "9")
    fit = printed(["fit", "--model=rela_lightning.methods.BYOL", "--print_config"], capsys)
    assert fit["trainer"]["max_epochs"] == 9
    assert fit.get("weights_only", True) is True  # an option since lightning 2.6
    assert fit["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.AdamW"


def test_bare_words_go_to_the_options_in_order():
    both = '--runs=["a", "b"]'
    for words in (["a", "b"], ["--runs", "a", "b"], ["--runs=a", "b"]):
        assert with_names([*words, "--out", "c"], compare) == [both, "--out", "c"]
    assert with_names(["--out", "c", "--runs", "a"], compare) == ["--out", "c", '--runs=["a"]']
    for words in (["--runs", "[a, b]"], ["--runs=[a, b]"], ["[a, b]"]):
        assert with_names(words, compare) == ["--runs=[a, b]"]
    assert with_names(["--runs+", "a", "--runs+=b"], compare) == ["--runs+", "a", "--runs+=b"]
    assert with_names([], compare) == []

    def export(checkpoint: str, path: str, *, format: str = "x") -> None: ...

    assert with_names(["a", "b", "c"], export) == ["--checkpoint=a", "--path=b", "--format=c"]
    assert with_names(["--path", "a"], export) == ["--path", "a"]


@pytest.mark.parametrize(
    ("owner", "option"),
    [
        (rela_lightning.ReLACallback, "transport_optimizer"),
        (rela_lightning.ReLAModule, "optimizer"),
        (rela_lightning.LinearProbe, "optimizer"),
        (rela_lightning.OnlineLinearProbe, "optimizer"),
        (rela_lightning.methods.Method, "optimizer"),
    ],
)
def test_default_optimizers_pickle(owner, option):
    function = inspect.signature(owner).parameters[option].default
    assert pickle.loads(pickle.dumps(function)) is function
    assert function([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] in (1e-3, 3e-4)


@pytest.mark.slow
def test_help_needs_no_torch():
    code = (
        "import sys; from rela_lightning.cli import main\n"
        "main(['demo', '--help'])\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'lightning', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.rstrip().endswith("[]")
    assert all(command in done.stdout for command in COMMANDS)
    assert all(option in done.stdout for option in ("--out", "--seconds", "--seed"))
