"""Imports the functions that [hooks] names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..config.schema import Problems
from ..config.settings import HooksConfig
from ..errors import ConfigError, close_to, shown, wrong_value
from ..routing.hooks import NAMES, Hooks


def made(config: HooksConfig, file: str) -> Hooks:
    """Return the hooks of the configuration *file*; raise ConfigError with every error."""
    given = {name: where for name in NAMES if (where := getattr(config, name))}
    problems, found = Problems(), dict[str, Callable[..., Any]]()
    for name, where in given.items():
        with problems:
            found[name] = hook = function(where, f"[hooks].{name}", file)
            try:
                Hooks(**{name: hook})
            except ConfigError as error:
                raise ConfigError(f"[hooks].{name}: {error.message}") from None
    problems.check()
    return Hooks(**{**asdict(config), **dict.fromkeys(NAMES), **found, "names": given})


def function(where: str, place: str, file: str) -> Any:
    """Return what "package.module:function" names; raise ConfigError.

    The folder of the configuration *file* is searched, too, if no other has the module.
    """
    name, colon, path = where.partition(":")
    parts = [*name.split("."), *path.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise wrong_value(place, '"package.module:function"', where)
    found: Any = _module(name, place, file)
    for number, part in enumerate(path.split(".")):
        if not hasattr(found, part):
            inside = ".".join([name, *path.split(".")[:number]])
            hint = close_to(part, [each for each in dir(found) if not each.startswith("_")])
            raise ConfigError(f"{place}: {inside} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def _module(name: str, place: str, file: str) -> Any:
    folder = str(Path(file).absolute().parent if file else Path.cwd())
    heads = [*accumulate(name.split("."), "{}.{}".format)]  # for a.b.c: a, a.b and a.b.c
    try:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in heads or folder in sys.path:
                raise
        sys.path.append(folder)
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        why = f"{name} needs the module {error.name!r}, which is not installed"
        if error.name in heads:
            why = (
                f"there is no module {shown(error.name)}: it must be installed, or be in "
                f"the folder of the configuration, {folder}"
            )
        raise ConfigError(f"{place}: {why}") from None
    except (Exception, SystemExit) as error:  # the operator's own code
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(f"{place}: {name} cannot be imported: {told[:300]}") from error
