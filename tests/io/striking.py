"""A signal's exception that strikes at a line of a function."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

from gevent import GreenletExit

__all__ = ["Exit", "Strike"]


class Strike(BaseException):
    """Raised at this line that the function comes to: `sys.settrace(strike.trace)`."""

    def __init__(self, function: Callable[..., object] | CodeType, number: int) -> None:
        self.code = function if isinstance(function, CodeType) else function.__code__
        self.number = self.lines_left = number

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if frame.f_code is not self.code:
            return None
        # At a `try` no handler is in force, neither this one nor that around it; but Python looks for no signal there.
        if event != "line" or linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "try:":
            return self.trace
        self.lines_left -= 1
        if self.lines_left == 0:
            sys.settrace(None)
            raise self
        return self.trace


class Exit(Strike, GreenletExit):
    """The exception by which gevent ends a greenlet: a handler of SIGTERM may well raise it."""
