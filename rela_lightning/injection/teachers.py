"""Student and teacher pairs of a module, and the moving average that keeps teachers following."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rela_lightning.compat import lerp_together
from rela_lightning.errors import InjectionError
from rela_lightning.injection.student import Student
from rela_lightning.networks.names import Trains, shapes, trainable

_CHECKS = 8  # steps during which we look whether somebody else moves the teacher


class Pair(NamedTuple):
    """Names of a student and of the teacher that follows it."""

    student: str
    teacher: str


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def _likeness(student: str, teacher: str) -> float:
    def bare(name: str) -> str:
        return re.sub(r"teacher|target|momentum|student|online|anchor|ema|key|query|_|\d", "", name.lower())

    return SequenceMatcher(None, bare(student), bare(teacher)).ratio()


def find_pairs(module: nn.Module, trains: Trains = trainable, backbone: nn.Module | None = None) -> list[Pair]:
    """Student/teacher pairs, found without relying on names.

    A teacher is a submodule that no optimizer moves and whose state-dict shapes equal those of one that is moved.
    Where several students fit, one with equal values is preferred (a fresh copy), then the likeliest name. A copy of
    the backbone counts as its teacher even where an optimizer holds it, as it does when all parameters are handed over.
    Frozen layers inside the backbone are nobody's teachers, even though other layers are alike.

    Args:
        module: The user's module.
        trains: Tells which submodules an optimizer moves.
        backbone: The network that is trained; None where it is not known.

    Raises:
        InjectionError: If two students fit a teacher equally well.
    """
    submodules = [(name, sub) for name, sub in module.named_modules() if name and any(True for _ in sub.parameters())]
    copies = [] if backbone is None else [s for _, s in submodules if s is not backbone and _is_copy(s, backbone)]
    inside = set() if backbone is None else set(backbone.modules())
    pairs: list[Pair] = []
    for name, teacher in submodules:
        copied = any(teacher is copy for copy in copies)
        if (
            teacher in inside
            or any(name.startswith(f"{pair.teacher}.") for pair in pairs)
            or (trains(teacher) and not copied)
        ):
            continue
        wanted = shapes(teacher)
        fits = [(n, s) for n, s in submodules if s is not teacher and trains(s) and shapes(s) == wanted]
        fits = [(n, s) for n, s in fits if not any(s is copy for copy in copies)]
        if not fits:
            continue
        fits = [(n, s) for n, s in fits if _equal(s, teacher)] or fits
        scores = sorted(((_likeness(n, name), n) for n, _ in fits), reverse=True)
        if len(scores) > 1 and scores[0][0] == scores[1][0]:
            raise InjectionError(
                f"The teacher {name!r} could follow more than one student.",
                found=", ".join(n for _, n in scores),
                do=f'name the pair, for example teachers=[["{scores[0][1]}", "{name}"]], or teachers=[] for none',
            )
        pairs.append(Pair(scores[0][1], name))
    return pairs


def _is_copy(module: nn.Module, original: nn.Module) -> bool:
    return shapes(module) == shapes(original) and _equal(module, original)


def named_pairs(module: nn.Module, pairs: Sequence[Sequence[str]]) -> list[Pair]:
    """Pairs the user named, checked against the module.

    Raises:
        InjectionError: For a name that does not exist or shapes that differ.
    """
    submodules = dict(module.named_modules())
    for student, teacher in pairs:
        missing = [name for name in (student, teacher) if name not in submodules]
        if missing:
            raise InjectionError(
                "`teachers` names submodules that do not exist.", found=missing, exists=list(submodules)[1:]
            )
        if shapes(submodules[student]) != shapes(submodules[teacher]):
            raise InjectionError(
                "A student and its teacher must have equal shapes.", found=f"{student} and {teacher} differ"
            )
    return [Pair(student, teacher) for student, teacher in pairs]


class Teachers:
    """Keeps teachers following their students in the transport phase, unless the module does so itself.

    Args:
        module: The user's module.
        pairs: Pairs by name.
        momentum: EMA momentum in `[0, 1)`: `t <- m t + (1 - m) s`, parameters only.

    Attributes:
        moved: Whether the module was seen to move its teachers, which are left to it since.
    """

    def __init__(self, module: nn.Module, pairs: Sequence[Pair], momentum: float) -> None:
        self.moved = False
        self.pairs = list(pairs)
        self.momentum = momentum
        modules = [(module.get_submodule(p.student), module.get_submodule(p.teacher)) for p in pairs]
        modules.sort(key=lambda pair: -sum(p.numel() for p in pair[1].parameters()))  # the backbone first: it moves
        both = [pair for s, t in modules for pair in zip(s.parameters(), t.parameters(), strict=True)]
        self._students = [student.detach() for student, _ in both]
        self._teachers = [teacher.detach() for _, teacher in both]
        self._pair = next(((s.detach(), t.detach()) for s, t in both if s.requires_grad), None)
        self._left_at: Tensor | None = None
        self._checks = _CHECKS

    @classmethod
    def of(
        cls, module: nn.Module, student: Student, named: Sequence[Sequence[str]] | None, momentum: float
    ) -> Teachers:
        """The teachers of a module: those that were named, or those that are found."""
        if named is not None:
            return cls(module, named_pairs(module, named), momentum)
        backbone = student.resolve()
        network = None if backbone is None else backbone.network
        return cls(module, find_pairs(module, student.trains, network), momentum)

    def _stop_if_moved(self) -> None:
        if self._pair is None or self._checks == 0:
            return
        teacher = self._pair[1]
        if self._left_at is not None and not torch.equal(teacher, self._left_at):
            self._students, self._teachers, self._checks, self.moved = [], [], 0, True
        self._left_at = teacher.clone()

    def before_step(self) -> None:
        """At the start of a step, see whether the module moved its teacher after the last one."""
        self._stop_if_moved()

    @torch.no_grad()
    def update(self) -> None:
        """One EMA step, unless the module moved its teacher during this one."""
        self._stop_if_moved()
        if self._teachers:
            lerp_together(self._teachers, self._students, 1.0 - self.momentum)
        if self._checks and self._pair is not None:
            student, teacher = self._pair
            # a teacher that equals its student is not seen to move: such a step does not count
            self._checks -= int(not torch.equal(student, teacher))
            self._left_at = teacher.clone()
