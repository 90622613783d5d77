"""Targets of streams: labelled once, found by the key of a sample in whatever order samples come."""

from __future__ import annotations

import hashlib
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from rela_lightning import ReLACallback, TargetStore, build_targets, load_prior
from rela_lightning.errors import ConfigError, DataError, TargetError
from rela_lightning.injection.keyed import keyed_loader
from rela_lightning.injection.tagging import IndexedBatch, Wanted
from rela_lightning.schedules import Switch, TransportOnly
from rela_lightning.targets import keys
from rela_lightning.targets.lookup import TargetLookup
from rela_lightning.targets.partial import partial_folder
from tests.modules import byol
from tests.parts import TwoViews, make_digits
from tests.streams import Shards, Training, as_dict, key_of, write_shards
from tests.test_callback import Log, fit, seeded

COUNT = 64
KEYS = [key_of(number) for number in range(COUNT)]


def prior(seed: int = 1) -> Any:
    return load_prior("random:lightly:resnet-9", width=0.125, image_size=32, mean=[0.5] * 3, std=[0.5] * 3, seed=seed)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, shards):
    options = {"standardise": "per_dim", "storage_dtype": torch.float32}
    return build_targets(prior(), Shards(shards), tmp_path_factory.mktemp("targets") / "t", **options)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory, shards):
    return build_targets(prior(), Shards(shards), tmp_path_factory.mktemp("targets") / "t", views=2)


def aligned(found: Any, expected: Any) -> Any:
    """The columns of a PCA have no sign of their own."""
    return found * torch.sign((found * expected).sum(dim=0))


def test_each_key_has_the_target_of_its_image(store, targets64):
    by_row = TargetStore(targets64)[torch.arange(COUNT)]
    by_key = store[store.rows_of(KEYS)]
    assert store.keyed and len(store) == COUNT and store.dim == by_row.shape[1]
    torch.testing.assert_close(aligned(by_key, by_row), by_row, rtol=1e-2, atol=1e-2)


def test_rows_are_in_the_order_of_the_hashes_of_keys(store):
    hashes = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") for key in KEYS]
    assert store.rows_of(KEYS).tolist() == np.argsort(np.argsort(np.array(hashes, np.uint64))).tolist()


def test_keys_of_targets_that_were_built_after_it_was_opened_are_refused(tmp_path, shards):
    store = build_targets(prior(), Shards(shards), tmp_path / "t")
    opened = TargetStore(store.path)
    assert opened.rows_of(KEYS[:1]).shape == (1,)
    packed = pickle.dumps(opened)
    build_targets(prior(2), Shards(shards), tmp_path / "t", overwrite=True)
    assert opened.rows_of(KEYS[:1]).shape == (1,), "what is open stays"
    with pytest.raises(TargetError, match="built again"):
        pickle.loads(packed).rows_of(KEYS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("workers, shuffle", [(0, True), (2, False), (3, True)])
def test_the_store_is_the_same_in_whatever_order_samples_come(tmp_path, shards, cropped, workers, shuffle):
    stream = Shards(shards, shuffle=shuffle)
    again = build_targets(prior(), stream, tmp_path / "t", views=2, num_workers=workers, batch_size=24)
    np.testing.assert_array_equal(again.rows_of(KEYS), cropped.rows_of(KEYS))
    first, second = (each.read(each.rows_of(KEYS)) for each in (cropped, again))
    assert (first.crops == second.crops).all() and (first.sizes == second.sizes).all()
    np.testing.assert_allclose(first.targets, second.targets, atol=1e-2)  # other batches round otherwise


class Tuples:
    """Samples in which only the place says what the key is."""

    def __call__(self, key: str, image: Any) -> Any:
        return "a caption", image, {"id": key}


def test_the_place_of_the_key_is_kept_for_training(tmp_path, shards):
    stream = Shards(shards, Tuples())
    with pytest.raises(DataError, match=r"key=\"2\" or key=\"meta.id\""):
        build_targets(prior(), Shards(shards, lambda key, image: (key, "text", image)), tmp_path / "t")
    made = build_targets(prior(), stream, tmp_path / "t", key="2.id")
    loader = keyed_loader(
        DataLoader(stream, batch_size=8, collate_fn=lambda samples: [s[2]["id"] for s in samples]),
        Wanted.shared(),
        TargetLookup(made),
        None,
    )
    for batch, rows, _, _ in loader:
        assert rows.tolist() == made.rows_of(batch).tolist()


def test_an_interrupted_pass_goes_on_with_the_samples_that_are_missing(tmp_path, shards, store):
    broken = Shards(shards)
    broken.fail_at = 16 + 16 + 40  # the first samples are read twice beforehand
    with pytest.raises(OSError, match="went away"):
        build_targets(prior(), broken, tmp_path / "t", batch_size=8)
    embedded = []
    network = prior()
    network.register_forward_hook(lambda module, args, output: embedded.append(len(output)))
    made = build_targets(network, Shards(shards), tmp_path / "t", batch_size=8, standardise="per_dim")
    assert sum(embedded) - 32 <= COUNT - 24, "32 are embedded again for the rounding"
    torch.testing.assert_close(made[made.rows_of(KEYS)], store[store.rows_of(KEYS)], atol=2e-2, rtol=1e-2)
    assert not partial_folder(tmp_path / "t").exists()


def test_a_key_with_two_images_is_refused_also_where_the_pass_was_interrupted_between_them(tmp_path, shards):
    for again in (False, True):
        twice = Shards(shards, lambda key, image: as_dict("a/00000" if key in KEYS[:2] else key, image))
        if again:  # key 0 is in the first shard, key 1 in the second; the first samples are read twice beforehand
            twice.fail_at = 16 + 16 + 16
            with pytest.raises(OSError, match="went away"):
                build_targets(prior(), twice, tmp_path / "t", batch_size=4)
            twice.fail_at = None
        with pytest.raises(TargetError, match=r"more than one image[\s\S]*'a/00000'"):
            build_targets(prior(), twice, tmp_path / "t", batch_size=4)


def test_a_second_call_returns_the_same_targets_at_once(tmp_path, shards):
    path, stream = tmp_path / "t", Shards(shards, shuffle=True)
    build_targets(prior(), stream, path)
    before = (path / "targets.npy").stat().st_mtime_ns
    stream.read = 0
    build_targets(prior(), stream, path)
    assert stream.read < COUNT and (path / "targets.npy").stat().st_mtime_ns == before
    with pytest.raises(TargetError, match="another prior"):
        build_targets(prior(2), stream, path)
    with pytest.raises(TargetError, match="another standardise"):
        build_targets(prior(), stream, path, standardise="none")
    with pytest.raises(TargetError, match="the prior sees other images"):
        build_targets(prior(), Shards(shards, lambda key, image: as_dict(key, image.rotate(90))), path)
    with pytest.raises(TargetError, match=r"16 of 16 samples have no targets[\s\S]*'new/digits/00000', "):
        build_targets(prior(), Shards(shards, lambda key, image: as_dict(f"new/{key}", image)), path)
    with pytest.raises(TargetError, match=r"another way to find rows, by[\s\S]*by key[\s\S]*by row"):
        build_targets(prior(), make_digits(COUNT), path)
    assert not build_targets(prior(), make_digits(COUNT), path, overwrite=True).keyed
    assert not (path / "keys.npy").exists()


@pytest.mark.parametrize("form", ["samples", "batches"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_and_targets_belong_to_the_samples_of_the_batch(shards, cropped, form, workers):
    stream: Any = Shards(shards, Training(TwoViews()), shuffle=True)
    user = DataLoader(stream, batch_size=8, num_workers=workers)
    if form == "batches":
        user = DataLoader(Batches(stream), batch_size=None, num_workers=workers)
    before = dict(vars(user))
    wanted = Wanted.shared()
    wanted.targets.value = 1
    seen = []
    for (_, numbers, names), rows, views, targets in keyed_loader(user, wanted, TargetLookup(cropped), None):
        assert list(names) == [key_of(number) for number in numbers.tolist()]
        assert rows.tolist() == cropped.rows_of(list(names)).tolist() and not views.any()
        expected = cropped.read(rows).targets.mean(axis=1, keepdims=True)  # of the whole image and its crops
        np.testing.assert_array_equal(targets.view(torch.float32).numpy(), expected)
        seen += numbers.tolist()
    assert sorted(seen) == list(range(COUNT)) and vars(user) == before
    wanted.rows.value = 0
    assert not any(isinstance(batch, IndexedBatch) for batch in keyed_loader(user, wanted, TargetLookup(cropped), None))


class Batches(IterableDataset):
    """A stream that puts batches together itself."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __iter__(self) -> Any:
        samples = []
        for sample in self.stream:
            samples.append(sample)
            if len(samples) == 8:
                yield default_collate(samples)
                samples = []


class Spy:
    """A loss that keeps the targets it is given, for as long as it is."""

    def __init__(self) -> None:
        self.targets: list[torch.Tensor] = []

    def __call__(self, mapped: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.targets.append(targets.clone())
        return (mapped - targets).square().mean()


class Numbers(Log):
    """Keeps which images a batch shows."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.numbers.append(batch[1].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_pulls_each_image_to_its_own_target(shards, store, targets64, workers):
    spy, log = Spy(), Numbers()
    data = DataLoader(Shards(shards, Training(TwoViews()), shuffle=True), batch_size=8, num_workers=workers)
    fit(seeded(byol), ReLACallback(store, schedule=TransportOnly(), loss=spy), log, data=data)
    by_row = TargetStore(targets64)[torch.arange(COUNT)]
    signs = torch.sign((store[store.rows_of(KEYS)] * by_row).sum(dim=0))
    assert len(spy.targets) >= len(log.numbers) == 2 * COUNT // 8
    for numbers, targets in zip(log.numbers, spy.targets[:: len(spy.targets) // len(log.numbers)], strict=True):
        width = targets.shape[1]
        torch.testing.assert_close(targets * signs[:width], by_row[numbers][:, :width], rtol=1e-2, atol=1e-2)
    assert log.numbers[0] != log.numbers[COUNT // 8], "another order in each epoch"


@pytest.mark.slow
def test_the_users_own_step_takes_over(shards, store):
    log = Log()
    data = DataLoader(Shards(shards, Training(TwoViews()), shuffle=True), batch_size=16)
    fit(seeded(byol), ReLACallback(store, schedule=Switch(0.5)), log, data=data, max_epochs=4)
    assert log.seen[0]["rela/phase"] == 0.0 and log.seen[-1]["rela/phase"] == 2.0


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_were_not_labelled_are_refused_by_name(tmp_path, shards, store, workers):
    more = write_shards(tmp_path, count=COUNT + 3, shards=1)
    data = DataLoader(Shards(more, Training(TwoViews())), batch_size=COUNT + 3, num_workers=workers)
    message = r"3 of 67 samples have no targets[\s\S]*'digits/00064', 'digits/00065', 'digits/00066'"
    with pytest.raises(TargetError, match=message):
        fit(seeded(byol), ReLACallback(store), data=data)


def training(shards: Any, sample: Any = None, **options: Any) -> DataLoader:
    return DataLoader(Shards(shards, sample or Training(TwoViews())), batch_size=16, **options)


REFUSED = {
    "no key": ({}, lambda key, image: (TwoViews()(image), 3), DataError, "carry no key"),
    "place without a key": ({"key": "5"}, None, DataError, "no text at key='5'"),
    "crops": ({"crops": "nearest"}, None, ConfigError, "A stream makes its own views"),
    "transform": ({"transform": TwoViews()}, None, DataError, "`transform` has no effect"),
    "share": ({"data_ratio": 0.5}, None, ConfigError, "a stream has none"),
    "prior": ({"prior": prior(2)}, None, TargetError, "made by another prior"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_stream_cannot_do_is_refused(shards, cropped, name):
    options, sample, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        fit(seeded(byol), ReLACallback(cropped, **options), data=training(shards, sample))


def test_a_loader_that_is_not_torchs_is_refused(shards, store):
    class Foreign:
        def __iter__(self) -> Any:
            return iter(training(shards))

    with pytest.raises(DataError, match=r"does not show them[\s\S]*Foreign[\s\S]*DataLoader\(stream"):
        fit(seeded(byol), ReLACallback(store), data=Foreign())


def test_targets_by_key_are_not_for_rows_and_rows_have_no_keys(shards, store, targets64):
    with pytest.raises(TargetError, match="this data set goes by row"):
        store.verify(make_digits(COUNT))
    with pytest.raises(TargetError, match="have no keys"):
        TargetStore(targets64).rows_of(["a"])
    with pytest.warns(UserWarning, match="their images were not compared"):
        store.verify(training(shards).dataset)
    store.verify(Shards(shards), prior())
    with pytest.raises(TargetError, match="the prior sees other images"):
        store.verify(Shards(shards, lambda key, image: as_dict(key, image.rotate(90))), prior())


BAD = {
    "one key for two images": (lambda key, image: {"png": image, "__key__": key[:-1]}, TargetError, r"'digits/0000'"),
    "no image": (lambda key, image: as_dict(key, None), DataError, "'digits/00000' holds no image"),
    "normalised": (lambda key, image: as_dict(key, torch.ones(3, 8, 8) * 2), DataError, "'digits/00000' is not a raw"),
    "augmented": (lambda key, image: as_dict(key, torch.rand(3, 8, 8)), DataError, "other pixels each time"),
    "no key": (lambda key, image: {"png": image, "text": "a"}, DataError, r"carry no key[\s\S]*text: 'a' in dict"),
    "a batch": (lambda key, image: {"png": image, "__key__": [key, key]}, DataError, "is a list of texts"),
}


@pytest.mark.parametrize("name", BAD)
def test_streams_that_cannot_be_labelled_are_refused(tmp_path, shards, name):
    sample, kind, message = BAD[name]
    for _ in range(2):  # nothing of the first call is in the way of the second
        with pytest.raises(kind, match=message):
            build_targets(prior(), Shards(shards, sample), tmp_path / "t")
    assert len(build_targets(prior(), Shards(shards), tmp_path / "t")) == COUNT


def test_two_keys_that_share_a_hash_are_refused(tmp_path, shards, monkeypatch):
    weak = keys.hashes_of
    for place in ("keys", "label_stream", "subject"):
        monkeypatch.setattr(f"rela_lightning.targets.{place}.hashes_of", lambda names: weak([n[:-1] for n in names]))
    with pytest.raises(TargetError, match=r"'digits/0000[0-9]' and 'digits/0000[0-9]'"):
        build_targets(prior(), Shards(shards), tmp_path / "t")


def test_a_stream_that_every_worker_reads_whole_is_labelled_all_the_same(tmp_path, shards, store, caplog):
    with caplog.at_level(logging.WARNING, "rela_lightning"):
        made = build_targets(prior(), Shards(shards, split=False), tmp_path / "t", num_workers=2)
    assert f"{COUNT} samples of the stream came more than once" in caplog.text
    assert made.rows_of(KEYS).tolist() == store.rows_of(KEYS).tolist()


def test_a_part_of_a_stream_is_not_taken_for_the_whole(tmp_path, shards):
    import lightning.pytorch as L

    trainer = L.Trainer(limit_predict_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TargetError, match=r"ended early[\s\S]*limit_predict_batches=2"):
        build_targets(prior(), Shards(shards), tmp_path / "t", trainer=trainer)
    with pytest.raises(ConfigError, match="`key` is for streams"):
        build_targets(prior(), make_digits(8), tmp_path / "t", key="0")


def test_the_transform_of_a_stream_is_set_aside_for_labelling(tmp_path, shards, store):
    class Own(Shards):
        def __init__(self, paths: Any) -> None:
            super().__init__(paths)
            self.transform: Any = TwoViews()

        def __iter__(self) -> Any:
            for sample in super().__iter__():
                image = sample["png"]
                yield {**sample, "png": image if self.transform is None else self.transform(image)}

    stream = Own(shards)
    own = stream.transform
    made = build_targets(prior(), stream, tmp_path / "t", standardise="per_dim", storage_dtype=torch.float32)
    assert torch.equal(made[made.rows_of(KEYS)], store[store.rows_of(KEYS)]) and stream.transform is own


def test_a_store_without_its_keys_is_incomplete(tmp_path, shards):
    path = build_targets(prior(), Shards(shards), tmp_path / "t").path
    (path / "keys.npy").unlink()
    with pytest.raises(TargetError, match=r"incomplete[\s\S]*keys.npy"):
        TargetStore(path)


def test_a_webdataset_is_labelled_and_trained_on(tmp_path, shards, store):
    wds = pytest.importorskip("webdataset")
    raw = wds.WebDataset(shards, shardshuffle=False).decode("pil")
    options = {"standardise": "per_dim", "storage_dtype": torch.float32}
    made = build_targets(prior(), raw, tmp_path / "t", **options)
    assert torch.equal(made[made.rows_of(KEYS)], store[store.rows_of(KEYS)])
    views = wds.WebDataset(shards, shardshuffle=4).shuffle(20).decode("pil").to_tuple("png", "__key__")
    views = views.map_tuple(TwoViews())
    log = Log()
    for data in (
        DataLoader(views, batch_size=16),
        DataLoader(views.batched(16, collation_fn=default_collate), batch_size=None),
    ):
        fit(seeded(byol), ReLACallback(made, schedule=TransportOnly()), log, data=data, max_epochs=1)
    assert len(log.seen) == 2 * COUNT // 16 and all("rela/loss" in entry for entry in log.seen)
