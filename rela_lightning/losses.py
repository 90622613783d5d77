"""What pulls mapped features to their targets: the losses of the transport phase, by name, in sums, or your own.

Each takes mapped features `W h` and targets `y`, float `[B, D]` in any precision, and gives a float32 scalar. All
compute in float32 outside autocast. The functions hold the maths; the classes hold their options, so that these can
be written in YAML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rela_lightning.errors import ConfigError
from rela_lightning.transport import check_pairs, transport_loss

LossSpec = str | dict[str, float] | list[str] | Callable[..., Any]
"""How a loss is named: its name, names with weights, names that are added up, or a callable `(mapped, targets) ->
scalar`, which is a `class_path` in YAML. (To jsonargparse a callable that returns a class is a maker of instances.)"""

_SAME = 1.0 - 1e-5  # cosine of two targets that differ by rounding at most


class Loss(Protocol):
    """A loss as the training step calls it.

    Attributes:
        takes_negatives: Whether it wants the targets of other ranks, `negatives [M, D]`, as a third argument.
    """

    takes_negatives: bool

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar float32 loss of `mapped [B, D]` against `targets [B, D]`."""
        ...


def cosine(mapped: Tensor, targets: Tensor) -> Tensor:
    """`mean_i (1 - cos(W h_i, y_i))`, in `[0, 2]`: `rela_lightning.transport.transport_loss` (arXiv 2405.14669)."""
    with torch.autocast(mapped.device.type, enabled=False):
        return transport_loss(mapped, targets)


def contrastive(
    mapped: Tensor, targets: Tensor, *, temperature: float = 0.1, negatives: Tensor | None = None
) -> Tensor:
    """InfoNCE (arXiv 1807.03748) with mapped features as queries and the targets of the batch as keys.

    `mean_i -log(exp(s_ii) / sum_j exp(s_ij))` with `s_ij = cos(W h_i, y_j) / temperature`: each row is told from the
    other images of the batch by its own target. A target equal to a row's own (the same image twice in a batch) is
    not a negative of that row.

    Args:
        mapped: Mapped features, float `[B, D]`.
        targets: Targets, float `[B, D]`.
        temperature: Above 0; small values look at the hardest negatives.
        negatives: More targets `[M, D]`, as of the other ranks, that are keys of no row here.

    Returns:
        Scalar float32, >= 0; 0 where a row has no negatives, at most `log(B + M) + 2 / temperature`.

    Raises:
        ConfigError: If the shapes do not pair up, or for a temperature that is not a finite number above 0.
    """
    _check(mapped, targets, temperature)
    if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != targets.shape[1]):
        raise ConfigError(
            "Negatives are targets of other images.",
            expected=f"a tensor [M, {targets.shape[1]}]",
            found=list(negatives.shape),
        )
    with torch.autocast(mapped.device.type, enabled=False):
        queries, own = _directions(mapped), _directions(targets)
        keys = own if negatives is None else torch.cat([own, _directions(negatives)])
        row = torch.arange(len(queries), device=queries.device)
        same = own @ keys.T > _SAME
        same[row, row] = False
        scores = (queries @ keys.T / temperature).masked_fill(same, -math.inf)
        return F.cross_entropy(scores, row)


def smooth_l1(mapped: Tensor, targets: Tensor, *, beta: float = 1.0) -> Tensor:
    """Mean smooth L1 distance of the entries: squared below `beta`, absolute above.

    It compares the values themselves, so that lengths count, and suits targets of one scale: those of
    `build_targets` with `standardise="per_dim"` or `"isotropic"`, whose entries have a variance of 1 on average.
    AM-RADIO (arXiv 2312.06709) adds a little of it to the cosine.

    Args:
        mapped: Mapped features, float `[B, D]`.
        targets: Targets, float `[B, D]`.
        beta: Difference, in standard deviations of the targets, at which it becomes linear, > 0.

    Raises:
        ConfigError: If the shapes do not pair up, or for a `beta` that is not a finite number above 0.
    """
    _check(mapped, targets, beta, "beta")
    with torch.autocast(mapped.device.type, enabled=False):
        return F.smooth_l1_loss(mapped.float(), targets.float(), beta=beta)


def relational(mapped: Tensor, targets: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Makes the images of a batch as similar to each other as their targets are.

    `mean_i KL(q_i || p_i)`: `q_i` is the softmax of `cos(y_i, y_j) / temperature` over the other rows j, `p_i` the same
    of the mapped features (similarities as a distribution: SEED, arXiv 2101.04731, within a batch in place of a
    queue). A rotation of all mapped features changes nothing, so that alone it leaves the map W partly open.

    Args:
        mapped: Mapped features, float `[B, D]`.
        targets: Targets, float `[B, D]`.
        temperature: Above 0; small values look at the nearest neighbours.

    Returns:
        Scalar float32, >= 0; 0 for batches below three rows, which have nothing to compare.

    Raises:
        ConfigError: If the shapes do not pair up, or for a temperature that is not a finite number above 0.
    """
    _check(mapped, targets, temperature)
    with torch.autocast(mapped.device.type, enabled=False):
        ours, theirs = (_similarities(_directions(rows)) / temperature for rows in (mapped, targets))
        return F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")


class Cosine:
    """`cosine` as an object.

    Example:
        >>> import torch
        >>> float(Cosine()(torch.eye(4), torch.eye(4)))
        0.0
    """

    takes_negatives = False

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar loss."""
        return cosine(mapped, targets)


class Contrastive:
    """`contrastive` with its temperature.

    Args:
        temperature: Above 0.

    Example:
        >>> from rela_lightning import ReLACallback
        >>> callback = ReLACallback("targets/clip-b16", loss=Contrastive(temperature=0.2))
    """

    takes_negatives = True

    def __init__(self, temperature: float = 0.1) -> None:
        self.temperature = _positive("temperature", temperature)

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar loss."""
        return contrastive(mapped, targets, temperature=self.temperature, negatives=negatives)


class SmoothL1:
    """`smooth_l1` with its turning point.

    Args:
        beta: Above 0.

    Example:
        >>> from rela_lightning import ReLACallback
        >>> callback = ReLACallback("targets/clip-b16", loss=SmoothL1(beta=0.5))
    """

    takes_negatives = False

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = _positive("beta", beta)

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar loss."""
        return smooth_l1(mapped, targets, beta=self.beta)


class Relational:
    """`relational` with its temperature.

    Args:
        temperature: Above 0.

    Example:
        >>> from rela_lightning import ReLACallback
        >>> callback = ReLACallback("targets/clip-b16", loss=["cosine", "relational"])
        >>> sharper = ReLACallback("targets/clip-b16", loss=Relational(temperature=0.05))
    """

    takes_negatives = False

    def __init__(self, temperature: float = 0.1) -> None:
        self.temperature = _positive("temperature", temperature)

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar loss."""
        return relational(mapped, targets, temperature=self.temperature)


NAMED: dict[str, Callable[[], Loss]] = {
    "cosine": Cosine,
    "contrastive": Contrastive,
    "smooth_l1": SmoothL1,
    "relational": Relational,
}
"""The losses that have a name, with their default options."""


class WeightedSum:
    """Several losses added up.

    Args:
        parts: Pairs of a weight and a loss as `resolve_loss` gives it.
    """

    def __init__(self, parts: Sequence[tuple[float, Loss]]) -> None:
        self.parts = tuple(parts)
        self.takes_negatives = any(loss.takes_negatives for _, loss in self.parts)

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar loss."""
        return torch.stack([weight * loss(mapped, targets, negatives) for weight, loss in self.parts]).sum()


class Given:
    """A user's own loss: called in float32 outside autocast, and asked for a scalar.

    Args:
        function: `(mapped, targets) -> scalar`; with an attribute `takes_negatives` that is true, it is called with a
            third argument, the targets of other ranks or None.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.takes_negatives = bool(getattr(function, "takes_negatives", False))

    def __call__(self, mapped: Tensor, targets: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Scalar loss."""
        more = (negatives,) if self.takes_negatives else ()
        with torch.autocast(mapped.device.type, enabled=False):
            loss: Any = self.function(mapped.float(), targets.float(), *more)
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            raise ConfigError(
                "The loss does not give what can be minimised.",
                expected="a scalar float tensor",
                found=f"{list(loss.shape)}, {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__,
                do="average over the rows of the batch",
            )
        return loss.float()


def resolve_loss(spec: LossSpec) -> Loss:
    """The loss that is meant.

    Args:
        spec: A name (`"contrastive"`), names with weights that make a sum (`{"cosine": 1.0, "relational": 0.5}`), a
            list of names that are added up, or a callable `(mapped, targets) -> scalar`, such as
            `Contrastive(temperature=0.2)`.

    Returns:
        A callable that says by `takes_negatives` whether it wants the targets of other ranks; it pickles if the
        user's own does.

    Raises:
        ConfigError: For an unknown name, a weight that is not a finite number above 0, nothing, or another type.

    Example:
        >>> import torch
        >>> loss = resolve_loss({"cosine": 1.0, "relational": 0.5})
        >>> float(loss(torch.eye(4), torch.eye(4)))
        0.0
    """
    if isinstance(spec, str):
        return _named(spec)
    if isinstance(spec, (Mapping, list, tuple)) and spec:
        weights = spec.items() if isinstance(spec, Mapping) else [(name, 1.0) for name in spec]
        return WeightedSum([(_positive(f"the weight of {name}", weight), _named(name)) for name, weight in weights])
    if isinstance(spec, (Cosine, Contrastive, SmoothL1, Relational, WeightedSum, Given)):
        return spec
    if callable(spec) and not isinstance(spec, type):
        return Given(spec)
    raise ConfigError(
        "`loss` says how mapped features are pulled to their targets.",
        expected="a name, names with weights, a list of names, or a callable (mapped, targets) -> scalar",
        found=spec,
        exists=NAMED,
    )


def _named(name: object) -> Loss:
    if not isinstance(name, str) or name not in NAMED:
        raise ConfigError("Unknown loss.", expected="one of the names below", found=name, exists=NAMED)
    return NAMED[name]()


def _check(mapped: Tensor, targets: Tensor, option: float, name: str = "temperature") -> None:
    check_pairs(mapped, targets)
    if mapped.ndim != 2:
        raise ConfigError("A loss compares rows.", expected="tensors [B, D]", found=list(mapped.shape))
    _positive(name, option)


def _positive(name: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.0 < value < math.inf:
        raise ConfigError(f"{name} of the loss.", expected="a finite number above 0", found=value)
    return float(value)


def _directions(rows: Tensor) -> Tensor:
    return F.normalize(rows.float(), dim=1)


def _similarities(directions: Tensor) -> Tensor:
    """Cosines `[B, B - 1]` of each row with the others."""
    size = len(directions)
    return (directions @ directions.T).flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)
