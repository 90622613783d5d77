"""What a callback keeps from one fit to the next."""

from __future__ import annotations

import weakref
from typing import Any


class Kept(weakref.WeakKeyDictionary[Any, dict[str, Any]]):
    """States by the trainer or module of their fit, and gone with it; a pickle holds none, as these are others then."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
