"""Views of two sizes: what counts on their number gets as many, gentler ones, in the transport phase."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from rela_lightning import ReLACallback
from rela_lightning.data.swap import swapped_transform
from rela_lightning.data.transforms import TransportViews, default_transport_transform
from rela_lightning.schedules import Switch
from tests.modules import byol
from tests.parts import TwoViews, make_digits
from tests.test_callback import fit, seeded


class MultiCrop:
    """Two views of 16 pixels and two of 8."""

    def __call__(self, image: Any) -> list[torch.Tensor]:
        return [*TwoViews(16)(image), *TwoViews(8)(image)]


class Unpacking(Dataset):
    """A data set that counts on four views."""

    def __init__(self, count: int) -> None:
        self.images, self.transform = make_digits(count), MultiCrop()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        first, second, third, fourth = self.transform(self.images[index][0])
        return {"first": first, "second": second, "third": third, "fourth": fourth}


class ByPlace:
    """A collate function that tells views apart by their place, and hands the large ones on."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, samples: list[Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
        stacked = [torch.stack([views[place] for views, _ in samples]) for place in range(4)]
        self.counts.append(len(samples))
        return stacked[:2], torch.tensor([label for _, label in samples])


def by_size(samples: list[Any]) -> list[torch.Tensor]:
    """One that insists on small views in the last places."""
    if any(views[place].shape[-1] != 8 for views, _ in samples for place in (2, 3)):
        raise ValueError("the last views are small ones")
    return [torch.stack([views[place] for views, _ in samples]) for place in range(4)]


def broken(samples: list[Any]) -> Any:
    raise RuntimeError("as with the user's own views")


def test_as_many_views_as_a_collate_function_or_a_data_set_counts_on() -> None:
    data = make_digits(8, MultiCrop())
    for dataset, options, count in ((data, {}, 2), (data, {"collate": ByPlace()}, 4), (Unpacking(8), {}, 4)):
        views = default_transport_transform(dataset, 1, **options)
        assert isinstance(views, TransportViews) and (views.num_views, views.distinct) == (count, 1)
        with swapped_transform(dataset, views):
            sample = dataset[0]
        images = list(sample.values()) if isinstance(sample, dict) else sample[0]
        assert len(images) == count and all(view.shape == (3, 16, 16) for view in images)
        assert all(view is images[0] for view in images), "made once"
    assert default_transport_transform(data, 1, by_size) is None, "the data set's own are kept"
    assert default_transport_transform(data, 1, broken).num_views == 2, "what fails anyhow says nothing"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fit_whose_collate_function_counts_on_four(workers: int, targets64: Any) -> None:
    sizes: list[int] = []
    module = seeded(byol)
    module.backbone.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    collate = ByPlace()
    data = DataLoader(make_digits(64, MultiCrop()), batch_size=16, collate_fn=collate, num_workers=workers)
    fit(module, ReLACallback(targets64, schedule=Switch(0.5)), data=data)
    assert sizes and set(sizes) == {16}
    if workers == 0:
        assert 16 in collate.counts
