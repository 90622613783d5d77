"""What Lightning says that a user of the command can do nothing about, left out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_utilities.core import rank_zero

from rela_lightning.compat import OWN_WARNINGS

_WARNINGS = (
    *OWN_WARNINGS,
    "LightningCLI's args parameter",  # words are always given
    ".*smaller than the logging interval.*",  # the record sees to it
    r"(?s).*callbacks used to create the checkpoint need to be provided",  # the record of a run, which only `fit` keeps
    r"Found \d+ module\(s\) in eval mode",  # a backbone that stays as it is; the summary shows the modes
)
_TIP = "💡"


@contextmanager
def without_noise() -> Iterator[None]:
    """No such warnings, and no advertisements in the log, until the end."""
    logger = rank_zero.log  # that of whichever tree was imported last: they share it
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        logger.addFilter(_no_tip)
        try:
            yield
        finally:
            logger.removeFilter(_no_tip)


def _no_tip(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_TIP)
