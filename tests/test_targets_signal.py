"""Columns of targets that are signal: with few images, with coarse rounding, and learnt from a stream."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import DataLoader

from rela_lightning import ReLACallback, build_targets, load_prior
from rela_lightning.errors import TargetError
from rela_lightning.injection.checks import warn_projection_late
from rela_lightning.schedules import Mix, Plateau, Switch
from rela_lightning.targets.assemble import in_words
from rela_lightning.targets.label_view import DrawnCrops, LabelView
from rela_lightning.targets.on_the_fly import Learner
from rela_lightning.targets.reduce import moments, pca, project, projection, variance_elsewhere
from rela_lightning.targets.rounding import embed_exactly, exactly, sampled, strict_float32, without_rounding
from tests.modules import simclr
from tests.on_the_fly import prior as prior_on_the_fly
from tests.test_on_the_fly import Stream
from tests.test_targets import DIGITS, Digits, pixel_prior

LABELS = load_digits().target
OPTIONS = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    """Digits through 512 random rectified features, shuffled, float64 `[1797, 512]`."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.from_numpy(DIGITS.reshape(len(DIGITS), -1) / 255.0)
    weights = torch.randn(64, 512, generator=generator, dtype=torch.float64)
    return (pixels @ weights).relu()[torch.randperm(len(pixels), generator=generator)]


def shuffled_labels() -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    torch.randn(64, 512, generator=generator, dtype=torch.float64)
    return LABELS[torch.randperm(len(LABELS), generator=generator).numpy()]


def targets(rows: torch.Tensor, standardise: Any) -> torch.Tensor:
    return project(rows, projection(pca(moments(rows)), standardise))


# ---- few images ------------------------------------------------------------------------------------------


def test_at_three_rows_for_each_dimension_similarities_are_the_matrix_root_of_those_of_the_features(features):
    rows = features[:180, :60]
    centred = (rows - rows.mean(dim=0)).numpy()
    root = scipy.linalg.sqrtm(centred.T @ centred).real  # A, where A A is what the features have
    made = targets(rows, "shrunk").numpy()
    inner = centred @ np.linalg.pinv(root) @ centred.T
    np.testing.assert_allclose(made @ made.T / np.trace(made @ made.T), inner / np.trace(inner), atol=1e-6)


@pytest.mark.parametrize("rows, width", [(20, 512), (240, 30), (1797, 100)])
def test_logarithms_of_variances_are_drawn_together_by_the_weight_of_three_rows_for_each_dimension(
    features, rows, width
):
    some = features[:rows, :width]
    made = targets(some, "shrunk").var(dim=0).log().numpy()
    oracle = np.linalg.eigvalsh(np.cov(some.numpy().T))[::-1][: len(made)]
    expected = np.log(oracle) * (1 - rows / (rows + 3 * width))
    np.testing.assert_allclose(made - made.mean(), expected - expected.mean(), atol=1e-5)
    assert np.exp(made).mean() == pytest.approx(1.0) and (np.diff(made) < 1e-9).all()


def agreement(rows: torch.Tensor, labels: np.ndarray) -> float:
    """Share of rows whose nearest other row by cosine, as scikit-learn finds it, has the same label."""
    neighbours = KNeighborsClassifier(1, metric="cosine").fit(rows.numpy(), labels)
    return float((labels[neighbours.kneighbors()[1][:, 0]] == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("images", [60, 150, 300, 500, 800, 1797])
def test_neighbours_are_kept_for_any_number_of_images(features, images):
    labels = shuffled_labels()
    parts = range(0, len(features) - images + 1, images)
    found = {
        name: np.mean([agreement(targets(features[i : i + images], name), labels[i : i + images]) for i in parts])
        for name in ("shrunk", "per_dim", "isotropic")
    }
    assert found["shrunk"] >= max(found.values()) - 0.01
    if images == 500:
        assert found["per_dim"] < 0.2, "whitening in full makes as many rows as dimensions equally far from each other"


def test_what_became_of_the_dimensions_is_said_in_words():
    made = {"feature_dim": 1280, "dropped_dimensions": 783, "rounding": None}
    few, constant = in_words(made, 500)
    assert "500 rows differ in at most 499 directions" in few and "1280" in few
    assert constant.startswith("2 of 1280 dimensions carry no variance")
    made = {"feature_dim": 64, "dropped_dimensions": 0, "rounding": {"dropped_dimensions": 5}}
    (rounded,) = in_words(made, 500)
    assert rounded.startswith("5 of 64 dimensions were dropped, as more than 2%")
    assert in_words({"feature_dim": 64, "dropped_dimensions": 0, "rounding": {"dropped_dimensions": 0}}, 500) == []


# ---- rounding --------------------------------------------------------------------------------------------


def test_components_that_are_rounding_are_left_out(features):
    generator = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(features.shape, generator=generator, dtype=torch.float64)
    result = pca(moments(features + noise))
    kept, found = without_rounding(result, moments(noise[::7]))
    along = np.var(noise[::7].numpy() @ result.components.numpy(), axis=0, ddof=1)
    share = along / result.variance.numpy()
    assert len(kept.variance) == (share <= 0.02).sum() < 512 == len(kept.variance) + found.dropped_dimensions
    torch.testing.assert_close(kept.variance, result.variance[torch.from_numpy(share <= 0.02)])
    assert found.largest_kept_share == pytest.approx(share[share <= 0.02].max())
    assert found.share == pytest.approx(np.trace(np.cov(noise[::7].numpy().T)) / result.total)
    assert found.rows == len(noise[::7])


def test_an_exact_pass_loses_nothing_and_a_pass_of_noise_is_refused(features):
    result = pca(moments(features))
    kept, found = without_rounding(result, moments(torch.zeros(40, 512)))
    assert torch.equal(kept.components, result.components) and found.dropped_dimensions == 0
    shift = moments(torch.ones(40, 512) * 3.0)  # the same for all rows: the mean takes it away
    assert without_rounding(result, shift)[1].dropped_dimensions == 0
    with pytest.raises(TargetError, match="rounding noise"):
        without_rounding(result, moments(torch.randn(40, 512) * 1e3))


def test_rows_to_embed_again_are_few_and_spread():
    assert sampled(10) == list(range(10))
    assert len(sampled(100)) == 32 and len(sampled(1000)) == 125 and len(sampled(10**7)) == 256
    assert len(sampled(1000, views=9)) == 29 and sampled(1000)[-1] == 999


class LowRank(nn.Module):
    """Another network's features, through 16 dimensions into 64, which rounding on the way makes full rank."""

    def __init__(self, inner: nn.Module, width: int, gain: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.inner = inner
        self.down, self.up, self.mix = (nn.Linear(*size, bias=False) for size in ((width, 16), (16, 64), (64, 64)))
        for layer in (self.down, self.up, self.mix):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * gain**0.5 / 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.mix(self.up(self.down(self.inner(images))))


def coarse(tensor: torch.Tensor) -> torch.Tensor:
    """Mantissas cut to 10 bits, as TF32 does, wherever float32 products need not be exact."""
    part = getattr(torch.backends.cudnn, "conv", None)
    exact = part.fp32_precision == "ieee" if part is not None else not torch.backends.cudnn.allow_tf32
    return tensor if exact else (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)


def like_tf32(prior: Any) -> Any:
    """The prior, its linear maps and convolutions computed as with TF32 on a GPU."""

    def rounded(layer: nn.Module, inputs: Any) -> Any:
        layer.given = layer.weight.data
        layer.weight.data = coarse(layer.weight.data)
        return (coarse(inputs[0].contiguous()),)

    def restored(layer: nn.Module, inputs: Any, output: Any) -> None:
        layer.weight.data = layer.given

    for layer in prior.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_pre_hook(rounded)
            layer.register_forward_hook(restored)
    return prior


def small(gain: float | None = None, **options: Any) -> Any:
    prior = load_prior("random:lightly:resnet-9", width=0.125, image_size=8, mean=0.5, std=0.5, seed=3, **options)
    return prior if gain is None else load_prior(LowRank(prior, 64, gain), image_size=8, mean=[0.5] * 3, std=[0.5] * 3)


PRIORS = {
    "rank 16": (lambda: small(1.0), "bf16-mixed"),
    "resnet": (small, "bf16-mixed"),
    "vit": (
        lambda: load_prior(
            "random:timm:vit_tiny_patch16_224", img_size=16, patch_size=8, image_size=16, mean=0.5, std=0.5, seed=0
        ),
        "bf16-mixed",
    ),
    "tf32": (lambda: like_tf32(small(1.0)), "32-true"),
    "fused": (lambda: load_prior([small(1.0), pixel_prior(20), small(1e6)]), "bf16-mixed"),
}


def exact_targets(prior: Any, dataset: Any, store: Any) -> torch.Tensor:
    view = LabelView(dataset, prior.preprocess, np.arange(len(dataset)), DrawnCrops(0))
    return project(embed_exactly(prior, view, torch.device("cpu")).features[:, 0].double(), store.projection).float()


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_a_coarse_pass_gives_targets_like_those_of_an_exact_one(tmp_path, name, caplog):
    make, precision = PRIORS[name]
    prior, dataset = make(), Digits(400)
    trainer = L.Trainer(precision=precision, **OPTIONS)
    options = {"trainer": trainer, "standardise": "per_dim", "storage_dtype": torch.float32}
    store = build_targets(prior, dataset, tmp_path / "t", **options)
    cosine = nn.functional.cosine_similarity(store[torch.arange(400)], exact_targets(prior, dataset, store))
    rounding = store.manifest["rounding"]
    assert float(cosine.mean()) >= 0.99
    assert rounding["dropped_dimensions"] > 0 and rounding["rows"] == 50
    assert rounding["largest_kept_share"] <= 0.02 and rounding["share"] > 0
    assert "is rounding of this pass" in caplog.text
    store.verify(dataset, prior)


@pytest.mark.slow
def test_a_float32_pass_keeps_every_column(tmp_path, caplog):
    prior, dataset = small(), Digits(400)
    store = build_targets(prior, dataset, tmp_path / "t", storage_dtype=torch.float32)
    assert store.manifest["rounding"]["dropped_dimensions"] == 0 and "rounding" not in caplog.text
    result = pca(moments(torch.cat([prior(prior.preprocess(dataset[i][0])[None]) for i in range(400)])))
    assert store.dim == len(result.variance)
    torch.testing.assert_close(store[torch.arange(400)], exact_targets(prior, dataset, store), atol=1e-3, rtol=1e-3)


def test_a_rank_16_prior_keeps_16_columns_in_any_precision(tmp_path):
    for number, (precision, exact) in enumerate((("32-true", True), ("bf16-mixed", False))):
        trainer = L.Trainer(precision=precision, **OPTIONS)
        dim = build_targets(small(1.0), Digits(400), tmp_path / str(number), trainer=trainer).dim
        assert dim == 16 if exact else 4 <= dim <= 16


def test_views_are_embedded_again_with_their_images(tmp_path):
    trainer = L.Trainer(precision="bf16-mixed", **OPTIONS)
    store = build_targets(small(1.0), Digits(80), tmp_path / "t", views=3, trainer=trainer)
    assert store.manifest["rounding"]["rows"] == 40 and store.dim <= 16  # ten images, four views each
    store.verify(Digits(80), small(1.0))


def test_half_precision_weights_are_rounding_too():
    prior = pixel_prior()
    images = torch.stack([prior.preprocess(Digits()[row][0]) for row in range(8)])
    prior.network.half()
    expected = images.flatten(1) @ prior.network.map.weight.float().T
    assert torch.equal(exactly(prior, images), expected) and prior.network.map.weight.dtype == torch.float16
    assert not torch.equal(prior(images), expected)


def test_strict_float32_is_undone(recwarn):
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(KeyError), torch.autocast("cpu", dtype=torch.bfloat16), strict_float32("cpu"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
            part = getattr(torch.backends.mkldnn, "matmul", None)
            assert part.fp32_precision == "ieee" if part else torch.get_float32_matmul_precision() == "highest"
            assert product.dtype == torch.float32
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- on the fly ------------------------------------------------------------------------------------------


def learnt(features: torch.Tensor, noise: float = 0.0) -> Learner:
    learner = Learner(features.shape[1])
    generator = torch.Generator().manual_seed(5)
    for rows in features.split(32):
        if learner.missing:
            rounded = rows + noise * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
            learner.add(rounded, rows)
    return learner


def test_a_stream_gives_columns_that_vary_on_new_rows_as_they_promise(features):
    some = features[:, :256]
    new = some[4 * 256 + 32 :]
    whitened = project(new, projection(pca(moments(some[: 4 * 256])), "per_dim")).std(dim=0)
    assert whitened[-64:].mean() > 1.4, "along components fitted to few rows, new rows vary more"
    by, _ = learnt(some).learn()
    given = by.scales.pow(-2 / (4 / 7))  # 4 F rows: scales are variance ** (-4 / 7 / 2), but for one number
    promised = by.scales * given.sqrt()
    ratio = project(new, by).std(dim=0) / promised * promised.square().mean().sqrt()
    assert float(ratio[-64:].mean()) < 1.15 and float(ratio.mean()) == pytest.approx(1.0, abs=0.05)


def test_the_larger_variance_puts_columns_in_order(features):
    result = pca(moments(features[:900, :40]))
    others = features[900:, :40]
    held = variance_elsewhere(result, moments(others))
    along = [np.var(rows.numpy() @ result.components.numpy(), axis=0, ddof=1) for rows in (features[:900, :40], others)]
    np.testing.assert_allclose(held.variance.numpy(), np.sort(np.maximum(*along))[::-1], rtol=1e-6)
    again = np.var(features[:900, :40].numpy() @ held.components.numpy(), axis=0, ddof=1)
    assert (again <= held.variance.numpy() * (1 + 1e-6)).all()
    assert variance_elsewhere(result, moments(torch.ones(1, 40))).variance.equal(result.variance)


def test_a_coarse_stream_leaves_rounding_out(features):
    low = features[:, :16] @ torch.randn(16, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert len(learnt(low, noise=1e-2).learn()[0].scales) <= 16
    exact = features[:, :64]
    assert len(learnt(exact).learn()[0].scales) == len(pca(moments(exact[:192])).variance) > 50


def test_a_stream_goes_on_where_it_stopped(features):
    whole, first = Learner(64), Learner(64)
    batches = features[:256, :64].split(32)
    for number, rows in enumerate(batches):
        assert whole.missing == 256 - 32 * number
        whole.add(rows, rows)
        if number < 4:
            first.add(rows, rows)
    second = Learner(64)
    second.load_state_dict(first.state_dict())
    assert second.missing == 128
    for rows in batches[4:]:
        second.add(rows, rows)
    (by, directions), (again, same) = whole.learn(), second.learn()
    assert all(torch.equal(a, b) for a, b in zip(by, again, strict=True)) and directions == same


@pytest.mark.parametrize(
    "schedule, needed, steps, late",
    [
        (Switch(0.4), 2048, 100, False),
        (Switch(0.4), 2560, 100, True),
        (Switch(0.4), 2560, float("inf"), False),
        (Switch(0.4), 0, 1, False),
        (Mix(), 6300, 100, False),
        (Mix(), 6400, 100, True),
        (Plateau(), 6300, 100, False),
        (Plateau(), 6400, 100, True),
    ],
)
def test_a_projection_learnt_too_late_is_said_before_training(schedule, needed, steps, late, recwarn):
    warn_projection_late(schedule, images_needed=needed, images_per_step=64, steps=steps)
    said = [str(w.message) for w in recwarn]
    assert bool(said) == late
    assert not late or f"need {needed} images before there are any" in said[0]
    if math.isfinite(steps) and needed:  # half of it is past, half of the images came
        warn_projection_late(schedule, images_needed=needed - 320, images_per_step=64, steps=steps, spent=5)
        assert len(recwarn) == 2 * late


def test_a_stream_says_that_its_targets_come_too_late():
    options = {**OPTIONS, "max_steps": 8}
    loader = DataLoader(Stream(160), batch_size=16)
    with pytest.warns(UserWarning) as caught:  # 16 features: 64 images, 4 steps
        L.Trainer(**options, callbacks=[ReLACallback(prior=prior_on_the_fly(), schedule=Switch(0.5))]).fit(
            simclr(), loader
        )
    said = "\n".join(str(w.message) for w in caught)
    assert (
        "need 64 images before there are any: 4 steps of 16 images. Switch pulls towards them until step 4 of 8" in said
    )
    assert "never any targets" not in said
    with pytest.warns(UserWarning, match="never any targets: 32 more images"):
        options["max_steps"] = 2
        L.Trainer(**options, callbacks=[ReLACallback(prior=prior_on_the_fly(), schedule=Mix())]).fit(simclr(), loader)


def test_log_level(caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        build_targets(pixel_prior(), Digits(12), tmp_path / "t")
    assert "12 rows differ in at most 11 directions" in caplog.text
