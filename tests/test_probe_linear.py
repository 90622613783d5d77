import copy
import functools

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from sklearn.datasets import load_digits
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rela_lightning.errors import ConfigError
from rela_lightning.optim import WarmupCosine
from rela_lightning.probe import LinearProbe, extract_features

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Net(nn.Module):
    """Features of the digits: a random convolution with batch norm and dropout, then 2x2 means."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return nn.functional.avg_pool2d(self.dropout(self.norm(self.conv(x)).relu()), 2).flatten(1)


@pytest.fixture(scope="module")
def loaders():
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    train = TensorDataset(images[:600], labels[:600])
    test = TensorDataset(images[600:900], labels[600:900])
    return DataLoader(train, batch_size=60), DataLoader(test, batch_size=70)


@pytest.fixture(scope="module")
def fitted(loaders):
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    probe = LinearProbe(net, 10, feature_dim=256, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3))
    trainer = L.Trainer(max_epochs=6, **QUIET)
    trainer.fit(probe, *loaders)
    return net, before, probe, trainer


def test_a_rate_that_changes_each_step_knows_the_length_of_the_run(loaders):
    rates = []
    watch = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    schedule = functools.partial(WarmupCosine, warmup_epochs=1)
    probe = LinearProbe(Net(), 10, feature_dim=256, lr_scheduler=schedule)
    L.Trainer(max_epochs=2, limit_train_batches=5, callbacks=[watch], **QUIET).fit(probe, loaders[0])
    assert rates[:6] == pytest.approx([3e-4 * step / 5 for step in range(6)])
    assert rates[5] > rates[6] > rates[9] == pytest.approx(0.0)


def test_only_the_head_is_trained(fitted):
    net, before, probe, _ = fitted
    for state in (net.state_dict(), probe.backbone.state_dict()):
        assert all(torch.equal(before[key], value) for key, value in state.items())  # batch norm included
    assert net.training  # the user's network keeps its mode and its gradients
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert {name for name, parameter in probe.named_parameters() if parameter.requires_grad} == {
        "head.weight",
        "head.bias",
    }


def test_accuracy_is_that_of_scikit_learn_on_the_same_scores(fitted, loaders):
    _, _, probe, trainer = fitted
    features, labels = extract_features(probe.backbone, loaders[1], device="cpu")
    scores = probe.head(features).detach().numpy()
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert trainer.callback_metrics[f"probe/top{k}"].item() == pytest.approx(expected)
    assert trainer.callback_metrics["probe/top1"] > 0.75
    assert trainer.callback_metrics["probe/loss"].item() < 2
    tested = L.Trainer(**QUIET).test(probe, loaders[1], verbose=False)
    assert tested[0]["probe/top1"] == pytest.approx(trainer.callback_metrics["probe/top1"].item())


def test_training_is_the_loop_restated(loaders):
    net = Net()
    probe = LinearProbe(net, 10, feature_dim=256)
    head = copy.deepcopy(probe.head)
    L.Trainer(max_epochs=1, **QUIET).fit(probe, loaders[0])
    features, labels = extract_features(net, loaders[0], device="cpu")
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-4)  # the authors' setting is the default
    for x, y in zip(features.split(60), labels.split(60), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(probe.head.weight, head.weight)


def test_train_mode_does_not_reach_the_backbone():
    probe = LinearProbe(Net(), 10, feature_dim=256).train()
    assert probe.training
    assert probe.head.training
    assert not any(sub.training for sub in probe.backbone.modules())


def test_the_scheduler_is_stepped_each_epoch(loaders):
    probe = LinearProbe(
        Net(),
        10,
        feature_dim=256,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1),
    )
    trainer = L.Trainer(max_epochs=2, **QUIET)
    trainer.fit(probe, loaders[0])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_checkpoint_comes_back(fitted, loaders, tmp_path):
    net, _, probe, trainer = fitted
    path = tmp_path / "probe.ckpt"
    trainer.save_checkpoint(path)
    assert "state_dict" in torch.load(path, weights_only=True)
    again = LinearProbe.load_from_checkpoint(path, backbone=net)
    images = next(iter(loaders[1]))[0]
    torch.testing.assert_close(again(images), probe.eval()(images))


def test_unlabelled_rows_are_left_out(fitted, loaders):
    _, _, probe, _ = fitted
    images, labels = loaders[1].dataset.tensors
    half = labels.clone()
    half[150:] = -1
    first = DataLoader(TensorDataset(images[:150], labels[:150]), batch_size=50)
    masked = DataLoader(TensorDataset(images, half), batch_size=50)
    trainer = L.Trainer(**QUIET)
    expected = trainer.validate(probe, first, verbose=False)[0]["probe/top1"]
    assert trainer.validate(probe, masked, verbose=False)[0]["probe/top1"] == pytest.approx(expected)


def test_two_classes_have_no_top5(loaders):
    images, labels = loaders[1].dataset.tensors
    probe = LinearProbe(Net(), 2, feature_dim=256)
    metrics = L.Trainer(**QUIET).validate(
        probe, DataLoader(TensorDataset(images, labels % 2), batch_size=50), verbose=False
    )
    assert list(metrics[0]) == ["probe/top1"]


def test_width_is_measured():
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 7, 3)

        def forward(self, x):
            return self.conv(x)  # a map: pooled to 7

    assert LinearProbe(Map(), 10).head.in_features == 7


def test_a_width_that_depends_on_the_image_size_is_told(loaders):
    with pytest.raises(ConfigError, match="pass feature_dim=256"):  # measured at 32 pixels, used at 8
        L.Trainer(max_epochs=1, **QUIET).fit(LinearProbe(Net(), 10), loaders[0])


def test_one_class_is_refused():
    with pytest.raises(ConfigError, match="num_classes >= 2"):
        LinearProbe(Net(), 1)
