"""Fit one case under one schedule and check everything a user relies on."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.errors import ReLAError
from rela_lightning.schedules import Mix, Switch
from tests.zoo.case import Case
from tests.zoo.data import digits, loader
from tests.zoo.witness import Rows, Watch, attributes, left_behind, split_path, weights

STEPS = 4
EPOCHS = 2
_SCHEDULES = {"switch": lambda: Switch(0.5), "mix": Mix}


class Result(NamedTuple):
    """One cell of the table."""

    errors: list[str]  # first lines of the refusals met on the way
    options: dict[str, Any]  # what was passed in the end
    works: bool


def zoo_targets(path: Path) -> Path:
    """Targets of the zoo's digits by an untrained prior."""
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=1)
    build_targets(prior, digits(), path, storage_dtype=torch.float32)
    return path


def try_case(case: Case, schedule: str, targets: Path, namespace: str = "lightning.pytorch") -> Result:
    """Run a case as a user would: without options first, then with those the error asked for."""
    options, errors = dict(case.advised), []
    steps = list(case.needs.get(schedule, ()))
    for remedy in [*steps, {}] if schedule in case.refused else steps:
        error = _refusal(case, schedule, targets, options, namespace)
        for option in remedy:
            assert f"{option}=" in error, f"the error does not say to pass {option}: {error}"
        if not remedy:
            assert case.refused[schedule] in error, f"the error does not mention {case.refused[schedule]}: {error}"
        errors.append(error.splitlines()[0])
        options.update(remedy)
    if schedule not in case.refused:
        fit_case(case, schedule, targets, options, namespace)
    return Result(errors, options, works=schedule not in case.refused)


def _refusal(case: Case, schedule: str, targets: Path, options: Any, namespace: str) -> str:
    try:
        fit_case(case, schedule, targets, options, namespace)
    except ReLAError as refusal:
        return str(refusal)
    raise AssertionError(f"was to be refused, but ran with {options}")


def fit_case(case: Case, schedule: str, targets: Path, options: Any, namespace: str = "lightning.pytorch") -> Any:
    """Two epochs of four steps; raises AssertionError where anything is not as promised.

    Returns:
        The fitted module.
    """
    torch.manual_seed(1)
    module = case.build(namespace)
    fresh = case.build(namespace)
    data, rows = loader(case), Rows(targets)
    rela = ReLACallback(targets, schedule=_SCHEDULES[schedule](), **options)
    watch = Watch(rela, rows)
    trainer = import_module(namespace).Trainer(
        accelerator="cpu", max_epochs=EPOCHS, callbacks=[rela, watch], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    start, before, keys = weights(module), attributes(module), list(module.state_dict())
    fitted = module if case.finish is None else case.finish(module)
    try:
        with rows.watching(module, case.called), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(fitted, data)
    finally:
        assert not left_behind(module), f"left behind: {left_behind(module)}"
    assert attributes(module) == before, "attributes were left behind"

    transport = STEPS if schedule == "switch" else EPOCHS * STEPS
    phases = [0.0] * STEPS + [2.0] * STEPS if schedule == "switch" else [1.0] * EPOCHS * STEPS
    assert watch.phases == phases
    assert all(math.isfinite(loss) and 0.0 < loss < 2.0 for loss in watch.losses), watch.losses
    assert len(rows.matched) == transport and all(rows.matched), rows.matched
    settles = case.settles.get(schedule, case.called.removesuffix(_method(module, case)))
    assert watch.names == {options.get("backbone", settles)}
    own = EPOCHS * STEPS if schedule == "mix" or case.swaps else EPOCHS * STEPS - transport + case.own_steps
    assert len(module.steps_run) == own, f"the module's step ran {len(module.steps_run)} times, not {own}"

    _check_weights(case, schedule, module, start, watch.middle)
    assert list(module.state_dict()) == keys
    fresh.load_state_dict(module.state_dict(), strict=True)
    return module


def _method(module: Any, case: Case) -> str:
    method = split_path(module, case.called)[1]
    return f".{method}" if method else ""


def _check_weights(case: Case, schedule: str, module: Any, start: Any, middle: Any) -> None:
    end = weights(module)
    student = case.called.removesuffix(_method(module, case)) + "."
    following = tuple(f"{teacher}." for teacher in case.teachers)  # some keep their requires_grad, out of optimizers
    trained = [n for n, p in module.named_parameters() if p.requires_grad and not n.startswith(following)]
    backbone = [name for name in trained if name.startswith(student)]
    heads = [name for name in trained if not name.startswith(student)]

    def moved(names: list[str], a: Any, b: Any) -> bool:
        return any(not torch.equal(a[name], b[name]) for name in names)

    assert backbone and moved(backbone, start, middle) and moved(backbone, middle, end), "the backbone must learn"
    assert not heads or moved(heads, middle, end), "the heads must learn"
    if schedule == "switch":
        assert not moved(heads, start, middle), "the transport phase must leave the heads alone"
    for number, teacher in enumerate(case.teachers):
        names = [name for name in start if name.startswith(f"{teacher}.")]
        assert names and moved(names, start, end), f"the teacher {teacher} must follow"
        if number == 0:
            assert moved(names, start, middle), f"the teacher {teacher} must follow in the first phase"
