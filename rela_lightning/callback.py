"""`ReLACallback`: three lines that accelerate any Lightning SSL module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW

from rela_lightning.compat import DualCallback, picklable_default
from rela_lightning.data.swap import Transform
from rela_lightning.errors import ConfigError
from rela_lightning.injection import checks
from rela_lightning.injection.optim import OptimizerFactory
from rela_lightning.injection.phases import Phase
from rela_lightning.injection.rows import ROW_LAYOUTS, RowLayout
from rela_lightning.injection.run import Run
from rela_lightning.kept import Kept
from rela_lightning.losses import LossSpec, resolve_loss
from rela_lightning.networks.pooling import POOLINGS, Pooling
from rela_lightning.priors import Prior
from rela_lightning.process_group import wait_at_exit
from rela_lightning.schedules import Plateau, Schedule
from rela_lightning.targets import TargetStore
from rela_lightning.targets.lookup import CROPS, Crops


@picklable_default("transport_optimizer")
class ReLACallback(DualCallback):
    """Pulls the backbone's features to cached targets early in training, then hands over to the module's own objective.

    Works with any module of `lightning.pytorch` or `pytorch_lightning` whose training step calls a
    backbone on images. Nothing of the module, its optimizer or its checkpoint changes; everything is
    taken off again after `fit`.

    Logs `rela/loss`, `rela/weight`, `rela/ssl_weight` and `rela/phase` (0 transport, 1 mixed, 2 SSL).

    Args:
        targets: Folder written by `build_targets`, or an open `TargetStore`.
        prior: Prior, or its spec. Beside `targets` it must be the one they were made with, and re-embeds samples
            to verify that. Alone it embeds every batch on the fly, for data without an index: one forward of the
            prior a step, after a few batches in which the projection is learnt.
        schedule: When and how much; None for `Plateau()`.
        backbone: What is called on images: dotted path of a submodule, or of a method
            (`"backbone.encode"`); `auto` goes by usual names, then by the calls of the first step.
        feature_layer: Dotted path of the layer that is read; None reads what the call returns.
        pooling: `auto`, `avg`, `cls` or `none`, for feature maps and tokens.
        views: Dotted paths of the image views in the batch; None takes all float image tensors.
        num_views: Views per image in the transport phase: one makes steps of half the cost. Two show two different
            crops, each with a target of its own where the targets have crops.
        crops: Which crops the transport phase shows, where the targets have some (`build_targets(..., views=8)`) and
            `transform` is left alone: `stored`, the labelled ones with their own targets; `nearest`, fresh ones with
            the target of the labelled one that overlaps most; `blended`, fresh ones with a mean of targets weighted by
            overlap; `free`, fresh ones with the target of the whole image. `auto` is `blended` if there are crops.
            Your own views, in a mixed phase, meet the mean of an image's targets, with `free` that of the whole.
        loss: What pulls mapped features to targets: `cosine`, `contrastive`, `smooth_l1`, `relational`, a list of
            these (their sum), a mapping of them to weights, or a callable `(mapped [B, D], targets [B, D]) -> scalar`.
            It is called once a view. See `rela_lightning.losses`.
        transport_resolution: Height and width, pixels, of views in the transport phase, but for its last quarter;
            None leaves them as they are. Needs a backbone that takes any size, and a schedule whose transport
            phase has a known end (`Switch`, `TransportOnly`) or a known least length (`Plateau`).
        row_layout: Order of rows where views are concatenated and changed inside the step: `cat`,
            `interleaved`; `auto` matches them by content.
        step: `replace` leaves the user's step out in the transport phase, `swap_loss` runs it and
            substitutes its loss; `auto` replaces, except under manual optimization.
        transform: Transform of one image for the transport phase; `default` gives gentler views like
            the data set's own; None keeps the data set's.
        data_ratio: Share of the data set drawn afresh each epoch, in `(0, 1]`.
        transport_optimizer: Builds the optimizer of the map W; None keeps W frozen (the authors' code).
        teachers: EMA pairs `[[student, teacher], ...]` by name; `auto` finds them; `[]` for none.
        head_warmup: Share of the budget before the end of the transport phase during which the user's step
            already runs on detached features, so that projector and predictor are warm at the switch; in
            `[0, 1)`. Needs a schedule that goes by progress.
        teacher_momentum: EMA momentum of teachers in the transport phase, in `[0, 1)`.
        verify_targets: Images compared with the labelled ones before training, beside the order of all rows where the
            data set tells it; 0 checks the length only.
        key: For targets of a stream: where the key is in a training sample, keys and positions with dots between
            (`"2"`, `"meta.id"`). None takes the entry `__key__` or `key`, or the only text of a tuple.
        seed: Seed of W and of the `data_ratio` draw.
        own_forward: Read features by one more call of the backbone beside the user's step, instead of hooking the
            calls it makes: for steps that call a network part by part (patch_embed, blocks). One more forward and
            backward a step; not together with `head_warmup`.
        allow_untested_strategy: Try strategies nobody has tried.

    Raises:
        ConfigError: For options outside their range.
        TargetError: In `setup`, if the targets do not belong to the training data.

    Example:
        >>> import lightning.pytorch as L
        >>> from rela_lightning import ReLACallback
        >>> from rela_lightning.schedules import Switch
        >>> rela = ReLACallback("targets/clip-b16", schedule=Switch(0.4))
        >>> trainer = L.Trainer(max_epochs=100, callbacks=[rela], logger=False, accelerator="cpu")
        >>> trainer.fit(module, loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        targets: str | Path | TargetStore | None = None,
        *,
        prior: str | Prior | nn.Module | None = None,
        schedule: Schedule | None = None,
        backbone: str = "auto",
        feature_layer: str | None = None,
        pooling: Pooling = "auto",
        views: Sequence[str] | None = None,
        num_views: int = 1,
        crops: Crops = "auto",
        loss: LossSpec = "cosine",
        transport_resolution: int | None = None,
        row_layout: RowLayout = "auto",
        step: Literal["auto", "replace", "swap_loss"] = "auto",
        transform: Transform | Literal["default"] | None = "default",
        data_ratio: float = 1.0,
        transport_optimizer: OptimizerFactory | None = lambda params: AdamW(params, lr=1e-3),
        teachers: Literal["auto"] | Sequence[Sequence[str]] = "auto",
        teacher_momentum: float = 0.99,
        head_warmup: float = 0.0,
        verify_targets: int = 16,
        key: str | None = None,
        seed: int = 0,
        own_forward: bool = False,
        allow_untested_strategy: bool = False,
    ) -> None:
        super().__init__()
        checks.check_range("data_ratio", data_ratio, "a share in (0, 1]", 0.0 < data_ratio <= 1.0)
        checks.check_range("num_views", num_views, "an integer >= 1", num_views >= 1)
        choices = (("crops", crops, CROPS), ("row_layout", row_layout, ROW_LAYOUTS), ("pooling", pooling, POOLINGS))
        for name, value, known in (*choices, ("step", step, ("auto", "replace", "swap_loss"))):
            checks.check_range(name, value, f"one of {', '.join(known)}", value in known)
        positive = transport_resolution is None or transport_resolution >= 1
        checks.check_range("transport_resolution", transport_resolution, "pixels, >= 1, or None", positive)
        checks.check_range("teacher_momentum", teacher_momentum, "a number in [0, 1)", 0.0 <= teacher_momentum < 1.0)
        checks.check_range("head_warmup", head_warmup, "a share in [0, 1)", 0.0 <= head_warmup < 1.0)
        schedule = Plateau() if schedule is None else schedule
        is_one = isinstance(schedule, Schedule)
        checks.check_range("schedule", schedule, "a Schedule, such as Switch(0.4) of rela_lightning.schedules", is_one)
        self.schedule: Schedule = schedule
        checks.check_end_known(self.schedule, head_warmup=head_warmup, transport_resolution=transport_resolution)
        checks.check_range("own_forward", own_forward, "False beside head_warmup", not (own_forward and head_warmup))
        checks.check_range("verify_targets", verify_targets, "an integer >= 0", verify_targets >= 0)
        if targets is None and prior is None:
            raise ConfigError(
                "ReLACallback needs targets.",
                expected="the folder that build_targets(prior, images, path) wrote, or a prior to embed on the fly",
                found="neither `targets` nor `prior`",
                do='ReLACallback("targets/clip-b16"), or for iterable data ReLACallback(prior="timm:...")',
            )
        self.targets, self.prior = targets, prior
        self.backbone, self.feature_layer, self.pooling = backbone, feature_layer, pooling
        self.views, self.num_views, self.row_layout, self.step = views, num_views, row_layout, step
        self.crops, self.loss, self.criterion = crops, loss, resolve_loss(loss)
        self.transport_resolution = transport_resolution
        self.transform, self.data_ratio = transform, data_ratio
        self.transport_optimizer = transport_optimizer
        self.teachers, self.teacher_momentum, self.head_warmup = teachers, teacher_momentum, head_warmup
        self.verify_targets, self.seed, self.own_forward = verify_targets, seed, own_forward
        self.key = key
        self.allow_untested_strategy = allow_untested_strategy
        self._fresh = self.schedule.fresh  # also where another callback has used it
        self._evaluates = False  # whether what is loaded now is for validation, test or prediction
        self._loaded: dict[str, Any] = {}  # state given to us before setup
        self._left: dict[str, Any] = {}  # state at the end of the last fit
        self._left_in = Kept()  # the same, of each trainer
        self._run: Run | None = None

    @property
    def phase(self) -> Phase | None:
        """How the current step is run: weights of both losses, and more; None while not attached to a fit."""
        return None if self._run is None else self._run.phase

    # ---- set up and undo -------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Attach to the trainer and the module; refuses what cannot work."""
        self._evaluates = stage != "fit"
        if self._evaluates:
            return
        wait_at_exit()
        self._detach()
        if sum(isinstance(callback, ReLACallback) for callback in trainer.callbacks) > 1:
            raise ConfigError(
                "Several ReLACallbacks would attach to one module.",
                expected="one",
                found="more; accelerate(), ReLAMixin and ReLAModule bring one of their own",
                do="leave one of them out",
            )
        self.schedule.load_state_dict(self._fresh)
        self._run = Run(self, trainer, pl_module)
        state = self._loaded or (self._left_in.get(trainer, {}) if trainer.global_step > 0 else {})
        if state:  # a second fit of the same trainer goes on where the first ended
            self.load_state_dict(state)
        self._run.attach()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take everything off again."""
        self._evaluates = False
        if stage == "fit":
            self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take everything off, also after a failure."""
        self._evaluates = False
        if self._run is not None:
            self._run.failed(exception)
        self._detach()

    def _detach(self) -> None:
        if self._run is not None:
            self._left, self._loaded = self.state_dict(), {}
            self._left_in[self._run.trainer] = self._left
            self._run.detach()
            self._run = None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        if self._run is not None:  # pickled or copied during fit: options and progress go, attachments stay
            state |= {"_loaded": self.state_dict(), "_run": None}
        return state

    # ---- hooks ---------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Schedulers exist now, and one of them may monitor a metric."""
        if self._run is not None:
            self._run.attach_schedulers()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Read the plan of the run; say what is known of it."""
        if self._run is not None:
            self._run.start()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say what each phase took; warn where the transport loss never levelled off, or there was none."""
        if self._run is not None:
            self._run.end()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Decide before the epoch's first batch is fetched, so that views change without lag."""
        if self._run is not None:
            self._run.start_epoch()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Decide once per optimizer step; see whether somebody else moves the teachers."""
        if self._run is not None:
            self._run.start_batch()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Step W; keep parameters that took no part out of the user's optimizer step."""
        if self._run is not None:
            self._run.before_optimizer_step(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the teachers in the transport phase."""
        if self._run is not None:
            self._run.end_batch()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Refuse values that were not finite."""
        if self._run is not None:
            self._run.parts.check_deferred()

    # ---- state -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """W, its optimizer, the schedule and the targets' fingerprint: tensors and primitives only."""
        return self._loaded or self._left if self._run is None else self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; what is loaded to evaluate a checkpoint is not for the next fit.

        Raises:
            TargetError: If the run that is resumed used other targets.
        """
        if self._evaluates:
            return
        self._loaded = state_dict
        if self._run is not None and state_dict:
            self._run.load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note the epoch a resumed run stands at; say so if the checkpoint knows nothing of ReLA."""
        if self._evaluates:
            return
        loops = checkpoint.get("loops", {}).get("fit_loop", {})
        if self._run is not None:
            self._run.rows.resume_at(loops.get("epoch_progress", {}).get("current", {}).get("processed", 0))
        if self.state_key not in checkpoint.get("callbacks", {}):
            if self._run is not None:
                self._run.start_afresh()
            checks.warn_unknown_to_checkpoint()
