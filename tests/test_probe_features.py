import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rela_lightning.batches import find_images, find_labels
from rela_lightning.data.digits import Digits
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.networks.encode import encode, find_backbone, measure_feature_dim
from rela_lightning.probe import extract_features


def digits(rows=300):
    bunch = load_digits()
    images = torch.tensor(bunch.images[:rows], dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.tensor(bunch.target[:rows])


def network(channels=1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(6, 5, 3)
    )


def by_hand(net, images):
    """Conv, batch norm by its running statistics, relu, conv, mean over the map."""
    conv, norm, _, _, last = net
    with torch.no_grad():
        x = torch.nn.functional.conv2d(images, conv.weight, conv.bias, padding=1)
        mean, var = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
        x = (x - mean) / (var + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        return torch.nn.functional.conv2d(x.clamp(min=0), last.weight, last.bias).mean(dim=(2, 3))


def test_features_are_those_of_eval_mode_in_the_order_of_the_data():
    images, labels = digits()
    net = network().train()
    features, found = extract_features(net, TensorDataset(images, labels), batch_size=64, device="cpu")
    assert features.dtype == torch.float32
    assert torch.equal(found, labels)
    torch.testing.assert_close(features, by_hand(net, images))


def test_nothing_is_left_behind():
    images, labels = digits(100)
    net = network().train()
    net[3].eval()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    extract_features(net, TensorDataset(images, labels), batch_size=32, device="cpu")
    assert torch.equal(state, torch.get_rng_state())
    assert [sub.training for sub in net] == [True, True, True, False, True]
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.rand(len(x), 3)  # draws in eval mode too


def test_the_random_state_survives_a_backbone_that_draws():
    net, state = Noisy(), torch.get_rng_state()
    encode(net, torch.zeros(2, 1, 2, 2))
    assert torch.equal(state, torch.get_rng_state())


def test_modes_come_back_after_an_error():
    net = network().train()
    with pytest.raises(RuntimeError):
        encode(net, torch.zeros(1, 7, 8, 8))
    assert all(sub.training for sub in net.modules())


def test_a_loader_of_dicts_and_photographs():
    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)[..., ::8, ::8].float()
    batches = [{"pixels": photographs, "index": torch.tensor([900, 901]), "label": torch.tensor([1, 0])}]
    features, labels = extract_features(network(3), DataLoader(batches, batch_size=None), device="cpu")
    torch.testing.assert_close(features, by_hand(network(3), photographs))
    assert labels.tolist() == [1, 0]


def test_pil_items_are_refused_with_advice():
    with pytest.raises(DataError, match="transform"):
        extract_features(network(3), Digits("test"), device="cpu")


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="empty"):
        extract_features(network(), TensorDataset(torch.zeros(0, 1, 8, 8)), device="cpu")


class Tokens(nn.Module):
    def __init__(self, token):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        if token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, x):
        return torch.arange(24.0).view(1, 6, 4).expand(len(x), 6, 4) * self.scale


def test_tokens_are_pooled_by_the_class_token_only_if_there_is_one():
    sequence = torch.arange(24.0).view(6, 4)
    images = torch.zeros(2, 3, 4, 4)
    assert torch.equal(encode(Tokens(True), images)[0], sequence[0])
    assert torch.equal(encode(Tokens(False), images)[0], sequence.mean(0))


class Net(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize("name", ["backbone", "encoder", "student_backbone", "online_backbone", "encoder_q", "model"])
def test_usual_names_are_found(name):
    wanted = network()
    found = find_backbone(Net(head=nn.Linear(2, 2), **{name: wanted}))
    assert found.call is wanted
    assert found.network is wanted


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network()

    def encode(self, images):
        return self.layers(images)


def test_a_dotted_path_and_a_method():
    net = Net(wrapped=Net(inner=Encoder()))
    assert find_backbone(net, "wrapped.inner.layers").call is net.wrapped.inner.layers
    found = find_backbone(net, "wrapped.inner.encode")
    assert found.network is net.wrapped.inner
    images = digits(20)[0]
    torch.testing.assert_close(encode(found, images), by_hand(net.wrapped.inner.layers, images))
    assert net.wrapped.inner.layers[1].training


@pytest.mark.parametrize("name", ["auto", "nothing", "head.nothing"])
def test_a_missing_backbone_lists_the_submodules(name):
    with pytest.raises(ConfigError, match=r"available:.*head, trunk_of_mine"):
        find_backbone(Net(head=nn.Linear(2, 2), trunk_of_mine=nn.Linear(2, 2)), name)


def test_width_is_measured_for_other_channels_and_fixed_sizes():
    assert measure_feature_dim(network(4)) == 5
    assert measure_feature_dim(nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 11))) == 11
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)).train()
    measure_feature_dim(net)
    assert net[0].num_batches_tracked == 0
    with pytest.raises(ConfigError, match="feature_dim"):
        measure_feature_dim(nn.Sequential(nn.Flatten(), nn.Linear(17, 2)))


@dataclass
class Sample:
    image: torch.Tensor
    target: torch.Tensor


IMAGES, LABELS = torch.rand(4, 3, 8, 8), torch.tensor([3, 0, 9, 1])
INDEX = torch.tensor([100, 20, 3, 40])


@pytest.mark.parametrize(
    ("batch", "path"),
    [
        ((IMAGES, LABELS), "1"),
        ([[IMAGES, IMAGES + 1], LABELS], "1"),
        ([[IMAGES, IMAGES + 1], LABELS, ["a", "b", "c", "d"]], "1"),
        ((INDEX, IMAGES, LABELS), "2"),
        ((IMAGES, LABELS, INDEX), "1"),
        ({"image": IMAGES, "y": LABELS, "index": INDEX % 10}, "y"),
        ({"views": [IMAGES], "meta": {"label": LABELS, "index": INDEX}}, "meta.label"),
        (Sample(IMAGES, LABELS), "target"),
        ((torch.stack([IMAGES, IMAGES + 1], dim=1), LABELS), "1"),
    ],
)
def test_images_and_labels_in_batches_of_all_shapes(batch, path):
    assert torch.equal(find_images(batch), IMAGES)
    found, labels = find_labels(batch, 4, num_classes=10)
    assert found == path
    assert torch.equal(labels, LABELS)
    assert torch.equal(find_labels(batch, 4, path)[1], LABELS)


def test_what_cannot_be_told_is_an_error_that_lists_the_batch():
    with pytest.raises(DataError, match=r"labels=1"):
        find_labels((IMAGES, LABELS, INDEX % 10), 4, num_classes=10)
    with pytest.raises(DataError, match="found:    none"):
        find_labels((IMAGES, IMAGES), 4)
    with pytest.raises(ConfigError, match=r"1: torch.int64 \[4\]"):
        find_labels((IMAGES, LABELS), 4, "label")
    with pytest.raises(DataError, match="uint8"):
        find_images(((IMAGES * 255).to(torch.uint8), LABELS))


def test_mixed_precision_is_autocast_and_features_come_as_float32():
    images, labels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    net = network(3).eval()
    features, _ = extract_features(net, TensorDataset(images, labels), device="cpu", precision="bf16-mixed")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = net(images).mean(dim=(2, 3))
    exact, _ = extract_features(net, TensorDataset(images, labels), device="cpu")
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected.float())
    assert not torch.equal(features, exact)


def test_an_unknown_precision_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="bf16-mixed"):
        extract_features(network(3), TensorDataset(torch.rand(1, 3, 8, 8), torch.zeros(1)), precision="bf16")
