"""Which sample each row of the backbone's input came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rela_lightning.errors import InjectionError

RowLayout = Literal["auto", "cat", "interleaved"]
ROW_LAYOUTS = ("auto", "cat", "interleaved")
_SETTLED_AFTER = 3  # steps with one and the same regular layout before an accelerator is no longer waited for
_READ_EVERY = 50  # checks that are then left on the device before they are read together


def regular_rows(rows: int, samples: int, layout: str, device: torch.device) -> Tensor:
    """Sample of each of `rows = k * samples` rows: `cat` counts 0..B-1 k times, `interleaved` repeats each."""
    order = torch.arange(rows, device=device)
    return order % samples if layout == "cat" else order // (rows // samples)


def fingerprints(images: Tensor) -> Tensor:
    """One float64 number per image `[N, C, H, W]`: a strided weighted sum of its pixels."""
    flat = images.detach().flatten(1)
    stride = max(flat.shape[1] // 1024, 1)
    sampled = flat[:, ::stride].double()
    weights = torch.cos(torch.arange(sampled.shape[1], device=flat.device, dtype=torch.float64) * 1.7 + 0.3)
    return (sampled * weights).sum(dim=1)


class _Content(NamedTuple):
    """Fingerprints of the rows found and of the views known, for comparison."""

    found: Tensor  # [R]
    known: Tensor  # [V, B]
    tolerance: Tensor

    @classmethod
    def of(cls, inputs: Tensor, views: Sequence[Tensor], samples: int) -> _Content | None:
        """None where no view has the shape of the rows."""
        same = [view for view in views if view.shape[1:] == inputs.shape[1:] and view.shape[0] == samples]
        if not same:
            return None
        known = torch.stack([fingerprints(view) for view in same])
        return cls(fingerprints(inputs), known, 1e-9 * known.abs().max().clamp(min=1.0))

    def agrees(self, order: Tensor) -> Tensor:
        """Whether each row is a view of the sample that `order` says: a boolean scalar on the device."""
        return ((self.found - self.known[:, order]).abs() <= self.tolerance).any(dim=0).all()


def match_rows(inputs: Tensor, views: Sequence[Tensor], samples: int, row_layout: RowLayout) -> tuple[str, Tensor]:
    """Match the rows that entered the backbone to the samples of the batch, by content.

    Args:
        inputs: What the backbone was called on, `[R, C, H, W]`.
        views: The batch's views, each `[k B, C, H, W]`.
        samples: Number B of samples.
        row_layout: How rows are ordered where content cannot tell; `auto` refuses to guess.

    Returns:
        The layout's name (`cat`, `interleaved`, `permuted`) and the sample of each row, int64 `[R]`.

    Raises:
        InjectionError: If the rows cannot be matched and `row_layout` is `auto`.
    """
    rows = inputs.shape[0]
    regular = [name for name in ("cat", "interleaved") if rows % samples == 0]
    if row_layout != "auto":
        if not regular:
            raise _unmatched(inputs, samples)
        return row_layout, regular_rows(rows, samples, row_layout, inputs.device)
    content = _Content.of(inputs, views, samples)
    if content is not None:
        for layout in regular:
            order = regular_rows(rows, samples, layout, inputs.device)
            if bool(content.agrees(order)):
                return layout, order
        distance, nearest = (content.found[:, None] - content.known.flatten()[None]).abs().min(dim=1)
        if bool((distance <= content.tolerance).all()):
            return "permuted", nearest % samples
    if rows == samples:  # pixels were changed on the way; one view keeps its order
        return "cat", regular_rows(rows, samples, "cat", inputs.device)
    raise _unmatched(inputs, samples)


def _unmatched(inputs: Tensor, samples: int) -> InjectionError:
    return InjectionError(
        "The rows the backbone was called on cannot be matched to the samples of the batch.",
        expected=f"the batch's own pixels, or one row for each of its {samples} samples",
        found=f"{inputs.shape[0]} rows of shape {list(inputs.shape[1:])} whose pixels changed inside the step",
        do='say how views are put together: row_layout="cat" for torch.cat([view1, view2]), '
        '"interleaved" for a1 a2 b1 b2',
    )


class RowMatcher:
    """Matches rows to samples, at every step.

    On an accelerator, once the layout has proved regular, the check goes on without waiting for its
    result: results are read together, now and then.

    Args:
        row_layout: See `match_rows`.
    """

    def __init__(self, row_layout: RowLayout = "auto") -> None:
        self.row_layout = row_layout
        self._seen: dict[tuple[int, int, int], tuple[str, int]] = {}
        self._unread: list[Tensor] = []
        self._agreed: dict[tuple[int, int, int], bool] = {}

    def __call__(self, call: int, inputs: Tensor, views: Sequence[Tensor], samples: int) -> Tensor:
        """Sample of each row of the `call`-th backbone call in this step, int64 `[R]`."""
        key = (call, inputs.shape[0], samples)
        layout, steps = self._seen.get(key, ("", 0))
        if steps >= _SETTLED_AFTER and layout != "permuted" and inputs.device.type != "cpu":
            order = regular_rows(inputs.shape[0], samples, layout, inputs.device)
            content = _Content.of(inputs, views, samples) if self.row_layout == "auto" else None
            if content is not None:
                self._defer(key, content.agrees(order))
            return order
        now, order = match_rows(inputs, views, samples, self.row_layout)
        self._seen[key] = (now, steps + 1 if now == layout else 1)
        return order

    def _defer(self, key: tuple[int, int, int], agrees: Tensor) -> None:
        if key not in self._agreed:  # the first check decides: pixels changed in the step since the start never
            self._agreed[key] = bool(agrees)  # agree with the batch's
        if self._agreed[key]:
            self._unread.append(agrees)
        if len(self._unread) >= _READ_EVERY:
            self.check_deferred()

    def check_deferred(self) -> None:
        """Read the checks left on the device.

        Raises:
            InjectionError: If the order changed.
        """
        unread, self._unread = self._unread, []
        if unread and not bool(torch.stack(unread).all()):
            raise InjectionError(
                "The order of rows that enter the backbone changed during training.",
                expected="rows in the order of the first steps",
                found="another order, in one of the last steps",
                do='keep one order, or say which it is: row_layout="cat" or "interleaved"',
            )
