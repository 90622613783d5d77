import functools
import pickle

import lightning.pytorch as L
import pytest
import pytorch_lightning as PL
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rela_lightning.diagnostics import CollapseMonitor
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.networks.encode import encode
from rela_lightning.probe import KNNProbe, OnlineLinearProbe

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
BUNCH = load_digits()
IMAGES = torch.tensor(BUNCH.images, dtype=torch.float32).unsqueeze(1) / 16
LABELS = torch.tensor(BUNCH.target)
SGD = functools.partial(torch.optim.SGD, lr=0.5)
ADAM = functools.partial(torch.optim.Adam, lr=3e-3)


def digits(start, stop, *, batch_size=50, labels=LABELS, shuffle=False):
    return DataLoader(TensorDataset(IMAGES[start:stop], labels[start:stop]), batch_size=batch_size, shuffle=shuffle)


def make(tree=L, *, lr=0.05, with_validation=False):
    """A label-free method: the backbone is trained to make its outputs small, with noise and batch norm."""

    class Method(tree.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.backbone = nn.Sequential(
                nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()
            )
            self.dropout = nn.Dropout(0.5)
            self.projector = nn.Linear(192, 8)

        def training_step(self, batch, batch_idx):
            return self.projector(self.dropout(self.backbone(batch[0]))).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9)

    if with_validation:
        Method.validation_step = lambda self, batch, batch_idx, dataloader_idx=0: None
    return Method()


def train(callbacks, *, module=None, train=None, val=None, tree=L, epochs=1, ckpt_path=None, **options):
    module = module or make(tree)
    trainer = tree.Trainer(max_epochs=epochs, callbacks=callbacks, **{**QUIET, **options})
    trainer.fit(module, train or digits(0, 500), val, ckpt_path=ckpt_path)
    return trainer, module


def knn_oracle(module, bank, queries, k=20):
    import numpy as np

    rule = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    model = KNeighborsClassifier(k, metric="cosine", weights=rule, algorithm="brute")
    model.fit(encode(module.backbone, bank[0]), bank[1])
    return model.score(encode(module.backbone, queries[0]), queries[1])


# ---------------------------------------------------------------- the run is not touched


def weights(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "probes", [[], ["online"], ["knn"], ["online", "knn"]], ids=lambda names: "+".join(names) or "none"
)
def test_the_run_is_the_same_bit_for_bit(probes):
    """Shuffling, dropout, batch norm and momentum all depend on what a careless probe would touch."""
    made = {"online": lambda: OnlineLinearProbe(10, optimizer=ADAM), "knn": lambda: KNNProbe(5)}

    def run(names):
        torch.manual_seed(7)
        module = make(with_validation=True)
        trainer, module = train(
            [made[name]() for name in names],
            module=module,
            train=digits(0, 300, shuffle=True),
            val=digits(500, 600),
            epochs=2,
        )
        return weights(module), torch.get_rng_state(), trainer.global_step

    plain, state, steps = run([])
    probed, probed_state, probed_steps = run(probes)
    assert plain.keys() == probed.keys()
    assert all(torch.equal(plain[key], probed[key]) for key in plain)
    assert torch.equal(state, probed_state)
    assert steps == probed_steps


class Gradients(L.Callback):
    """Notes gradients and modes before and after the probe's hook; placed around it."""

    seen: list

    def __init__(self, seen):
        self.seen = seen

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(
            (
                [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()],
                [sub.training for sub in pl_module.modules()],
            )
        )


def test_gradients_and_modes_are_left_alone():
    before, after = [], []
    module = make()
    module.backbone[1].eval()
    module.on_train_start = module.backbone[1].eval
    train([Gradients(before), OnlineLinearProbe(10), Gradients(after)], module=module)
    assert any(gradient is not None for gradient in before[0][0])
    for (gradients, modes), (same, same_modes) in zip(before, after, strict=True):
        assert modes == same_modes
        assert not all(modes)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, same, strict=True))


def test_a_missing_validation_step_is_lent_and_taken_back():
    module = make()
    trainer, _ = train([OnlineLinearProbe(10), KNNProbe()], module=module, val=digits(500, 600))
    assert {"probe/top1", "knn/top1"} <= trainer.callback_metrics.keys()
    assert "validation_step" not in vars(module)


def test_it_is_taken_back_after_an_error_too():
    module = make()
    module.on_train_start = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train([OnlineLinearProbe(10), KNNProbe()], module=module, val=digits(500, 600))
    assert "validation_step" not in vars(module)


def test_a_validation_step_of_the_users_is_run():
    module, calls = make(with_validation=True), []
    type(module).validation_step = lambda self, batch, batch_idx: calls.append(batch_idx)
    train([KNNProbe()], module=module, val=digits(500, 600))
    assert calls == [0, 1]


@pytest.mark.parametrize("tree", [L, PL])
def test_both_lightning_trees(tree):
    trainer, module = train([OnlineLinearProbe(10), KNNProbe(7)], tree=tree, val=digits(500, 620))
    assert trainer.callback_metrics["knn/top1"].item() > 0.5
    assert 0 < trainer.callback_metrics["probe/top1"] < trainer.callback_metrics["probe/top5"] <= 1
    trainer, _ = train(KNNProbe(7), tree=tree, module=module, val=digits(500, 620))  # passed alone
    assert "knn/top1" in trainer.callback_metrics


# ---------------------------------------------------------------- the online linear probe


def still():
    """A method that does not move: its features are fixed."""
    module = make(lr=0.0)
    module.backbone[1].momentum = 0.0
    return module


def restated(batches):
    """Softmax regression from zero by SGD, one step per batch, on given features."""
    head = nn.Linear(192, 10)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    optimizer, hits, rows = torch.optim.SGD(head.parameters(), lr=0.5), 0, 0
    for features, labels in batches:
        scores = head(features)
        hits, rows = hits + (scores.topk(1).indices[:, 0] == labels).sum().item(), rows + len(labels)
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
    return head, hits / rows


def test_the_classifier_is_the_loop_restated():
    """With a method that does not move, the probe is plain softmax regression on fixed features."""
    module = still()
    probe = OnlineLinearProbe(10, optimizer=SGD)
    trainer, _ = train([probe], module=module, val=digits(500, 800), epochs=3)
    features = encode(module.backbone, IMAGES[:800])
    batches = [(features[i : i + 50], LABELS[i : i + 50]) for i in range(0, 500, 50)]
    head, _ = restated(batches * 3)
    torch.testing.assert_close(probe.state_dict()["head"]["weight"], head.weight.detach())
    torch.testing.assert_close(probe.state_dict()["head"]["bias"], head.bias.detach())
    scores, labels = head(features[500:800]), LABELS[500:800]
    assert trainer.callback_metrics["probe/top1"].item() == pytest.approx(
        (scores.argmax(1) == labels).float().mean().item()
    )
    top5 = (scores.topk(5).indices == labels.unsqueeze(1)).any(1).float().mean().item()
    assert trainer.callback_metrics["probe/top5"].item() == pytest.approx(top5)
    assert trainer.callback_metrics["probe/top1"] > 0.5


def test_without_validation_the_training_accuracy_is_there():
    module = still()
    trainer, _ = train([OnlineLinearProbe(10, optimizer=SGD)], module=module)
    features = encode(module.backbone, IMAGES[:500])
    _, accuracy = restated([(features[i : i + 50], LABELS[i : i + 50]) for i in range(0, 500, 50)])
    assert trainer.callback_metrics["probe/train_top1"].item() == pytest.approx(accuracy)
    assert "probe/top1" not in trainer.callback_metrics
    assert 0 < trainer.callback_metrics["probe/loss"].item() < 2.5


def test_every_n_steps_trains_on_every_nth_batch():
    module = still()
    probe = OnlineLinearProbe(10, optimizer=SGD, every_n_steps=3)
    train([probe], module=module)
    features = encode(module.backbone, IMAGES[:500])
    head, _ = restated([(features[i : i + 50], LABELS[i : i + 50]) for i in range(0, 500, 150)])
    torch.testing.assert_close(probe.state_dict()["head"]["weight"], head.weight.detach())


def test_unlabelled_rows_teach_nothing():
    module = still()
    labels = LABELS.clone()
    labels[1::2] = -1
    labels[:50] = -1  # a batch without any
    probe = OnlineLinearProbe(10, optimizer=SGD)
    train([probe], module=module, train=digits(0, 500, labels=labels))
    other = OnlineLinearProbe(10, optimizer=SGD)
    half = DataLoader(TensorDataset(IMAGES[50:500:2], LABELS[50:500:2]), batch_size=25)
    train([other], module=module, train=half)
    torch.testing.assert_close(probe.state_dict()["head"], other.state_dict()["head"])


def test_checkpoint_holds_it_as_callback_state_only(tmp_path):
    probe = OnlineLinearProbe(10, labels=1)
    trainer, _ = train([probe], val=digits(500, 600))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == make().state_dict().keys()
    assert len(saved["optimizer_states"]) == 1
    assert saved["callbacks"][probe.state_key]["head"]["weight"].shape == (10, 192)
    assert saved["callbacks"][probe.state_key]["head"]["weight"].abs().sum() > 0


def test_resuming_goes_on_where_it_was(tmp_path):
    whole = OnlineLinearProbe(10)
    train([whole], module=still(), epochs=2)
    first = OnlineLinearProbe(10)
    trainer, _ = train([first], module=still())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second = OnlineLinearProbe(10)
    train([second], module=still(), epochs=2, ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert whole.state_dict()["optimizer"]["state"][0]["step"] == 20


def test_a_probe_begins_afresh_with_another_module_and_goes_on_with_the_same():
    again, fresh, module = pickle.loads(pickle.dumps(OnlineLinearProbe(10))), OnlineLinearProbe(10), still()
    train([again], module=module, train=digits(500, 1000))
    trainer, _ = train([again], module=still(), val=digits(1000, 1100))
    other, _ = train([fresh], module=still(), val=digits(1000, 1100))
    assert trainer.callback_metrics == other.callback_metrics
    torch.testing.assert_close(again.state_dict(), fresh.state_dict(), rtol=0, atol=0)
    train([again], module=module)
    assert again.state_dict()["optimizer"]["state"][0]["step"] == 20


def test_the_default_optimizer_is_the_authors():
    probe = OnlineLinearProbe(10)
    train([probe])
    group = probe.state_dict()["optimizer"]["param_groups"][0]
    assert group["lr"] == 3e-4
    assert group["betas"] == (0.9, 0.999)
    assert group["weight_decay"] == 0


def test_a_classifier_of_another_width_starts_afresh():
    probe = OnlineLinearProbe(10)
    probe.load_state_dict({"head": {"weight": torch.zeros(10, 3), "bias": torch.zeros(10)}, "optimizer": {}})
    with pytest.warns(UserWarning, match="width 3, this backbone gives 192"):
        train([probe])
    assert probe.state_dict()["head"]["weight"].shape == (10, 192)


def test_two_probes_of_one_run_keep_their_own_state(tmp_path):
    module = make()
    module.other = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
    probes = [OnlineLinearProbe(10), OnlineLinearProbe(10, backbone="other")]
    trainer, _ = train(probes, module=module)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    states = torch.load(tmp_path / "two.ckpt", weights_only=True)["callbacks"]
    assert [states[probe.state_key]["head"]["weight"].shape[1] for probe in probes] == [192, 6]


@pytest.mark.parametrize(
    "kinds",
    [
        [functools.partial(OnlineLinearProbe, 10, optimizer=ADAM), functools.partial(OnlineLinearProbe, 10, labels=1)],
        [functools.partial(KNNProbe, 1), functools.partial(KNNProbe, 90)],
        [CollapseMonitor, functools.partial(CollapseMonitor, backbone="projector_of")],
    ],
)
def test_two_of_a_kind_in_a_run_log_what_each_alone_does(kinds):
    def logged(*kinds):
        module = make()
        module.projector_of = nn.Sequential(nn.Flatten(), nn.Linear(64, 6))
        val = [digits(0, 300), digits(1400, 1600)]
        trainer, _ = train([kind() for kind in kinds], module=module, val=val, epochs=2)
        return {name: value.item() for name, value in trainer.callback_metrics.items() if "/" in name}

    first, second = logged(kinds[0]), logged(kinds[1])
    named = {name.replace("/", "_2/"): value for name, value in second.items()}
    assert first != second and logged(*kinds) == pytest.approx({**first, **named})


class Named(torch.utils.data.Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        return {"views": [IMAGES[index], IMAGES[index] * 0.5], "index": 5000 + index, "target": int(LABELS[index])}


def test_batches_of_views_and_names_and_the_last_validation_loader():
    module = still()
    module.training_step = lambda batch, batch_idx: module.projector(module.backbone(batch["views"][0])).sum()
    probe = OnlineLinearProbe(10, optimizer=SGD)
    loaders = [digits(300, 400, labels=9 - LABELS), digits(400, 600)]
    trainer, _ = train([probe], module=module, train=DataLoader(Named(), batch_size=50), val=loaders)
    features = encode(module.backbone, IMAGES[:600])
    head, _ = restated([(features[i : i + 50], LABELS[i : i + 50]) for i in range(0, 200, 50)])
    expected = (head(features[400:]).argmax(1) == LABELS[400:600]).float().mean().item()
    assert trainer.callback_metrics["probe/top1"].item() == pytest.approx(expected)


def test_manual_optimisation():
    module = make()
    module.automatic_optimization = False

    def step(batch, batch_idx):
        optimizer = module.optimizers()
        optimizer.zero_grad()
        module.manual_backward(module.projector(module.backbone(batch[0])).square().mean())
        optimizer.step()

    module.training_step = step
    trainer, _ = train([OnlineLinearProbe(10, optimizer=ADAM)], module=module, val=digits(500, 600), epochs=3)
    assert trainer.callback_metrics["probe/top1"] > 0.6


def test_bf16_autocast():
    trainer, _ = train([OnlineLinearProbe(10), KNNProbe()], val=digits(500, 600), precision="bf16-mixed")
    assert trainer.callback_metrics["knn/top1"] > 0.5


@pytest.mark.parametrize("options", [{"num_classes": 1}, {"num_classes": 10, "every_n_steps": 0}])
def test_bad_settings_of_the_linear_probe(options):
    with pytest.raises(ConfigError, match="every_n_steps >= 1"):
        OnlineLinearProbe(**options)


def test_errors_come_before_the_first_step():
    steps = []
    module = make()
    module.training_step = lambda batch, batch_idx: steps.append(1)
    with pytest.raises(ConfigError, match=r"available:.*backbone.*projector"):
        train([OnlineLinearProbe(10, backbone="trunk")], module=module)
    no_labels = DataLoader(TensorDataset(IMAGES[:100], IMAGES[:100]), batch_size=50)
    for probe in (OnlineLinearProbe(10), KNNProbe()):
        with pytest.raises(DataError, match="could not be told"):
            train([probe], module=module, val=no_labels, num_sanity_val_steps=2)
    assert steps == []


def test_options_from_yaml(tmp_path):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(OnlineLinearProbe, "online", fail_untyped=False)  # as LightningCLI does
    parser.add_class_arguments(KNNProbe, "knn")
    config = tmp_path / "probe.yaml"
    config.write_text(
        "online: {num_classes: 10, labels: 1, optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.5}}}\n"
        "knn: {k: 3, weights: uniform}\n"
    )
    made = parser.instantiate_classes(parser.parse_path(config))
    train([made.online, made.knn])
    assert made.online.state_dict()["optimizer"]["param_groups"][0]["lr"] == 0.5
    assert made.knn.k == 3
