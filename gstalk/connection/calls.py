"""Waiting for what a connection answers, and what a signal must not leave half done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from gevent import GreenletExit, getcurrent
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub

from gstalk.protocol.session import PENDING, Call

__all__ = ["check_may_wait", "join", "wait_for", "wake", "whole"]

Method = TypeVar("Method", bound=Callable[..., Any])


def check_may_wait(hub: Hub) -> None:
    """Refuse to be called where nothing can wait, before anything is sent."""
    if getcurrent() is hub:
        raise BlockingSwitchOutError("gstalk can't wait in the hub: spawn a greenlet for it")


def join(hub: Hub, call: Call) -> None:
    """Wait until a call is settled. Only what interrupts the caller is raised here; then he looks at the call.

    No signal handler can run between the look and the switch: Python runs them behind calls and jumps only, and this
    way round there is none. Else one that waits for something of gstalk's would take the wake-up that is meant here.
    """
    call.waiter = getcurrent()
    switch = hub.switch
    try:
        while True:
            if call.result is PENDING and call.error is None:
                switch()
                continue
            break
    finally:
        call.waiter = None


def wait_for(hub: Hub, call: Call) -> Any:
    """Wait until a call is settled, and return its result or raise its error."""
    join(hub, call)
    if call.error is not None:
        raise call.take_error()
    return call.result


def wake(hub: Hub, call: Call) -> None:
    """In the hub: switch to whoever waits for a call that is settled, if he still does."""
    waiter = call.waiter
    if waiter is not None:
        try:
            waiter.switch()
        except GreenletExit:  # the hub's own end
            raise
        except BaseException:  # a raw greenlet that dies of it ends here, not the hub's work
            hub.handle_error(waiter, *sys.exc_info())


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
