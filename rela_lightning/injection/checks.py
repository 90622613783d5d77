"""What the callback can attach to; everything else is refused before work is lost."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from rela_lightning.errors import ConfigError, InjectionError, ReLAError
from rela_lightning.injection.budget import Budget
from rela_lightning.injection.passes import batch_size_of
from rela_lightning.schedules import Plateau, Schedule

_SHORTEST_PHASE = 0.01  # of the budget: less is no transport phase, but the first step of a fade
_AFTER_STEP = (
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad", "on_train_batch_end",
    "on_train_epoch_end",
)  # fmt: skip
_TRIED = ("SingleDeviceStrategy", "DDPStrategy")
_UNTRIED = {
    "FSDPStrategy": "parameters are sharded: the backbone's gradients and the teachers' average were never tried so",
    "DeepSpeedStrategy": "the engine owns the backward pass and the optimizer step",
    "ModelParallelStrategy": "parameters are distributed tensors",
    "XLAStrategy": "lazy tensors: never run on a TPU",
    "SingleDeviceXLAStrategy": "lazy tensors: never run on a TPU",
    "XLAFSDPStrategy": "lazy tensors and sharded parameters",
}


def check_strategy(strategy: Any, *, allow_untested: bool) -> None:
    """Refuse strategies nobody has tried, by name and with the reason.

    Raises:
        InjectionError: Unless `allow_untested`.
    """
    names = [base.__name__ for base in type(strategy).__mro__]
    reason = next((_UNTRIED[name] for name in names if name in _UNTRIED), None)
    if allow_untested or (reason is None and any(name in _TRIED for name in names)):
        return
    raise InjectionError(
        f"ReLA was never tried under {names[0]}.",
        expected="one device, or ddp in any of its forms",
        found=f"{names[0]}: {reason or 'unknown to this package'}",
        do="pass allow_untested_strategy=True to try, and compare parameters across ranks",
    )


def check_step(module: Any) -> None:
    """Refuse a training step that fetches its own batches.

    Raises:
        InjectionError: For `training_step(dataloader_iter)`.
    """
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise InjectionError(
            "This module fetches its own batches, so their indices cannot be followed.",
            expected="training_step(self, batch, batch_idx)",
            found="training_step(self, dataloader_iter)",
            do="take the batch as an argument",
        )


def check_range(name: str, value: Any, expected: str, ok: bool) -> None:
    """Refuse an option out of its range."""
    if not ok:
        raise ConfigError(f"ReLACallback: `{name}` is out of range.", expected=expected, found=value)


def check_end_known(schedule: Schedule, *, head_warmup: float, transport_resolution: int | None) -> None:
    """Refuse options that go by the end of the transport phase, where nobody knows it or there is hardly a phase."""
    begins = schedule.least_transport >= _SHORTEST_PHASE
    unknown = {
        "head_warmup": head_warmup > 0 and (schedule.adaptive or not begins),
        "transport_resolution": transport_resolution is not None and not begins,
    }
    needs = next((name for name, found in unknown.items() if found), None)
    if needs is None:
        return
    raise ConfigError(
        f"`{needs}` needs to know when the transport phase will end.",
        expected="a schedule that begins with transport alone and goes by progress, such as Switch",
        found=type(schedule).__name__,
        do=f"leave `{needs}` out, or use Switch(at)",
    )


def replaces_step(module: Any, step: str, transport_resolution: int | None) -> bool:
    """Whether the transport phase leaves the module's step out; refuses what does not go with the way it is run."""
    automatic = module.automatic_optimization
    if step == "replace" and not automatic:
        raise ConfigError(
            'step="replace" leaves out the training step, and with it the optimizer steps it makes.',
            expected="automatic optimization",
            found=f"{type(module).__name__} with automatic_optimization = False",
            do='leave `step` at "auto", or pass step="swap_loss"',
        )
    replace = automatic if step == "auto" else step == "replace"
    if transport_resolution is not None and not replace:
        raise ConfigError(
            "`transport_resolution` has no effect: the module's own step runs, on its own views.",
            expected='a step that is replaced (step="replace", automatic optimization)',
            found='step="swap_loss"' if automatic else f"{type(module).__name__} with automatic_optimization = False",
            do="leave `transport_resolution` out",
        )
    return bool(replace)


def check_still_automatic(module: Any, *, replace: bool) -> None:
    """Refuse a module that has turned automatic optimization off in `setup`, which comes after the callback's."""
    if replace and not module.automatic_optimization:
        raise ConfigError(
            "The module runs its own optimizer steps, and said so after ReLA had decided to leave its step out.",
            expected="automatic_optimization = False in the module's __init__",
            found=f"{type(module).__name__}, which sets it in setup or later",
            do='set it in __init__, or pass step="swap_loss"',
        )


def warn_never_hands_over(schedule: Schedule) -> None:
    """Warn before training that transport is on to the end."""
    warnings.warn(
        f"The schedule {type(schedule).__name__} keeps the transport loss to the end of training. "
        "Cached targets help early and hold back late; Plateau, Switch or Blend hand over.",
        stacklevel=3,
    )


def check_spent_known(budget: Budget, schedule: Schedule) -> None:
    """Refuse a stream of which nobody knows how much has passed; warn where only whole epochs are known of it.

    Raises:
        ConfigError: If the plan is one epoch of it, and the schedule has to know how much is spent.
    """
    if not budget.knows_whole_epochs_only:
        return
    changes = len({schedule.weights(p / 10) for p in range(11)}) > 1
    if budget.is_one_epoch and (changes or isinstance(schedule, Plateau)):
        raise ConfigError(
            f"{type(schedule).__name__} has to know how much of the budget is spent.",
            expected="a plan of some epochs, of steps or of time, or an epoch of known length",
            found="one epoch of a stream that has no length, with targets on the fly",
            do="pass Trainer(limit_train_batches=...), max_steps or max_time",
        )
    if isinstance(schedule, Plateau) and schedule.at_most == 1.0 and not budget.has_three_epochs:
        warnings.warn(
            "Plateau goes by the fall of the transport loss per pass over the images, and how many images there are is "
            "not known: the stream has no length, and its targets are made on the fly. So it counts whole epochs, and "
            "hands over in the third at the earliest; in a shorter run the module's own objective never runs. Pass "
            "Trainer(limit_train_batches=...), with the batches in which all images pass about once; label the stream "
            "with build_targets; or pass schedule=Switch(0.4).",
            stacklevel=3,
        )


def warn_never_handed_over(schedule: Schedule, progress: float) -> None:
    """Warn after training that a schedule which hands over never did."""
    cause = "saw no end to the fall of the transport loss" if schedule.adaptive else "had not handed over"
    warnings.warn(
        f"{type(schedule).__name__} {cause} when training ended, its last step at {progress:.0%} of the budget: all of "
        "it went into transport, and the module's own objective never ran. To give the objective a share whatever "
        "happens, train to the end of the plan with schedule=Switch(at), for example Switch(0.4).",
        stacklevel=3,
    )


def warn_unknown_to_checkpoint() -> None:
    """Warn on resume that nothing of ours is in the checkpoint."""
    warnings.warn(
        "The checkpoint was written without ReLACallback: the transport map starts afresh, "
        "and the schedule goes by the budget already spent.",
        stacklevel=3,
    )


def warn_step_left_out(exception: BaseException, owners: Sequence[Any]) -> None:
    """Warn where a hook failed that comes after a step which was left out: it may want what that step leaves.

    Args:
        exception: What was raised.
        owners: The user's module and callbacks, whose hooks count.
    """
    if isinstance(exception, ReLAError):
        return
    for frame, _ in traceback.walk_tb(exception.__traceback__):
        code = frame.f_code
        caller = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if code.co_name in _AFTER_STEP and any(caller is owner for owner in owners):
            warnings.warn(
                f"{type(caller).__name__}.{code.co_name} failed after a step of the transport phase, which leaves "
                "training_step out: what that step returns or keeps is not there. If it is missed, pass "
                'step="swap_loss", which runs the step and replaces its loss; or let the hook do without.',
                stacklevel=3,
            )
            return


def warn_projection_late(
    schedule: Schedule, *, images_needed: int, images_per_step: int, steps: float, spent: int = 0
) -> None:
    """Warn before training on the fly that the transport phase is over before there are targets.

    Args:
        schedule: The schedule; of an adaptive one only the end of training is certain.
        images_needed: Images that have to pass before there are targets; see `PriorTargets.images_needed`.
        images_per_step: Images in an optimizer step, on all ranks together, >= 1.
        steps: Planned optimizer steps; infinity where nobody knows.
        spent: Steps done already, in a run that goes on.
    """
    pulls = [1.0] if schedule.adaptive else [p / 1000 for p in range(1001) if schedule.weights(p / 1000).transport > 0]
    last = max(pulls, default=0.0) * steps
    first = spent - (-images_needed // images_per_step)
    if images_needed and first >= last:
        warnings.warn(
            f"Targets on the fly need {images_needed} images before there are any: {first} steps of {images_per_step} "
            f"images. {type(schedule).__name__} pulls towards them until step {last:.0f} of {steps:.0f}, so they will "
            "teach nothing. Train longer, take larger batches or a prior with fewer features, or use build_targets, if "
            "the data have an index.",
            stacklevel=3,
        )


def warn_projection_never(images_needed: int) -> None:
    """Warn after training on the fly that there were no targets at all."""
    warnings.warn(
        f"There were never any targets: {images_needed} more images would have had to pass before the prior's features "
        "could be standardised. Train longer, take a prior with fewer features, or use build_targets, if the data "
        "have an index.",
        stacklevel=3,
    )


def images_per_step(trainer: Any) -> int | None:
    """Images in an optimizer step, on all ranks together; None where the loader does not say."""
    size = batch_size_of(trainer.train_dataloader)
    return None if size is None else size * trainer.world_size * trainer.accumulate_grad_batches
