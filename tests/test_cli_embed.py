"""`rela embed`: features in the order of the data set, each with its file."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from rela_lightning import load_prior
from rela_lightning.cli import main
from rela_lightning.cli.images import probe_images
from rela_lightning.data import Digits, FolderImages, probe_view
from rela_lightning.fingerprint.order import names_of
from rela_lightning.runs.rebuild import Subject
from tests.test_cli import DIGITS, in_a_folder_of_its_own  # noqa: F401

PRIOR = ["random:lightly:resnet-9", "--prior_kwargs={width: 0.125, image_size: 32, mean: 0.5, std: 0.5, seed: 0}"]


def pictures(root: Path, classes: tuple[str, ...]) -> Path:
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for row in range(3):
            Image.new("RGB", (40, 32), (60 * shade, 80 * row, 90)).save(root / name / f"{row}.png")
    return root


def prior_features(dataset: Any) -> torch.Tensor:
    prior = load_prior(PRIOR[0], width=0.125, image_size=32, mean=0.5, std=0.5, seed=0)
    dataset.transform = prior.preprocess
    with torch.no_grad():
        return prior(torch.stack([item[0] if isinstance(item, tuple) else item for item in dataset]))


def table_of(file: str) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(file).read_text().splitlines()))


@pytest.mark.parametrize("classes", [("cat", "dog"), ("",)])
def test_features_of_folders_with_and_without_labels(classes: tuple[str, ...], capsys: Any) -> None:
    pictures(Path("photos"), classes)
    words = ["--data=ImageFolderData", "--data.root=photos", "--data.num_workers=0"]
    assert main(["embed", *PRIOR, *words, "--path=out/f.npy"]) == 0
    assert "out/f.npy, out/f.csv" in capsys.readouterr().out
    found, rows = np.load("out/f.npy"), table_of("out/f.csv")
    dataset = FolderImages(Path("photos"))
    np.testing.assert_allclose(found, prior_features(dataset).numpy(), rtol=1e-4, atol=1e-4)
    assert found.dtype == np.float32 and [row["row"] for row in rows] == [str(n) for n in range(len(found))]
    names = [f"{name}/{row}.png".lstrip("/") for name in classes for row in range(3)]
    assert [row["file"] for row in rows] == names
    labels = [0, 0, 0, 1, 1, 1] if len(classes) > 1 else [-1] * 3
    assert [int(row["label"]) for row in rows] == labels

    assert main(["embed", *PRIOR, *words, "--path=f.parquet"]) == 0
    from pyarrow import parquet

    table = parquet.read_table("f.parquet").to_pydict()
    assert table["file"] == names and table["label"] == labels and table["row"] == list(range(len(names)))
    assert np.array_equal(np.array(table["features"], np.float32), found)


class Wrapped(LightningDataModule):
    """A data module of the user's own: one data set inside another, the same at each call."""

    def __init__(self, joined: bool = False) -> None:
        super().__init__()
        images = Digits("test", transform=probe_view(32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.3)))
        first = Subset(images, range(8))
        self.images: Any = ConcatDataset([first, Subset(images, range(20, 24))]) if joined else first

    def dataset(self, split: str = "train", view: str | None = None) -> Any:
        return self.images


@pytest.mark.parametrize("joined", [False, True])
def test_a_prior_sees_wrapped_images_through_its_own_preprocessing(joined: bool) -> None:
    words = ["--data=tests.test_cli_embed.Wrapped", f"--data.joined={joined}", "--path=f.npy"]
    assert main(["embed", *PRIOR, *words]) == 0
    rows = [*range(8), *([*range(20, 24)] if joined else [])]
    expected = prior_features(Digits("test"))[rows]
    np.testing.assert_allclose(np.load("f.npy"), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_the_view_of_one_subject_is_not_left_for_the_next() -> None:
    data, prior = Wrapped(), load_prior(PRIOR[0], width=0.125, image_size=32, mean=0.5, std=0.5, seed=0)
    own = data.images[0][0]
    assert not torch.equal(probe_images(data, "val", Subject(prior, "prior"))[0][0], own)
    assert torch.equal(probe_images(data, "val", Subject(torch.nn.Identity(), "network"))[0][0], own)


@pytest.mark.slow
def test_the_backbone_of_a_run_on_its_own_data(plain: Path) -> None:
    assert main(["embed", str(plain), "f.npy", "--split=val", "--device=cpu"]) == 0
    from rela_lightning.probe import extract_features
    from rela_lightning.runs.rebuild import find_subject

    subject = find_subject(str(plain))
    expected, labels = extract_features(subject.network, subject.data.dataset("val", "probe"))
    np.testing.assert_allclose(np.load("f.npy"), expected.numpy(), rtol=1e-4, atol=1e-5)
    rows = table_of("f.csv")
    assert [int(row["label"]) for row in rows] == labels.tolist() and {row["file"] for row in rows} == {""}


def test_another_size_than_the_run_s_is_said(plain: Path) -> None:
    pictures(Path("photos"), ("cat", "dog"))
    words = ["--data=ImageFolderData", "--data.root=photos", "--device=cpu"]
    with pytest.warns(UserWarning, match=r"trained at 32 px, and is embedded at 64 px; --data.image_size 32 keeps"):
        assert main(["embed", str(plain), "f.npy", *words, "--data.image_size=64"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["embed", str(plain), "g.npy", *words, "--data.image_size=32"]) == 0


def test_images_of_other_data_are_normalised_as_the_run_was_trained(plain: Path, caplog: Any) -> None:
    pictures(Path("photos"), ("cat", "dog"))
    words = ["--data=ImageFolderData", "--data.root=photos", "--data.image_size=32", "--device=cpu"]
    with caplog.at_level("INFO"):
        assert main(["embed", str(plain), "a.npy", *words]) == 0
    assert "by mean [0.305, 0.305, 0.305] and std [0.323, 0.323, 0.323], not as in ImageFolderData" in caplog.text
    assert main(["embed", f"run:{plain}", "b.npy", *words]) == 0
    own = ["--data.mean=[0.305, 0.305, 0.305]", "--data.std=[0.323, 0.323, 0.323]"]
    caplog.clear()
    assert main(["embed", str(plain), "c.npy", *words, *own]) == 0
    assert "normalised" not in caplog.text
    np.testing.assert_array_equal(np.load("a.npy"), np.load("c.npy"))
    np.testing.assert_allclose(np.load("a.npy"), np.load("b.npy"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--path=f.csv", DIGITS], ".npy or .parquet"),
        (["--path=there.npy", DIGITS], "there already"),
        (["--path=f.npy"], "--data CIFAR10Data"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], said: str, capsys: Any) -> None:
    Path("there.csv").write_text("mine")
    assert main(["embed", *PRIOR, *words]) == 2
    assert said in capsys.readouterr().err
    assert Path("there.csv").read_text() == "mine" and not Path("f.npy").exists()


def test_names_follow_subsets_and_parts(tmp_path: Path) -> None:
    one, two = (FolderImages(pictures(tmp_path / name, ("a", "b"))) for name in ("one", "two"))
    both = ConcatDataset([Subset(one, [4, 0]), two])
    assert names_of(both) == ["one/b/1.png", "one/a/0.png", *(f"two/{name}" for name in names_of(two) or ["?"])]
    assert names_of(Subset(one, [0, 2])) == ["0.png", "2.png"]
    assert names_of(Digits("test")) is None


@pytest.mark.parametrize("words", [["--batch_size=0"], ["--device=nowhere"]])
def test_options_are_refused_before_any_work(words: list[str], capsys: Any) -> None:
    assert main(["embed", *PRIOR, DIGITS, "--path=f.npy", *words]) == 2
    assert words[0].strip("-").partition("=")[0].split("_")[0] in capsys.readouterr().err
