import copy
import functools
import math

import lightning.pytorch as L
import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from rela_lightning.errors import ConfigError, DataError
from rela_lightning.methods import BYOL, build_backbone
from rela_lightning.networks.pooling import pool
from rela_lightning.probe import KNNProbe

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
BUNCH = load_digits()
IMAGES = (torch.tensor(BUNCH.images, dtype=torch.float32).unsqueeze(1) / 16).expand(-1, 3, -1, -1)
LABELS = torch.tensor(BUNCH.target)


class TwoViews(torch.utils.data.Dataset):
    """A digit and the digit shifted by a pixel, with label and index."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        return [IMAGES[index], IMAGES[index].roll(1, dims=-1)], int(LABELS[index]), index


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))


def byol(**options):
    torch.manual_seed(0)
    return BYOL(small(), **{"projector_dim": 12, **options})


def fit(module, *, rows=128, batch_size=32, epochs=1, callbacks=(), val=None, ckpt_path=None, **options):
    trainer = L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**QUIET, **options})
    loader = DataLoader(TwoViews(rows), batch_size=batch_size)
    trainer.fit(module, loader, val, ckpt_path=ckpt_path)
    return trainer


def paper_loss(module, first, second):
    """Eq. 2 and 3 of arXiv 2006.07733: || q / |q| - z' / |z'| ||^2, both ways round."""
    total = 0.0
    for online, target in ((first, second), (second, first)):
        q = module.predictor(module.projector(pool(module.backbone(online))))
        with torch.no_grad():
            z = module.teacher_projector(pool(module.teacher_backbone(target)))
        q, z = q / q.norm(dim=1, keepdim=True), z / z.norm(dim=1, keepdim=True)
        total = total + (q - z).square().sum(dim=1).mean()
    return total


class Compare(L.Callback):
    """Restates each step's teacher, loss and gradients on a copy: the paper's loss is 4 + 4 times lightly's."""

    def __init__(self):
        self.losses, self.checked = [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        twin = copy.deepcopy(pl_module)
        momentum = 1 - (1 - 0.9) * (1 + math.cos(math.pi * trainer.global_step / 7)) / 2  # 8 steps, .9 to 1
        with torch.no_grad():
            for student, teacher in ((twin.backbone, twin.teacher_backbone), (twin.projector, twin.teacher_projector)):
                for theta, xi in zip(student.parameters(), teacher.parameters(), strict=True):
                    xi.copy_(momentum * xi + (1 - momentum) * theta)
        loss = paper_loss(twin, *batch[0])
        loss.backward()
        self.twin, self.losses = twin, [*self.losses, loss.item()]

    def on_after_backward(self, trainer, pl_module):
        for (name, ours), paper in zip(pl_module.named_parameters(), self.twin.parameters(), strict=True):
            if name.startswith("teacher_"):
                torch.testing.assert_close(ours, paper)
                assert ours.grad is None
            else:
                torch.testing.assert_close(4 * ours.grad, paper.grad, rtol=1e-6, atol=1e-9)
        self.checked += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert 4 + 4 * outputs["loss"].item() == pytest.approx(self.losses[-1], abs=1e-9)


def test_loss_gradients_and_teacher_are_the_papers():
    compare = Compare()
    fit(byol(momentum=0.9), epochs=2, callbacks=[compare], precision="64-true")
    assert compare.checked == 8
    assert len(set(compare.losses)) == 8


class Note(L.Callback):
    """The momentum of each step after the first, at which student and teacher are equal."""

    def __init__(self):
        self.seen = []

    def weights(self, module):
        return [next(part.parameters()).detach().clone() for part in (module.projector, module.teacher_projector)]

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.student, self.before = self.weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        gap, left = self.before - self.student, self.weights(pl_module)[1] - self.student
        if trainer.global_step > 1:
            self.seen.append(float((left * gap).sum() / gap.square().sum()))
        trainer.should_stop = trainer.max_epochs == -1 and trainer.global_step == 4


def test_a_constant_momentum_and_no_planned_end():
    for options, epochs in (({"momentum_end": 0.9}, 1), ({}, -1)):
        note = Note()
        fit(byol(momentum=0.9, **options), epochs=epochs, callbacks=[note], precision="64-true")
        assert note.seen == pytest.approx([0.9] * 3)


def test_the_momentum_rises_by_the_epoch_where_a_stream_does_not_say_how_long_it_is():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(image, image.flip(-1)) for image in IMAGES[:24]])

    note = Note()
    trainer = L.Trainer(max_epochs=3, precision="64-true", callbacks=[note], **QUIET)
    trainer.fit(byol(momentum=0.8), DataLoader(Stream(), batch_size=8))
    assert note.seen == pytest.approx([0.8] * 2 + [0.85] * 3 + [0.95] * 3)


def test_loss_falls_on_a_fixed_batch():
    class Losses(L.Callback):
        seen = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, *args):
            self.seen += (outputs["loss"].item(),)

    losses = Losses()
    fit(byol(), rows=32, epochs=40, callbacks=[losses])
    assert losses.seen[-1] < losses.seen[0] - 0.3
    assert all(-1 <= loss <= 1 for loss in losses.seen)


def test_every_student_parameter_learns_and_the_teacher_follows():
    module = byol(momentum=0.5)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = fit(module)
    in_optimizer = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for name, value in module.named_parameters():
        assert not torch.equal(before[name], value), name  # the last layer's bias included
        assert (id(value) in in_optimizer) == value.requires_grad == (not name.startswith("teacher_"))
    group = trainer.optimizers[0].param_groups[0]
    assert isinstance(trainer.optimizers[0], torch.optim.AdamW)
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-2)


def test_heads_follow_the_authors_unless_told():
    module = BYOL(small())
    widths = [layer.out_features for layer in module.projector.layers if isinstance(layer, nn.Linear)]
    assert widths == [32, 256]
    assert [layer.out_features for layer in byol(hidden_dim=7).predictor.layers if isinstance(layer, nn.Linear)] == [
        7,
        12,
    ]


@pytest.mark.slow
def test_checkpoint_round_trip(tmp_path):
    module = BYOL("resnet18", cifar_stem=True, hidden_dim=8, projector_dim=4, momentum=0.95)
    trainer = fit(module, rows=16, batch_size=8)
    trainer.save_checkpoint(tmp_path / "byol.ckpt")
    saved = torch.load(tmp_path / "byol.ckpt", weights_only=True)
    assert "optimizer" not in saved["hyper_parameters"]
    again = BYOL.load_from_checkpoint(tmp_path / "byol.ckpt")
    assert again.momentum == 0.95
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in module.state_dict().items())
    images = IMAGES[:4]
    torch.testing.assert_close(again.eval()(images), module.eval()(images))


def test_resuming_gives_the_unbroken_run(tmp_path):
    whole, second = byol(), byol()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(whole, epochs=2, callbacks=[keep], enable_checkpointing=True)
    fit(second, epochs=2, ckpt_path=tmp_path / "epoch=0.ckpt")  # the teacher's momentum goes on where it was
    torch.testing.assert_close(second.state_dict(), whole.state_dict())


def test_a_scheduler_is_stepped_each_epoch():
    module = byol(
        optimizer=functools.partial(torch.optim.SGD, lr=1.0),
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1),
    )
    assert fit(module, epochs=2).optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_validation_batches_reach_the_probes():
    val = DataLoader(TensorDataset(IMAGES[:100], LABELS[:100]), batch_size=50)
    trainer = fit(byol(), callbacks=[KNNProbe(3)], val=val)
    assert trainer.callback_metrics["knn/top1"] > 0.3


V = IMAGES[:4]


@pytest.mark.parametrize("batch", [[V, V + 1], (V, V + 1, LABELS[:4]), ([V, V + 1], LABELS[:4]), ((V, V + 1), 0, 1)])
def test_two_views_and_whatever_follows(batch):
    module = byol(momentum=1.0, momentum_end=1.0).eval()
    module.log = lambda *args, **kwargs: None
    module.move_teacher = lambda: None
    expected = paper_loss(module, V, V + 1).item()
    assert 4 + 4 * module.training_step(batch, 0).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "batch", [V, (V, LABELS[:4]), [V], ([V], LABELS[:4]), ([V, V, V], 0), [V, V[:2]], {"a": V}, []]
)
def test_other_batches_are_refused(batch):
    module = byol()
    with pytest.raises(DataError, match="two views"):
        module.training_step(batch, 0)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="0 to 1"):
        byol(momentum=1.5)
    with pytest.raises(ConfigError, match="by name"):
        BYOL(small(), cifar_stem=True)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_backbones_are_the_plain_model_without_its_last_layer(name):
    network, width = build_backbone(name)
    plain = torchvision.models.get_model(name)
    missing, unexpected = plain.load_state_dict(network.state_dict(), strict=False)
    assert unexpected == []
    assert len(missing) == 2  # weight and bias of the last layer
    images = torch.rand(2, 3, 64, 64)
    caught = []
    last = [m for m in plain.modules() if isinstance(m, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    plain.eval()(images)
    features = network.eval()(images)
    assert features.shape == (2, width)
    torch.testing.assert_close(features, caught[0])


def test_a_classifier_that_is_a_convolution_gives_way_to_the_mean_over_the_map():
    network, width = build_backbone("squeezenet1_1")
    plain = torchvision.models.get_model("squeezenet1_1").eval()
    missing, unexpected = plain.load_state_dict(network.state_dict(), strict=False)
    assert (missing, unexpected) == (["classifier.1.weight", "classifier.1.bias"], [])
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network.eval()(images), plain.features(images).mean((2, 3)))
    assert width == 512


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "width"),
    [
        ("timm:resnet10t", {}, 512),
        ("timm:mobilenetv3_small_050", {}, 1024),
        ("timm:vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, 192),
        ("lightly:resnet-9", {"width": 0.25}, 128),
        ("timm:vit_tiny_patch16_224", {"img_size": 160, "depth": 1}, 192),
        ("torchvision:resnet18", {}, 512),
        ("torchvision:resnet18/IMAGENET1K_V1", {}, 512),
        ("open_clip:RN50", {"image_size": 32}, 1024),
        ("random:lightly:resnet-9", {"seed": 1, "width": 0.25}, 128),
    ],
)
def test_other_sources_give_pooled_features(name, options, width):
    network, found = build_backbone(name, **options)
    assert found == width
    size = options.get("img_size", 32)
    assert network.eval()(torch.rand(2, 3, size, size)).shape == (2, width)


def test_lightlys_net_is_its_own_at_32_pixels_and_pools_at_any_other():
    from lightly.models import ResNetGenerator

    network, width = build_backbone("lightly:resnet-9", width=0.25)
    theirs = ResNetGenerator("resnet-9", width=0.25).eval()
    theirs.linear = torch.nn.Identity()
    theirs.load_state_dict(network.state_dict(), strict=True)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.eval()(images), theirs(images))
    for size in (16, 24, 64):
        assert network(torch.rand(2, 3, size, size)).shape == (2, width)
    assert network(images.contiguous(memory_format=torch.channels_last)).shape == (2, width)


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "lightly:resnet-18"])
def test_small_images_keep_their_resolution(name):
    network, _ = build_backbone(name, cifar_stem=True)
    sizes = []
    network.layer1.register_forward_hook(lambda module, args, output: sizes.append(output.shape))
    network(torch.rand(2, 3, 32, 32))
    assert sizes == [(2, 64, 32, 32)]


@pytest.mark.parametrize("name", ["resnet19", "timm:nothing", "lightly:resnet-7", "hub:resnet18"])
def test_unknown_names_list_what_exists(name):
    with pytest.raises(ConfigError, match="resnet"):
        build_backbone(name)


def test_a_network_without_a_resnet_stem_is_refused():
    with pytest.raises(ConfigError, match="no ResNet stem"):
        build_backbone("mobilenet_v3_small", cifar_stem=True)
