"""ONNX files, hub folders and the command: each computes what the trained backbone computes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import lightning.pytorch as L
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rela_lightning import export_backbone
from rela_lightning.cli import main
from rela_lightning.errors import ConfigError
from rela_lightning.export.card import facts_table, text
from rela_lightning.methods import Supervised, build_backbone
from tests.exports import RUN, Pair, real_images, resnet18_run, same, small_run
from tests.parts import TinyBackbone


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    return resnet18_run(tmp_path_factory.mktemp("resnet18"))


# ---- ONNX --------------------------------------------------------------------------------------------


def run_onnx(path: Path, images: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ({"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.125}}, 32),
        ({"backbone": "resnet18", "cifar_stem": True}, 32),
        ({"backbone": "mobilenet_v3_small"}, 64),
        ({"backbone": "timm:vit_tiny_patch16_224", "backbone_kwargs": {"img_size": 32, "depth": 2}}, 32),
    ],
)
def test_onnx_gives_the_same_features_for_any_number_of_images(backbone, size, tmp_path):
    method = Supervised(num_classes=3, **backbone).eval()
    path = export_backbone(method, tmp_path / "b.onnx", format="onnx", image_size=size, mean=[0.5] * 3, std=[0.25] * 3)
    for count in (1, 5):
        images = real_images(count, size)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(path, images), method(images), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_onnx_from_a_checkpoint_alone_and_its_metadata(resnet18, tmp_path):
    import onnx

    method, folder = resnet18
    path = export_backbone(folder / "last.ckpt", tmp_path / "b.onnx", format="onnx")
    images = real_images(2, 32)  # the size that run.json states
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(path, images), method(images), rtol=1e-3, atol=1e-3)
    said = {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}
    assert said["image_size"] == "32" and said["backbone"] == "resnet18" and "unknown" in said["normalisation"]
    onnx.checker.check_model(str(path))


def test_a_foreign_checkpoint_needs_its_architecture(tmp_path):
    pair, file = Pair("backbone", "backbone_momentum").eval(), tmp_path / "a.ckpt"
    torch.save({"state_dict": pair.state_dict(), "pytorch-lightning_version": L.__version__}, file)
    for name in ("onnx", "hub"):
        with pytest.raises(ConfigError, match=r"nothing says what it is(?s:.*)architecture="):
            export_backbone(file, tmp_path / "b", format=name)
    path = export_backbone(file, tmp_path / "b", format="onnx", architecture=TinyBackbone(), image_size=16)
    images = real_images(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(run_onnx(path, images), pair.backbone(images), rtol=1e-3, atol=1e-3)


def test_a_network_that_takes_another_size_is_named(tmp_path):
    method = Supervised("timm:vit_tiny_patch16_224", num_classes=3, backbone_kwargs={"img_size": 32, "depth": 1})
    with pytest.raises(ConfigError, match=r"cannot be exported(?s:.*)48(?s:.*)image_size"):
        export_backbone(method, tmp_path / "b.onnx", format="onnx", image_size=48)
    export_backbone(method, tmp_path / "b.onnx", format="onnx")  # its own size, which it states


# ---- hub ---------------------------------------------------------------------------------------------


def snippet(folder: Path) -> str:
    """The first Python block of a model card."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone",
    [
        {"backbone": "resnet18"},
        {"backbone": "resnet18", "cifar_stem": True},
        {"backbone": "mobilenet_v3_small"},
        {"backbone": "lightly:resnet-9", "backbone_kwargs": {"width": 0.125}},
        {"backbone": "timm:resnet10t", "backbone_kwargs": {"in_chans": 3, "drop_rate": 0.1}},
        {"backbone": "timm:vit_tiny_patch16_224", "backbone_kwargs": {"img_size": 32, "depth": 2}},
    ],
)
def test_the_cards_code_and_timm_load_the_hub_folder(backbone, tmp_path, monkeypatch):
    method = Supervised(num_classes=3, **backbone).eval()
    folder = export_backbone(method, tmp_path / "hub", format="hub", mean=[0.5] * 3, std=[0.25] * 3)
    images = real_images(2, 32)
    with torch.no_grad():
        expected = method(images)
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {}
    exec(snippet(folder), scope)
    with torch.no_grad():
        torch.testing.assert_close(scope["backbone"](images).flatten(1), expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_features"] == expected.shape[1]
    own = config["rela_lightning"]
    rebuilt, _ = build_backbone(own["backbone"], cifar_stem=own["cifar_stem"], **own["backbone_kwargs"])
    rebuilt.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    is_timm = backbone["backbone"].startswith("timm:") or backbone == {"backbone": "resnet18"}
    assert ("architecture" in config) == is_timm == ("local-dir" in (folder / "README.md").read_text())
    if is_timm:
        loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), expected)
        assert tuple(loaded.pretrained_cfg["mean"]) == (0.5,) * 3


@pytest.mark.slow
def test_the_card_states_the_run_and_invents_nothing(resnet18, tmp_path):
    folder = export_backbone(resnet18[1], tmp_path / "hub", format="hub")
    card = (folder / "README.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE))
    assert rows["method"] == "BYOL" and rows["linear top-1"] == "87.5%" and rows["kNN top-1"] == "unknown"
    assert rows["seconds, labelling included"] == "12.3" and rows["seconds of labelling"] == "1.5"
    assert rows["optimizer steps"] == "2" and rows["budget"] == "max_steps: 2"
    assert rows["training data"] == "DigitsData (image_size: 32, data_ratio: 0.5)"
    assert rows["prior"] == r"timm:resnet18 \| random"
    assert (
        rows["left out"] == "fc.weight, fc.bias" and "32 x 32" in rows["images"] and "unknown" in rows["normalisation"]
    )
    assert "torch: 9.9.9" in card and not re.search(r"^license:", card, re.MULTILINE)


def test_a_card_without_a_run_knows_only_what_the_checkpoint_says(small, tmp_path):
    folder = export_backbone(small[1], tmp_path / "hub", format="hub")
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE))
    for name in ("prior", "training data", "budget", "epochs", "linear top-1", "seconds of labelling"):
        assert rows[name] == "unknown"
    assert rows["optimizer steps"] == "2"


def test_facts_of_the_whole_run_are_not_those_of_an_earlier_checkpoint():
    rows = dict(facts_table({**RUN, "steps": 500, "steps_of_weights": 100}))
    assert rows["optimizer steps"] == "100" and rows["linear top-1 (of the whole run, 500 steps)"] == "87.5%"


def test_an_accuracy_is_of_the_step_that_was_probed():
    facts = {**RUN, "steps": 500, "probed_steps": 100}
    assert dict(facts_table({**facts, "steps_of_weights": 100}))["linear top-1"] == "87.5%"
    assert dict(facts_table({**facts, "steps_of_weights": 500}))["linear top-1 (at 100 steps)"] == "87.5%"


def test_a_card_leaves_out_limits_that_were_not_set():
    rows = dict(facts_table({"budget": {"max_epochs": -1, "max_steps": 20, "max_seconds": None}}))
    assert rows["budget"] == "max_steps: 20"


def test_a_card_names_no_folder_of_the_authors_machine():
    facts = {"prior": "checkpoint:/home/me/priors/a.ckpt", "data": {"name": "ImageFolderData", "root": "/data/cats"}}
    rows = dict(facts_table(facts))
    assert rows["prior"] == "checkpoint:a.ckpt" and rows["training data"] == "ImageFolderData"
    for kept in ("open_clip:ViT-B-16/openai", "https://arxiv.org/abs/2405.14669", "1/2", "runs/a"):
        assert text(kept) == kept
    assert text("~/x/y.ckpt, /z") == "y.ckpt, z"


def test_any_value_fits_a_table_cell():
    assert text({"class_path": "a.b.C", "init_args": {"x": None, "y": [1, 2]}}) == "C (y: 1, 2)"
    assert text("a|b\nc") == "a\\|b c" and text({}) == text(None) == "unknown" and text(0) == "0"


def test_a_hub_folder_keeps_its_other_files(small, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    export_backbone(small[1], tmp_path, format="hub", run={"prior": "lightly"})
    with pytest.raises(ConfigError, match="there already"):
        export_backbone(small[1], tmp_path, format="hub")
    export_backbone(small[1], tmp_path, format="hub", overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"notes.txt", "README.md", "config.json", "model.safetensors"}


def test_the_ending_names_the_format(small, tmp_path):
    method, folder = small
    weights = export_backbone(folder, tmp_path / "b.pth")
    assert same(torch.load(weights, weights_only=True), method.backbone)
    assert same(load_file(export_backbone(folder, tmp_path / "b")), method.backbone)
    images = torch.randn(2, 3, 32, 32)
    found = run_onnx(export_backbone(folder, tmp_path / "b.onnx"), images)
    torch.testing.assert_close(found, method.backbone.eval().cpu()(images), rtol=1e-3, atol=1e-4)


def test_a_checkpoint_named_from_inside_its_folder_finds_its_run(small, tmp_path, monkeypatch):
    inside = tmp_path / "run" / "checkpoints"
    inside.mkdir(parents=True)
    shutil.copy(small[1] if Path(small[1]).is_file() else next(Path(small[1]).rglob("*.ckpt")), inside / "last.ckpt")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"prior": "a-prior-of-its-own"}))
    monkeypatch.chdir(inside)
    export_backbone("last.ckpt", tmp_path / "hub", format="hub")
    assert "a-prior-of-its-own" in (tmp_path / "hub" / "README.md").read_text()


def test_the_card_tells_what_was_measured_and_how():
    protocol = {"data": "DigitsData", "images": "a1b2", "validation_images": 450, "linear": {"solver": "adam"}}
    facts = {**RUN, "prior": None, "images": 1347, "protocol": protocol}
    facts["hardware"] = {"accelerator": "cpu", "device": "x86_64", "precision": "32-true"}
    rows = dict(facts_table(facts))
    assert rows["prior"] == "none" and rows["training images"] == "1347"
    assert rows["hardware"] == "accelerator: cpu, device: x86_64, precision: 32-true"
    assert rows["linear top-1"] == "87.5% ± 3.1 (95% interval of 450 images)"
    assert rows["probe"] == "data DigitsData, validation_images 450, linear (solver adam)"
    assert dict(facts_table({"method": "BYOL"}))["prior"] == "unknown"


# ---- the command -------------------------------------------------------------------------------------


def test_rela_export(small, tmp_path, capsys):
    method, folder = small
    out = tmp_path / "b.safetensors"
    assert main(["export", "--checkpoint", str(folder), "--path", str(out), "--format", "safetensors"]) == 0
    assert same(load_file(out), method.backbone) and str(out) in capsys.readouterr().out
    assert main(["export", "--checkpoint", str(folder), "--path", str(out)]) == 2
    assert "overwrite" in capsys.readouterr().err
    words = [
        "export",
        "--checkpoint",
        str(folder),
        "--path",
        str(out),
        "--overwrite",
        "true",
        "--mean",
        "[0.1,0.2,0.3]",
    ]
    assert main([*words, "--std", "[1,1,1]"]) == 0
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["mean"]) == [0.1, 0.2, 0.3]
