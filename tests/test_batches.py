from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from rela_lightning.batches import find_images, find_views
from rela_lightning.data.normalisation import stated_scale
from rela_lightning.data.swap import swapped_transform, takes_one_image
from rela_lightning.data.transforms import TransportViews, default_transport_transform
from rela_lightning.errors import ConfigError, DataError
from rela_lightning.injection.tagging import IndexedBatch, Wanted, check_loader, check_plain_sampler, tagged_loader
from tests.parts import TwoViews, make_digits
from tests.ranks import fresh


class Painted(Dataset):
    """Sample i is an image whose every pixel is i: the ground truth of an index."""

    def __init__(self, count: int = 50, transform=None) -> None:
        self.count, self.transform = count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.full((1, 2, 2), float(index))
        return image if self.transform is None else self.transform(image)


class PaintedBatches(Painted):
    def __getitems__(self, indices: list[int]) -> list[torch.Tensor]:
        return [self[i] for i in indices]


def spy_collate(samples: list) -> dict:
    assert isinstance(samples[0], torch.Tensor), "the collate function must see the user's own samples"
    return {"image": torch.stack(samples)}


OUT_OF_ORDER = {"in_order": False} if "in_order" in DataLoader.__init__.__annotations__ else {}  # since torch 2.6
LOADERS = {
    "plain": lambda: DataLoader(Painted(), batch_size=8),
    "shuffled": lambda: DataLoader(Painted(), batch_size=8, shuffle=True, drop_last=True),
    "workers": lambda: DataLoader(Painted(), batch_size=8, shuffle=True, num_workers=2),
    "persistent, prefetch 4": lambda: DataLoader(
        Painted(), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True, prefetch_factor=4
    ),
    "out of order": lambda: DataLoader(Painted(), batch_size=4, shuffle=True, num_workers=2, **OUT_OF_ORDER),
    "spawned": lambda: DataLoader(
        Painted(), batch_size=25, num_workers=1, multiprocessing_context=fresh(), persistent_workers=True
    ),
    "weighted": lambda: DataLoader(Painted(), batch_size=8, sampler=WeightedRandomSampler(torch.rand(50), 64)),
    "batch sampler": lambda: DataLoader(
        Painted(), batch_sampler=BatchSampler(SequentialSampler(range(50)), 7, drop_last=False)
    ),
    "whole batches": lambda: DataLoader(
        Painted(), batch_size=None, sampler=SequentialSampler(range(50)), collate_fn=lambda x: x[None]
    ),
    "getitems": lambda: DataLoader(PaintedBatches(), batch_size=8, shuffle=True),
    "subset": lambda: DataLoader(Subset(Painted(), range(50)), batch_size=8, shuffle=True),
    "own collate": lambda: DataLoader(Painted(), batch_size=8, shuffle=True, collate_fn=spy_collate),
}


SLOW = {"spawned": [pytest.mark.slow]}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, [])) for name in LOADERS])
def test_index_belongs_to_image(name: str) -> None:
    loader = LOADERS[name]()
    before = dict(vars(loader))
    tagged = tagged_loader(loader, None, Wanted.shared())
    rows = 0
    for _ in range(2):
        for batch, indices, views, _ in tagged:
            image = batch["image"] if isinstance(batch, dict) else batch
            assert torch.equal(image.flatten(1)[:, 0].long(), indices)
            assert not views.any()
            rows += len(indices)
    assert rows >= 2 * 48
    assert vars(loader) == before, "the user's loader must not change"


@pytest.mark.slow
@pytest.mark.parametrize("workers, persistent", [(0, False), (2, False), (2, True)])
def test_views_change_and_every_sample_says_so(workers: int, persistent: bool) -> None:
    data = Painted(40, transform=lambda image: image)
    wanted = Wanted.shared()
    loader = DataLoader(data, batch_size=4, num_workers=workers, persistent_workers=persistent)
    tagged = tagged_loader(loader, lambda image: image + 1000, wanted)
    kinds = []
    for epoch in range(3):
        wanted.transport_views.value = int(epoch == 1)  # at an epoch's start there is no lag
        for image, indices, views, _ in tagged:
            value = image.flatten(1)[:, 0].long()
            assert torch.equal(value, indices + 1000 * views), "the tag must tell how the sample was made"
            kinds.append(int(views[0]))
    assert kinds == [0] * 10 + [1] * 10 + [0] * 10
    assert data.transform(7) == 7


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": None, "sampler": BatchSampler(SequentialSampler(range(40)), 4, False)},
        {"num_workers": 2, "persistent_workers": True},
        pytest.param(
            {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": fresh()}, marks=pytest.mark.slow
        ),
    ],
    ids=["plain", "whole batches", "persistent workers", "spawned"],
)
def test_samples_without_tags_are_the_users_own(options: dict[str, Any]) -> None:
    wanted, data = Wanted.shared(), TensorDataset(torch.rand(40, 1, 2, 2))
    loader = DataLoader(data, **{"batch_size": 4, **options})
    tagged = tagged_loader(loader, None, wanted)
    for rows in (1, 0, 1):
        wanted.rows.value = rows
        for own, found in zip(loader, tagged, strict=True):
            assert isinstance(found, IndexedBatch) == bool(rows)
            assert torch.equal(own[0], found.batch[0] if rows else found[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_that_reorders_is_an_error(workers: int) -> None:
    def backwards(samples: list) -> torch.Tensor:
        return torch.stack(samples[::-1])

    tagged = tagged_loader(
        DataLoader(Painted(), batch_size=8, num_workers=workers, collate_fn=backwards),
        None,
        Wanted.shared(),
    )
    with pytest.raises(DataError, match="Row 0 of a training batch holds the image of sample 7"):
        next(iter(tagged))


def test_a_collate_that_changes_pixels_passes() -> None:
    loader = DataLoader(Painted(), batch_size=8, collate_fn=lambda samples: torch.stack(samples) * 1.37 + 0.2)
    assert len(list(tagged_loader(loader, None, Wanted.shared()))) == 7


def test_attributes_are_the_users_own() -> None:
    data = Painted(10)
    tagged = tagged_loader(DataLoader(data), None, Wanted.shared())
    tagged.dataset.count = 5
    assert data.count == 5 and len(tagged.dataset) == 5 and tagged.dataset.transform is None
    with pytest.raises(AttributeError):
        tagged.dataset.nothing  # noqa: B018


def test_loaders_without_rows_are_refused() -> None:
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(1)

    with pytest.raises(DataError, match="iterable data set Stream"):
        check_loader(DataLoader(Stream()))
    with pytest.raises(DataError, match="found:    list"):
        check_loader([1, 2])


def test_data_ratio_refuses_a_custom_sampler() -> None:
    check_plain_sampler(DataLoader(Painted(), shuffle=True))
    with pytest.raises(ConfigError, match="WeightedRandomSampler"):
        check_plain_sampler(DataLoader(Painted(), sampler=WeightedRandomSampler(torch.rand(50), 10)))


@pytest.mark.slow
def test_default_views_follow_the_data_set() -> None:
    data = make_digits(8, TwoViews(size=16, views=3))
    views = default_transport_transform(data, num_views=2)
    assert isinstance(views, TransportViews)
    assert stated_scale(data.dataset.transform) == ([0.3] * 3, [0.4] * 3) == stated_scale(views)
    with swapped_transform(data, views):
        sample, label = data[0]
    assert len(sample) == 2 and all(view.shape == (3, 16, 16) and view.dtype == torch.float32 for view in sample)
    assert isinstance(data.dataset.transform, TwoViews) and isinstance(label, int)
    single = default_transport_transform(make_digits(8, TwoViews(views=2).view), num_views=2)
    with swapped_transform(data, single):
        assert data[0][0].shape == (3, 16, 16), "one tensor stays one tensor"


@pytest.mark.slow
def test_default_views_keep_the_random_state_and_stand_back() -> None:
    state = torch.get_rng_state()
    assert default_transport_transform(make_digits(8, TwoViews()), 2) is not None
    assert torch.equal(state, torch.get_rng_state())
    assert default_transport_transform(make_digits(8), 2) is None, "no transform to replace"
    assert default_transport_transform(make_digits(8, lambda image: {"a": 1}), 2) is None
    assert default_transport_transform(torch.utils.data.TensorDataset(torch.zeros(3, 1)), 2) is None


def test_a_transform_without_effect_is_noticed() -> None:
    class OwnTransforms(Painted):  # as torchvision's VOCDetection: `transform` exists, `transforms` is applied
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(1, 2, 2)

    assert not takes_one_image(OwnTransforms(3, transform=lambda image: image))
    assert not takes_one_image(Cached()) and not takes_one_image(Asking())
    assert takes_one_image(Painted(3, transform=lambda image: image))


class Keyword:
    """Transforms called as albumentations does."""

    def __init__(self) -> None:
        self.images, self.transform = make_digits(8), lambda *, image: {"image": TwoViews()(image)}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return self.transform(image=self.images[index][0])["image"]


class Paired(Keyword):
    def __init__(self) -> None:
        self.images, self.transform = make_digits(8), lambda image, label: TwoViews()(image)

    def __getitem__(self, index: int) -> Any:
        return self.transform(*self.images[index])


class ReadOnly(Keyword):
    def __init__(self) -> None:
        self.images = make_digits(8)

    @property
    def transform(self) -> Any:
        return TwoViews()

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.images[index][0])


class Method(ReadOnly):
    def transform(self, image: Any) -> Any:  # type: ignore[override]
        return TwoViews()(image)


class Listed(Keyword):
    def __init__(self) -> None:
        self.images, self.transform = make_digits(8), [TwoViews(), tuple]  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        views, made_tuple = self.transform
        return made_tuple(views(self.images[index][0]))


class Asking(Keyword):
    """As MONAI's data sets, which take transforms of one class."""

    def __init__(self) -> None:
        self.images, self.transform = make_digits(8), TwoViews()  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        if not isinstance(self.transform, TwoViews):
            raise ValueError("`transform` must be TwoViews.")
        return self.transform(self.images[index][0])


class Cached(Keyword):
    """Keeps what its transform returned."""

    def __init__(self) -> None:
        self.images, self.transform, self.kept = make_digits(8), TwoViews(), {}  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        if index not in self.kept:
            self.kept[index] = self.transform(self.images[index][0])
        return self.kept[index]


@pytest.mark.parametrize("kind", [Keyword, Paired, ReadOnly, Listed, Asking, Cached])
def test_transforms_of_other_shapes_keep_their_views(kind: Any) -> None:
    assert default_transport_transform(kind(), 2) is None


def test_a_transform_method_leaves_nothing_behind() -> None:
    data = Method()
    default_transport_transform(data, 2)
    assert "transform" not in vars(data) and len(data[0]) == 2


def test_the_views_of_the_labelled_image_are_the_first() -> None:
    left, right = torch.zeros(4, 3, 8, 8), torch.ones(4, 2, 3, 8, 8)
    batch = {"left": left, "pair": {"right": right}, "mask": left, "image.jpg": left + 2}
    assert [float(view.max()) for view in find_views(batch, 4, image="pair.right")] == [1, 1, 0, 2, 0]
    assert float(find_views(batch, 4, image="image.jpg")[0].max()) == 2
    assert float(find_views([left, right[:, 0]], 4, image="1")[0].max()) == 1
    assert float(find_views({"first": left, "img": left + 2}, 4)[0].max()) == 2, "which labelling takes for its name"


@pytest.mark.parametrize("other", ["normals", "mask", "depth_map"])
def test_what_is_aligned_with_the_images_is_not_taken_for_them(other: str) -> None:
    image, views = torch.ones(4, 3, 8, 8), torch.ones(4, 2, 3, 8, 8)
    assert find_images({other: torch.zeros(4, 3, 8, 8), "image": image}) is image
    assert find_images({"first": torch.zeros(4, 3, 8, 8), "image": image}) is image
    assert find_views({other: torch.zeros(4, 3, 8, 8), "image": image}, 4)[0] is image
    assert float(find_views({other: torch.zeros(4, 3, 8, 8), "crops": views}, 4)[0].min()) == 1.0
