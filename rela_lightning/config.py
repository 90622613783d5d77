"""Classes that a config names: known by their short names, and built with errors that can be read."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser

from rela_lightning.errors import ConfigError, ReLAError

_CLASSES = {
    "model": ("rela_lightning.methods", "Method"),
    "method": ("rela_lightning.methods", "Method"),
    "data": ("rela_lightning.data", "ImageData"),
    "callbacks": ("rela_lightning", "Callback"),
    "schedule": ("rela_lightning.schedules", "Schedule"),
    "optimizer": ("torch.optim", "Optimizer"),
    "lr_scheduler": ("torch.optim.lr_scheduler", "LRScheduler"),
}
"""Last part of an option's name: the module that holds its classes, and their base."""
_BASES = ("MomentumMethod",)  # beside those above
_LIBRARIES = ("lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning")


def register_names() -> None:
    """Import our classes, so that their short names work: methods, data modules, callbacks, schedules."""
    for module in ("methods", "data"):
        package = importlib.import_module(f"rela_lightning.{module}")
        for name in package.__all__:
            getattr(package, name)
    for module in ("callback", "diagnostics.collapse", "probe.online", "probe.knn_online", "schedules"):
        importlib.import_module(f"rela_lightning.{module}")


def classes(option: str) -> dict[str, Any]:
    """The classes that an option takes, by name; empty for an option that takes other values."""
    place, base = _CLASSES.get(re.split(r"[-.]", option)[-1], ("builtins", ""))
    module = importlib.import_module(place)
    found = {name: getattr(module, name) for name in dir(module) if name[0].isalpha() and name not in _BASES}
    return {
        name: each
        for name, each in found.items()
        if inspect.isclass(each) and base in [parent.__name__ for parent in each.__mro__[1:]]
    }


def defined_in(module: str) -> list[str]:
    """Names of the classes and functions that a module of the user's defines; empty if it cannot be imported."""
    try:
        found = vars(importlib.import_module(module))
    except Exception:  # whatever the user's code raises
        return []
    return [name for name, each in found.items() if callable(each) and getattr(each, "__module__", None) == module]


def options_of(owner: Any) -> list[str]:
    """Names of the options of a class or function; empty if they are not known."""
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(owner) else parser.add_function_arguments
    try:
        return sorted(name.split(".")[1] for name in add(owner, "of", fail_untyped=False) if "." in name)
    except (ValueError, TypeError):
        return []


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
