"""`rela demo`: the whole method on real images, in under three minutes on two cores.

The same small BYOL is trained at the same wall-clock budget from the same weights: plain, with
`ReLACallback` on targets of a prior trained on other images, and on targets of a random prior. Probing
happens afterwards, on copies of the backbone taken meanwhile, so that no run pays for it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rela_lightning.errors import ConfigError

_LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "rela_lightning")


def demo(out: str = "rela_demo", seconds: float = 36.0, seed: int = 0) -> None:
    """Compare plain BYOL with BYOL and ReLA on scikit-learn's handwritten digits, at one wall-clock budget.

    Prints a table and writes `report.md`, `report.json` and `curves.png`.

    Args:
        out: Folder for targets and report; made if missing. A report of an earlier demo is replaced.
        seconds: Wall-clock budget of each of the three training runs, labelling included; at least 1.
        seed: Seed of the initial weights, the order of images, the views and the random prior; at least 0.

    Raises:
        ConfigError: If a value is out of range, or labelling alone uses up most of the budget.
        DataError: If scikit-learn (the extra `demo`) is not installed.
    """
    if not math.isfinite(seconds) or seconds < 1:
        raise ConfigError("`seconds` is the budget of a run.", expected="a number >= 1", found=seconds)
    if not 0 <= seed < 2**31:
        raise ConfigError("`seed` is out of range.", expected="0 to 2147483647", found=seed)
    folder = Path(out).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ConfigError("`out` is a file.", expected="a folder, or a name that is free", found=out)
    from rich.console import Console

    from rela_lightning.runs.report import print_table, units, write_report

    console = Console(markup=False)
    console.print(f"BYOL on handwritten digits, plain and with ReLA, {seconds:g} s each. Loading the libraries ...")
    title = f"Digits: {seconds:g} s of BYOL, plain and with ReLA"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rela_lightning.demo.compare import compare  # before quiet(): libraries set their own levels here
    with quiet():
        runs, protocol = compare(folder, seconds, seed, console)
        files = write_report(runs, protocol, folder, title=title)
    print_table(runs, title=title)
    console.print(protocol["few labels"], style="dim")
    console.print(units(runs), style="dim")
    if not any(file.suffix == ".png" for file in files):
        console.print("No curves.png: matplotlib is not installed (pip install 'rela-lightning[plot]').")
    console.print(f"Report: {files[0]}", soft_wrap=True)


@contextmanager
def quiet() -> Iterator[None]:
    """None of the frameworks' tips and warnings meanwhile; levels and filters are put back."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
