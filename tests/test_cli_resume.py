"""`rela fit --resume RUN`: half a command is enough to go on, and the run says which."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rela_lightning.cli import main
from rela_lightning.errors import ConfigError
from rela_lightning.runs.resume import resumed
from tests.test_random_state import RUN, saved

STOP = "--trainer.callbacks=[{class_path: tests.test_random_state.Stop, init_args: {epoch: 1}}]"


@pytest.mark.slow
def test_the_line_at_an_interrupt_is_enough_to_end_as_if_there_had_been_none(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--name=whole"]) == 0
    assert main([*RUN, "--name=parts", STOP]) == 130
    said = capsys.readouterr().err
    line = re.search(r"go on from the last checkpoint by: rela (.*)\n", said)
    assert line is not None and said.index(line[0]) < said.index("rela: stopped")
    record = json.loads(Path("runs/parts/run.json").read_text())
    assert (Path("runs/parts") / record["checkpoint"]).is_file() and record["steps"] == 2
    assert main([*line[1].split(), "--trainer.callbacks=null"]) == 0
    whole, parts = saved("whole")["state_dict"], saved("parts")["state_dict"]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert {folder.name for folder in Path("runs").iterdir()} == {"whole", "parts"}
    config = yaml.safe_load(Path("runs/parts/config.yaml").read_text())
    assert config["resume"] is None and config["ckpt_path"] is None

    assert main(["fit", "--resume=parts", "--trainer.callbacks=null", "--trainer.max_epochs=4"]) == 0  # by its name
    assert saved("parts")["global_step"] == 8


@pytest.mark.slow
def test_a_run_of_few_batches_has_a_row_of_metrics_an_epoch(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--name=short"]) == 0
    (file,) = Path("runs/short/logs").rglob("metrics.csv")
    rows = list(csv.DictReader(file.open()))
    assert [row["epoch"] for row in rows if row.get("train_loss")] == ["0", "1", "2"]


def test_words_of_a_resumption() -> None:
    assert resumed(["--seed", "1"]) == ["--seed", "1"]
    with pytest.raises(ConfigError, match="`rela validate` resumes nothing"):
        resumed(["--resume", "runs/a"], "validate")


@pytest.mark.parametrize("words", [["--resume", "nowhere"], ["--resume"], ["--resume="], ["--resume=runs/empty"]])
def test_what_is_no_run_is_refused_and_the_runs_are_named(words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "empty"):
        Path("runs", name).mkdir(parents=True)
    Path("runs/a/config.yaml").touch()
    with pytest.raises(ConfigError, match=r"needs the folder of a run(?s:.*)available: runs/a$"):
        resumed(words)


@pytest.mark.parametrize("given", ["a", "runs/a", "runs/a/"])
def test_options_beside_it_come_after_the_runs(given: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").touch()
    config, folder = str(Path("runs/a/config.yaml")), str(Path("runs/a"))
    for words in (["--x=1", "--resume", given, "--y=2"], ["--x=1", f"--resume={given}", "--y=2"]):
        assert resumed(words) == ["--config", config, "--x=1", "--y=2", "--ckpt_path", folder]


@pytest.mark.slow
def test_a_config_beside_it_changes_options_but_not_which_run_goes_on(
    plain: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Also that of the run itself, which says `ckpt_path: null`, as every file of `--print_config` does."""
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--resume=runs/plain", "--config=runs/plain/config.yaml", "--trainer.max_epochs=2"]) == 0
    assert [folder.name for folder in Path("runs").iterdir()] == ["plain"]
    assert json.loads(Path("runs/plain/run.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("words", [["--ckpt_path", "b.ckpt"], ["--ckpt_path=b.ckpt"], ["--ckpt_path=null"]])
def test_a_checkpoint_beside_it_is_refused(words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/config.yaml").touch()
    with pytest.raises(ConfigError, match=r"`--resume` goes on from a run's last checkpoint(?s:.*)--resume a and --ck"):
        resumed(["--resume=a", *words])
