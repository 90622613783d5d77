import io
import itertools
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rela_lightning.progress
from rela_lightning import build_targets, load_prior
from rela_lightning.data import Digits
from rela_lightning.probe import extract_features
from rela_lightning.progress import Progress
from tests.modules import NAMESPACES

pytestmark = pytest.mark.usefixtures("all_images")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def passed(seconds, images, total=1000, stream=None):
    """What a pass writes that ends one step of so many images at each of these seconds."""
    now, stream = [0.0], stream or io.StringIO()
    with Progress("labelling", total, stream=stream, clock=lambda: now[0]) as progress:
        for moment in seconds:
            now[0] = moment
            progress.add(images)
    return stream.getvalue()


def test_a_short_pass_says_nothing():
    assert not passed([1, 2, 3, 9.9], 250)


def test_a_line_says_how_far_it_is_how_fast_and_how_long():
    assert passed([10.0], 40, total=20_000) == "labelling: 40 of 20,000 images, 4.0 a second, 1:23:10 left\n"
    assert passed([20.0], 1000, total=2000) == "labelling: 1,000 of 2,000 images, 50 a second, 0:00:20 left\n"


def test_lines_come_now_and_then():
    lines = passed(range(1, 4000), 1, total=4000).splitlines()
    assert 40 < len(lines) < 90
    done = [int(line.split()[1].replace(",", "")) for line in lines]
    gaps = [after - before for before, after in itertools.pairwise(done)]
    assert done[0] == 10
    assert min(gaps) == 30
    assert max(gaps) > 100


def test_a_terminal_gets_a_bar():
    shown = passed([1.0, 2.0], 500, stream=Terminal())
    assert "1000/1000" in shown
    assert "500 a second" in shown


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 2])
def test_labelling_says_how_far_it_is(tmp_path, monkeypatch, capsys, views):
    monkeypatch.setattr(rela_lightning.progress, "FIRST", 0.0)
    prior = load_prior(nn.Flatten(), image_size=8, mean=0.0, std=1.0)
    build_targets(prior, Digits("test"), tmp_path / "t", batch_size=300, views=views)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"labelling: {300 // (1 + views)} of 450 images, ")


@pytest.mark.slow
@pytest.mark.parametrize("bar", [True, False])
def test_so_does_labelling_by_a_trainer_that_has_a_bar(tmp_path, monkeypatch, capsys, bar):
    monkeypatch.setattr(rela_lightning.progress, "FIRST", 0.0)
    prior = load_prior(nn.Flatten(), image_size=8, mean=0.0, std=1.0)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": bar}
    for number, namespace in enumerate(NAMESPACES):
        trainer = import_module(namespace).Trainer(**options)
        kept = list(trainer.callbacks)
        build_targets(prior, Digits("test"), tmp_path / str(number), batch_size=300, trainer=trainer)
        told = capsys.readouterr()
        assert ("labelling: 300 of 450 images, " in told.err) is bar and "Predicting" not in told.out + told.err
        assert trainer.callbacks == kept


def test_a_probe_says_how_far_it_is_if_asked(monkeypatch, capsys):
    monkeypatch.setattr(rela_lightning.progress, "FIRST", 0.0)
    images = TensorDataset(torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64))
    extract_features(nn.Flatten(), images, batch_size=4)
    assert not capsys.readouterr().err
    extract_features(nn.Flatten(), images, batch_size=4, progress="features of training images")
    assert capsys.readouterr().err.startswith("features of training images: 4 of 6 images, ")
