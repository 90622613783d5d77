import pytest
import torch

from rela_lightning.batches import find_views
from rela_lightning.errors import DataError, InjectionError
from rela_lightning.injection.rows import RowMatcher, match_rows

B = 6
V = [torch.randn(B, 3, 8, 8) for _ in range(2)]
LOCAL = [torch.randn(B, 3, 4, 4) for _ in range(3)]
PERMUTED = torch.randperm(2 * B, generator=torch.Generator().manual_seed(0))
CASES = {
    "one view": (V[1], "cat", list(range(B))),
    "cat": (torch.cat(V), "cat", list(range(B)) * 2),
    "local crops": (torch.cat(LOCAL), "cat", list(range(B)) * 3),
    "interleaved": (torch.stack(V, 1).flatten(0, 1), "interleaved", [i for i in range(B) for _ in range(2)]),
    "permuted": (torch.cat(V)[PERMUTED], "permuted", (PERMUTED % B).tolist()),
    "half": (V[0][[4, 1]], "permuted", [4, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_matched_by_content(name: str) -> None:
    inputs, layout, expected = CASES[name]
    found, rows = match_rows(inputs, [*V, *LOCAL], B, "auto")
    assert (found, rows.tolist()) == (layout, expected)


def test_equal_images_keep_their_order() -> None:
    same = torch.zeros(B, 3, 8, 8)
    assert match_rows(torch.cat([same, same]), [same], B, "auto")[1].tolist() == list(range(B)) * 2


def test_changed_pixels_are_guessed_only_where_there_is_one_reading() -> None:
    assert match_rows(V[0] * 0.5, V, B, "auto")[1].tolist() == list(range(B))
    with pytest.raises(InjectionError, match="row_layout"):
        match_rows(torch.cat(V) * 0.5, V, B, "auto")
    assert match_rows(torch.cat(V) * 0.5, V, B, "interleaved")[1].tolist()[:4] == [0, 0, 1, 1]
    assert match_rows(torch.cat(V) * 0.5, V, B, "cat")[1].tolist()[:4] == [0, 1, 2, 3]


def test_a_random_order_is_matched_at_every_step() -> None:
    matcher = RowMatcher()
    for step in range(8):
        order = torch.randperm(2 * B, generator=torch.Generator().manual_seed(step))
        assert matcher(0, torch.cat(V)[order], V, B).tolist() == (order % B).tolist()


BATCHES = {
    "tensor": V[0],
    "views, label": [V, torch.arange(B)],
    "index first": [torch.arange(B), V],
    "dict": {"image": V[0], "other": {"deep": V[1]}, "label": torch.arange(B)},
    "stacked": torch.stack(V, 1),
}


@pytest.mark.parametrize("name", BATCHES)
def test_views_are_found_anywhere(name: str) -> None:
    views = find_views(BATCHES[name], B)
    assert [view.shape for view in views] == [V[0].shape] * (1 if name == "tensor" else 2)
    assert torch.equal(views[0], V[0])


def test_views_by_name_and_their_errors() -> None:
    assert torch.equal(find_views(BATCHES["dict"], B, ["other.deep"])[0], V[1])
    with pytest.raises(DataError, match=r"other\.deep: torch\.float32 \[6, 3, 8, 8\]"):
        find_views(BATCHES["dict"], B, ["pixels"])
    with pytest.raises(DataError, match=r"1: torch\.int64 \[6\]"):
        find_views([["a"], torch.arange(B)], B)


class Device(str):
    """The CPU under another name: what is made on it is made on the CPU."""

    type = "xla"


class OnAccelerator(torch.Tensor):
    """A tensor that says it is on an accelerator and counts how often its value is waited for."""

    waits = 0
    device = property(lambda self: Device("cpu"))

    def __bool__(self) -> bool:
        OnAccelerator.waits += 1
        return super().__bool__()


def test_the_first_look_at_the_rows_is_the_only_one_that_waits() -> None:
    views = [view.as_subclass(OnAccelerator) for view in V]
    matcher = RowMatcher()
    for step in range(20):
        OnAccelerator.waits = 0
        rows = matcher(0, torch.cat(views), views, B)
        assert rows.tolist() == list(range(B)) * 2
        assert OnAccelerator.waits == (1 if step <= 3 else 0), "three to settle, the first look, and then none"
    matcher(0, torch.cat(views[::-1]).flip(0), views, B)
    assert OnAccelerator.waits == 0
    with pytest.raises(InjectionError, match="changed during training"):
        matcher.check_deferred()
