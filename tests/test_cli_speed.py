"""`rela fit --compile` and `--channels_last`: the same training, other code and another layout in memory."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from rela_lightning.cli import main
from rela_lightning.cli.speed import ChannelsLast, compile_backbone
from rela_lightning.data import DigitsData
from rela_lightning.methods import BYOL

FIT = [
    "fit",
    "--model=rela_lightning.methods.BYOL",
    "--model.backbone=lightly:resnet-9",
    "--model.backbone_kwargs={width: 0.125}",
    "--model.optimizer=SGD",
    "--model.optimizer.lr=0.1",
    "--data=rela_lightning.data.DigitsData",
    "--data.batch_size=32",
    "--trainer.max_epochs=2",
    "--trainer.precision=64-true",  # so that rounding cannot be taken for a difference
    "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
seen: list[dict] = []


class Witness(Callback):
    """Notes how images and weights lie in memory, and which networks are compiled."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        views, _ = batch
        weight = pl_module.backbone.conv1.weight
        seen.append({
            "images": all(view.is_contiguous(memory_format=torch.channels_last) for view in views),
            "weights": weight.is_contiguous(memory_format=torch.channels_last),
            "compiled": {name for name, part in pl_module.named_modules() if part._compiled_call_impl is not None},
        })  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def rela(targets) -> list[str]:
    return [
        "--trainer.callbacks+=rela_lightning.ReLACallback", "--trainer.callbacks.targets=t",
        "--trainer.callbacks.schedule=Switch", "--trainer.callbacks.schedule.at=0.5",
        "--trainer.callbacks+=tests.test_cli_speed.Witness",
    ]  # fmt: skip


def state(name: str) -> dict:
    return torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--compile=aot_eager"], ["--channels_last=true"]])
def test_training_is_the_same_in_both_phases(words, rela):
    assert main([*FIT, *rela, "--name=plain"]) == 0
    assert not any(note["images"] or note["weights"] or note["compiled"] for note in seen)
    seen.clear()
    assert main([*FIT, *rela, "--name=fast", *words]) == 0
    assert len(seen) == 4
    for note in seen:
        assert note["images"] is note["weights"] is ("--channels_last=true" in words)
        assert note["compiled"] == ({"backbone", "teacher_backbone"} if "--compile=aot_eager" in words else set())
    plain, fast = state("plain"), state("fast")
    assert fast["state_dict"].keys() == plain["state_dict"].keys()
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(fast["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    key = next(key for key in plain["callbacks"] if "ReLACallback" in key)
    map_of = [run["callbacks"][key]["transport"] for run in (plain, fast)]
    assert map_of[0].keys() == map_of[1].keys()
    assert main(["export", "runs/fast", "b.safetensors"]) == 0  # no trace of it in the names
    again = ["fit", "--config=runs/fast/config.yaml", "--ckpt_path=runs/fast", "--trainer.max_epochs=3"]
    assert main(again) == 0
    assert state("fast")["global_step"] == 6


@pytest.mark.slow
def test_compiled_are_the_backbone_and_its_teacher_in_place():
    module = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.125})
    names = list(module.state_dict())
    plain = copy.deepcopy(module)
    assert compile_backbone(module, "eager") == ["backbone", "teacher_backbone"]
    assert list(module.state_dict()) == names
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(module(images), plain(images))
    assert module.backbone._compiled_call_impl is not None
    assert copy.deepcopy(module).backbone._compiled_call_impl is None  # what copies a module gets a plain one


class Late(LightningModule):
    """Its network is built by `configure_model`."""

    def configure_model(self) -> None:
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
        self.backbone(torch.zeros(1, 3, 32, 32))

    def training_step(self, batch, batch_idx):
        (view, *_), _ = batch
        seen.append({
            "images": view.is_contiguous(memory_format=torch.channels_last),
            "weights": self.backbone[0].weight.is_contiguous(memory_format=torch.channels_last),
        })  # fmt: skip
        return self.backbone(view).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("fails", [False, True])
def test_channels_last_is_put_back(fails, tmp_path):
    module, data = Late(), DigitsData(batch_size=8)
    if fails:
        module.on_train_batch_end = lambda *_: 1 / 0
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ChannelsLast()],
    )  # fmt: skip
    if fails:
        with pytest.raises(ZeroDivisionError):
            trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, datamodule=data)
    assert seen == [{"images": True, "weights": True}]
    assert module.backbone[0].weight.is_contiguous()
    assert "on_after_batch_transfer" not in {*vars(module), *vars(data)}
