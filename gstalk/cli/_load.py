"""Finding a handler by its name, MODULE:HANDLER."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

import gstalk
from gstalk.protocol import checks

__all__ = ["WRONG", "Handler", "Unusable", "load"]

WRONG = 2  # exit code: started wrongly, and it would be the next time
TARGET = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*(?:\.[^\W\d]\w*)*)")

Handler = Callable[[gstalk.Job], Any]  # whatever it gives back: `receive` looks at that


class Unusable(click.ClickException):
    """The handler is none."""

    exit_code = WRONG


def load(target: str, tubes: Sequence[str]) -> Handler | Mapping[str, Handler]:
    """Import a handler, or a mapping from these tubes to handlers; in the current directory, too.

    Raises:
        Unusable: There is none.
        ClickException: The module raised; its stack was printed.
    """
    found = _find(target)
    if not isinstance(found, Mapping):
        return _checked(found, target)
    try:
        found = gstalk.protocol.checks.by_tube(found)
    except (TypeError, gstalk.InvalidArgumentError) as error:
        raise Unusable(f"{target}: {error}") from None
    if missing := [tube for tube in tubes if tube not in found]:
        raise Unusable(f"{target} has no handler for tube {missing[0]!r}")
    return {tube: _checked(found[tube], target) for tube in tubes}


def _find(target: str) -> Any:
    """Import what MODULE:NAME means."""
    match = TARGET.fullmatch(target)
    if match is None:
        raise Unusable(f"{target!r} is not of the form MODULE:HANDLER, such as app.tasks:handle")
    name, path = match.groups()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise Unusable(f"there is no module {error.name!r} in {os.getcwd()} or on Python's path") from None
        _print_stack(error)
        raise click.ClickException(f"importing {name} failed: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise Unusable(f"module {name!r} has no {path!r}")
        found = getattr(found, part)
    return found


def _checked(found: Any, target: str) -> Handler:
    try:
        checks.check_callable(target, found, 1)
    except TypeError as error:
        raise Unusable(str(error)) from None
    handler: Handler = found
    return handler


def _print_stack(error: Exception) -> None:
    """From the module's own first line on."""
    stack = error.__traceback__
    while stack is not None and _is_importing(stack.tb_frame.f_code.co_filename):
        stack = stack.tb_next
    traceback.print_exception(type(error), error, stack)


def _is_importing(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")
