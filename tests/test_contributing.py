"""CONTRIBUTING's steps for adding something, followed to the letter in a copy of the package."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import forks

ROOT = Path(__file__).parents[1]
NAME = "squares"
PRIOR = """
from torch import nn
from rela_lightning.networks.build import Built
from rela_lightning.networks.preprocess import Preprocess

def build(name, *, pretrained, image_size=None, **kwargs):
    network = nn.Sequential(nn.AdaptiveAvgPool2d(int(name)), nn.Flatten(), *([] if pretrained else [nn.Dropout()]))
    return Built(network, Preprocess((16, 16), (0.5,) * 3, (0.5,) * 3))
"""
METHOD = '''
from torch import nn
from rela_lightning.methods.base import Method

class Squares(Method):
    """Small features."""

    def __init__(self, backbone: str | nn.Module = "resnet18", *, power: int = 2, **options) -> None:
        super().__init__(backbone, **options)
        self.power = power

    def training_step(self, batch, batch_idx):
        views = self.two_views(batch)
        return self.log_loss(self(views[0]).pow(self.power).mean(), len(views[0]))
'''
SCHEDULE = """

class Squares(Schedule):
    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def weights(self, progress):
        return Weights(progress**2, 1.0 - progress**2) if progress < self.share else SSL_ONLY
"""
LOSS = """

class Squares:
    takes_negatives = False

    def __call__(self, mapped, targets, negatives=None):
        return (mapped - targets).pow(2).mean()

NAMED["squares"] = Squares
"""
COMMAND = '''
def squares(number: int) -> None:
    """Print a square.

    Args:
        number: What is squared.
    """
    print(number**2)
'''
STEPS: dict[
    str, list[tuple[str, str]]
] = {  # what is written where; `+NAME` is an entry of the list or dict of that name
    "A prior family": [
        ("networks/NAME.py", PRIOR),
        ("networks/build.py+LIBRARIES", '"squares": "<side>", '),
    ],
    "A method": [
        ("methods/NAME.py", METHOD),
        ("methods/__init__.py+_EXPORTS", '"Squares": "rela_lightning.methods.squares", '),
        ("methods/__init__.py+__all__", '"Squares", '),
    ],
    "A schedule": [("schedules.py", SCHEDULE)],
    "A loss": [("losses.py", LOSS)],
    "A command": [("cli/NAME.py", COMMAND), ("cli/command.py+COMMANDS", '"squares": ("PLACE:squares", "a square"), ')],
}


def follow(root: Path) -> None:
    """In a process of its own: what the copy of the package says."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "rela_lightning"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    import torch

    from rela_lightning import load_prior
    from rela_lightning.cli import main
    from rela_lightning.losses import resolve_loss
    from rela_lightning.methods import build_backbone

    def said(*words: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            main(list(words))
        return out.getvalue()

    prior = load_prior("squares:2")
    fit = ["fit", "--model=Squares", "--model.power=4", "--data=DigitsData", "--print_config"]
    fit += ["--trainer.callbacks+=ReLACallback", "--trainer.callbacks.targets=t", "--trainer.callbacks.loss=squares"]
    fit += ["--trainer.callbacks.schedule=rela_lightning.schedules.Squares", "--trainer.callbacks.schedule.share=0.25"]
    found = {
        "prior": [prior.feature_dim, prior(torch.ones(1, 3, 16, 16)).tolist()],
        "backbone": build_backbone("squares:3")[1],
        "loss": float(resolve_loss("squares")(torch.ones(2, 2), torch.zeros(2, 2))),
        "fit": said(*fit),
        "help": said("squares", "--help"),
        "command": said("squares", "7"),
    }
    print(json.dumps(found))


def section(what: str) -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.split(r"^##+ ", text.partition(f"### {what}\n")[2], flags=re.MULTILINE)[0]


def named_files(what: str) -> list[str]:
    return re.findall(r"`([\w/]+\.(?:py|md))`", section(what))


def enter(file: Path, target: str, text: str) -> None:
    """Write an entry right behind the opening bracket of a list, tuple or dict of a module."""
    before = file.read_text(encoding="utf-8")
    after, count = re.subn(rf"(?m)^({target}\b[^=\n]*= [\[({{])", lambda found: found[1] + text, before)
    assert count == 1, f"{target} in {file}"
    file.write_text(after, encoding="utf-8")


@pytest.fixture(scope="module")
def followed(tmp_path_factory: Any) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "rela_lightning", root / "rela_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    for what, steps in STEPS.items():
        for place, text in steps:
            name, _, target = place.partition("+")
            path = f"rela_lightning/{name}"
            assert path in named_files(what), f"CONTRIBUTING does not name {path} under {what!r}"
            file = root / path.replace("NAME", NAME)
            if target:
                own = named_files(what)[0].replace("NAME", NAME).removesuffix(".py").replace("/", ".")
                enter(file, target, text.replace("PLACE", own))
            else:
                with file.open("a", encoding="utf-8") as source:
                    source.write(text)
    [done] = forks(functools.partial(follow, root))
    assert done.code == 0, done.output[-3000:]
    return json.loads(done.output.splitlines()[-1])


@pytest.mark.parametrize("what", STEPS)
def test_few_files_are_touched_and_they_exist(what: str) -> None:
    files = named_files(what)
    others = {file for file in files if "NAME" not in file}
    assert all((ROOT / file).is_file() for file in others)
    assert all((ROOT / file).parent.is_dir() for file in files)
    own = set() if any("NAME" in file for file in files) else {files[0]}
    assert len(others - own) <= 2


@pytest.mark.parametrize("what", STEPS)
def test_lists_that_are_named_are_there(what: str) -> None:
    for name, file in re.findall(r"`(_?[A-Z]{2,}\w*)`[^`]*in `([\w/]+\.py)`", section(what)):
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assigned = [n.targets[0] if isinstance(n, ast.Assign) else getattr(n, "target", None) for n in body]
        assert name in {target.id for target in assigned if isinstance(target, ast.Name)}, f"{name} in {file}"


@pytest.mark.slow
def test_a_prior_is_loaded_and_a_method_may_stand_on_it(followed: dict[str, Any]) -> None:
    assert followed["prior"] == [12, [[1.0] * 12]] and followed["backbone"] == 27


@pytest.mark.slow
def test_a_method_and_a_schedule_have_their_options_in_the_command(followed: dict[str, Any]) -> None:
    assert re.search(r"class_path: rela_lightning.methods(.squares)?.Squares\n\s+init_args:\n(.*\n)*?\s+power: 4\n",
                     followed["fit"])  # fmt: skip
    assert re.search(r"class_path: rela_lightning.schedules.Squares\n\s+init_args:\n\s+share: 0.25", followed["fit"])


@pytest.mark.slow
def test_a_loss_has_a_name(followed: dict[str, Any]) -> None:
    assert followed["loss"] == 1.0 and "loss: squares" in followed["fit"]


@pytest.mark.slow
def test_a_command_is_called_and_explains_itself(followed: dict[str, Any]) -> None:
    assert followed["command"] == "49\n" and "What is squared" in followed["help"]
