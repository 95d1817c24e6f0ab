"""Errors and what they hold: a traceback holds frames, and frames hold whatever stood in their variables.

So an error that somebody keeps (a log's queue, an interactive interpreter's last one, a list of results) would keep the
connection open on which it was raised, with the jobs that it has reserved. And an error that is kept by something which
its own frames refer to is a cycle, which stays until the collector comes by. Two rules follow:

- An error object is raised once, in one caller. What keeps an error (a connection its reason, for all who come too
  late) keeps a copy that never was raised: `bare`.
- A public method lets go of what its frames held when an error leaves it: `forget`, or for all of a class
  `forgetful`. The lines of the traceback stay, the variables in gstalk's own frames are gone.

A program may raise one object again and again, such as a `Retry` that it has made once. Python puts the frames of each
raise before those of the last one, so the object would keep every job that it was raised for: `keep_last`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from functools import wraps
from types import FunctionType
from typing import Any, TypeVar

__all__ = ["bare", "forget", "forgetful", "keep_last"]

E = TypeVar("E", bound=BaseException)
C = TypeVar("C", bound=type)


def bare(error: E, more: str = "") -> E:
    """Copy an error that was made or caught here, without its traceback, and its causes in the same way.

    Args:
        more: What the copy says on top.
    """
    copied = copy.copy(error)
    if more:
        copied.args = (f"{error}{more}", *error.args[1:])
    if error.__cause__ is not None:
        copied.__cause__ = bare(error.__cause__)
    return copied


def forget(error: BaseException) -> None:
    """Empty the frames of gstalk's own that an error has left. Whoever calls it deletes its own variables after it."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        # Only ours: clearing a frame closes a suspended generator, and the user's iterables stand among these frames.
        if str(frame.f_globals.get("__name__")).startswith("gstalk."):
            try:
                frame.clear()
            except RuntimeError:  # it still runs
                pass
        trace = trace.tb_next


def keep_last(error: BaseException) -> None:
    """Of an error that was just caught let go of what earlier raises of the same object have left in its traceback.

    They begin where the function that has caught it stands there once more.
    """
    trace = error.__traceback__
    code = None if trace is None else trace.tb_frame.f_code
    while trace is not None:
        if trace.tb_next is not None and trace.tb_next.tb_frame.f_code is code:
            trace.tb_next = None
        trace = trace.tb_next


def forgetful(*, but: Collection[str] = ()) -> Callable[[C], C]:
    """Have a class's public methods `forget`; those named in `but` do it themselves, since a call more is too much."""

    def wrap(kind: C) -> C:
        for name, member in list(vars(kind).items()):
            if isinstance(member, FunctionType) and not name.startswith("_") and name not in but:
                setattr(kind, name, _forgetting(member))
        return kind

    return wrap


def _forgetting(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def forgetting(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except BaseException as error:
            forget(error)
            del self, args, options
            raise

    return forgetting
