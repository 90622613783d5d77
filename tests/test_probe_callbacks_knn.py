"""The kNN probe as a callback, and what both probes say without labels."""

from __future__ import annotations

import copy
import warnings

import lightning.pytorch as L
import pytest
import torch

from rela_lightning.errors import ConfigError, DataError
from rela_lightning.probe import KNNProbe, OnlineLinearProbe
from tests.test_probe_callbacks import (
    IMAGES,
    LABELS,
    QUIET,
    digits,
    knn_oracle,
    make,
    train,
)


def test_two_loaders_are_bank_and_queries():
    trainer, module = train([KNNProbe()], val=[digits(0, 500), digits(600, 999)])
    expected = knn_oracle(module, (IMAGES[:500], LABELS[:500]), (IMAGES[600:999], LABELS[600:999]))
    assert trainer.callback_metrics["knn/top1"].item() == pytest.approx(expected)
    assert 0.5 < expected < 1.0


def test_one_loader_is_bank_and_queries_in_turn():
    trainer, module = train([KNNProbe(5)], val=digits(600, 999, batch_size=50))
    even = [row for row in range(600, 999) if (row - 600) % 50 % 2 == 0]
    odd = [row for row in range(600, 999) if (row - 600) % 50 % 2 == 1]
    expected = knn_oracle(module, (IMAGES[even], LABELS[even]), (IMAGES[odd], LABELS[odd]), k=5)
    assert trainer.callback_metrics["knn/top1"].item() == pytest.approx(expected)


def test_validate_without_fit():
    module = make(with_validation=True)
    trainer = L.Trainer(callbacks=[KNNProbe(every_n_epochs=10)], **QUIET)
    result = trainer.validate(module, [digits(0, 300), digits(600, 800)], verbose=False)
    expected = knn_oracle(module, (IMAGES[:300], LABELS[:300]), (IMAGES[600:800], LABELS[600:800]))
    assert result[0]["knn/top1"] == pytest.approx(expected)


def test_the_bank_is_capped_by_evenly_spaced_rows():
    trainer, module = train([KNNProbe(5, max_bank=100)], val=[digits(0, 500), digits(600, 800)])
    kept = [row for row in range(500) if row % 5 == 0]
    expected = knn_oracle(module, (IMAGES[kept], LABELS[kept]), (IMAGES[600:800], LABELS[600:800]), k=5)
    assert trainer.callback_metrics["knn/top1"].item() == pytest.approx(expected)


def test_unlabelled_rows_neither_vote_nor_ask_and_k_shrinks_to_the_bank():
    labels = LABELS.clone()
    labels[10:500] = -1
    labels[700:800] = -1
    trainer, module = train([KNNProbe(20)], val=[digits(0, 500, labels=labels), digits(600, 800, labels=labels)])
    expected = knn_oracle(module, (IMAGES[:10], LABELS[:10]), (IMAGES[600:700], LABELS[600:700]), k=10)
    assert trainer.callback_metrics["knn/top1"].item() == pytest.approx(expected)


def test_every_n_epochs():
    class Note(L.Callback):
        seen = ()

        def on_train_epoch_end(self, trainer, pl_module):
            value = trainer.callback_metrics.get("knn/top1")
            self.seen += (None if value is None else value.item(),)

    note = Note()
    train([KNNProbe(every_n_epochs=2), note], val=digits(500, 600), epochs=3)
    assert note.seen[0] is None
    assert note.seen[1] is not None


def test_without_labels_the_online_probe_logs_nothing():
    with pytest.warns(UserWarning, match="OnlineLinearProbe found no labelled row"):
        data = {"train": digits(0, 100, labels=torch.full_like(LABELS, -1)), "val": digits(500, 600)}
        run, _ = train([OnlineLinearProbe(10)], **data)
    assert not [name for name in run.callback_metrics if name.startswith("probe/")]


def test_without_validation_images_the_knn_probe_says_so():
    with pytest.warns(UserWarning, match="no validation images"):
        train([KNNProbe(5)])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*no validation images.*")
        train([KNNProbe(5)], val=digits(500, 600), epochs=2, check_val_every_n_epoch=2)


def test_labels_beyond_the_number_of_classes_are_told():
    with pytest.raises(DataError, match=r"num_classes=2(?s:.*)1 up to 9(?s:.*)raise num_classes"):
        train([OnlineLinearProbe(2)])


def test_no_label_at_all_is_a_warning():
    with pytest.warns(UserWarning, match="no labelled row"):
        train([KNNProbe(labels=1)], val=digits(500, 600, labels=torch.full_like(LABELS, -1)))


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"temperature": 0}, {"max_bank": 0}, {"every_n_epochs": 0}, {"weights": "cosine"}]
)
def test_bad_settings_of_the_knn_probe(options):
    with pytest.raises(ConfigError, match="at least 1"):
        KNNProbe(**options)


def test_callbacks_can_be_copied():
    linear, nearest = copy.deepcopy([OnlineLinearProbe(10), KNNProbe(5)])
    run, _ = train([linear, nearest], val=digits(500, 600))
    assert {"probe/top1", "knn/top1"} <= set(run.callback_metrics)
