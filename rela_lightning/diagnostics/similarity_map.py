"""How similar many representations are, each to each: the matrix, and its picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rela_lightning.diagnostics.linear_map import representation_similarity
from rela_lightning.diagnostics.similarity import linear_cka, mutual_knn
from rela_lightning.errors import ConfigError
from rela_lightning.naming import in_picture

Measure = Literal["transport", "cka", "mutual_knn"]
_MEASURES: dict[str, Any] = {
    "transport": representation_similarity,
    "cka": lambda x, y: linear_cka(x, y, debiased=True),
    "mutual_knn": lambda x, y: mutual_knn(x, y, k=min(10, max(1, len(x) - 2))),
}
_TITLES = {
    "transport": "how well a linear map takes row to column",
    "cka": "linear CKA (debiased)",
    "mutual_knn": "shared neighbours beyond chance",
}


def similarity_map(features: Mapping[str, Any], *, measure: Measure = "transport") -> NDArray[np.float64]:
    """Similarity of each representation to each other: over priors, students and epochs, the paper's Figure 4a.

    Args:
        features: By name, `[N, F_i]` of the same images in the same order; two or more.
        measure: `transport` (`representation_similarity` from row to column, which is directed), `cka` (`linear_cka`,
            debiased) or `mutual_knn` (of 10 neighbours, or all but one); the last two are symmetric.

    Returns:
        Float64 `[M, M]`; the diagonal is 1 but for rounding (and, of `transport`, what a map cannot learn from N rows).

    Raises:
        ConfigError: For fewer than two representations or an unknown measure.
        DataError: If features do not pair up, hold NaN or do not vary.

    Example:
        >>> import torch
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> found = similarity_map({"all": x, "half": x[:, :2]})
        >>> found.round(1).tolist()  # half follows from all, and not all from half
        [[1.0, 1.0], [0.7, 1.0]]
    """
    if len(features) < 2 or measure not in _MEASURES:
        raise ConfigError(
            "There is nothing to compare." if measure in _MEASURES else "Unknown measure.",
            expected="two or more representations, and a measure of those below",
            found=f"{len(features)}, {measure!r}",
            exists=_MEASURES,
        )
    compare, values = _MEASURES[measure], list(features.values())
    found = np.ones((len(values), len(values)))
    for row, column in itertools.product(range(len(values)), repeat=2):
        known = column < row and measure != "transport"  # the others are symmetric
        found[row, column] = found[column, row] if known else compare(values[row], values[column])
    return found


def draw_map(found: NDArray[np.float64], names: Sequence[str], path: Path, *, measure: Measure) -> bool:
    """Draw a matrix of similarities as a heat map, with its numbers.

    Args:
        found: `[M, M]`.
        names: Of the representations.
        path: PNG file to write.
        measure: What the numbers are.

    Returns:
        False, and nothing is written, without matplotlib (the extra `plot`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    side = 2.2 + 0.62 * len(names)
    figure = Figure(figsize=(side + 1.6, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    picture = axis.imshow(found, vmin=0.0, vmax=1.0, cmap="cividis")
    labels = [in_picture(name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), labels, fontsize=8)
    for (row, column), value in np.ndenumerate(found):
        colour = "black" if value > 0.6 else "white"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_title(_TITLES[measure], fontsize=10)
    axis.spines[:].set_visible(False)
    figure.colorbar(picture, shrink=0.8)
    figure.savefig(path, dpi=130)
    return True
