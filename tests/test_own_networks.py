"""A backbone of the user's own, by the dotted path of its class: trained, probed and exported from the command."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rela_lightning.cli import main
from rela_lightning.errors import NetworkError
from rela_lightning.methods import build_backbone
from rela_lightning.networks.own import is_path
from tests.ranks import forks

CODE = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, width=12):
        super().__init__(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def wide(factor):
    return MyNet(12 * factor)

number = 3
def broken():
    raise OSError("no file")
def count():
    return 3
"""


@pytest.fixture
def mynet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mynet.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_class_and_a_function_make_backbones(mynet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mynet))
    network, width = build_backbone("mynet.MyNet")
    assert (type(network).__name__, width) == ("MyNet", 12)
    assert build_backbone("mynet.MyNet", width=7)[1] == 7
    assert build_backbone("mynet.wide", factor=2)[1] == 24


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mynet.MyNett", {}, r"(?s)module mynet has no MyNett.*available: MyNet"),
        ("nonet.MyNet", {}, "No module named 'nonet'"),
        ("mynet.MyNet", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("mynet.broken", {}, "OSError: no file"),
        ("mynet.count", {}, "gives no network"),
        ("mynet.number", {}, "not callable"),
    ],
)
def test_what_gives_no_network_is_refused(
    name: str, options: dict[str, int], said: str, mynet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(mynet))
    with pytest.raises(NetworkError, match=said):
        build_backbone(name, **options)


def test_other_names_are_no_paths() -> None:
    names = ("resnet18", "timm:vit_tiny.augreg", "torchvision:resnet18/V1.1", "resnet18.", "a b.c")
    assert not any(is_path(name) for name in names)


@pytest.mark.slow
def test_the_command_finds_it_in_the_current_folder_and_exports_it(mynet: Path) -> None:
    words = ["--model=BYOL", "--model.backbone=mynet.MyNet", "--model.backbone_kwargs={width: 10}", "--data=DigitsData"]
    quick = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu", "--name=own"]
    quick.append("--data.batch_size=32")

    def command(*words: str) -> int:  # as the console script: Python looks where that lies, not where we are
        sys.argv, sys.path = ["rela", *words], [place for place in sys.path if Path(place).resolve() != mynet]
        return main()

    def rela(*words: str) -> None:
        [done] = forks(functools.partial(command, *words))
        assert done.code == 0, done.output

    rela("fit", *words, *quick)
    rela("export", "runs/own", "own.safetensors")
    state = torch.load(next(Path("runs/own").rglob("*.ckpt")), weights_only=True)["state_dict"]
    network = nn.Sequential(nn.Conv2d(3, 10, 3, 2, 1))
    network.load_state_dict(load_file("own.safetensors"), strict=True)
    assert torch.equal(network[0].weight, state["backbone.0.weight"])


def test_a_misspelt_module_of_one_s_own_is_answered_with_the_names_of_its_file(
    mynet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(mynet))
    with pytest.raises(SystemExit):
        main(["fit", "--model=mynet.MyNett", "--data=DigitsData"])
    told = capsys.readouterr().err
    assert "expected: perhaps MyNet\n" in told and "BYOL" not in told
