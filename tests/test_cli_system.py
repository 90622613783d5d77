"""What the operating system refuses, and other encodings: a few words, exit code 2, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from rela_lightning.cli import main
from rela_lightning.cli.system import check_writable, system_error

CONFIG = """
model: {class_path: BYOL, init_args: {backbone: "lightly:resnet-9", backbone_kwargs: {width: 0.125}}}
data: {class_path: DigitsData, init_args: {batch_size: 32}}
trainer:
  accelerator: cpu
  max_epochs: 2
  limit_train_batches: 2
  limit_val_batches: 0
  enable_model_summary: false
  enable_progress_bar: false
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


@pytest.fixture
def limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(capsys: Any, *words: str) -> str:
    assert main(words) == 2
    said: str = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("rela: ") :]


class Full(Callback):
    """From the second epoch on no file may be larger than so many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """As on a disk that fills."""
        if trainer.current_epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "file"), [(100, ""), (20_000, "last.ckpt")])
def test_a_disk_that_fills_in_a_run_leaves_what_was_written(
    size: int, file: str, place: Path, capsys: Any, limit: None
) -> None:
    full = f"--trainer.callbacks=[{{class_path: tests.test_cli_system.Full, init_args: {{size: {size}}}}}]"
    said = refused(capsys, "fit", "--config=c.yaml", "--name=r", full)
    assert "The operating system refuses: File too large." in said and "--resume runs/NAME" in said
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    kept = torch.load("runs/r/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert json.loads(Path("runs/r/run.json").read_text(encoding="utf-8"))["steps"] >= 2
    assert main(["fit", "--config=c.yaml", "--ckpt_path=runs/r"]) == 0
    assert torch.load("runs/r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.slow
def test_folders_that_are_files_are_refused_before_training(place: Path, capsys: Any) -> None:
    Path("file").write_text("mine", encoding="utf-8")
    for option in ("--trainer.default_root_dir=file", "--trainer.default_root_dir=file/below"):
        assert "file" in refused(capsys, "fit", "--config=c.yaml", option)
    saves = (
        "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: file}}]"
    )
    assert "steps" not in (said := refused(capsys, "fit", "--config=c.yaml", saves)) and "file" in said
    assert Path("file").read_text(encoding="utf-8") == "mine" and not Path("runs").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_training(
    place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root may write everywhere, the system's answer is played."""
    import tempfile

    def read_only(dir: Any, **_: Any) -> Any:
        if Path(dir).name != "checkpoints":
            return Path(os.devnull).open("w", encoding="utf-8")
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), f"{dir}/tmp1")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    said = refused(capsys, "fit", "--config=c.yaml", "--name=r")
    assert "refuses: Permission denied." in said and "runs/r/checkpoints\n" in said and "may write to" in said
    assert not Path("runs").exists()


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable([tmp_path / "a" / "b"])
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b"]
    with pytest.raises(OSError, match="/proc/none"):
        check_writable([Path("/proc/none")])


@pytest.mark.parametrize("command", ["fit", "probe", "targets"])
def test_a_config_in_another_encoding_is_named(command: str, place: Path, capsys: Any) -> None:
    Path("latin.yaml").write_bytes("name: caf\u00e9\n".encode("latin-1"))
    said = refused(capsys, command, "--config=latin.yaml")
    assert "not text in utf-8" in said and "byte 0xe9 at position 9, latin.yaml" in said and "save it as UTF-8" in said


def test_what_is_no_matter_of_the_system_keeps_its_traceback() -> None:
    assert system_error(RuntimeError("shapes do not fit")) is None and system_error(KeyError("a")) is None
    found = RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/1")
    assert "could not be written" in str(system_error(found))
    assert "a locale" in str(system_error(UnicodeEncodeError("ascii", "caf\u00e9", 3, 4, "ordinal")))
    trace = "Original Traceback (most recent call last):\n  File x\nOSError: image file is truncated\n"
    worker = OSError(f"Caught OSError in DataLoader worker process 0.\n{trace}")
    assert str(system_error(worker)) == "image file is truncated"


def rela(*words: str, after: str = "") -> subprocess.CompletedProcess[str]:
    return started(["-m", "rela_lightning", *words], after)


def started(words: list[str], after: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """An interpreter of its own."""
    here = str(Path(__file__).parents[1])
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {after}', "-", sys.executable, *words],
        capture_output=True, text=True, errors="replace", check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_a_reader_who_leaves_stops_nothing(place: Path) -> None:
    bar = "--trainer.enable_progress_bar=true"
    done = rela("fit", "--config=c.yaml", "--name=r", bar, after="| true")
    assert done.returncode == 0 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert json.loads(Path("runs/r/run.json").read_text(encoding="utf-8"))["steps"] == 4
    assert rela("--help", after="| true").returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_answer_that_could_not_be_written_is_a_failure() -> None:
    done = rela("--help", after="> /dev/full")
    assert done.returncode == 2 and "No space left on device" in done.stderr and "standard output" in done.stderr


@pytest.mark.slow
def test_a_fresh_process_knows_short_names_and_says_nothing_that_nobody_can_act_on_in_a_locale_without_letters(
    place: Path,
) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    Path("named.yaml").write_text("name: caf\u00e9\n", encoding="utf-8")
    Path("both.py").write_text(  # a config in other letters is refused; the run of that name goes well
        "import sys; from rela_lightning.cli import main; "
        "assert main(['fit', '--config=c.yaml', '--config=named.yaml']) == 2; sys.exit(main())"
    )
    words = ["--model", "Supervised", "--model.num_classes", "10", "--model.backbone=lightly:resnet-9"]
    words += ["--model.backbone_kwargs={width: 0.125}", "--data", "DigitsData", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=0.5"]
    done = started(["both.py", "fit", *words, "--name=caf\u00e9"], **plain)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("runs/caf\u00e9/run.json").read_text(encoding="utf-8"))["steps"] == 2
    assert "Traceback" not in done.stderr and "named.yaml" in done.stderr and "PYTHONUTF8=1" in done.stderr
    said = done.stdout + done.stderr
    assert "GPU available" in said
    for noise in ("Tip", "litlogger", "LeafSpec", "args parameter", "ranks is zero", "logging interval"):
        assert noise not in said
    model = yaml.safe_load(Path("runs/caf\u00e9/config.yaml").read_text(encoding="utf-8"))["model"]
    assert model["class_path"].endswith(".Supervised") and model["init_args"]["num_classes"] == 10


@pytest.mark.parametrize("content", ["", "- 1\n", "model: [1\n x", "a: \0\n"])
def test_a_config_of_a_run_that_is_cut_off_or_of_another_shape(tmp_path: Path, content: str, capsys: Any) -> None:
    (tmp_path / "run.json").write_text('{"checkpoint": "a.ckpt"}')
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    (tmp_path / "config.yaml").write_text(content)
    assert main(["probe", str(tmp_path)]) == 2
    assert "rela: The run's config" in capsys.readouterr().err


def test_a_record_that_is_nested_without_end(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.json").write_text("[" * 100_000)
    assert main(["probe", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
