"""The benchmark of the transport phase: its crops against torchvision's, its targets, its books."""

from __future__ import annotations

import functools
import json
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from tests.benchmarks.calls import call, lines_of, refused


@pytest.fixture
def phase(script, tmp_path, monkeypatch):
    """The script with results of its own."""
    module = script("transport_phase")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


@pytest.fixture
def labelled(script, data_root):
    train = script("images").load_splits("fashion_mnist", data_root, 128).train
    return script("transport_store").Labelled(data_root, "fashion_mnist", train, "random")


def arguments(action: str, data_root: object, *more: object) -> tuple[object, ...]:
    shared = ("--data", "fashion_mnist", "--data-root", data_root, "--images", 128, "--priors", "random")
    return (action, *shared, "--batches", 16, "--steps", 3, *more)


def test_boxes_are_spread_as_those_of_torchvision(script):
    views = script("transport_views")
    boxes = views.draw_boxes(4000, 32, torch.Generator().manual_seed(0))
    top, left, height, width, mirror = boxes.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 32).all() and (left + width <= 32).all()
    image, scale, ratio = torch.zeros(3, 32, 32), [0.5, 1.0], [3 / 4, 4 / 3]
    theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])
    for ours, other in zip((top, left, height, width), theirs.T, strict=True):
        assert ours.float().mean() == pytest.approx(other.mean(), abs=0.3)
        assert ours.float().std() == pytest.approx(other.std(), abs=0.3)
    assert mirror.float().mean() == pytest.approx(0.5, abs=0.03)


def test_a_crop_is_cut_out_where_its_box_says(script):
    views = script("transport_views")
    smooth = tv.gaussian_blur(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 9)
    boxes = views.draw_boxes(8, 32, torch.Generator().manual_seed(1))
    ours = views.render(smooth, boxes, 32)
    for image, box, crop in zip(smooth, boxes, ours, strict=True):
        top, left, height, width, mirror = box.tolist()
        wanted = tv.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        wanted = wanted.flip(2) if mirror else wanted
        assert (crop - wanted)[:, 2:-2, 2:-2].abs().max() < 1e-3
    assert torch.allclose(views.render(smooth, views.whole(8, 32), 32), smooth, atol=1e-5)


def test_overlap_is_counted_in_pixels(script):
    views = script("transport_views")
    boxes = views.draw_boxes(20, 32, torch.Generator().manual_seed(0))
    stored = views.draw_boxes(60, 32, torch.Generator().manual_seed(1)).view(20, 3, 5)

    def pixels(box: torch.Tensor) -> np.ndarray:
        top, left, height, width, _ = box.tolist()
        mask = np.zeros((32, 32), bool)
        mask[top : top + height, left : left + width] = True
        return mask

    for box, others, found in zip(boxes, stored, views.overlap(boxes, stored), strict=True):
        wanted = [(pixels(box) & pixels(o)).sum() / (pixels(box) | pixels(o)).sum() for o in others]
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


@pytest.mark.slow
def test_targets_are_those_of_the_crops_shown(script, labelled):
    train = script("transport_train")
    stored, _ = labelled.targets(2, "per_dim")
    rows = torch.arange(16)
    images, targets = train.Feed(labelled, "k2", "per_dim", 0)(rows, 32)
    assert images.shape == (16, 3, 32, 32)
    by_view = (stored[rows] == targets[:, None]).all(dim=2)
    assert by_view[:, 1:].any(dim=1).all() and not by_view[:, 0].any(), "a crop's, never the whole image's"
    assert len(by_view.float().argmax(dim=1).unique()) == 2, "both crops are drawn"
    _, whole = train.Feed(labelled, "k0", "per_dim", 0)(rows, 32)
    assert torch.equal(whole, labelled.targets(0, "per_dim")[0][rows, 0])

    feed = train.Feed(labelled, "nearest2", "per_dim", 0)
    assert torch.equal(feed.mixed(rows, feed.boxes[rows, 2]), stored[rows, 2])
    assert torch.allclose(train.Feed(labelled, "mean2", "per_dim", 0).mixed(rows, feed.boxes[rows, 1]),
                          stored[rows].mean(dim=1), atol=1e-5)  # fmt: skip


def test_online_embeds_the_very_crop(script, labelled):
    train, store = script("transport_train"), script("transport_store")
    feed = train.Feed(labelled, "online", "per_dim", 0)
    rows = torch.arange(8)
    seen: list[torch.Tensor] = []
    labelled.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    feed.colours = lambda images: images
    views, targets = feed(rows, 32)
    assert torch.allclose(seen[-1], views * 0.25 / 0.5, atol=1e-5), "the prior normalises by .5, the student by .25"
    assert targets.shape == (8, feed.targets.shape[2])
    assert torch.equal(store.embed(labelled.network, labelled.images, labelled.boxes(1)).half(), labelled.features(1))


def test_targets_are_standardised_over_all_rows_stored(labelled):
    targets, _ = labelled.targets(2, "per_dim")
    rows = targets.flatten(0, 1).double()
    assert targets.shape[:2] == (128, 3)
    assert rows.mean(dim=0).abs().max() < 1e-3 and (rows.std(dim=0) - 1).abs().max() < 1e-2


def test_equal_time_counts_the_labels(script, tmp_path):
    costs = script("transport_costs")
    cost = {"k0": 1.0, "k8": 1.0, "blend8": 2.0, "online": 4.0, "whole": 0.01, "crop": 0.02}
    (tmp_path / costs.FILE).write_text(json.dumps({"cifar10/p/64": cost}))
    job = {"data": "cifar10", "prior": "p", "batch": 64, "images": 1000, "steps": 100, "counted": True}
    found = {
        view: costs.steps_of({**job, "view": view}, tmp_path) for view in ("k0", "k4", "blend2", "mean2", "online")
    }
    assert found == {"k0": 100, "k4": 100 - 80, "blend2": (100 - 40) // 2, "mean2": 30, "online": round(110 / 4)}
    assert costs.steps_of({**job, "view": "k4", "counted": False}, tmp_path) == 100


def test_losses_are_sums_with_options(script):
    mapped, targets = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    losses = script("rela_lightning.losses")
    made = script("transport_train").loss_of("contrastive@0.2+0.5*relational")(mapped, targets)
    wanted = losses.contrastive(mapped, targets, temperature=0.2) + 0.5 * losses.relational(mapped, targets)
    assert torch.allclose(made, wanted)


def test_the_learning_rate_rises_and_falls(script):
    rate = script("transport_train").learning_rate
    assert [rate(0, 1000), rate(99, 1000)] == pytest.approx([0.01, 1.0])
    assert rate(550, 1000) == pytest.approx(0.5, abs=0.01) and rate(999, 1000) < 1e-4
    assert math.isfinite(rate(0, 1))


@pytest.mark.slow
def test_runs_are_made_once_and_probed_again(phase, data_root, monkeypatch, capsys):
    call(phase, monkeypatch, *arguments("run", data_root, "--views", "k0", "k2", "online", "--losses", "cosine"))
    results = phase.RESULTS / "transport_phase.jsonl"
    rows = lines_of(results)
    assert [(row["view"], row["steps_made"], row["split"]) for row in rows] == [
        ("k0", 3, "validation"), ("k2", 3, "validation"), ("online", 3, "validation")]  # fmt: skip
    assert all(0.0 <= row["linear_top1"] <= 1.0 and row["step_seconds"] > 0 for row in rows)
    assert str(data_root) not in results.read_text()
    call(phase, monkeypatch, *arguments("run", data_root, "--views", "k0", "k2", "--seeds", 0, 1))
    assert len(lines_of(results)) == 5

    train = phase.train_and_probe.__globals__
    monkeypatch.setitem(train, "trained", lambda *args: pytest.fail("trained again"))
    call(phase, monkeypatch, *arguments("run", data_root, "--views", "k2", "--split", "test"))
    assert lines_of(results)[-1]["split"] == "test"
    call(phase, monkeypatch, "report")
    table = capsys.readouterr().out
    assert table.count("| k2 | cosine | per_dim |") == 2 and "split test" in table


@pytest.mark.slow
def test_a_run_can_be_made_twice(phase, script, data_root, labelled):
    job = {"view": "blend2", "loss": "cosine", "kind": "isotropic", "batch": 16, "lr": 1e-3, "resolution": 24}
    job |= {"seed": 3}
    (first, made), (second, again) = (script("transport_train").trained(job, labelled, 4) for _ in range(2))
    assert made["last_loss"] == again["last_loss"]
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_the_plan_has_no_run_twice(phase, script):
    plan = script("transport_plan").plan
    jobs = [json.dumps(job, sort_keys=True) for length in ("short", "long") for job in plan(length)]
    assert len(jobs) == len(set(jobs))


@pytest.mark.slow
def test_calibration_times_every_kind_of_step(phase, data_root, monkeypatch):
    monkeypatch.setitem(phase.calibrate.__globals__, "TIMED", ("k0", "k8"))
    monkeypatch.setattr(phase, "calibrate", functools.partial(phase.calibrate, rounds=2))
    call(phase, monkeypatch, *arguments("calibrate", data_root))
    table = json.loads((phase.RESULTS / "transport_costs.json").read_text())["fashion_mnist/random/16"]
    assert set(table) == {"k0", "k8", "whole", "crop"} and min(table.values()) > 0


def test_a_view_that_does_not_exist_is_refused(phase, data_root, monkeypatch, capsys):
    assert "nearest8" in refused(phase, monkeypatch, capsys, *arguments("run", data_root, "--views", "near"))


def test_stored_views_that_are_the_free_crop_agree_with_it(script):
    agreement, views = script("transport_agreement"), script("transport_views")
    generator = torch.Generator().manual_seed(0)
    boxes = torch.stack([views.whole(20, 32), *(views.draw_boxes(20, 32, generator) for _ in range(2))], dim=1)
    boxes = torch.cat([boxes, boxes[:, 2:].expand(-1, agreement.HELD_OUT, -1)], dim=1)
    targets = torch.randn(20, 3, 8, generator=generator)
    targets = torch.cat([targets, targets[:, 2:].expand(-1, agreement.HELD_OUT, -1)], dim=1)
    found = agreement.agreement(targets, boxes, 2)
    assert found["nearest, equal mirror +0"] == 1.0 and found["nearest, equal mirror +inf"] == 1.0
    assert found["whole image"] < 0.5 and found["blend, temperature 0.05"] > found["blend, temperature inf"]
    mean = torch.nn.functional.cosine_similarity(targets[:, :3].mean(dim=1), targets[:, 2], dim=1).mean()
    assert found["blend, temperature inf"] == pytest.approx(float(mean), abs=1e-3)
