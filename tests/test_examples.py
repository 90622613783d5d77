"""Every example runs as a user would run it."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from rela_lightning import TargetStore
from tests.ranks import succeeded

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> None:
    """As `python NAME ARGUMENTS` would."""
    sys.argv = [name, *arguments]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def load(name: str) -> Any:
    """An example as a module, so that `main` runs in this process."""
    spec = importlib.util.spec_from_file_location(f"example_{Path(name).stem}", EXAMPLES / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """The targets of several examples, made once."""
    from rela_lightning import build_targets, load_prior
    from rela_lightning.data import Digits
    from rela_lightning.demo import PRIOR_FILE, PRIOR_SETTINGS

    folder = tmp_path_factory.mktemp("labelled")
    build_targets(load_prior(f"checkpoint:{PRIOR_FILE}", **PRIOR_SETTINGS), Digits("train"), folder / "targets/digits")
    return folder


@pytest.fixture
def few_steps(monkeypatch):
    """Two batches an epoch and of a probe, in both packages, without a bar; what the script says otherwise holds."""
    import importlib

    for package in ("lightning.pytorch", "pytorch_lightning"):
        trainer = importlib.import_module(package).Trainer
        plain = trainer.__init__

        def short(self: Any, *args: Any, _plain: Any = plain, **options: Any) -> None:
            few = {"limit_train_batches": 2, "limit_val_batches": 2, "enable_progress_bar": False}
            _plain(self, *args, **{**few, **options})

        monkeypatch.setattr(trainer, "__init__", short)


def test_every_example_is_run_here_and_short():
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    tested = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    assert scripts == tested
    assert {path.name for path in EXAMPLES.glob("*.py") if len(path.read_text().splitlines()) >= 100} <= {
        "quickstart.py"
    }


@pytest.mark.slow
def test_add_callback_builds_targets_trains_and_probes(place, capsys):
    results = load("add_callback.py").main(["--epochs", "2", "--probe-epochs", "9"])
    assert str({name: round(value, 4) for name, value in results.items()}) in capsys.readouterr().out
    assert len(TargetStore("targets/digits")) == 450
    assert [path.name for path in place.iterdir()] == ["targets"]  # no logs, no checkpoints
    assert set(results) == {"knn/top1", "probe/top1"}
    assert 0.3 < min(results.values()) <= max(results.values()) <= 1  # chance is 0.1


def test_add_callback_marks_exactly_three_lines():
    lines = (EXAMPLES / "add_callback.py").read_text().splitlines()
    assert len([line for line in lines if re.search(r"\S.*  # ReLA", line)]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightly_byol_in_both_packages(package, place, few_steps):
    """The first batch is transport, the second BYOL's own; without the callback, both are."""
    main = load("lightly_byol.py").main
    results = main(["--epochs", "1", "--namespace", package])
    assert results["rela/phase"] == 2
    assert 0 < results["rela/loss"] < 2
    assert -1 <= results["train_loss"] <= 1
    assert 0.2 < results["knn/top1"] <= 1
    assert len(TargetStore("targets/digits-random")) == 450
    alone = main(["--epochs", "1", "--namespace", package, "--no-rela"])
    assert {"train_loss", "knn/top1"} == set(alone)


@pytest.mark.slow
def test_custom_prior_is_fused_and_its_edges_are_edges(place, few_steps):
    import numpy as np
    import torch

    example = load("custom_prior.py")
    results = example.main(["--epochs", "1"])
    store = TargetStore("targets/digits-fused")
    assert results["columns"] == store.dim
    assert store.manifest["prior"].count("+") == 1
    assert 0.5 < results["edges"] <= 1 and 0.5 < results["trained"] <= 1 and 0.2 < results["byol"] <= 1
    ramp = torch.arange(16.0).expand(1, 3, 16, 16) / 16  # brighter to the right: gradient -1/8 along x by its kernel
    found = example.EdgeHistograms(bins=4, cells=1)(ramp)[0]
    inner = -2 / 16
    expected = np.maximum(inner * np.cos(np.arange(4) * np.pi / 2), 0)
    middle = example.EdgeHistograms(bins=4, cells=4)(ramp)[0].reshape(4, 4, 4)[:, 1:3, 1:3].mean((1, 2))
    np.testing.assert_allclose(middle, expected, atol=1e-6)
    assert found.shape == (4,)


@pytest.mark.slow
def test_supervised_with_and_without_rela(place, labelled, few_steps):
    shutil.copytree(labelled, place, dirs_exist_ok=True)
    main = load("supervised.py").main
    alone, results = main(["--epochs", "1", "--no-rela"]), main(["--epochs", "1", "--switch-at", "0.5"])
    assert "rela/loss" in results and "rela/loss" not in alone
    assert {"train_loss", "val_loss", "val_top1"} <= set(results) & set(alone)
    assert results["train_loss"] != alone["train_loss"]  # one step of transport came first
    assert len(TargetStore("targets/digits")) == 450


@pytest.mark.slow
def test_multi_gpu_trains_one_model_on_two_processes(place):
    words = ["--devices", "2", "--accelerator", "cpu", "--precision", "32-true", "--epochs", "1", "--batch-size", "112"]
    output = "".join(succeeded(run, "multi_gpu.py", *words))
    results = [ast.literal_eval(line) for line in output.splitlines() if line.startswith("{")]
    assert results == [{"devices": 2, "targets": 450, "steps": 2, "equal": True}]


@pytest.mark.slow
def test_linear_probe_reads_what_export_writes(place, capsys):
    import torch

    from rela_lightning import export_backbone
    from rela_lightning.methods import build_backbone

    main = load("linear_probe.py").main
    results = main([])
    assert results["trained"]["kNN"] > results["untrained"]["kNN"]  # of the network that comes with the package
    torch.manual_seed(0)
    export_backbone(build_backbone("lightly:resnet-9", width=0.25)[0], "own.safetensors")
    again = main(["--weights", "own.safetensors"])
    assert again["untrained"] == again["trained"] == results["untrained"]  # the same weights, the same numbers
    assert f"kNN {100 * again['trained']['kNN']:5.1f}" in capsys.readouterr().out


# ---- the notebook ------------------------------------------------------------------------------------------


def test_the_notebook_is_what_its_script_says(tmp_path):
    load("make_notebook.py").main(["--out", str(tmp_path / "fresh.ipynb")])
    shipped = (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8")
    assert (tmp_path / "fresh.ipynb").read_text(encoding="utf-8") == shipped
    content = json.loads(shipped)
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = content["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"] == [[]] * 6
    assert len({cell["id"] for cell in cells}) == len(cells)
    script = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    wanted = [line for line in script.splitlines() if line and not line.startswith(("#", '"""'))]
    assert "".join(wanted) == code.replace("\n", "")
    assert str(Path.home()) not in shipped


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order(place, labelled, few_steps, monkeypatch):
    import matplotlib

    shutil.copytree(labelled, place, dirs_exist_ok=True)

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.get_fignums())))
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            text = "".join(cell["source"]).replace("EPOCHS = 10", "EPOCHS = 2")
            exec(compile(text, f"cell {number}", "exec"), names)
    plt.close("all")
    assert len(shown) == 2
    assert set(names["results"]) == {"untrained", "BYOL", "BYOL + ReLA"}
    assert all(0.3 < value <= 1 for value in names["results"].values())
    assert names["curves"]["BYOL"] != names["curves"]["BYOL + ReLA"]
    assert [len(points) for points in names["curves"].values()] == [2, 2]
