"""Classes that a config names: known by their short names, and built with errors that can be read."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from rela_lightning.errors import ConfigError, ReLAError

_LIBRARIES = ("lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning")


def register_names() -> None:
    """Import our classes, so that their short names work: methods, data modules, callbacks, schedules."""
    for module in ("methods", "data"):
        package = importlib.import_module(f"rela_lightning.{module}")
        for name in package.__all__:
            getattr(package, name)
    for module in ("callback", "probe.online", "probe.knn_online", "schedules"):
        importlib.import_module(f"rela_lightning.{module}")


@contextmanager
def own_errors() -> Iterator[None]:
    """Turn what stops classes under construction into a short error.

    The innermost cause counts: a ReLAError, a missing package, or what Lightning says of a value. Mistakes in other
    code keep their traceback.
    """
    try:
        yield
    except ReLAError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        inner: BaseException = error
        while inner.__cause__ is not None and not isinstance(inner, ReLAError):
            inner = inner.__cause__
        if isinstance(inner, ReLAError):
            raise inner from None
        if isinstance(inner, TypeError) and "unexpected keyword argument" in str(inner):
            raise ConfigError(
                "An option is handed on to something that does not know it.", found=str(inner), do="see *_kwargs"
            ) from error
        if isinstance(inner, ImportError):
            raise missing_package(inner) from error
        if _raised_by(inner) in _LIBRARIES:
            raise ConfigError(str(inner)) from error
        raise


def missing_package(error: ImportError) -> ConfigError:
    """The error for a package that is asked for and not installed."""
    return ConfigError(
        "A package that this needs cannot be imported.",
        expected=f"what {_raised_by(error)} asks for" if _raised_by(error) else None,
        found=" ".join(str(error).split()),
        do="install it, or leave out the option that needs it",
    )


def _raised_by(error: BaseException) -> str:
    """Name of the package whose code raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return str(name).partition(".")[0]
