import copy

import pytest
import torch
from torch import nn

from rela_lightning.errors import InjectionError
from rela_lightning.injection.graph import unused_parameters, with_all_parameters
from rela_lightning.injection.teachers import Teachers, find_pairs, named_pairs
from tests.parts import TinyBackbone


def frozen(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).requires_grad_(False)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = TinyBackbone()
        self.head_a, self.head_b = nn.Linear(16, 4), nn.Linear(16, 4)
        self.slow_b = frozen(self.head_b)
        self.slow_net = frozen(self.net)


def test_pairs_are_found_without_names() -> None:
    assert {tuple(p) for p in find_pairs(Siamese())} == {("net", "slow_net"), ("head_b", "slow_b")}


def test_pairs_by_name_where_values_differ_and_an_error_where_names_tell_nothing() -> None:
    module = nn.Module()
    module.projector, module.predictor = nn.Linear(4, 4), nn.Linear(4, 4)
    module.teacher_projector = frozen(nn.Linear(4, 4))
    assert find_pairs(module) == [("projector", "teacher_projector")]
    vague = nn.Module()
    vague.xx, vague.yy, vague.zz = nn.Linear(4, 4), nn.Linear(4, 4), frozen(nn.Linear(4, 4))
    with pytest.raises(InjectionError, match="more than one student"):
        find_pairs(vague)


def test_named_pairs_are_checked() -> None:
    module = Siamese()
    assert named_pairs(module, [["net", "slow_net"]]) == [("net", "slow_net")]
    with pytest.raises(InjectionError, match="do not exist"):
        named_pairs(module, [["net", "nothing"]])
    with pytest.raises(InjectionError, match="equal shapes"):
        named_pairs(module, [["net", "head_a"]])


def shake(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_teacher_is_the_moving_average() -> None:
    module = Siamese()
    teachers = Teachers(module, find_pairs(module), momentum=0.9)
    for _ in range(12):
        before = [p.clone() for p in module.slow_net.parameters()]
        teachers.before_step()
        shake(module.net)
        teachers.update()
        for old, student, teacher in zip(before, module.net.parameters(), module.slow_net.parameters(), strict=True):
            torch.testing.assert_close(teacher, 0.9 * old + 0.1 * student)


@pytest.mark.parametrize("when", ["inside the step", "after the step"])
def test_stands_back_where_the_module_moves_its_teacher(when: str) -> None:
    module = Siamese()
    teachers = Teachers(module, find_pairs(module), momentum=0.9)
    for step in range(4):
        teachers.before_step()
        shake(module.net)
        if when == "inside the step":
            shake(module.slow_net)
        left = [p.clone() for p in module.slow_net.parameters()]
        teachers.update()
        if step > 0:
            assert all(torch.equal(a, b) for a, b in zip(left, module.slow_net.parameters(), strict=True))
        if when == "after the step":
            shake(module.slow_net)


def test_unused_parameters_are_those_the_loss_does_not_reach() -> None:
    module = Siamese()
    loss = module.head_a(module.net(torch.randn(2, 3, 8, 8))).sum()
    unused = unused_parameters(loss, module.parameters(), all_needed=True)
    assert {id(p) for p in unused} == {id(p) for p in module.head_b.parameters()}
    touched = with_all_parameters(loss, unused)
    assert torch.equal(touched, loss)
    touched.backward()
    assert all(torch.count_nonzero(p.grad) == 0 for p in module.head_b.parameters())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(2, 4, requires_grad=True)
    loss = torch.utils.checkpoint.checkpoint(module[0], x, use_reentrant=reentrant).sum()
    if reentrant:
        assert unused_parameters(loss, module.parameters(), all_needed=False) == []
        with pytest.raises(InjectionError, match="use_reentrant=False"):
            unused_parameters(loss, module.parameters(), all_needed=True)
    else:
        assert len(unused_parameters(loss, module.parameters(), all_needed=True)) == 2


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
        before = module.slow.body[0].weight.clone()
        teachers.update()
        if step >= 14:
            assert not torch.equal(before, module.net.body[0].weight)
            assert torch.equal(before, module.slow.body[0].weight), "ours has stood back"
        with torch.no_grad():
            for s, t in zip(module.net.parameters(), module.slow.parameters(), strict=True):
                t.lerp_(s, 0.5)  # the module's own average, after ours
