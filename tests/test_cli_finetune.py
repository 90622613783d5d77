"""`rela finetune`: from a run to a classifier, with all labels or a few; and a run as the prior of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import ConcatDataset, Dataset, Subset

from rela_lightning import load_prior
from rela_lightning.cli import main
from rela_lightning.data import Digits, DigitsData
from rela_lightning.data.few_labels import FewLabels
from rela_lightning.errors import ConfigError, DataError, NetworkError
from rela_lightning.methods import FineTune
from rela_lightning.networks.backbones import build_backbone
from rela_lightning.runs.comparison import wilson
from rela_lightning.runs.read import find_checkpoint
from rela_lightning.runs.rebuild import find_subject
from tests.test_cli import in_a_folder_of_its_own, record  # noqa: F401

QUICK = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_model_summary=false"]


def weights(run: str) -> dict[str, torch.Tensor]:
    state = torch.load(find_checkpoint(Path(run)), weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("backbone.")}


def config(run: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path(run) / "config.yaml").read_text())
    return found


def test_a_run_goes_on_with_its_own_data_and_a_few_labels(plain: Path, capsys: Any) -> None:
    few = ["--data.labels_per_class=7", "--data.batch_size=256", "--model.backbone_rate=0.5"]
    assert main(["finetune", "runs/plain", "--name=tuned", *few, *QUICK]) == 0
    said = capsys.readouterr().out
    known, options = record("runs/tuned"), config("runs/tuned")
    assert options["model"]["init_args"]["num_classes"] == 10
    assert options["data"]["class_path"] == config("runs/plain")["data"]["class_path"]
    assert (known["method"], known["images"], known["validation_images"]) == ("FineTune", 70, 150)
    top1 = known["top1"]
    assert f"top-1 {100 * top1:.1f} ± {100 * wilson(top1, 150):.1f} % of 150 validation images" in said
    before, after = weights("runs/plain"), weights("runs/tuned")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    optimizer = torch.load(find_checkpoint(Path("runs/tuned")), weights_only=True)["optimizer_states"][0]
    head, backbone = (group["lr"] for group in optimizer["param_groups"])
    assert backbone == pytest.approx(0.5 * head)
    assert main(["export", "runs/tuned", "tuned.safetensors"]) == 0
    exported = load_file("tuned.safetensors")
    assert all(torch.equal(value, after[f"backbone.{name}"]) for name, value in exported.items())
    assert main(["export", "runs/tuned", "hub", "--format=hub"]) == 0
    card = (Path("hub") / "README.md").read_text()
    assert 'build_backbone("lightly:resnet-9", width=0.125)' in card  # and not the folder of the run
    assert f"| top-1 of the classifier trained with it | {100 * top1:.1f}%" in card
    assert main(["finetune", "--resume", "runs/tuned", "--trainer.max_steps=3"]) == 0
    assert record("runs/tuned")["steps"] == 3


@pytest.mark.slow
def test_the_head_alone_leaves_the_backbone_as_it_was_and_runs_compare(plain: Path, capsys: Any, recwarn: Any) -> None:
    head = ["--model.train=head", "--data.batch_size=32", *QUICK]
    assert main(["finetune", "runs/plain", "--name=head", *head]) == 0
    assert not [warning for warning in recwarn if "eval mode" in str(warning.message)]
    before, after = weights("runs/plain"), weights("runs/head")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert main(["finetune", "runs/plain", "--name=other", *head, "--model.label_smoothing=0.1"]) == 0
    assert main(["compare", "runs/head", "runs/other"]) == 0
    report = Path("comparison/report.md").read_text()
    for run in ("head", "other"):
        known = record(f"runs/{run}")
        half = 100 * wilson(known["top1"], 150)
        assert f"| {run} | {100 * known['top1']:.1f} ± {half:.1f} |" in report
    assert "150 validation images" in report and "linear" not in report.partition("##")[0]
    assert main(["finetune", str(find_checkpoint(Path("runs/plain"))), "--name=file", *head]) == 0
    assert all(torch.equal(value, weights("runs/file")[name]) for name, value in before.items())


def test_another_size_than_the_run_s_is_said(plain: Path) -> None:
    few = ["--data=DigitsData", "--data.labels_per_class=1", "--data.image_size=16", "--trainer.fast_dev_run=1"]
    with pytest.warns(UserWarning, match=r"trained at 32 px, and is fine-tuned at 16 px; --data.image_size 32 keeps"):
        assert main(["finetune", "runs/plain", *few, "--trainer.accelerator=cpu"]) == 0
    with pytest.warns(UserWarning, match=r"another way than DigitsData does; --data.mean '\[0.305, 0.305, 0.305\]'"):
        assert main(["finetune", "runs/plain", *few, "--data.mean=[0.5, 0.5, 0.5]", "--trainer.accelerator=cpu"]) == 0


def test_images_without_labels_are_said_to_have_none(plain: Path, capsys: Any) -> None:
    for place in ("all", "sorted/one", "sorted/two"):
        Path(place).mkdir(parents=True)
        for row in range(3):
            Image.new("RGB", (32, 32), (80 * row, 90, 30)).save(Path(place, f"{row}.png"))
    unlabelled = ["--data=ImageFolderData", "--data.root=all", "--data.image_size=32", "--data.batch_size=3"]
    assert main(["finetune", "runs/plain", *unlabelled, *QUICK]) == 2
    assert "The images have no labels" in capsys.readouterr().err
    supervised = ["--model=Supervised", "--model.backbone=lightly:resnet-9", "--model.num_classes=2"]
    assert main(["fit", *supervised, *unlabelled, *QUICK]) == 2
    assert "The images have no labels" in capsys.readouterr().err
    few = ["--data=ImageFolderData", "--data.root=sorted", "--data.labels_per_class=4"]
    assert main(["finetune", "runs/plain", *few, *QUICK]) == 2
    assert "labels_per_class <= 3, the images of class 0" in capsys.readouterr().err


def test_what_there_is_to_start_from_is_told(plain: Path, capsys: Any) -> None:
    for words, said in (
        ([], "needs to know what to start from"),
        (["--model.train=head"], "needs to know what to start from"),
        (["runs/none"], "There is no such checkpoint"),
        (["runs/plain", "--model.train=tail", *QUICK], "tail"),
        (["lightly:resnet-9", "--data=DigitsData", "--model.backbone_rate=0", *QUICK], "`backbone_rate`"),
        (["runs/plain", "--data.labels_per_class=1000", *QUICK], "A class has too few images for so many labels"),
    ):
        with pytest.raises(SystemExit) if said == "tail" else pytest.MonkeyPatch.context():
            assert main(["finetune", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_run_is_a_backbone_and_a_prior_that_sees_the_probe_view(plain: Path) -> None:
    network, width = build_backbone("run:runs/plain")
    own = {f"backbone.{name}": value for name, value in network.state_dict().items()}
    assert all(torch.equal(value, own[name]) for name, value in weights("runs/plain").items())
    prior, subject = load_prior("run:runs/plain"), find_subject("runs/plain")
    images, views = (subject.data.dataset("val", view) for view in (None, "probe"))
    shown = torch.stack([views[row][0] for row in range(6)])
    seen = torch.stack([prior.preprocess(images[row][0]) for row in range(6)])
    assert torch.allclose(seen, shown, atol=1e-6)
    assert prior.feature_dim == width
    with pytest.raises(NetworkError, match=r"(?s)built already.*width"):
        build_backbone("run:runs/plain", width=3)
    with pytest.raises(ConfigError, match="no such checkpoint"):
        build_backbone("run:runs/none")


@pytest.mark.slow
def test_targets_of_a_run_are_its_features(plain: Path) -> None:
    words = ["--prior=run:runs/plain", "--path=t2", "--data=DigitsData"]
    assert main(["targets", *words]) == 0
    assert "run:runs/plain" in json.loads(Path("t2/manifest.json").read_text())["prior"]


def test_few_labels_are_the_same_of_each_class_and_others_with_another_seed() -> None:
    data, again, other = (DigitsData(labels_per_class=5, seed=seed) for seed in (1, 1, 2))
    rows = [part.dataset("train").dataset.indices for part in (data, again, other)]
    assert rows[0] == rows[1] != rows[2]
    images, whole = data.dataset("train"), DigitsData().dataset("train")
    assert len(images) == 50 and images.targets == [whole.targets[row] for row in rows[0]]
    assert torch.bincount(torch.tensor(images.targets)).tolist() == [5] * 10
    assert [images[row][1] for row in range(9)] == images.targets[:9]
    assert data.num_classes == 10 and len(data.dataset("val")) == 150
    with pytest.raises(ConfigError, match="`labels_per_class`"):
        DigitsData(labels_per_class=0)


class LowOrHigh(Dataset[Any]):
    """Digits of other labels than their own: whether they are below five."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.targets = dataset, [label // 5 for label in dataset.targets]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.dataset[row][0], self.targets[row]


def test_few_labels_are_those_that_are_handed_out() -> None:
    digits = LowOrHigh(Digits("test"))
    some = Subset(digits, range(40, 140))
    for dataset in (digits, some, ConcatDataset([digits, some])):
        few = FewLabels(dataset, 3)
        found = [label for _, label in few]
        assert sorted(found) == [0] * 3 + [1] * 3 and found == few.targets


def test_few_labels_need_labels() -> None:
    with pytest.raises(DataError, match="where there are none"):
        FewLabels([torch.zeros(3), torch.zeros(3)], 1)


def test_a_frozen_backbone_keeps_its_statistics() -> None:
    module = FineTune("lightly:resnet-9", backbone_kwargs={"width": 0.125}, num_classes=3, train="head")
    for one in (module, module.train()):  # Lightning leaves the modes of a module as it finds them
        assert not any(part.training for part in one.backbone.modules()) and one.classifier.training
    assert all(part.training for part in FineTune("lightly:resnet-9", num_classes=3).train().backbone.modules())
    split = FineTune("lightly:resnet-9", num_classes=3, exclude_bias_and_norm=True).configure_optimizers()
    rates = [(group["lr"], group["weight_decay"]) for group in split.param_groups]
    assert rates == [(1e-3, 1e-2), (1e-3, 0), (pytest.approx(1e-4), 1e-2), (pytest.approx(1e-4), 0)]
    with pytest.raises(ConfigError, match="number of classes is not known"):
        FineTune("lightly:resnet-9")
