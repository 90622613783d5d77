"""One fit under a `ReLACallback`: all that is attached to a trainer and a module, until it is taken off."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rela_lightning.compat import logged_step, planned_steps
from rela_lightning.errors import TargetError
from rela_lightning.injection import checks
from rela_lightning.injection.announce import Announcer
from rela_lightning.injection.budget import Budget
from rela_lightning.injection.loader import RowTracker
from rela_lightning.injection.monitors import Logging, Monitors
from rela_lightning.injection.optim import TransportMap, check_same
from rela_lightning.injection.passes import Passes
from rela_lightning.injection.patch import Patches
from rela_lightning.injection.patience import Patience
from rela_lightning.injection.phases import Phase, Phases
from rela_lightning.injection.step import Parts, Step
from rela_lightning.injection.student import Student
from rela_lightning.injection.teachers import Teachers, named_pairs
from rela_lightning.injection.transport_head import TransportHead, of_other_ranks
from rela_lightning.schedules import Weights
from rela_lightning.targets.source import BatchRows, PriorTargets, open_source

if TYPE_CHECKING:
    from rela_lightning.callback import ReLACallback


class Run:
    """Builds the parts of a run from the callback's options, and answers its hooks.

    Args:
        callback: Holds the options.
        trainer: The Trainer.
        module: The user's module.

    Attributes:
        parts: What every step is made of.
        rows: Tells the data set rows of a batch.
        phases: Tells how a step is run.
        monitors: Callbacks that monitor a metric.

    Raises:
        ConfigError: For options that do not go with this trainer or module.
        InjectionError: For a strategy or a module that cannot be attached to.
        TargetError: If the targets cannot be opened.
    """

    def __init__(self, callback: ReLACallback, trainer: Any, module: Any) -> None:
        checks.check_strategy(trainer.strategy, allow_untested=callback.allow_untested_strategy)
        checks.check_step(module)
        replace = checks.replaces_step(module, callback.step, callback.transport_resolution)
        self._callback, self._trainer, self._module, self._schedule = callback, trainer, module, callback.schedule
        self._patches, self._stepping, self._patience = Patches(), Patches(), Patience()
        self._step: Step | None = None
        self._step_detached = False  # whether transport is over and nothing of it is left in the step
        self._ran: Phase | None = None  # of this batch, once its step is under way
        self._left_out = False  # whether the last step was not the module's own: also of a batch made before the switch
        self._logged: tuple[tuple[float, ...], int | None] | None = None
        self._teachers: Teachers | None = None
        self._pairs: list[list[str]] | None = None
        self._moves_teachers = False  # whether the module was seen to, before the run was resumed
        self.monitors = Monitors(trainer, module, self._schedule, self._logging)
        self._source = source = open_source(
            callback.targets,
            callback.prior,
            num_samples=callback.verify_targets,
            crops=callback.crops,
            num_views=callback.num_views,
        )
        self._collects = isinstance(source, PriorTargets)  # until it gives the first targets
        self._schedule.begin(source.directions)
        self._passes = Passes(trainer, source.images)
        self._announcer = Announcer(source.summary, callback.loss, source.labelling_seconds)
        self._map = TransportMap(callback.transport_optimizer, callback.seed)
        student = Student(
            module,
            backbone=callback.backbone,
            feature_layer=callback.feature_layer,
            pooling=callback.pooling,
            views=callback.views,
            image=source.image,
            num_views=callback.num_views,
            resolution=callback.transport_resolution,
            row_layout=callback.row_layout,
            own_forward=callback.own_forward,
            optimizers=lambda: trainer.optimizers,
        )
        head = TransportHead(self._map, callback.criterion, functools.partial(of_other_ranks, trainer))
        self.parts = parts = Parts(module, student, head, self._targets, replace)
        self.rows = RowTracker(
            self._before_loading,
            lookup=source.lookup,
            key=callback.key,
            transform=callback.transform if replace else None,
            num_views=callback.num_views,
            data_ratio=callback.data_ratio,
            seed=callback.seed,
        )
        self.phases = Phases(
            self._schedule, callback.head_warmup, trainer, lambda: parts.may_replace, self.rows.request
        )
        self._fresh = self.state_dict() | {"passes": None}

    @property
    def phase(self) -> Phase:
        """How this batch is trained on; before its step, how the next is meant to be."""
        return self.phases.now if self._ran is None else self._ran

    @property
    def trainer(self) -> Any:
        """The Trainer."""
        return self._trainer

    @property
    def _in_use(self) -> bool:
        """Tuners of the learning rate and the batch size set callbacks aside, and run the user's own step."""
        return self._callback in self._trainer.callbacks

    def _logging(self) -> Logging:
        own = not (self.phases.skips_step or self._left_out)
        return Logging(own=own, transport=self.phases.now.weights.transport > 0.0 and not self._collects)

    def attach_schedulers(self) -> None:
        """Schedulers exist now, and one of them may monitor a metric."""
        self.monitors.attach_schedulers(self._patches)

    def attach(self) -> None:
        """Wrap what the trainer and the module call."""
        self.rows.attach(self._patches, self._stepping, self._trainer, self._module)
        self.monitors.attach(self._patches)
        self._stepping.wrap(self._module, "training_step", self._training_step)
        self._stepping.wrap(self._module, "manual_backward", self._manual_backward)

    def detach(self) -> None:
        """Take everything off again."""
        self.parts.student.remove()
        self.rows.detach()
        self.monitors.detach()
        self._source.release()
        self._stepping.undo()
        self._patches.undo()

    def _targets(self, rows: BatchRows, view: Tensor) -> Tensor | None:
        known, targets = self._source.directions, self._source(rows, view, self._trainer)
        if self._source.directions != known:  # learnt from the images that have passed
            self._schedule.begin(self._source.directions)
        return targets

    def _before_loading(self, dataset: Any) -> None:
        self._source.check(dataset)
        self.phases.request(self._in_use)

    # ---- from the start to the end -------------------------------------------------------------------

    def start(self) -> None:
        """Read the plan of the run; say what is known of it."""
        checks.check_still_automatic(self._module, replace=self.parts.replace)
        self._passes.start()
        budget = Budget(self._trainer, self._passes)
        if not self.phases.over:
            checks.check_spent_known(budget, self._schedule)
        self.phases.start(budget)
        if self._callback.teachers != "auto":
            named_pairs(self._module, self._callback.teachers)
        self._announcer.start(self._schedule, over=self.phases.over)
        if not self._schedule.hands_over:
            checks.warn_never_hands_over(self._schedule)
        images = checks.images_per_step(self._trainer)
        if isinstance(self._source, PriorTargets) and images:
            checks.warn_projection_late(
                self._schedule,
                images_needed=self._source.images_needed,
                images_per_step=images,
                steps=planned_steps(self._trainer),
                spent=self._trainer.global_step,
            )

    def end(self) -> None:
        """Say what each phase took; warn where the transport loss never levelled off, or there was none."""
        self._announcer.end(self._trainer)
        if isinstance(self._source, PriorTargets) and self._source.images_needed:
            checks.warn_projection_never(self._source.images_needed)
        hands_over = self._schedule.hands_over and not self._trainer.fast_dev_run
        if hands_over and self.phases.now.weights.transport_only:
            checks.warn_never_handed_over(self._schedule, self.phases.progress)

    def failed(self, exception: BaseException) -> None:
        """Say so where a hook failed that may have missed what a step leaves that was left out."""
        if self._step is not None and self._step.replaced:
            others = [callback for callback in self._trainer.callbacks if callback is not self._callback]
            checks.warn_step_left_out(exception, [self._module, *others])

    def start_epoch(self) -> None:
        """Decide before the epoch's first batch is fetched."""
        if self._step_detached:
            return
        self.rows.start_epoch(self._trainer.current_epoch)
        self.phases.decide(self.rows.in_flight, again=True)
        self.monitors.start_epoch()

    def start_batch(self) -> None:
        """Decide once per optimizer step; see whether somebody else moves the teachers."""
        self._ran = None
        if self._step_detached:
            return
        self.phases.decide(self.rows.in_flight)
        self.monitors.update()
        if self.phases.skips_step:
            self._find_teachers().before_step()

    def _detach_step(self) -> None:
        """Take everything off the step: transport is over, and the last batch has passed that was made for it."""
        self.parts.check_deferred()
        self.monitors.update()
        self.parts.student.remove()
        self._stepping.undo(covered=False)
        self._step, self._step_detached = None, True

    def _find_teachers(self) -> Teachers:
        if self._teachers is None:
            named = self._pairs if self._callback.teachers == "auto" else self._callback.teachers
            named = [] if self._moves_teachers else named
            self._teachers = Teachers.of(self._module, self.parts.student, named, self._callback.teacher_momentum)
            self._pairs = [list(pair) for pair in self._teachers.pairs]
        return self._teachers

    def _training_step(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._in_use or self._step_detached or not self._trainer.training:  # a validation step may call it
            return original(*args, **kwargs)
        rows = self.rows.take()
        self._ran = phase = self.phases.for_batch(rows.transport_views)
        module = self._module
        wrapped = self._trainer.strategy.model is not module  # DDP wraps at one process too
        # of several optimizers, which manual optimization alone has, a gradient scaler looks for a gradient in each
        scaler = None if module.automatic_optimization else getattr(self._trainer.precision_plugin, "scaler", None)
        self._step = step = Step(self.parts, rows, phase, all_needed=wrapped or scaler is not None)
        self._announcer.phase(phase.number, self._trainer, self.phases.progress)  # before it steps
        output = step.run(original, args, kwargs)
        self._left_out, self._collects = step.replaced, self._collects and step.loss is None
        if step.loss is not None:
            self._passes.saw(step.samples)
            module.log("rela/loss", step.loss, batch_size=step.samples)
            self._announcer.loss(step.loss)
            following = [] if self._teachers is None else [pair.teacher for pair in self._teachers.pairs]
            self.parts.student.log_once(following)
        self._log_phase(phase, step.samples)
        return output

    def _log_phase(self, phase: Phase, samples: int) -> None:
        """Log the weights where they changed, once an epoch until transport is over, and no more from then on."""
        ssl = 1.0 if phase.warm_heads else phase.weights.ssl
        values = {"rela/weight": phase.weights.transport, "rela/ssl_weight": ssl, "rela/phase": phase.number}
        over = phase.weights.transport == 0.0
        logged = (tuple(values.values()), None if over else self._trainer.current_epoch)
        if logged == self._logged:
            return
        for name, value in values.items():
            # filled on the device: a Python number would be copied there, and that waits
            self._module.log(name, torch.full((), value, device=self._module.device), batch_size=samples)
        if self._logged is None or self._logged[0][2] != phase.number:  # loggers hear of each phase, at any interval
            for logger in self._trainer.loggers:
                logger.log_metrics(values, step=logged_step(self._trainer))
        self._logged = logged

    def _manual_backward(self, original: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
        return original(loss if self._step is None else self._step.backward(loss), *args, **kwargs)

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Step W; keep parameters that took no part out of the user's optimizer step."""
        if self._step is None:
            return
        if self._step.unused:
            steps = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            for parameter in self._step.unused:  # those of another optimizer must have a gradient for its own step
                if id(parameter) in steps:
                    parameter.grad = None
        loss = self._map.step(self._trainer)
        if loss is not None and self._schedule.adaptive:
            self._schedule.update(loss, self.phases.progress, self._passes.count())
        self.phases.after_step()

    def end_batch(self) -> None:
        """Move the teachers in the transport phase; leave, once it is over for good."""
        if self._step is None:
            return
        stepped = self.phases.stepped
        if self._step.replaced and stepped and self._teachers is not None:
            self._teachers.update()
        self._patience.update(self._step, stepped=stepped, accumulate=self._trainer.accumulate_grad_batches)
        if self.phases.over and self.phases.settled and self.rows.passed and not self._left_out:
            self._detach_step()

    # ---- state ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """See `ReLACallback.state_dict`."""
        return {
            "transport": self._map.state_dict(),
            "schedule": self._schedule.state_dict(),
            "schedule_class": type(self._schedule).__name__,
            "teachers": self._pairs,
            "moves_teachers": self._moves_teachers or (self._teachers is not None and self._teachers.moved),
            "weights": list(self.phases.now.weights),
            "progress": self.phases.spent(),
            "over": self.phases.over,
            "passes": self._passes.count(),
            "targets": self._source.fingerprint,
            "source": self._source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            TargetError: If the run that is resumed used other targets.
        """
        if state["targets"] != self._source.fingerprint:
            raise TargetError(
                "The checkpoint was trained on other targets.",
                expected=f"targets with fingerprint {state['targets']}",
                found=self._source.fingerprint,
                do="pass the targets of that run, or start afresh",
            )
        check_same("schedule", type(self._schedule).__name__, state["schedule_class"])
        self._passes.before = state.get("passes")
        self._map.load_state_dict(state["transport"])
        self._pairs = state["teachers"]
        self._moves_teachers = state.get("moves_teachers", False)
        self._source.load_state_dict(state["source"])
        self._schedule.begin(self._source.directions)
        self._schedule.load_state_dict(state["schedule"])
        self.phases.restore(Weights(*state["weights"]), state["progress"], state.get("over", False))

    def start_afresh(self) -> None:
        """Forget what was loaded: what is resumed knows nothing of ReLA."""
        self.load_state_dict(self._fresh)
