"""Mistakes on the command line get a short message and exit code 2, before anything is trained or written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from rela_lightning.cli import main

FIT = ["fit", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
BYOL = "--model=rela_lightning.methods.BYOL"
SMALL = ["--model.backbone=lightly:resnet-9", "--model.backbone_kwargs={width: 0.125}"]
DIGITS = ["--data=rela_lightning.data.DigitsData", "--data.batch_size=64", "--trainer.limit_train_batches=1"]
PRIOR = "--prior_kwargs={width: 0.125, image_size: 32, mean: 0.5, std: 0.5}"
NO_PACKAGE = "--trainer.logger=tests.test_cli_refused.NeedsPackage"
RELA = "--trainer.callbacks+=rela_lightning.ReLACallback"


class NeedsPackage(CSVLogger):
    """A logger whose package is not installed."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("No module named 'no_pkg'")


class Nameless(BoringModel):
    """Its network has no usual name."""

    def __init__(self) -> None:
        super().__init__()
        self.my_own = self.layer
        del self.layer


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers hold the stream of an earlier test


def refused(words: list[str], capsys) -> str:
    """The message of a command that ends with code 2."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2, message
    assert "Traceback" not in message
    assert "NestedArg" not in message
    assert len(message.splitlines()) < 12
    assert not Path("runs").exists() or all("before" in folder.name for folder in Path("runs").iterdir())
    return message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fitt"], ["no command fitt", "perhaps fit"]),
        ([*FIT], ["--model", "--config FILE"]),
        ([*FIT, "--model=BYOLL"], ["no class BYOLL", "perhaps BYOL", "SimSiam"]),
        ([*FIT, "--model=rela_lightning.methods.SimSiamm"], ["no class", "perhaps SimSiam"]),
        ([*FIT, "--model=no_such_package.BYOL"], ["No module named 'no_such_package'"]),
        ([*FIT, "--model=torch.nn.Linear"], ["does not correspond to a subclass of LightningModule"]),
        ([*FIT, "--model=pytorch_lightning.demos.boring_classes.BoringModel"], ["pytorch_lightning is trained by"]),
        ([*FIT, BYOL, "--data=DigitData"], ["no class DigitData for `--data`", "perhaps DigitsData"]),
        ([*FIT, BYOL, "--trainre.devices=1"], ["no option --trainre.devices", "perhaps --trainer.devices"]),
        ([*FIT, BYOL, "--trainer.max_epoch=1"], ["no option --trainer.max_epoch.", "perhaps --trainer.max_epochs"]),
        ([*FIT, BYOL, "--model.momentun=1"], ["BYOL has no option `momentun`", "perhaps momentum"]),
        ([*FIT, BYOL, "--model.queue_size=4"], ["BYOL has no option `queue_size`", "an option of MoCoV2"]),
        ([*FIT, BYOL, "--data.batch_size=4", *DIGITS[:1]],
         ["`--data.batch_size` is an option of a class", "ImageNetData", "--data NAME --data.batch_size VALUE"]),
        ([*FIT, BYOL], ["no images to train on", "--data"]),
        ([*FIT, BYOL, *DIGITS[:1], "--data.batch_size=3.5"], ["`--data.batch_size`", "expected: int\n"]),
        ([*FIT, BYOL, "--data=ImageFolderData", "--data.root=.", "--data.on_error=ignore"], ["'raise', 'skip'\n"]),
        ([*FIT, BYOL, "--trainer.max_steps=many"], ["--trainer.max_steps", "int", "many"]),
        ([*FIT, BYOL, "--model.projector_dim=0"], ["`projector_dim` is out of range"]),
        ([*FIT, BYOL, "--config=none.yaml"], ["File does not exist", "none.yaml"]),
        ([*FIT, BYOL, RELA, "--trainer.callbacks.target=t"], ["has no option `target`", "perhaps targets"]),
        (
            [*FIT, BYOL, RELA, "--trainer.callbacks.targets=t", "--trainer.callbacks.schedule=Swich"],
            ["no class Swich for `--trainer.callbacks.schedule`", "perhaps Switch"],
        ),
        ([*FIT, BYOL, RELA], ["ReLACallback needs targets"]),
        ([*FIT, BYOL, "--trainer.callbacks+=CollapseMonitor", "--trainer.callbacks.num_samples=0"],
         ["settings cannot work", "num_samples=0"]),
        ([*FIT, "--model=rela_lightning.methods.Supervised"], ["Supervised needs num_classes", "--model.num_classes"]),
        ([*FIT, BYOL, *DIGITS, "--ckpt_path=none.ckpt"], ["no such checkpoint", "none.ckpt"]),
        ([*FIT, BYOL, *DIGITS, "--trainer.devices=0"], ["not a valid input"]),
        ([*FIT, BYOL, *DIGITS, "--ckpt_path=last"], ["does not say of which run", "--ckpt_path runs/NAME"]),
        ([*FIT, BYOL, *DIGITS, "--name=../elsewhere"], ["not valid for a folder", "../elsewhere"]),
        ([*FIT, BYOL, *DIGITS, "--trainer.accelerator=abacus"], ["abacus", "Available names"]),
        ([*FIT, BYOL, *DIGITS, "--trainer.strategy=none"], ["invalid strategy name"]),
        ([*FIT, BYOL, *DIGITS, NO_PACKAGE], ["cannot be imported", "no_pkg"]),
        ([*FIT, "BYOL"], ["no option BYOL", "--name value"]),
        ([*FIT, BYOL, *DIGITS, "--model.backbone_kwargs={width: 1}"], ["resnet18 could not be built", "'width'"]),
        ([*FIT, BYOL, *DIGITS, "--model.optimizer=SGD", "--model.optimizer.momentun=0.9"],
         ["SGD has no option `momentun`", "perhaps momentum"]),
        ([*FIT, BYOL, *SMALL, *DIGITS, "--lr_scheduler=WarmupCosine", "--lr_scheduler.warmup_epochs=2"],
         ["goes with `--optimizer`", "WarmupCosine alone", "--model.lr_scheduler"]),
        ([*FIT, BYOL, *SMALL, *DIGITS, "--optimizer=SGD", "--optimizer.lr=1", "--model.exclude_bias_and_norm=true"],
         ["takes the place of the method's own", "beside --model.exclude_bias_and_norm\n", "by --model.optimizer"]),
        ([*FIT, BYOL, *DIGITS, "--optimizer=Adamm"], ["no class Adamm", "perhaps Adam"]),
        ([*FIT, BYOL, *DIGITS, "--compile=fast"], ["no such backend", "inductor"]),
        ([*FIT, "--model=tests.test_cli_refused.Nameless", *DIGITS[:1], "--compile=eager"], ["not found", "my_own"]),
        (["targets", "--prior=timm:none", *DIGITS[:1], "--data=ImageFolderData", "--data.root=no", "--path=t"],
         ["data folder is not there"]),
        (["targets", "--prior=timmm:x", *DIGITS[:1], "--path=t"], ["no such prior", "timm:<model>"]),
        (["targets", "--prior=timm:x", "--data=Digits", "--path=t"], ["no class Digits", "perhaps DigitsData"]),
        (["probe", "random:lightly:resnet-9", PRIOR, *DIGITS[:1], "--device=abacus"], ["no such device", "abacus"]),
        (["rank", "random:lightly:resnet-9", PRIOR, *DIGITS[:1], "--device=gpu"], ["no such device", "gpu"]),
        (["rank", "random:lightly:resnet-9", PRIOR, *DIGITS[:1], "--out=."], ["output is a folder"]),
        (["rank", "--priors", *DIGITS[:1]], ["found:    none"]),
        (["probe", "random:lightly:resnet-9", PRIOR, *DIGITS[:1], "--k=0"], ["`k` is out of range"]),
        (["probe", "nowhere"], ["no such checkpoint", "nowhere"]),
        (["compare", "nowhere", "there"], ["neither runs nor reports", "nothing at nowhere, nothing at there"]),
        (["demo", "--sedonds=3"], ["no option --sedonds", "perhaps --seconds"]),
    ],
)  # fmt: skip
def test_messages(words, said, capsys):
    message = refused(words, capsys)
    for part in said:
        assert part in message


def test_an_empty_checkpoint(capsys):
    Path("text.ckpt").write_text("seed_everything: 0\n")  # torch's reader falls over it
    assert "cannot be read" in refused([*FIT, BYOL, *SMALL, *DIGITS, "--ckpt_path=text.ckpt"], capsys)
    Path("empty.ckpt").touch()
    message = refused([*FIT, BYOL, *SMALL, *DIGITS, "--ckpt_path=empty.ckpt"], capsys)
    assert "cannot be read" in message and "empty.ckpt" in message


def test_options_of_another_method_in_a_config_file(capsys):
    config = {"model": {"class_path": "rela_lightning.methods.BYOL", "init_args": {"queue_size": 8}}}
    Path("c.yaml").write_text(yaml.safe_dump(config))
    message = refused([*FIT, "--config=c.yaml"], capsys)
    assert "BYOL has no option `queue_size`" in message
    assert "MoCoV2" in message


def test_an_option_that_a_config_file_misspells(capsys):
    Path("c.yaml").write_text("trainer: {max_epohcs: 3}")
    message = refused([*FIT, BYOL, "--config=c.yaml"], capsys)
    assert "--trainer.max_epochs" in message


# ---- data ------------------------------------------------------------------------------------------------


def images(folder: str, number: int = 4) -> None:
    Path(folder).mkdir(parents=True)
    for row in range(number):
        Image.new("RGB", (16, 16), (40 * row, 90, 30)).save(Path(folder) / f"{row}.png")


def on_folder(*more: str) -> list[str]:
    data = [
        "--data=rela_lightning.data.ImageFolderData",
        "--data.root=d",
        "--data.image_size=32",
        "--data.batch_size=2",
    ]
    return [*FIT, BYOL, *SMALL, *data, *more]


def test_a_data_folder_that_is_not_there(capsys):
    message = refused(on_folder(), capsys)
    assert "data folder is not there" in message


def test_an_empty_class_folder(capsys):
    images("d/train/a")
    images("d/train/b")
    Path("d/train/c").mkdir()
    message = refused(on_folder(), capsys)
    assert "class folder holds no" in message
    assert "c" in message


@pytest.mark.slow
def test_an_unreadable_image_is_named_and_can_be_skipped(capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "home")
    images("d/train/a")
    images("d/train/b")
    Path("d/train/b/broken.png").write_bytes(b"no image")
    words = on_folder("--data.drop_last=false", "--name=before")
    message = refused(words, capsys)
    assert "broken.png" in message
    assert "on_error" in message
    in_worker = refused([*words, "--data.num_workers=1"], capsys)
    assert in_worker.splitlines()[0] == message.splitlines()[0]
    assert "broken.png" in in_worker
    assert "worker" not in in_worker
    assert main([*words, "--data.on_error=skip"]) == 0


def test_another_number_of_classes(capsys):
    words = [*FIT, "--model=rela_lightning.methods.Supervised", *SMALL, *DIGITS, "--model.num_classes=7"]
    message = refused(words, capsys)
    assert "another number of classes" in message
    assert "10, as in DigitsData" in message


# ---- runs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_of_another_method_or_with_other_options(capsys):
    assert main([*FIT, BYOL, *SMALL, *DIGITS, "--name=before"]) == 0
    saved = Path("runs/before/checkpoints/last.ckpt")
    message = refused([*FIT, "--model=rela_lightning.methods.MoCoV2", *SMALL, *DIGITS, f"--ckpt_path={saved}"], capsys)
    assert "written by another method, BYOL" in message
    assert "--model BYOL" in message
    Path("runs/before/run.json").rename("hidden.json")  # the checkpoint alone tells as well
    message = refused([*FIT, "--model=rela_lightning.methods.MoCoV2", *SMALL, *DIGITS, f"--ckpt_path={saved}"], capsys)
    assert "written by another method, BYOL" in message
    Path("hidden.json").rename("runs/before/run.json")
    other = [*FIT, BYOL, *SMALL, *DIGITS, "--model.projector_dim=32", f"--ckpt_path={saved}"]
    message = refused(other, capsys)
    assert "does not fit this BYOL" in message
    assert "projector" in message
    message = refused([*FIT, BYOL, *SMALL, *DIGITS, "--trainer.default_root_dir=runs/before"], capsys)
    assert "holds a run already" in message
    message = refused(["compare", "runs/before", "runs/before"], capsys)
    assert "was not probed" in message


def test_a_mistake_in_the_users_own_code_keeps_its_traceback():
    with pytest.raises(ValueError, match="mine"):
        main([*FIT, "--model=tests.test_cli_refused.Broken", *DIGITS])


class Broken(BoringModel):
    """Its author has to see where it breaks."""

    def __init__(self) -> None:
        super().__init__()
        raise ValueError("mine")


def test_reports_that_something_else_wrote(capsys):
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "run.json").write_text(json.dumps({"linear_top1": 0.5, "knn_top1": 0.5}))
    assert "has no name" in refused(["compare", "a", "b"], capsys)
    for name in ("a", "b"):
        Path(name, "run.json").write_text(json.dumps({"name": name, "linear_top1": 0.5, "knn_top1": 0.5}))
    assert "`seconds` is missing" in refused(["compare", "a", "b"], capsys)


def test_runs_probed_in_different_ways_are_not_compared(capsys):
    for name, solver in (("a", "adam"), ("b", "lbfgs")):
        run = {"name": name, "seconds": 1, "labelling_seconds": 0, "steps": 1, "linear_top1": 0.5, "knn_top1": 0.5}
        Path(name).mkdir()
        whole = {**run, "history": [], "protocol": {"linear": {"solver": solver}}}
        (Path(name) / "run.json").write_text(json.dumps(whole))
    assert "probed in different ways" in refused(["compare", "a", "b"], capsys)
    assert main(["compare", "a", "b/../a", "--out=o"]) == 0
    assert "report already" in refused(["compare", "a", "a", "--out=o"], capsys)
