"""PIL images of every mode in 8 bits: one rule for labelling, training and probing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rela_lightning.errors import DataError


def eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode `L` or `RGB`.

    Grey images of 16 bits (and of 32, which hold as much) are scaled from 0 to 65535, floats from 0 to 1, so that white
    stays white. Everything else is what `convert("RGB")` makes of it, as torchvision's and timm's data sets do: colours
    of a palette are looked up, alpha is dropped, CMYK is converted without a profile.

    Raises:
        DataError: If the values fit no such range, so that scaling would be a guess, or the mode has no RGB form.
    """
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scaled(np.asarray(image), image.mode))
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(
            f"An image of PIL mode {image.mode} has no RGB form.",
            expected="grey or colour",
            found=str(error),
            do="convert it to mode L or RGB, or leave it out",
        ) from error


def _scaled(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    top = 1.0 if mode == "F" else 65535.0  # also in modes of 32 bits, as Pillow reads some 16-bit files so
    low, high = float(values.min()), float(values.max())
    eight = mode != "F" and 1 < high <= 255  # black, if it is scaled; as likely 8-bit values in a larger type
    if not 0.0 <= low <= high <= top or eight:
        raise DataError(
            f"An image of PIL mode {mode} has values from {low:g} to {high:g}, and nothing says what white is.",
            expected="0 to 1" if mode == "F" else "0 to 65535, and not 8-bit values in a larger type",
            do="convert it to 8 bits (mode L or RGB)",
        )
    return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)
