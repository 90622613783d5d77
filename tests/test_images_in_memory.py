"""Images that `decode` keeps: what is made of them is what would be made of the originals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from rela_lightning import KNNProbe, build_targets
from rela_lightning.data import DigitsData, RGBImages
from rela_lightning.data.device import decode
from tests.test_callback import trainer
from tests.test_datamodules import build
from tests.test_device_views import Pieces, prior


def test_targets_of_images_in_memory_are_those_of_the_originals(tmp_path: Path) -> None:
    pieces = Pieces(12, sizes=((32, 64), (64, 32), (48, 48)))
    kept = RGBImages(decode(pieces, most=32))
    files, stored = (
        build_targets(prior(), source, tmp_path / name, views=2) for name, source in (("a", pieces), ("b", kept))
    )
    halves = (Subset(pieces, range(6)), Subset(pieces, range(6, 12)))
    joined = ConcatDataset([decode(half, most=32) for half in halves])
    in_parts = build_targets(prior(), RGBImages(joined), tmp_path / "c", views=2)
    rows = torch.arange(12)
    assert torch.equal(files[rows], stored[rows]) and torch.equal(files[rows], in_parts[rows])
    for row in range(12):
        image = kept[row][0]
        assert list(stored.crops_of(image, row)) == list(files.crops_of(pieces[row][0], row))


@pytest.mark.slow
def test_each_trainer_has_a_bank_of_its_size() -> None:
    data, sizes = DigitsData(batch_size=100, device_views=True), []
    for max_bank in (100, 300, 100):
        run = trainer("lightning.pytorch", KNNProbe(k=5, max_bank=max_bank))
        run.validate(build("SimSiam"), datamodule=data, verbose=False)
        sizes.append(len(run.val_dataloaders[0].dataset))
    assert sizes == [100, 300, 100]
