"""Waiting for what a connection answers, and what a signal must not leave half done."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from gevent import getcurrent
from gevent.hub import Hub

from gstalk.protocol.session import PENDING, Call

__all__ = ["join", "wait_for", "whole"]

Method = TypeVar("Method", bound=Callable[..., Any])


def join(hub: Hub, call: Call) -> None:
    """Wait until a call is answered, whatever the answer: all that this raises is what has hit the caller.

    If the wait is interrupted, nobody waits for the call any more.
    """
    if call.result is PENDING and call.error is None:
        call.waiter = getcurrent()
        try:
            while call.result is PENDING and call.error is None:
                hub.switch()
        finally:
            call.waiter = None


def wait_for(hub: Hub, call: Call) -> Any:
    """Wait until a call is answered, and return its result or raise its error."""
    join(hub, call)
    if call.error is not None:
        raise call.take_error()
    return call.result


def whole(method: Method) -> Method:
    """Make a method one that a signal (Ctrl-C) does not leave half done: its connection ends instead."""

    @wraps(method)
    def guarded(self: Any, *args: Any) -> Any:
        try:
            return method(self, *args)
        except BaseException as error:
            self.torn(error)
            raise

    return cast("Method", guarded)
