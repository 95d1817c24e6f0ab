"""Waiting for what a connection answers."""

from __future__ import annotations

from typing import Any

from gevent import getcurrent
from gevent.exceptions import BlockingSwitchOutError
from gevent.hub import Hub

from gstalk.protocol.request import PENDING, Outcome

__all__ = ["check_may_wait", "join", "wait_for"]


def check_may_wait(hub: Hub) -> None:
    """Refuse to be called where nothing can wait, before anything is sent."""
    if getcurrent() is hub:
        raise BlockingSwitchOutError("gstalk can't wait in the hub: spawn a greenlet for it")


def join(hub: Hub, call: Outcome) -> None:
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


def wait_for(hub: Hub, call: Outcome) -> Any:
    """Wait until a call is settled, and return its result or raise its error."""
    join(hub, call)
    if call.error is not None:
        raise call.take_error()
    return call.result
