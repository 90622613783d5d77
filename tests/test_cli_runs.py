"""Runs that are resumed, renamed, refused, stopped or compared, as a user of `rela` meets them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import yaml
from PIL import Image

from rela_lightning import build_targets
from rela_lightning.cli import main
from rela_lightning.data import DigitsData
from tests.parts import TwoViews, make_digits
from tests.test_cli import BYOL, DIGITS, PRIOR, SMALL, in_a_folder_of_its_own, record  # noqa: F401
from tests.test_targets import Digits, pixel_prior

ACCELERATED = ["fit", "--model=rela_lightning.accelerate", "--model.targets=t", DIGITS, *SMALL[3:]]


class Reader(L.LightningModule):
    """A user's module that reads its own hyper-parameters."""

    def __init__(self, lr: float = 0.1, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, width))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.backbone(batch[0][0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def message(words: list[str], capsys: Any) -> str:
    capsys.readouterr()
    assert main(words) == 2
    return capsys.readouterr().err


def fit(*words: str) -> None:
    assert main([*BYOL, "--trainer.max_epochs=1", *words]) == 0


# ---- accelerate ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inside_accelerate_a_module_has_its_own_hyperparameters(targets):
    assert main([*ACCELERATED, "--model.method=tests.test_cli_runs.Reader", "--model.method.lr=0.2",
                 "--trainer.max_epochs=1", "--name=own"]) == 0  # fmt: skip
    saved = torch.load("runs/own/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert {name: value for name, value in saved.items() if name != "_instantiator"} == {
        "_class_path": "tests.test_cli_runs.Reader", "lr": 0.2, "width": 8,
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_of_accelerate_is_exported(targets):
    method = ["--model.method=rela_lightning.methods.SimSiam", "--model.method.backbone=lightly:resnet-9"]
    assert main([*ACCELERATED, *method, "--model.method.backbone_kwargs={width: 0.125}", "--trainer.max_epochs=1",
                 "--name=sim"]) == 0  # fmt: skip
    assert main(["export", "runs/sim", "backbone.onnx", "--image_size=32"]) == 0
    assert Path("backbone.onnx").stat().st_size > 1000


# ---- resume ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_config_of_a_resumed_run_starts_runs_of_its_own(plain, capsys, recwarn):
    assert main(["fit", "--config=runs/plain/config.yaml", "--ckpt_path=runs/plain", "--trainer.max_epochs=2"]) == 0
    assert record("runs/plain")["epochs"] == 2
    assert yaml.safe_load(Path("runs/plain/config.yaml").read_text())["ckpt_path"] is None
    assert main(["fit", "--config=runs/plain/config.yaml", "--name=second", "--trainer.max_epochs=1"]) == 0
    assert (record("runs/second")["name"], record("runs/second")["epochs"]) == ("second", 1)
    assert record("runs/plain")["name"] == "plain"
    there = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert main(["validate", "--config=runs/plain/config.yaml", "--ckpt_path=runs/plain"]) == 0
    assert "Nothing was measured: BYOL logs nothing" in capsys.readouterr().out
    assert not [each for each in recwarn if "callbacks used to create" in str(each.message)]
    assert sorted(Path().rglob("*")) == there
    said = message([*BYOL, "--ckpt_path=runs/plain", "--name=third", "--trainer.max_epochs=3"], capsys)
    assert "keeps its name" in said and "--name plain" in said
    assert record("runs/plain")["epochs"] == 2 and not Path("runs/third").exists()


@pytest.mark.slow
def test_a_start_that_fails_takes_no_name(targets, tmp_path, capsys):
    rela = ["--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=t", "--name=wanted"]
    manifest = json.loads((targets / "manifest.json").read_text())
    (targets / "manifest.json").write_text(json.dumps({**manifest, "length": manifest["length"] - 1}))
    assert "targets" in message([*BYOL, "--trainer.max_epochs=1", *rela], capsys)
    assert not Path("runs").exists()
    (tmp_path / "mine").mkdir()  # a folder of the user's stays, even empty
    message([*BYOL, "--trainer.max_epochs=1", *rela, f"--trainer.default_root_dir={tmp_path / 'mine'}"], capsys)
    assert (tmp_path / "mine").is_dir()
    fit("--name=wanted")
    assert [folder.name for folder in Path("runs").iterdir()] == ["wanted"]


class Fails(L.Callback):
    """Fails in the first step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        raise RuntimeError("at the start")


@pytest.mark.slow
def test_without_a_step_there_is_no_run(plain, capsys):
    with pytest.raises(RuntimeError, match="at the start"):
        main([*BYOL, "--trainer.max_epochs=1", "--name=none", "--trainer.callbacks+=tests.test_cli_runs.Fails"])
    assert main([*BYOL, "--trainer.max_epochs=0", "--name=none"]) == 0
    assert main(["finetune", "runs/plain", "--trainer.max_epochs=0", "--name=none", "--trainer.accelerator=cpu"]) == 0
    assert capsys.readouterr().out.count("0 steps: there is no run.") == 2
    assert [folder.name for folder in Path("runs").iterdir()] == ["plain"]


class Saves(L.Callback):
    """Keeps a file of its own in the run's folder, then fails, in a process that knows of no step."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        place = Path(trainer.default_root_dir) / "logs" / "mine"
        place.mkdir(parents=True)
        (place / "weights.ckpt").touch()
        raise RuntimeError("after some work")


def test_what_a_run_has_kept_is_never_taken_away():
    with pytest.raises(RuntimeError, match="after some work"):
        main([*BYOL, "--trainer.max_epochs=1", "--name=kept", "--trainer.callbacks+=tests.test_cli_runs.Saves"])
    assert Path("runs/kept/logs/mine/weights.ckpt").is_file() and Path("runs/kept/config.yaml").is_file()


# ---- stopped ---------------------------------------------------------------------------------------------


class Stop(L.Callback):
    """A signal in the second step."""

    def __init__(self, name: str) -> None:
        self.number = signal.Signals[name]

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_answered_with_a_code_and_a_word(name, code, capsys):
    before = signal.getsignal(signal.Signals[name])
    stop = ["--trainer.callbacks+=tests.test_cli_runs.Stop", f"--trainer.callbacks.name={name}"]
    try:
        assert main([*BYOL, "--trainer.max_epochs=1", *stop]) == code
    finally:
        signal.signal(signal.Signals[name], before)
    said = capsys.readouterr().err
    assert "rela: stopped" in said and "--resume" not in said, "there is no checkpoint yet"


def test_other_exits_keep_their_code(monkeypatch):
    def leave(runs: list[str]) -> None:
        raise SystemExit(143)

    monkeypatch.setattr("rela_lightning.cli.compare.compare", leave)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "a", "b"])
    assert stop.value.code == 143


def test_sigterm_ends_labelling_and_the_next_call_goes_on(tmp_path, monkeypatch):
    read = Digits.__getitem__

    def terminated(self: Any, row: int) -> Any:
        if row == 121:  # outside the rows that are sampled beforehand
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, row)

    before, prior = signal.getsignal(signal.SIGTERM), pixel_prior()
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(Digits, "__getitem__", terminated)
        build_targets(prior, Digits(200), tmp_path / "t", batch_size=4)
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert 121 <= prior.network.calls < 190
    store = build_targets(prior, Digits(200), tmp_path / "t", batch_size=4)
    assert len(store) == 200 and prior.network.calls <= 236  # one batch at most twice, and 32 for `rounding`


# ---- compared --------------------------------------------------------------------------------------------


def folder_of_images(root: Path, shade: int) -> Path:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            place = root / split / name
            place.mkdir(parents=True)
            for row in range(4):
                Image.new("RGB", (32, 32), (shade, 100 * label, 10 * row)).save(place / f"{row}.png")
    return root


@pytest.mark.slow
def test_runs_that_were_probed_on_other_images_are_not_compared(tmp_path, capsys):
    data = {name: folder_of_images(tmp_path / name, shade) for name, shade in (("one", 0), ("two", 200))}
    probe = ["probe", PRIOR[0].removeprefix("--prior="), PRIOR[1], "--k=1"]
    images = "--data=rela_lightning.data.ImageFolderData"
    for out, root, size in (("a", "one", 32), ("b", "one", 32), ("c", "two", 32), ("d", "one", 48)):
        words = [*probe, images, f"--data.root={data[root]}", f"--data.image_size={size}", f"--out={out}"]
        assert main(words) == 0
        result = json.loads((Path(out) / "probe.json").read_text())
        run = {**result, "name": out, "seconds": 1.0, "steps": 1, "labelling_seconds": 0.0, "history": []}
        (Path(out) / "run.json").write_text(json.dumps(run))
    assert main(["compare", "a", "b", "--out=ab"]) == 0
    assert "images" in message(["compare", "a", "c", "--out=ac"], capsys)
    assert "image_size" in message(["compare", "a", "d", "--out=ad"], capsys)


def test_a_probe_with_another_number_of_classes_is_refused(capsys):
    probe = ["--trainer.callbacks+=rela_lightning.OnlineLinearProbe", "--trainer.callbacks.num_classes=7"]
    said = message([*BYOL, *probe, "--trainer.max_epochs=1"], capsys)
    assert "OnlineLinearProbe" in said and "10, as in DigitsData" in said and not Path("runs").exists()


class Late(L.LightningDataModule):
    """Knows its classes after `setup` only."""

    classes: list[str] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def setup(self, stage: str) -> None:
        self.classes = [str(digit) for digit in range(10)]

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(make_digits(32, TwoViews()), batch_size=16)


class Counts(L.Callback):
    """No probe; its classes are its own affair."""

    num_classes = 3


@pytest.mark.slow
def test_other_numbers_of_classes_are_nobodys_affair():
    probe = ["--trainer.callbacks+=rela_lightning.OnlineLinearProbe", "--trainer.callbacks.num_classes=12"]
    other = [*probe, "--trainer.callbacks.labels=1", "--trainer.callbacks+=tests.test_cli_runs.Counts"]
    assert main([*BYOL, *other, "--trainer.fast_dev_run=true"]) == 0
    supervised = ["fit", "--model=rela_lightning.methods.Supervised", "--model.num_classes=10", *SMALL[:2], *SMALL[5:]]
    byol = [*BYOL[:4], *SMALL[5:]]
    for words in (byol, supervised):
        data = ["--data=tests.test_cli_runs.Late", "--trainer.fast_dev_run=true"]
        assert main([word for word in words if not word.startswith("--data")] + data) == 0


class Normalised(torch.utils.data.Dataset):
    """Images that were brought to mean 0 once and for all."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> Any:
        return torch.randn(3, 32, 32), row % 10


class Ready(DigitsData):
    """Hands out normalised tensors, and no raw image."""

    def dataset(self, split: Any = "train", views: Any = None) -> Any:
        return Normalised() if views == "probe" else super().dataset(split, views)


def test_data_without_raw_images_are_probed_too():
    words = ["probe", PRIOR[0].removeprefix("--prior="), PRIOR[1], "--k=1", "--data=tests.test_cli_runs.Ready"]
    with pytest.warns(UserWarning, match="sees the images as Ready gives them, not through its own preprocessing"):
        assert main([*words, "--out=o"]) == 0
    assert json.loads(Path("o/probe.json").read_text())["protocol"]["images"] is None
