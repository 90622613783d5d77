"""`rela probe`: what a run was first probed by is its own result; any other lies beside, and is compared from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rela_lightning.cli import main
from rela_lightning.runs.scores import named_after, write_beside, write_of_run
from tests.test_cli import DIGITS, in_a_folder_of_its_own, record  # noqa: F401

QUICK = ["--epochs=2", "--device=cpu"]


def result(data: str = "DigitsData", top1: float = 0.5, k: int = 20) -> dict[str, Any]:
    return {"linear_top1": top1, "knn_top1": top1, "protocol": {"data": data, "image_size": 32, "k": k}}


def started(folder: Path) -> Path:
    (folder / "run.json").write_text(json.dumps({"name": "a", "steps": 3}))
    return folder


def test_the_first_protocol_is_the_runs_own_and_others_lie_beside(tmp_path: Path) -> None:
    run = started(tmp_path)
    options: dict[str, Any] = {"earlier": None, "other_data": False, "overwrite": False}
    first = write_of_run(result(top1=0.5), run, **options)
    assert (first.file.name, first.differences) == ("probe.json", [])
    assert record(run)["linear_top1"] == 0.5 and record(run)["steps"] == 3
    again = write_of_run(result(top1=0.6), run, **options)
    assert again.file == first.file and record(run)["linear_top1"] == 0.6

    other = write_of_run(result("CIFAR100Data", 0.9), run, **options)
    near = write_of_run(result(top1=0.8, k=1), run, **options)
    assert other.differences == ["data"] and near.differences == ["k"]
    assert other.file.name.startswith("probe-cifar100-") and near.file.name.startswith("probe-digits-")
    assert json.loads(other.file.read_text())["linear_top1"] == 0.9
    assert record(run)["linear_top1"] == 0.6 and json.loads(first.file.read_text())["linear_top1"] == 0.6

    mine = write_of_run(result(top1=0.8, k=1), run, **{**options, "overwrite": True})
    assert mine.file == first.file and record(run)["protocol"]["k"] == 1


def test_other_data_are_never_the_runs_own_unasked_and_an_earlier_checkpoint_never(tmp_path: Path) -> None:
    run = started(tmp_path)
    foreign = write_of_run(result(), run, earlier=None, other_data=True, overwrite=False)
    assert foreign.file.name.startswith("probe-digits-") and "linear_top1" not in record(run)
    early = write_of_run(result(), run, earlier="epoch=3", other_data=False, overwrite=True)
    assert early.file.name == "probe-epoch=3.json" and "linear_top1" not in record(run)
    other = write_of_run(result(k=1), run, earlier="epoch=3", other_data=False, overwrite=False)
    assert other.file.name.startswith("probe-epoch=3-digits-") and other.differences == ["k"]


def test_a_run_that_went_on_keeps_its_own_protocol(tmp_path: Path) -> None:
    options: dict[str, Any] = {"earlier": None, "other_data": False, "overwrite": False}
    run = started(tmp_path)
    first = write_of_run(result(), run, **options)
    started(tmp_path)  # a record without scores, as training writes it
    assert write_of_run(result(k=1), run, **options).file != first.file
    assert write_of_run(result(), run, **options).file == first.file and "linear_top1" in record(run)


@pytest.mark.parametrize("name", ["probe.json", "probe-untrained.json", named_after("random:lightly:resnet-9")])
def test_a_result_takes_the_place_of_the_same_alone(name: str, tmp_path: Path) -> None:
    """Of another run, checkpoint, prior or protocol it lies beside, under a name of its own for each."""
    first = {"name": "a", "checkpoint": "a/last.ckpt", **result()}
    others = [
        {**first, "name": "b"}, {**first, "checkpoint": "a/first.ckpt"}, {**first, "prior_kwargs": {"width": 2}},
        {**first, **result("CIFAR100Data")}, {**first, **result(k=1)},
    ]  # fmt: skip
    again = [write_beside({**each, "linear_top1": 0.1}, tmp_path, name) for each in (first, *others)]
    written = [write_beside(each, tmp_path, name) for each in (first, *others)]
    assert written == again and written[0].file == written[1].kept == tmp_path / name
    assert [each.differences for each in written[1:]] == [["name"], ["checkpoint"], ["prior_kwargs"], ["data"], ["k"]]
    found = [json.loads(each.file.read_text()) for each in written]
    assert found == [first, *others], "none took the place of another"
    asked = write_beside(others[0], tmp_path, name, overwrite=True)
    assert asked.file == tmp_path / name and json.loads(asked.file.read_text()) == others[0]


def test_what_is_no_result_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "probe.json").write_text("mine")
    assert write_beside(result(), tmp_path).file.name.startswith("probe-digits-")
    assert (tmp_path / "probe.json").read_text() == "mine"


def test_results_of_priors_do_not_replace_each_other() -> None:
    assert named_after("timm:resnet50") == "probe-timm-resnet50.json"
    assert named_after("random:lightly:resnet-9 | seed 1") == "probe-random-lightly-resnet-9-seed-1.json"


@pytest.mark.slow
def test_a_run_keeps_its_result_beside_others_and_both_are_compared(plain: Path, capsys: Any) -> None:
    words = ["probe", "runs/plain", *QUICK]
    assert main(words) == 0
    own = record("runs/plain")
    assert own["probed_steps"] == own["steps"] == json.loads((plain / "probe.json").read_text())["probed_steps"] == 2
    assert "Result: runs/plain/probe.json" in capsys.readouterr().out
    assert main([*words, DIGITS, "--data.image_size=40"]) == 0
    said = capsys.readouterr()
    assert "probe.json is kept for a result that differs in images, image_size" in " ".join(said.err.split())
    (beside,) = (file for file in Path("runs/plain").glob("probe-*.json"))
    assert record("runs/plain") == own and json.loads(beside.read_text())["protocol"]["image_size"] == 40
    assert main([*words, "--out=elsewhere", "--k=3"]) == 0
    assert record("runs/plain") == own and Path("elsewhere/probe.json").is_file()

    assert main(["compare", "runs/plain", str(beside)]) == 2
    assert "different ways" in capsys.readouterr().err
    assert main(["compare", str(beside), str(beside), "--out=twice"]) == 0
    report = json.loads(Path("twice/report.json").read_text())
    expected = json.loads(beside.read_text())
    assert [run["linear_top1"] for run in report["runs"]] == [expected["linear_top1"]] * 2
    assert report["runs"][0]["steps"] == own["steps"], "the rest is the run's"
    assert "validation images (Wilson)" in Path("twice/report.md").read_text()


def test_a_missing_run_is_named_before_one_that_was_not_probed(plain: Path, capsys: Any) -> None:
    assert main(["compare", "runs/plain", "runs/none"]) == 2
    assert "nothing at runs/none" in capsys.readouterr().err


@pytest.mark.slow
def test_few_labels_are_measured_as_the_library_does_and_compared(plain: Path, capsys: Any) -> None:
    from rela_lightning.probe import extract_features, few_label_evaluation
    from rela_lightning.runs.rebuild import find_subject

    assert main(["probe", "runs/plain", *QUICK, "--labels_per_class=5", "--folds=3", "--seed=4"]) == 0
    subject = find_subject("runs/plain")
    (x, y), (test_x, test_y) = (
        extract_features(subject.network, subject.data.dataset(split, "probe")) for split in ("train", "val")
    )
    expected = few_label_evaluation(x, y, test_x, test_y, labels_per_class=5, folds=3, seed=4)
    found = record("runs/plain")["few_label_top1"]
    assert found == {"mean": pytest.approx(expected["top1_mean"]), "std": pytest.approx(expected["top1_std"])}
    assert f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}" in capsys.readouterr().out
    shutil.copytree("runs/plain", "runs/other")
    assert main(["compare", "runs/plain", "runs/other"]) == 0
    assert "few labels" in Path("comparison/report.md").read_text()
    assert main(["probe", "runs/plain", *QUICK, "--labels_per_class=5000"]) == 2
    assert "So few labels cannot be drawn" in capsys.readouterr().err
