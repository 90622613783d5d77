"""Leave the random state of the process as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the CPU states of torch, numpy and Python back at the end.

    Also where the block fails, which Lightning's `isolate_rng` leaves out. A run that has to label first and one that
    finds its targets then go on with the same numbers.
    """
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
