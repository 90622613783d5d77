"""What is read before the loader's workers start leaves nothing in the user's data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.transforms import v2

from rela_lightning import build_targets
from rela_lightning.data.copies import copied
from rela_lightning.data.swap import takes_one_image
from rela_lightning.data.transforms import default_transport_transform
from rela_lightning.diagnostics import fitness
from tests.test_targets import DIGITS, pixel_prior


class InFile(Dataset[Any]):
    """Images in one file, which is opened when the first is read, so that each worker has its own, as of HDF5."""

    def __init__(self, path: Path, transform: Any = None) -> None:
        self.path, self.transform = path, transform
        self.opened: Any = None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, row: int) -> Any:
        if self.opened is None:
            self.opened = np.memmap(self.path, np.uint8, "r", shape=(40, 8, 8))
        image = Image.fromarray(np.array(self.opened[row]))
        return (image if self.transform is None else self.transform(image)), 0


class Wrapper(Dataset[Any]):
    """Holds a data set under a name of its own."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]


def test_a_file_that_is_opened_at_the_first_row_is_not_open_afterwards(tmp_path: Path) -> None:
    DIGITS[:40].tofile(tmp_path / "images")
    views = v2.Compose([v2.ToImage(), v2.RandomCrop(6), v2.ToDtype(torch.float32, scale=True)])
    plain, viewed = InFile(tmp_path / "images"), InFile(tmp_path / "images", views)
    images = Subset(viewed, range(40))
    for name, data in (("plain", Wrapper(plain)), ("viewed", images)):
        store = build_targets(pixel_prior(), data, tmp_path / name)
        store.verify(data, pixel_prior())
        fitness(data, prior=pixel_prior(), num_samples=32)
    assert takes_one_image(images) and default_transport_transform(images, 1) is not None
    assert plain.opened is None and viewed.opened is None


def test_a_copy_is_one_all_the_way_down() -> None:
    inner = InFile(Path("none"))
    data = ConcatDataset([Subset(inner, [1, 2]), Wrapper(inner)])
    made = copied(data)
    below = [made.datasets[0].dataset, made.datasets[1].rows]
    assert made is not data and below[0] is below[1] is not inner and len(made) == len(data)
    assert data.datasets[0].dataset is data.datasets[1].rows is inner
