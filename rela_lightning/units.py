"""Bytes and seconds in words."""

from __future__ import annotations


def size(count: int) -> str:
    """`1.4 MB` of a number of bytes."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1000:.1f} kB"


def duration(seconds: float, decimals: int = 0) -> str:
    """`90 s`, `12 min` or `3.5 h`; `decimals` are those of seconds."""
    if seconds < 120:
        return f"{seconds:.{decimals}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
