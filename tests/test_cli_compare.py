"""`rela compare`: what it refuses and in which order, and what stands for a run that was probed elsewhere or before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rela_lightning.cli.compare import compare
from rela_lightning.errors import ConfigError
from rela_lightning.runs.comparison import wilson

PROTOCOL = {"data": "DigitsData", "linear": {"solver": "adam", "epochs": 100}, "validation_images": 450}
PROBED = {"linear_top1": 0.5, "knn_top1": 0.4, "protocol": PROTOCOL, "probed_steps": 18}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)


def started(name: str, *, folder: str | None = None, **more: Any) -> str:
    """A run of 18 steps in three epochs, with one probe during training."""
    run = {
        "name": name, "seconds": 5.9, "labelling_seconds": 0.0, "steps": 18, "data": {"name": "DigitsData"},
        "budget": {"max_epochs": -1, "max_steps": 18, "max_seconds": None},
        "history": [{"seconds": 2.0, "steps": 6, "knn_top1": 0.2}], **more,
    }  # fmt: skip
    place = Path("runs", folder or name)
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(run))
    return str(place)


def rows(folder: str = "comparison") -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in json.loads(Path(folder, "report.json").read_text())["runs"]}


def test_missing_runs_are_named_before_anything_else_and_those_nearby_are_listed() -> None:
    plain, other = started("plain", **PROBED), started("other", **PROBED)
    compare([plain, other])
    with pytest.raises(ConfigError) as error:
        compare([plain, "runs/nothere", "elsewhere/none"])
    assert "found:    nothing at runs/nothere, nothing at elsewhere/none" in str(error.value)
    assert "available: runs/other, runs/plain" in str(error.value)
    with pytest.raises(ConfigError, match="two or more"):
        compare([plain])
    with pytest.raises(ConfigError, match=r"neither a run nor a report(?s:.*)found:    runs\n(?s:.*)runs/other"):
        compare(["runs", plain])
    with pytest.raises(ConfigError, match="There is a report already"):
        compare([plain, other])


def test_all_runs_that_were_not_probed_are_named_with_what_to_do() -> None:
    plain, tuned, bare = started("plain", **PROBED), started("tuned", top1=0.9), started("bare")
    with pytest.raises(ConfigError, match=r"not probed(?s:.*)rela probe runs/tuned; rela probe runs/bare$"):
        compare([plain, tuned, bare])
    compare([tuned, started("tuned-10", top1=0.8)])
    assert rows()["tuned"]["top1"] == 0.9, "classifiers stand beside each other unprobed"


def test_protocols_that_differ_are_told_in_words() -> None:
    other = {**PROTOCOL, "linear": {"solver": "lbfgs", "standardise": True}, "cross_folds": {"folds": 5, "seed": 0}}
    with pytest.raises(ConfigError) as error:
        compare([started("a", **PROBED), started("b", **{**PROBED, "protocol": other})])
    assert "expected: runs/a: linear (solver adam, epochs 100), no cross_folds" in str(error.value)
    assert "linear (solver lbfgs, standardise yes), cross_folds (folds 5, seed 0)" in str(error.value)


def test_the_report_leaves_out_limits_that_were_not_set() -> None:
    compare([started("a", **PROBED), started("b", **PROBED)])
    page = Path("comparison/report.md").read_text()
    assert "a (max_steps 18), b (max_steps 18)" in page and "unknown" not in page.split("## Protocol")[1]


def test_seeds_in_an_earlier_report_keep_their_mean_and_its_interval() -> None:
    seeds = []
    for seed, top1 in enumerate((0.4, 0.5, 0.6, 0.1)):
        seeds.append(started("byol", **{**PROBED, "linear_top1": top1}, folder=f"seed{seed}"))
        Path(seeds[seed], "config.yaml").write_text(f"{{model: BYOL, seed_everything: {seed}}}")
    other = started("other", **PROBED)
    compare([*seeds[:3], other], out="first")
    compare(["first", seeds[3]], out="again")
    mean, again, fourth = rows("first")["byol (3 seeds)"], rows("again")["byol (3 seeds)"], rows("again")["byol"]
    assert mean["interval"]["linear_top1"] == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert again == {**mean, "source": "first"}
    assert (fourth["linear_top1"], fourth["interval"]["linear_top1"]) == (0.1, wilson(0.1, 450))


def test_an_earlier_checkpoint_is_not_billed_as_the_whole_run(capsys: Any) -> None:
    whole, run = started("whole", **PROBED), Path(started("ck", top1=0.9, few_label_top1={"mean": 0.9, "std": 0.1}))
    for steps in (6, 12):
        early = {"name": "ck", **PROBED, "probed_steps": steps, "checkpoint": f"checkpoints/step={steps}.ckpt"}
        (run / f"probe-step={steps}.json").write_text(json.dumps(early))
    compare([whole, str(run / "probe-step=6.json"), str(run / "probe-step=12.json")])
    found = {name: (row["steps"], row["seconds"]) for name, row in rows().items()}
    assert found == {"whole": (18, 5.9), "ck (probe-step=6.json)": (6, 2.0), "ck (probe-step=12.json)": (12, None)}
    assert "few labels" not in Path("comparison/report.md").read_text(), "what another probe measured is not its own"
    said = " ".join(capsys.readouterr().out.split())
    assert "last step: ck (probe-step=6.json) at 6 of 18, ck (probe-step=12.json) at 12 of 18." in said


def test_a_result_from_before_a_run_went_on_and_one_that_tells_no_step() -> None:
    whole, run = started("whole", **PROBED), Path(started("longer"))
    result = {"name": "longer", **PROBED}
    (run / "probe.json").write_text(json.dumps({**result, "probed_steps": 12}))
    compare([whole, str(run / "probe.json")], out="new")
    assert rows("new")["longer"]["steps"] == 12
    (run / "probe.json").write_text(json.dumps({name: value for name, value in result.items() if "steps" not in name}))
    compare([whole, str(run / "probe.json")], out="old")
    assert rows("old")["longer"]["steps"] == 18
