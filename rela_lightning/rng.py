"""Leave the random state of the process as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_rng(seed: int | None = None) -> Iterator[None]:
    """Put the CPU states of torch, numpy and Python back at the end.

    Also where the block fails, which Lightning's `isolate_rng` leaves out. A run that has to label first and one that
    finds its targets then go on with the same numbers.

    Args:
        seed: Of torch's numbers on the CPU inside the block; None draws on from where they are.
    """
    python, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)
