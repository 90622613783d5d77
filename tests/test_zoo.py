"""The callback on every kind of SSL module: see tests/zoo and docs/compatibility.md."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from rela_lightning import ReLACallback
from rela_lightning.injection.backbone import Backbone
from rela_lightning.schedules import Mix

pytest.importorskip("lightly", minversion="1.6")  # the release whose losses and heads the zoo is built of

from tests.zoo import CASES, SCHEDULES
from tests.zoo.data import loader
from tests.zoo.run import Result, fit_case, try_case, zoo_targets
from tests.zoo.table import PAGE, render

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
IN_THE_OTHER_NAMESPACE = (
    "BYOL",
    "MoCo v2 (memory bank, shuffled keys)",
    "DINO (multi-crop)",
    "SwAV with queues",
    "MAE",
    "BYOL, teacher in on_train_batch_end",
    "two optimizers, manual optimization",
    "views in a dict",
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo_targets(tmp_path_factory.mktemp("zoo") / "targets")


@functools.cache
def result(name: str, schedule: str, targets: Path) -> Result:
    return try_case(CASES[name], schedule, targets)


def quick(name: str) -> Any:
    return pytest.param(name, marks=() if name in IN_THE_OTHER_NAMESPACE else pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", map(quick, CASES))
def test_module(name: str, schedule: str, targets: Path) -> None:
    assert result(name, schedule, targets).works != (schedule in CASES[name].refused)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", IN_THE_OTHER_NAMESPACE)
def test_module_of_pytorch_lightning(name: str, schedule: str, targets: Path) -> None:
    assert try_case(CASES[name], schedule, targets, "pytorch_lightning") == result(name, schedule, targets)


@pytest.mark.slow
def test_the_page_is_what_the_zoo_gives(targets: Path) -> None:
    results = {(name, schedule): result(name, schedule, targets) for name in CASES for schedule in SCHEDULES}
    assert PAGE.read_text(encoding="utf-8") == render(results), "run python -m tests.zoo.table docs/compatibility.md"


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["torch.compile'd backbone (eager)", "whole module compiled"])
def test_compiled_modules_learn_what_plain_ones_do(name: str, schedule: str, targets: Path) -> None:
    plain, compiled = (fit_case(CASES[n], schedule, targets, {}).state_dict() for n in ("views concatenated", name))
    compiled = {key.replace("_orig_mod.", ""): value for key, value in compiled.items()}
    assert plain.keys() == compiled.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, msg=key)


class CopyBackbone(L.Callback):
    """Copies the backbone in the middle of training, as modules do that replace their teacher."""

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.copied = copy.deepcopy(module.backbone)
        self.owner = module


@pytest.mark.parametrize("name", ["one call for each view", "a backbone that can only encode()"])
def test_a_copy_made_during_training_is_its_own(name: str, targets: Path) -> None:
    case = CASES[name]
    module, copier = case.build(), CopyBackbone()
    options = {"backbone": "backbone.encode"} if "encode" in name else {}
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, callbacks=[ReLACallback(targets, schedule=Mix(), **options), copier],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader(case))
    images = torch.rand(2, 3, 32, 32)
    call = (lambda net: net.encode(images)) if "encode" in name else (lambda net: net(images))
    torch.testing.assert_close(call(copier.copied), call(module.backbone))
    with torch.no_grad():
        for parameter in copier.copied.parameters():
            parameter.zero_()
    assert not torch.equal(call(copier.copied), call(module.backbone)), "the copy must not answer for the original"
    reachable, pending = set(), [copier.copied]
    while pending:
        node = pending.pop()
        if id(node) in reachable or not hasattr(node, "__dict__"):
            continue
        reachable.add(id(node))
        assert not isinstance(node, (L.LightningModule, L.Trainer)), "the copy must not carry the whole run along"
        pending += [value for held in vars(node).values() for value in _held(held)]


def _held(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for item in value.values() for part in _held(item)]
    return [getattr(value, "__self__", value)]


def test_tokens_without_a_class_token_are_averaged() -> None:
    module = CASES["AIM (causal ViT)"].build()
    backbone = Backbone(module, "backbone.forward_features")
    images = torch.rand(2, 3, 32, 32)
    features = backbone(images)
    backbone.remove()
    torch.testing.assert_close(features, module.backbone.forward_features(images).mean(dim=1))
