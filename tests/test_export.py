"""Exported weights load strictly into the plain architecture and compute what the trained backbone computes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import lightning.pytorch as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from rela_lightning import export_backbone
from rela_lightning.errors import ConfigError, ReLAError
from rela_lightning.export.keys import find_key, tidy
from rela_lightning.methods import BYOL, Supervised
from rela_lightning.runs.read import find_checkpoint
from tests.exports import SMALL, Pair, real_images, resnet18_run, same, small_run, train
from tests.parts import TinyBackbone


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    return resnet18_run(tmp_path_factory.mktemp("resnet18"))


def test_the_student_is_exported_not_the_teacher(small, tmp_path):
    method, folder = small
    found = load_file(export_backbone(folder / "last.ckpt", tmp_path / "b.safetensors"))
    assert same(found, method.backbone)
    assert not same(found, method.teacher_backbone)


@pytest.mark.slow
def test_torchvision_loads_it_strictly_without_its_classifier(resnet18, tmp_path):
    method, folder = resnet18
    path = export_backbone(folder, tmp_path / "b.pt", format="torch")
    plain = models.resnet18()
    absent = set(plain.state_dict()) - set(torch.load(path, weights_only=True))
    assert absent == {"fc.weight", "fc.bias"}
    plain.fc = nn.Identity()
    plain.load_state_dict(torch.load(path, weights_only=True), strict=True)
    images = real_images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), method(images))


def test_safetensors_say_what_they_are(resnet18, tmp_path):
    path = export_backbone(resnet18[1], tmp_path / "b.safetensors", mean=[0.5] * 3, std=[0.25] * 3)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert said["backbone"] == "resnet18" and said["left_out"] == "fc.weight, fc.bias" and said["key"] == "backbone"
    assert json.loads(said["mean"]) == [0.5] * 3 and said["image_size"] == "32"


def test_timm_loads_it_strictly(tmp_path):
    method = Supervised("timm:resnet10t", num_classes=3)
    path = export_backbone(method, tmp_path / "b.safetensors")
    plain = timm.create_model("resnet10t", num_classes=0)
    plain.load_state_dict(load_file(path), strict=True)
    images = real_images(2, 64)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(images), method.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrapper", ["none", "DataParallel", "AveragedModel", "compile"])
def test_wrappers_leave_no_prefix(wrapper, compiled, tmp_path):
    method = BYOL(**SMALL, projector_dim=8, hidden_dim=8)
    plain = method.backbone
    if compiled:
        method.backbone = torch.compile(plain)
    wrapped = {
        "none": lambda m: m,
        "DataParallel": nn.DataParallel,
        "AveragedModel": torch.optim.swa_utils.AveragedModel,
        "compile": torch.compile,
    }[wrapper](method)
    assert same(load_file(export_backbone(wrapped, tmp_path / "b.safetensors")), plain)
    torch.save(wrapped.state_dict(), tmp_path / "weights.pt")
    assert same(load_file(export_backbone(tmp_path / "weights.pt", tmp_path / "c.safetensors")), plain)


def test_a_submodule_called_module_keeps_its_name():
    state = {"module.a": torch.ones(1), "head.module.b": torch.ones(1)}
    assert set(tidy(state)) == set(state)
    assert set(tidy({"module._orig_mod.a": torch.ones(1), "module.b": torch.ones(1)})) == {"a", "b"}


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("backbone", "backbone_momentum"),
        ("backbone", "teacher_backbone"),
        ("student_backbone", "teacher_backbone"),
        ("student_backbone", "backbone"),
        ("online_encoder", "encoder"),
        ("encoder_q", "encoder_k"),
        ("student", "teacher"),
        ("encoder", "target_encoder"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_of_two_alike_the_student(student, teacher, as_file, tmp_path):
    pair = Pair(student, teacher)
    source = pair
    if as_file:
        source = tmp_path / "foreign.ckpt"
        torch.save({"state_dict": pair.state_dict(), "pytorch-lightning_version": L.__version__}, source)
    found = load_file(export_backbone(source, tmp_path / "b.safetensors"))
    assert same(found, getattr(pair, student))


def test_everything_frozen_for_inference_says_nothing_about_teachers(tmp_path):
    pair = Pair("student_backbone", "teacher_backbone").requires_grad_(False)
    assert same(load_file(export_backbone(pair, tmp_path / "b.safetensors")), pair.student_backbone)


def test_a_holder_of_backbone_and_head_gives_its_backbone():
    state = {f"student.{name}": torch.ones(1) for name in ("backbone.a", "projector.b")}
    assert find_key(state) == "student.backbone"


def test_key_names_the_part_and_a_wrong_one_lists_what_exists(small, tmp_path):
    method, folder = small
    found = load_file(export_backbone(folder, tmp_path / "p.safetensors", key="projector"))
    assert same(found, method.projector)
    everything = load_file(export_backbone(folder, tmp_path / "a.safetensors", key=""))
    assert same(everything, method)
    with pytest.raises(ConfigError, match=r"no such submodule(?s:.*)found: +trunk(?s:.*)projector"):
        export_backbone(folder, tmp_path / "b.safetensors", key="trunk")


def test_no_usual_name_lists_what_exists(tmp_path):
    pair = Pair("mine", "other")
    with pytest.raises(ConfigError, match=r"not found(?s:.*)mine(?s:.*)key="):
        export_backbone(pair, tmp_path / "b.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_bare_network_is_exported_whole(tmp_path):
    network = models.VisionTransformer(image_size=16, patch_size=8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)
    network.heads = nn.Identity()  # has an `encoder`, which is not the whole backbone
    assert same(load_file(export_backbone(network, tmp_path / "a.safetensors")), network)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert same(load_file(export_backbone(tmp_path / "weights.pth", tmp_path / "b.safetensors")), network)


def test_the_module_is_left_as_it_was(tmp_path):
    method = BYOL(**SMALL, projector_dim=8, hidden_dim=8).train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    grads, random = [p.requires_grad for p in method.parameters()], torch.get_rng_state()
    export_backbone(method, tmp_path / "b.onnx", format="onnx", image_size=32)
    export_backbone(method, tmp_path / "hub", format="hub")
    assert all(m.training for m in method.modules())
    assert grads == [p.requires_grad for p in method.parameters()]
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_dtypes_are_kept_and_tied_tensors_are_written(tmp_path):
    network = TinyBackbone().to(torch.bfloat16)
    network.twin = network.body  # safetensors alone refuses tensors that share memory
    found = load_file(export_backbone(network, tmp_path / "b.safetensors"))
    assert same(found, network) and found["body.0.weight"].dtype == torch.bfloat16


# ---- which checkpoint --------------------------------------------------------------------------------


def test_the_last_checkpoint_of_a_run(tmp_path):
    folder = tmp_path / "version_1" / "checkpoints"
    folder.mkdir(parents=True)
    for age, name in enumerate(("epoch=0.ckpt", "last.ckpt", "last-v1.ckpt", "epoch=1.ckpt")):
        (folder / name).touch()
        os.utime(folder / name, (1000 + age, 1000 + age))
    older = tmp_path / "version_0" / "checkpoints"
    older.mkdir(parents=True)
    (older / "last.ckpt").touch()
    os.utime(older / "last.ckpt", (1, 1))
    assert find_checkpoint(tmp_path) == folder / "last-v1.ckpt"
    (tmp_path / "run.json").write_text('{"checkpoint": "version_1/checkpoints/epoch=0.ckpt"}')
    assert find_checkpoint(tmp_path) == folder / "epoch=0.ckpt"
    (tmp_path / "run.json").write_text('{"checkpoint": "gone.ckpt"}')  # the run was moved
    assert find_checkpoint(tmp_path) == folder / "last-v1.ckpt"


def test_a_folder_without_and_a_path_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "deep.ckpt").mkdir()
    with pytest.raises(ConfigError, match=r"sharded(?s:.*)consolidate"):
        find_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=r"no such checkpoint(?s:.*)deep.ckpt"):
        find_checkpoint(tmp_path / "run")


def test_lightnings_own_checkpoint_files(tmp_path):
    method = BYOL(**SMALL, projector_dim=8, hidden_dim=8)
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1, save_top_k=-1, save_last=True)
    train(method, tmp_path, callbacks=[saving])
    assert len(list(tmp_path.rglob("*.ckpt"))) == 3
    assert same(load_file(export_backbone(tmp_path, tmp_path / "b.safetensors")), method.backbone)


class Anything:
    """An object that a checkpoint should not hold."""


def test_a_checkpoint_with_objects_or_rubbish(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"x": Anything()}, "pytorch-lightning_version": "2.4"}, file)
    with pytest.raises(ConfigError, match=r"pickled objects(?s:.*)Anything(?s:.*)load the module yourself"):
        export_backbone(file, tmp_path / "b.safetensors")
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match="cannot be read"):
        export_backbone(file, tmp_path / "b.safetensors")


def test_a_diverged_backbone_is_refused(tmp_path):
    network = TinyBackbone()
    with torch.no_grad():
        network.body[0].weight[0] = float("nan")
    with pytest.raises(ConfigError, match=r"not finite(?s:.*)body\.0\.weight"):
        export_backbone(network, tmp_path / "b.safetensors")


# ---- where it goes -----------------------------------------------------------------------------------


def test_nothing_is_overwritten_unasked(small, tmp_path):
    out = tmp_path / "deep" / "b.safetensors"
    export_backbone(small[1], out)
    first = out.read_bytes()
    with pytest.raises(ConfigError, match=r"there already(?s:.*)overwrite"):
        export_backbone(TinyBackbone(), out)
    assert out.read_bytes() == first
    export_backbone(TinyBackbone(), out, overwrite=True)
    assert out.read_bytes() != first
    assert [file.name for file in out.parent.iterdir()] == [out.name]


class Branches(nn.Module):
    """A network that tracing gets wrong: a loop over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images):
        rows = [self.layer(image.mean(dim=(1, 2))) for image in images]
        return torch.stack(rows)


def test_a_failed_export_leaves_the_old_file_and_no_other(tmp_path):
    out = tmp_path / "b.onnx"
    out.write_bytes(b"old")
    with pytest.raises(ConfigError, match=r"ONNX"):
        export_backbone(Branches(), out, format="onnx", image_size=8, overwrite=True)
    assert out.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["b.onnx"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("b.onnx", {"format": "safetensors"}, "ending is that of another format"),
        ("b.safetensor", {}, r"ending names no format(?s:.*)\.safetensors"),
        ("b.ONNX", {}, r"ending names no format(?s:.*)\.onnx"),
        ("model.v2", {}, r"ending names no format(?s:.*)format=hub"),
        ("b.safetensors", {"format": "hub"}, "ending is that of another format"),
        ("", {"format": "torch"}, "output is a folder"),
        ("b", {"format": "pickle"}, r"Unknown format(?s:.*)safetensors"),
        ("b.onnx", {"format": "onnx", "mean": [0.5] * 3}, "belong together"),
        ("b.onnx", {"format": "onnx", "mean": [0.5], "std": [0.5]}, "3 numbers"),
        ("b.onnx", {"format": "onnx", "image_size": 0}, "image_size"),
        ("b", {"cifar_stem": True}, "architecture"),
        ("b", {"architecture": "resnet19"}, r"Unknown torchvision model(?s:.*)resnet18"),
        ("b", {"architecture": "lightly:resnet-9"}, r"not those of lightly:resnet-9(?s:.*)of another shape"),
        ("b", {"architecture": "resnet18", "backbone_kwargs": {"depth": 3}}, r"could not be built(?s:.*)depth"),
        ("b", {"run": "nowhere.json"}, r"cannot be read(?s:.*)nowhere"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(name, options, said, small, tmp_path):
    with pytest.raises(ReLAError, match=said):
        export_backbone(small[1], tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_followed_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"ours")
    (tmp_path / "theirs.ckpt").write_bytes(b"theirs")
    (tmp_path / "run" / "link.ckpt").symlink_to(tmp_path / "theirs.ckpt")
    for wanted in ("../theirs.ckpt", str(tmp_path / "theirs.ckpt"), "link.ckpt", "checkpoints/../../theirs.ckpt"):
        (tmp_path / "run" / "run.json").write_text(json.dumps({"checkpoint": wanted}))
        with pytest.raises(ConfigError, match=r"outside the run's folder(?s:.*)pass that checkpoint itself"):
            find_checkpoint(tmp_path / "run")
    for wanted in ("checkpoints/last.ckpt", str(tmp_path / "run/checkpoints/last.ckpt"), "gone.ckpt"):
        (tmp_path / "run" / "run.json").write_text(json.dumps({"checkpoint": wanted}))
        assert find_checkpoint(tmp_path / "run").read_bytes() in (b"ours", b"theirs")


@pytest.mark.parametrize(
    ("backbone", "kwargs", "head"),
    [
        ("torchvision:resnet18/IMAGENET1K_V1", {}, "fc.weight, fc.bias"),
        ("random:lightly:resnet-9", {"width": 0.125, "seed": 1}, ""),
    ],
)
def test_backbones_of_every_spelling_are_exported(tmp_path, backbone, kwargs, head):
    module = BYOL(backbone, backbone_kwargs=kwargs)
    file = export_backbone(module, tmp_path / "b.safetensors", architecture=backbone, backbone_kwargs=kwargs)
    state = load_file(file)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in module.backbone.state_dict().items()
    }
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["left_out"] == head


def test_the_random_state_is_kept_where_a_network_cannot_be_built(tmp_path):
    module = BYOL("lightly:resnet-9", backbone_kwargs={"width": 0.125})
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(ConfigError, match="no ResNet stem"):
        export_backbone(module, tmp_path / "b.pt", architecture="mobilenet_v3_small", cifar_stem=True)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
