"""A signal's exception that strikes at a line of a function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from gevent import GreenletExit

__all__ = ["Exit", "Strike"]


class Strike(BaseException):
    """Raised at this line that the function comes to: `sys.settrace(strike.trace)`."""

    def __init__(self, function: Callable[..., object], number: int) -> None:
        self.code = function.__code__
        self.lines_left = number

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if frame.f_code is not self.code:
            return None
        self.lines_left -= event == "line"
        if self.lines_left == 0:
            sys.settrace(None)
            raise self
        return self.trace


class Exit(Strike, GreenletExit):
    """The exception by which gevent ends a greenlet: a handler of SIGTERM may well raise it."""
