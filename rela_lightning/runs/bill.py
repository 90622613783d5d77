"""What training took, phase by phase: steps, seconds, the wait for data, arithmetic, memory and energy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rela_lightning.memory import peak_memory
from rela_lightning.units import duration, size

PHASES = {"transport": "transport alone", "both": "both objectives", "own": "own objective alone"}
"""Key in `run.json`: heading. In the order of the numbers that are logged as `rela/phase`."""
_COUNTED = 3  # the batch of a phase whose arithmetic is counted: those before it warm up


class Bill:
    """Counts while a run goes on; what it holds is plain numbers, and goes on from a checkpoint.

    Attributes:
        phases: By the name of a phase `steps` (of the optimizer), `batches` (more, where gradients are accumulated),
            `seconds` (data and callbacks included, validation left out), `data_seconds` (of these, waiting for data)
            and `flops` (of a batch on one device, forward and backward, by torch's counter; None where it was not
            counted).
    """

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, Any]] = {}
        self.energy = 0.0  # joules, before this fit
        self._highest: int | None = None  # bytes, before this fit
        self._meter: int | None = None
        self._last: float | None = None
        self._counter: FlopCounterMode | None = None
        self._waited = 0.0  # for the batch of the step under way
        self._counted = 0  # the phase whose arithmetic is counted

    def start(self, device: torch.device) -> None:
        """Training begins, or goes on after validation: the clock runs from here."""
        self._meter = self._meter if self._meter is not None else _millijoules(device)
        self._last = time.perf_counter()

    def pause(self) -> None:
        """Validation begins, or training ends."""
        self._last = None

    def begin(self, phase: int, *, countable: bool) -> None:
        """A batch is there.

        Args:
            phase: Of the step, as far as is known before it: 0 transport, 1 both, 2 the module's own objective.
            countable: Whether torch's counter may watch a step: not where it is compiled.
        """
        now = time.perf_counter()
        self._waited = 0.0 if self._last is None else now - self._last
        self._last = now
        entry = self._of(phase)
        if countable and entry["flops"] is None and entry["batches"] == _COUNTED - 1:
            self._counted, self._counter = phase, FlopCounterMode(display=False)
            self._counter.__enter__()  # type: ignore[no-untyped-call]

    def end(self, phase: int, steps: int) -> None:
        """The batch is through.

        Args:
            phase: What it was: a batch that was on its way when the phase changed still belongs to the one before.
            steps: Steps of the optimizer that it made; 0 where its gradient is kept for a later one.
        """
        now, flops, entry = time.perf_counter(), self.stop_counting(), self._of(phase)
        if phase == self._counted and flops is not None:
            entry["flops"] = flops
        if self._last is not None:
            entry["data_seconds"] += self._waited
            entry["seconds"] += self._waited + now - self._last
        self._last = now
        entry["steps"] += steps
        entry["batches"] += 1
        self.phases[list(PHASES)[phase]] = entry

    def _of(self, phase: int) -> dict[str, Any]:
        """What there is of a phase."""
        empty = {"steps": 0, "batches": 0, "seconds": 0.0, "data_seconds": 0.0, "flops": None}
        return self.phases.get(list(PHASES)[phase], empty)

    def stop_counting(self) -> int | None:
        """Take the counter off, after a step or where one failed."""
        counter, self._counter = self._counter, None
        if counter is None:
            return None
        counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return int(counter.get_total_flops())

    def found(self, device: torch.device) -> dict[str, Any]:
        """What a record keeps."""
        rounded = {
            name: {key: round(value, 3) if isinstance(value, float) else value for key, value in entry.items()}
            for name, entry in self.phases.items()
        }
        return {"phases": rounded, "peak_bytes": self._most(device), "joules": self._joules(device)}

    def _most(self, device: torch.device) -> int | None:
        """Most memory of all fits so far; None where the system does not tell."""
        return max((peak for peak in (self._highest, _peak(device)) if peak is not None), default=None)

    def _joules(self, device: torch.device) -> float | None:
        """Energy of all fits so far; None without a meter."""
        used = _millijoules(device)
        return None if used is None or self._meter is None else round(self.energy + (used - self._meter) / 1000, 1)

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """What a resumed run goes on from."""
        phases = {name: dict(entry) for name, entry in self.phases.items()}
        return {"phases": phases, "joules": self._joules(device), "peak_bytes": self._most(device)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.phases = {name: {**entry, "batches": _batches(entry)} for name, entry in state["phases"].items()}
        self.energy = float(state["joules"] or 0.0)
        self._highest = state.get("peak_bytes")


def _peak(device: torch.device) -> int | None:
    """Most memory so far, bytes: of tensors on a GPU, else of this process; None where the system does not tell."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_memory()


def _millijoules(device: torch.device) -> int | None:
    """The energy meter of an NVIDIA GPU; None without one, or without nvidia-ml-py."""
    if device.type != "cuda":
        return None
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        index = torch.cuda.current_device() if device.index is None else device.index
        uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid)))
    except Exception:  # no package, no driver, an old GPU without a meter
        return None


def total_flops(bill: Mapping[str, Any]) -> float | None:
    """FLOPs of a run's training on one device; None where a phase was not counted."""
    phases = bill["phases"].values()
    if not phases or any(entry["flops"] is None for entry in phases):
        return None
    return float(sum(_batches(entry) * entry["flops"] for entry in phases))


def _batches(entry: Mapping[str, Any]) -> int:
    """Batches of a phase; earlier records have them as its steps alone."""
    return int(entry.get("batches", entry["steps"]))


def mean_bill(bills: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The mean over runs of one setting; None where they went through different phases."""
    if not all(bills) or len({tuple(bill["phases"]) for bill in bills}) != 1:
        return None
    phases = {
        name: {
            "steps": round(statistics.fmean(bill["phases"][name]["steps"] for bill in bills)),
            "batches": round(statistics.fmean(_batches(bill["phases"][name]) for bill in bills)),
            "seconds": statistics.fmean(bill["phases"][name]["seconds"] for bill in bills),
            "data_seconds": statistics.fmean(bill["phases"][name]["data_seconds"] for bill in bills),
            "flops": bills[0]["phases"][name]["flops"],
        }
        for name in bills[0]["phases"]
    }
    peaks, joules = ([bill[name] for bill in bills if bill.get(name)] for name in ("peak_bytes", "joules"))
    return {
        "labelling_flops": bills[0].get("labelling_flops"),
        "phases": phases,
        "peak_bytes": max(peaks, default=None),
        "joules": statistics.fmean(joules) if joules else None,
    }


def bill_table(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Header and a row of text for each run that has a bill; nothing where none has."""
    billed = [run for run in runs if run.get("bill")]
    if not billed:
        return []
    met = [name for name in PHASES if any(name in run["bill"]["phases"] for run in billed)]
    energy = any(run["bill"].get("joules") is not None for run in billed)
    header = [
        "run",
        "labelling",
        *(PHASES[name] for name in met),
        "waiting for data",
        "FLOPs of training",
        "peak memory",
    ]
    rows = [header + (["energy"] if energy else [])]
    for run in billed:
        bill = run["bill"]
        phases = bill["phases"]
        seconds = sum(entry["seconds"] for entry in phases.values())
        wait = sum(entry["data_seconds"] for entry in phases.values())
        flops = total_flops(bill)
        row = [run["name"], _labelling(run), *(_phase(phases.get(name)) for name in met)]
        row.append(f"{wait / seconds:.0%}" if seconds else "-")
        peak = bill.get("peak_bytes")
        row += ["-" if flops is None else f"{flops:.2g}", "-" if peak is None else size(peak)]
        if energy:
            joules = bill.get("joules")
            row.append("-" if joules is None else f"{joules / 3600:.1f} Wh")
        rows.append(row)
    return rows


def _labelling(run: Mapping[str, Any]) -> str:
    flops = run["bill"].get("labelling_flops")
    return duration(run["labelling_seconds"], 1) + (f", {flops:.2g} FLOPs" if flops else "")


def _phase(entry: Mapping[str, Any] | None) -> str:
    return "-" if entry is None else f"{entry['steps']:,} steps, {duration(entry['seconds'], 1)}"
