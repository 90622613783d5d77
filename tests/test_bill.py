"""The bill of a run: counted steps, seconds and FLOPs by phase, against sums by hand."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from rela_lightning import ReLACallback, TargetStore
from rela_lightning.cli import main
from rela_lightning.runs import bill as bills
from rela_lightning.runs.bill import Bill, bill_table, mean_bill, total_flops
from rela_lightning.runs.comparison import cost_to, reached
from rela_lightning.runs.read import read_run
from rela_lightning.runs.record import RunRecord
from rela_lightning.schedules import Switch
from tests.test_cli import in_a_folder_of_its_own, record  # noqa: F401

ROWS, WIDTH = 8, 6
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Small(L.LightningModule):
    """A linear backbone on flat images, and a head that only its own step uses."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.head(self.backbone(batch[0])).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Slow(torch.utils.data.Dataset):
    """Images that take their time, with the transform that ReLACallback sets."""

    def __init__(self, digits: Any, pause: float = 0.0) -> None:
        self.digits, self.pause, self.transform = digits, pause, None

    def __len__(self) -> int:
        return 64

    def __getitem__(self, row: int) -> Any:
        time.sleep(self.pause)
        image = torch.zeros(3, 32, 32) + row
        return image, 0


def fit(
    folder: Path, steps: int, *callbacks: Any, pause: float = 0.0, module: Any = None, path: Any = None, **options: Any
) -> dict:
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", default_root_dir=folder, callbacks=[*callbacks, RunRecord(folder, "a")],
        **{**QUIET, "enable_checkpointing": path is not None, **options},
    )  # fmt: skip
    loader = DataLoader(Slow(None, pause), batch_size=ROWS)
    trainer.fit(module or Small(), loader, ckpt_path=path if path and Path(path).exists() else None, weights_only=True)
    if path is not None:
        trainer.save_checkpoint(path)
    return read_run(folder)["bill"]


def linear(rows: int, inputs: int, outputs: int, *, first: bool) -> int:
    """FLOPs of a linear layer, forward and backward; the first layer needs no gradient of its input."""
    return 2 * rows * inputs * outputs * (2 if first else 3)


def test_steps_are_the_optimizer_s_and_flops_those_of_all_batches(tmp_path: Path) -> None:
    found = fit(tmp_path, 3, accumulate_grad_batches=2)
    own = found["phases"]["own"]
    assert (own["steps"], own["batches"], read_run(tmp_path)["steps"]) == (3, 6, 3)
    assert total_flops(found) == 6 * (linear(ROWS, 3072, WIDTH, first=True) + linear(ROWS, WIDTH, 5, first=False))
    whole = mean_bill([found, found])
    assert whole is not None and total_flops(whole) == total_flops(found)


def test_flops_steps_and_waiting_are_what_they_are_by_hand(tmp_path: Path) -> None:
    begun = time.perf_counter()
    found = fit(tmp_path, 5, pause=0.002)
    whole = time.perf_counter() - begun
    assert list(found["phases"]) == ["own"]
    own = found["phases"]["own"]
    expected = linear(ROWS, 3072, WIDTH, first=True) + linear(ROWS, WIDTH, 5, first=False)
    assert (own["steps"], own["flops"]) == (5, expected)
    assert 5 * ROWS * 0.002 <= own["data_seconds"] <= own["seconds"] <= whole
    assert found["peak_bytes"] > 1 << 20 and found["joules"] is None
    assert total_flops(found) == 5 * expected


def test_phases_are_told_apart(tmp_path: Path, digits64: Any, targets64: Path) -> None:
    from rela_lightning.data import RGBImages, probe_view

    images = RGBImages(digits64, probe_view(32, mean=[0.5] * 3, std=[0.5] * 3))
    rela = ReLACallback(targets64, schedule=Switch(0.5))
    trainer = L.Trainer(
        max_steps=10, accelerator="cpu", default_root_dir=tmp_path, callbacks=[rela, RunRecord(tmp_path, "a")], **QUIET
    )
    trainer.fit(Small(), DataLoader(images, batch_size=ROWS))
    bill = read_run(tmp_path)["bill"]
    phases, labelled = bill["phases"], TargetStore(targets64).manifest["labelling_flops"]
    assert bill["labelling_flops"] == labelled > 64 * 1e5  # 64 images
    steps = {name: entry["steps"] for name, entry in phases.items()}
    assert steps == {"transport": 6, "own": 4}  # one batch was fetched before the switch
    assert phases["own"]["flops"] == linear(ROWS, 3072, WIDTH, first=True) + linear(ROWS, WIDTH, 5, first=False)
    assert phases["transport"]["flops"] > linear(ROWS, 3072, WIDTH, first=True)
    assert phases["transport"]["flops"] != phases["own"]["flops"]


def test_targets_may_go_once_nothing_reads_them_any_more(tmp_path: Path, digits64: Any, targets64: Path) -> None:
    from rela_lightning.data import RGBImages, probe_view

    path = shutil.copytree(targets64, tmp_path / "targets")

    class FreesTheDisk(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 10:  # the switch was at 5
                shutil.rmtree(path)

    images = RGBImages(digits64, probe_view(32, mean=[0.5] * 3, std=[0.5] * 3))
    rela = ReLACallback(path, schedule=Switch(0.3))
    trainer = L.Trainer(
        max_steps=16, accelerator="cpu", default_root_dir=tmp_path, **QUIET,
        callbacks=[rela, FreesTheDisk(), RunRecord(tmp_path, "a")],
    )  # fmt: skip
    trainer.fit(Small(), DataLoader(images, batch_size=ROWS))
    kept, made = read_run(tmp_path), TargetStore(targets64).manifest
    assert not path.exists() and kept["steps"] == 16
    assert (kept["prior"], kept["bill"]["labelling_flops"]) == (made["prior"], made["labelling_flops"])


def test_batches_on_their_way_at_the_switch_belong_to_transport(
    tmp_path: Path, digits64: Any, targets64: Path, caplog: Any
) -> None:
    from rela_lightning.data import RGBImages, probe_view

    images = RGBImages(digits64, probe_view(32, mean=[0.5] * 3, std=[0.5] * 3))
    trainer = L.Trainer(
        max_steps=14, accelerator="cpu", default_root_dir=tmp_path, **QUIET,
        callbacks=[ReLACallback(targets64, schedule=Switch(0.5)), RunRecord(tmp_path, "a")],
    )  # fmt: skip
    with caplog.at_level("INFO"):
        trainer.fit(Small(), DataLoader(images, batch_size=ROWS, num_workers=1))
    phases = read_run(tmp_path)["bill"]["phases"]
    transport, own = (phases[name]["steps"] for name in ("transport", "own"))
    assert transport > 7 and transport + own == 14
    assert phases["transport"]["flops"] != phases["own"]["flops"]
    said = caplog.records[-1].getMessage()
    assert f"transport alone {transport} steps in" in said and f"objective alone {own} steps in" in said


@pytest.mark.parametrize("limit, read", [(3, 24), (8, 60), (1.0, 60)])
def test_validation_images_are_those_that_were_read(tmp_path: Path, limit: Any, read: int) -> None:
    class Judged(Small):
        seen = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen += len(batch[0])

    module = Judged()
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", default_root_dir=tmp_path, limit_train_batches=1, limit_val_batches=limit,
        num_sanity_val_steps=0, callbacks=[RunRecord(tmp_path, "a")], **QUIET,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Slow(None), ROWS), DataLoader(Subset(Slow(None), range(60)), ROWS))
    assert read_run(tmp_path)["validation_images"] == module.seen == read


class Logging(Small):
    """Logs its loss."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("options", [{"max_steps": 3}, {"max_epochs": 1, "accumulate_grad_batches": 4}])
def test_short_runs_leave_a_row_of_metrics(tmp_path: Path, options: dict[str, int]) -> None:
    from lightning.pytorch.loggers import CSVLogger

    trainer = L.Trainer(
        accelerator="cpu", callbacks=[RunRecord(tmp_path, "a")], **{**QUIET, **options, "logger": CSVLogger(tmp_path)}
    )
    trainer.fit(Logging(), DataLoader(Slow(None), batch_size=ROWS))
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert len(metrics.read_text().splitlines()) == 2  # names, and a row


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    first = fit(tmp_path, 4, pause=0.001, path=path)["phases"]["own"]
    second = fit(tmp_path, 7, pause=0.001, path=path)["phases"]["own"]
    assert (first["steps"], second["steps"]) == (4, 7)
    assert second["seconds"] > first["seconds"] and second["data_seconds"] >= first["data_seconds"] + 3 * ROWS * 0.001
    assert second["flops"] == first["flops"]


def test_compiled_steps_are_not_counted_and_failures_leave_no_counter(tmp_path: Path) -> None:
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as stack

    compiled = Small()
    compiled.backbone.compile(backend="eager")
    assert fit(tmp_path, 4, module=compiled)["phases"]["own"]["flops"] is None

    class Fails(Small):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            if batch_idx == 2:
                raise ValueError("as it happens")
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="as it happens"):
        fit(tmp_path / "b", 4, module=Fails())
    assert not stack()


def test_energy_is_that_of_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = iter([5_000_000, 5_400_000, 100_000, 250_000])
    monkeypatch.setattr(bills, "_millijoules", lambda device: next(meter))
    device = torch.device("cpu")
    first = Bill()
    first.start(device)
    state = first.state_dict(device)
    assert state["joules"] == 400
    second = Bill()
    second.load_state_dict(state)
    second.start(device)
    assert second.found(device)["joules"] == 550


def entry(steps: int, seconds: float, data: float, flops: int | None = 1000) -> dict[str, Any]:
    return {"steps": steps, "seconds": seconds, "data_seconds": data, "flops": flops}


def test_memory_is_the_most_of_all_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Bill(), Bill()
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=5000))
    cpu, unit = torch.device("cpu"), 1 if sys.platform == "darwin" else 1024
    state = first.state_dict(cpu)
    monkeypatch.setattr("resource.getrusage", lambda _: SimpleNamespace(ru_maxrss=3000))
    second.load_state_dict(state)
    assert second.found(cpu)["peak_bytes"] == second.state_dict(cpu)["peak_bytes"] == 5000 * unit
    del state["peak_bytes"]  # of an older checkpoint
    second.load_state_dict(state)
    assert second.found(cpu)["peak_bytes"] == 3000 * unit


def test_the_table_says_what_each_run_took() -> None:
    phases = {"transport": entry(10, 2.0, 0.5), "own": entry(5, 2.0, 0.5)}
    fast = {"labelling_flops": 4e9, "phases": phases, "peak_bytes": 2e9, "joules": 7200.0}
    plain = {"phases": {"own": entry(20, 8.0, 4.0, None)}, "peak_bytes": None, "joules": None}
    runs = [
        {"name": "fast", "labelling_seconds": 3.0, "bill": fast},
        {"name": "plain", "labelling_seconds": 0.0, "bill": plain},
        {"name": "old", "labelling_seconds": 0.0},
    ]
    header, first, second = bill_table(runs)
    assert header[2:4] == ["transport alone", "own objective alone"]
    assert first == [
        "fast",
        "3.0 s, 4e+09 FLOPs",
        "10 steps, 2.0 s",
        "5 steps, 2.0 s",
        "25%",
        "1.5e+04",
        "2.0 GB",
        "2.0 Wh",
    ]
    assert second == ["plain", "0.0 s", "-", "20 steps, 8.0 s", "50%", "-", "-", "-"]
    assert bill_table(runs[2:]) == []
    other = {**fast, "phases": {"transport": entry(20, 4.0, 0.5), "own": entry(5, 2.0, 0.5)}, "peak_bytes": 1e9}
    mean = mean_bill([fast, other])
    assert mean is not None and mean["phases"]["transport"]["steps"] == 15 and mean["peak_bytes"] == 2e9
    assert mean_bill([fast, plain]) is None and mean_bill([fast, {}]) is None


def test_seconds_to_an_accuracy() -> None:
    history = [
        {"seconds": 10.0, "steps": 100, "linear_top1": 0.2},
        {"seconds": 20.0},
        {"seconds": 30.0, "steps": 300, "linear_top1": {"mean": 0.4, "std": 0.1}},
        {"seconds": 40.0, "linear_top1": 0.3},
    ]
    run = {"name": "a", "history": history}
    assert cost_to(run, "linear_top1", 0.1) == 10
    assert cost_to(run, "linear_top1", 0.3) == pytest.approx(20)
    assert cost_to(run, "linear_top1", 0.3, "steps") == pytest.approx(200)
    assert cost_to(run, "linear_top1", 0.5) is None and cost_to(run, "knn_top1", 0.1) is None
    assert reached([run, {"name": "b", "history": []}], 0.3) == ["Seconds to 30% linear top-1: a 20.0, b not followed."]


@pytest.mark.slow
def test_prior_and_untrained_backbone_stand_beside_a_run(plain: Path, capsys: Any) -> None:
    quick = ["--epochs=2", "--device=cpu"]
    assert main(["probe", "runs/plain", *quick]) == 0
    before = record("runs/plain")
    assert main(["probe", "runs/plain", *quick, "--untrained=true"]) == 0
    assert main(["probe", "runs/plain", *quick, "--untrained=true", "--out=again"]) == 0
    assert record("runs/plain") == before
    assert (plain / "probe-untrained.json").read_text() == Path("again/probe.json").read_text()
    words = ["random:lightly:resnet-9", "--data=DigitsData", *quick]
    options = "{width: 0.125, image_size: 32, mean: 0.305, std: 0.323}"
    assert main(["probe", *words, f"--prior_kwargs={options}"]) == 0
    prior = "probe-random-lightly-resnet-9.json"
    assert main(["compare", "runs/plain", "runs/plain/probe-untrained.json", prior, "--reach=0.99"]) == 0
    report = Path("comparison/report.md").read_text()
    rows = {line.split(" | ")[0].lstrip("| "): line for line in report.splitlines() if line.startswith("| ")}
    assert {"plain", "plain, untrained", "random:lightly:resnet-9"} <= set(rows)
    assert rows["plain, untrained"].endswith("| 0.0 | 0.0 | 0 |")
    assert "## What it took" in report and "2 steps" in report
    assert main(["probe", "timm:resnet50", *quick, "--untrained=true"]) == 2
    assert "random:timm:resnet50" in capsys.readouterr().err
    assert main(["compare", "runs/plain", prior, "--reach=60"]) == 2
