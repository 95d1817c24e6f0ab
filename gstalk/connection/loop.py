"""The hub's event loop: all that gstalk runs in the hub begins in here.

Such a callback never waits, and nothing else runs meanwhile, but for a Python signal handler, which may strike between
any two of its lines. So a callback

- is put off while a greenlet is inside the hub's critical section (`critical` says when that can be);
- ends what it belongs to when an exception strikes it (`struck`): what it has left half done, nobody can know;
- is known to be under way (`section.is_hub_inside`), so that a signal handler, or a finalizer, which closes a
  connection meanwhile, has that put off until it is over;
- comes again, where an exception strikes before its first line: timers are repeated until then. What is to come in this
  turn of the loop (`soon`) may be asked for twice, if it then looks whether it is still due.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from gevent import GreenletExit, get_hub
from gevent.hub import Hub

from gstalk.connection.critical import AGAIN, CriticalSection
from gstalk.protocol.request import Outcome

__all__ = ["InHub", "fail_stop", "wake"]

Method = TypeVar("Method", bound=Callable[..., Any])


def fail_stop(method: Method) -> Method:
    """Have an exception that strikes a method of an `InHub` end what that belongs to."""

    @wraps(method)
    def guarded(self: InHub, *args: Any) -> Any:
        try:
            return method(self, *args)
        except BaseException as error:
            self.struck(error)
            raise

    return cast("Method", guarded)


class InHub:
    """What has callbacks in the hub."""

    __slots__ = ()
    hub: Hub
    section: CriticalSection

    def struck(self, error: BaseException) -> None:
        """An exception, a signal handler's for instance, has struck one of them."""
        raise NotImplementedError

    def soon(self, callback: Callable[[], object]) -> None:
        """Call it in this turn of the loop."""
        self.hub.loop.run_callback(self._run_soon, callback)

    def once(self, seconds: float, callback: Callable[..., object], *args: object, ref: bool = True) -> Any:
        """Call it after so many seconds, once; returns the timer, for whoever wants to close it before that.

        Args:
            ref: Whether the process has to wait for that.
        """
        timer = self.hub.loop.timer(seconds, AGAIN, ref=ref)
        # `update`: the loop's own idea of now may be old, and a timer would be early by that much.
        timer.start(self.run, self._ring, timer, callback, *args, update=True)
        return timer

    def _ring(self, timer: Any, callback: Callable[..., object], *args: object) -> None:
        timer.close()  # it need not come again: from here on an exception that strikes ends what this belongs to
        callback(*args)

    def run(self, callback: Callable[..., object], *args: object) -> None:
        """In the hub: call it, unless a greenlet is inside of the section; then it comes again by itself."""
        try:
            section = self.section
            if section.owner is None or section.is_free:
                section.is_hub_inside = True
                if args:
                    callback(*args)
                else:  # a read, for instance: a call with `*args`, even of none, costs twice as much
                    callback()
                section.is_hub_inside = False
        except BaseException as error:  # also one that struck the line above
            self.section.is_hub_inside = False
            self.struck(error)
            raise

    def _run_soon(self, callback: Callable[[], object]) -> None:
        if self.section.owner is None or self.section.is_free:
            self.run(callback)
        else:
            self.soon(callback)


def wake(section: CriticalSection, call: Outcome) -> None:
    """In the hub: switch to whoever waits for what is settled, if he still does; what he does is not the hub's."""
    waiter = call.waiter
    if waiter is None:
        return
    is_hub_inside, section.is_hub_inside = section.is_hub_inside, False
    try:
        waiter.switch()
    except GreenletExit:  # the hub's own end: its thread may be over, where nobody may ask for a hub any more
        raise
    except BaseException:  # a raw greenlet that dies of it ends here, not the hub's work
        get_hub().handle_error(waiter, *sys.exc_info())
    section.is_hub_inside = is_hub_inside
