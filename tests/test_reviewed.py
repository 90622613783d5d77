"""Mistakes that a review found, each kept from coming back."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from rela_lightning import ReLACallback, ReLAMixin, accelerate
from rela_lightning.data.normalisation import told_scale
from rela_lightning.data.transforms import default_transport_transform
from rela_lightning.errors import ConfigError, DataError, InjectionError
from rela_lightning.injection.loader import RowTracker
from rela_lightning.injection.phases import Phases
from rela_lightning.injection.rows import RowMatcher
from rela_lightning.injection.tagging import check_plain_sampler
from rela_lightning.injection.teachers import Teachers, find_pairs
from rela_lightning.schedules import AuthorsRule, Blend, Mix, Plateau, Switch, TransportOnly
from tests.modules import byol, same, simclr, weights
from tests.parts import TinyBackbone, TwoViews, make_digits
from tests.test_callback import Log, fit, loader, seeded, trainer


class WithProbe(type(simclr(manual=True))):
    """Manual optimization with an online probe whose backward comes first."""

    probed = "own forward"

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(16, 10)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        main, probe = self.optimizers()
        x = torch.cat(list(batch[0]))
        labels = batch[1].repeat(2)
        if self.probed == "no grad":
            with torch.no_grad():
                features = self.backbone(x)
        else:
            features = self.backbone(x)
        probe.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self.probe(features.detach()), labels))
        probe.step()
        main.zero_grad()
        shared = features if self.probed == "shared forward" else self.backbone(x)
        self.manual_backward(self.criterion(*self.head(shared).chunk(2)))
        main.step()

    def configure_optimizers(self) -> Any:
        own = [*self.backbone.parameters(), *self.head.parameters()]
        return [torch.optim.SGD(own, lr=0.1), torch.optim.SGD(self.probe.parameters(), lr=0.1)]


@pytest.mark.parametrize("probed", ["own forward", "shared forward", "no grad"])
@pytest.mark.parametrize("schedule", [Mix(), TransportOnly(), Switch(0.5)])
def test_a_probe_before_the_main_loss_does_not_swallow_the_transport_loss(
    probed: str, schedule: Any, targets64: Any
) -> None:
    module, plain = seeded(WithProbe), seeded(WithProbe)
    module.probed = plain.probed = probed
    before = weights(module)
    fit(module, ReLACallback(targets64, schedule=schedule))
    fit(plain)
    after, other = weights(module), weights(plain)
    assert not torch.equal(after["backbone.body.0.weight"], before["backbone.body.0.weight"])
    assert not torch.equal(after["backbone.body.0.weight"], other["backbone.body.0.weight"])
    assert not torch.equal(after["probe.weight"], before["probe.weight"]), "the probe keeps learning"


def test_second_losses_get_the_ssl_weight(targets64: Any) -> None:
    seen: list[float] = []

    class Two(type(simclr(manual=True))):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            for _ in range(2):
                self.manual_backward(self.criterion(*self.head(self.backbone(torch.cat(list(batch[0])))).chunk(2)))
            seen.append(
                float(self.head.layers[0].weight.grad.abs().sum())
                if self.head.layers[0].weight.grad is not None
                else 0.0
            )
            optimizer.step()

    fit(seeded(Two), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=1)
    assert all(value == 0.0 for value in seen), "in the transport phase no loss of the module's own counts"


def test_replacing_the_step_under_manual_optimization_is_refused(targets64: Any) -> None:
    with pytest.raises(ConfigError, match="swap_loss"):
        fit(seeded(simclr, manual=True), ReLACallback(targets64, step="replace"))


def test_optimizers_that_bypass_lightning_are_an_error(targets64: Any) -> None:
    class Raw(type(simclr(manual=True))):
        def optimizers(self, use_pl_optimizer: bool = True) -> Any:
            return super().optimizers(use_pl_optimizer=False)

    with pytest.raises(InjectionError, match=r"self\.optimizers\(\)"):
        fit(seeded(Raw), ReLACallback(targets64), max_epochs=20)


@pytest.mark.slow
def test_ddp_with_one_process(targets64: Any, tmp_path: Any) -> None:
    """Lightning wraps at world size 1 too. In a process of its own: a process group outlives its fit."""
    script = tmp_path / "one.py"
    script.write_text(
        "import sys\n"
        "from tests.modules import byol\n"
        "from tests.test_callback import Log, fit, seeded\n"
        "from rela_lightning import ReLACallback\n"
        "from rela_lightning.schedules import Switch\n"
        "log = Log()\n"
        "fit(seeded(byol), ReLACallback(sys.argv[1], schedule=Switch(0.5)), log, strategy='ddp', devices=1)\n"
        "print([entry['rela/phase'] for entry in log.seen])\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(script), str(targets64)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert str([0.0] * 4 + [2.0] * 4) in done.stdout, done.stderr[-3000:]


def test_late_transport_views_never_reach_the_users_step() -> None:
    phases = Phases(Switch(0.5), 0.0, SimpleNamespace(world_size=1), lambda: True, lambda light, targets: None)
    phases._budget = SimpleNamespace(progress=lambda: 0.9)
    phases.decide(in_flight=6)
    order = [phases.for_batch(views).number for views in (True, False, True, False, False)]
    assert order == [0.0, 2.0, 0.0, 2.0, 2.0]


def test_the_first_look_at_the_rows_is_the_only_one_that_waits() -> None:
    class Once:
        looks = 0

        def __bool__(self) -> bool:
            Once.looks += 1
            return True

    matcher = RowMatcher()
    for _ in range(20):
        matcher._defer((0, 1, 1), Once())
    assert Once.looks == 1
    matcher._unread = [torch.tensor(True), torch.tensor(False)]
    with pytest.raises(InjectionError, match="changed during training"):
        matcher.check_deferred()


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


@pytest.mark.parametrize("kind", [Keyword, Paired, ReadOnly])
def test_transforms_of_other_shapes_keep_their_views(kind: Any) -> None:
    assert default_transport_transform(kind(), 2) is None


def test_a_transform_method_leaves_nothing_behind() -> None:
    data = Method()
    default_transport_transform(data, 2)
    assert "transform" not in vars(data) and len(data[0]) == 2


def test_views_normalised_out_of_sight_give_views_of_their_scale() -> None:
    view = TwoViews()
    found = default_transport_transform(make_digits(8, lambda image: [2 * v - 3 for v in view(image)]), 2)
    scale = told_scale(found)
    assert scale.mean == pytest.approx([0.9] * 3) and scale.std == pytest.approx([0.2] * 3)


def test_reloaded_loaders_are_let_go(targets64: Any) -> None:
    tracker = RowTracker(lambda data: None, lookup=None, transform=None, num_views=2, data_ratio=1.0, seed=0)
    tracker._trainer = SimpleNamespace(training=True, overfit_batches=0, world_size=1, current_epoch=0)
    for _ in range(3):
        tracker._process(lambda tagged: tagged, loader())
    assert len(tracker._replaced) <= 1


def test_a_module_saved_whole_during_fit_is_the_plain_one(targets64: Any) -> None:
    from tests.modules import PlainBYOL

    sizes: list[int] = []

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            if not sizes:
                attached, module._trainer = module._trainer, None
                file = io.BytesIO()
                torch.save(module, file)
                sizes.append(file.tell())
                module._trainer = attached
                file.seek(0)
                loaded = torch.load(file, weights_only=False)
                assert type(loaded.training_step).__name__ == "method"

    fit(seeded(PlainBYOL), ReLACallback(targets64), Save(), data=loader(2, persistent_workers=True), max_epochs=1)
    assert sizes[0] < 1_000_000


@pytest.mark.parametrize(
    "sampler",
    [
        lambda data: DistributedSamplerWrapper(WeightedRandomSampler(torch.ones(64), 64), num_replicas=1, rank=0),
        lambda data: RandomSampler(data, replacement=True),
        lambda data: RandomSampler(data, num_samples=10),
    ],
)
def test_data_ratio_refuses_every_sampler_of_the_users(sampler: Any) -> None:
    data = make_digits(64)
    with pytest.raises(ConfigError, match="data_ratio"):
        check_plain_sampler(DataLoader(data, sampler=sampler(data)))


def test_a_teacher_that_cannot_be_seen_to_move_is_watched_on() -> None:
    module = nn.Module()
    module.net = TinyBackbone()
    module.slow = copy.deepcopy(module.net).requires_grad_(False)
    teachers = Teachers(module, find_pairs(module), momentum=0.9)
    for step in range(20):
        teachers.before_step()
        with torch.no_grad():
            if step >= 12:  # a learning rate that warms up from zero
                for p in module.net.parameters():
                    p.add_(1.0)
        teachers.update()
        left = module.slow.body[0].weight.clone()
        with torch.no_grad():
            for s, t in zip(module.net.parameters(), module.slow.parameters(), strict=True):
                t.lerp_(s, 0.5)  # the module's own average, after ours
        if step >= 14:
            before = left
            teachers.before_step()
            assert not teachers._teachers, "ours has stood back"
            assert before is left


def test_head_warmup_needs_a_schedule_that_knows_its_end(targets64: Any) -> None:
    for schedule in (AuthorsRule(), Plateau(), Blend()):
        with pytest.raises(ConfigError, match="head_warmup"):
            ReLACallback(targets64, schedule=schedule, head_warmup=0.1)


def test_mixin_checkpoints_are_the_plain_ones(targets64: Any, tmp_path: Any) -> None:
    class Saving(type(byol())):
        def __init__(self, lr: float = 0.05, **options: Any) -> None:
            super().__init__(lr)
            self.save_hyperparameters()

    class Fast(ReLAMixin, Saving):
        pass

    run = fit(Fast(lr=0.01, targets=targets64, rela={"schedule": Switch(0.5)}))
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert state["hyper_parameters"]["lr"] == 0.01
    assert Saving.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).lr == 0.01
    assert Fast.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).lr == 0.01


def test_two_callbacks_are_refused(targets64: Any) -> None:
    class Fast(ReLAMixin, type(byol())):
        pass

    with pytest.raises(ConfigError, match="Several ReLACallbacks"):
        fit(accelerate(Fast(targets=targets64), targets64))


def test_a_rule_resumed_on_another_device() -> None:
    rule = AuthorsRule(poll=4)
    rule.update(torch.tensor(1.0), 0.5)
    again = AuthorsRule(poll=4)
    again.load_state_dict(rule.state_dict())
    assert [loss.dtype for loss in again._unread] == [torch.float64]
    for _ in range(3):
        again.update(torch.tensor(1.0), 0.5)
    assert not again._unread


@pytest.mark.parametrize("change", ["schedule", "optimizer"])
def test_resuming_with_other_classes_is_refused_by_name(change: str, targets64: Any, tmp_path: Any) -> None:
    import functools

    run = fit(seeded(byol), ReLACallback(targets64, schedule=TransportOnly()), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    options: dict[str, Any] = {"schedule": TransportOnly()}
    if change == "schedule":
        options = {"schedule": Plateau()}
    else:
        options["transport_optimizer"] = functools.partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ConfigError, match="(?s)TransportOnly.*Plateau|AdamW.*SGD"):  # noqa: RUF043
        trainer("lightning.pytorch", ReLACallback(targets64, **options), max_epochs=3).fit(
            byol(), loader(), ckpt_path=tmp_path / "a.ckpt"
        )


def test_pairs_are_kept_for_a_resumed_run(targets64: Any, tmp_path: Any) -> None:
    class Alike(type(byol())):
        """Two heads of one shape: only equal initial values tell whose teacher it is."""

        def __init__(self) -> None:
            super().__init__()
            self.xx, self.yy = nn.Linear(16, 4), nn.Linear(16, 4)
            self.zz = copy.deepcopy(self.yy).requires_grad_(False)

    class Shake(L.Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            nn.init.ones_(module.yy.weight)

    run = fit(seeded(Alike), ReLACallback(targets64, schedule=TransportOnly()), Shake(), max_epochs=1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer("lightning.pytorch", ReLACallback(targets64, schedule=TransportOnly()), max_epochs=2)
    again.fit(Alike(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert again.current_epoch == 2


def test_loaders_in_a_list_and_dropped_samples_have_their_own_messages(targets64: Any) -> None:
    with pytest.raises(DataError, match="not in a list"):
        fit(seeded(byol), ReLACallback(targets64), data=[loader()])

    def dropping(samples: list) -> Any:
        return torch.utils.data.default_collate(samples[:-2])

    with pytest.raises(DataError, match="keep every sample"):
        fit(seeded(byol), ReLACallback(targets64), data=loader(collate_fn=dropping))


def test_progress_survives_another_batch_size(targets64: Any, tmp_path: Any) -> None:
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    module, log = seeded(byol), Log()
    fit(module, ReLACallback(targets64, schedule=Switch(0.6)), Save(), max_epochs=5, data=loader(batch_size=8))
    run = trainer("lightning.pytorch", ReLACallback(targets64, schedule=Switch(0.6)), log, max_epochs=5)
    run.fit(byol(), loader(batch_size=32), ckpt_path=tmp_path / "a.ckpt")
    assert [entry["rela/phase"] for entry in log.seen] == [0.0] * 2 + [2.0] * 4
    assert not same(weights(module), {})
