"""Greenlets that wait for what a connection answers, and how they are woken: all in one go, when a read is over."""

from __future__ import annotations

import sys
from typing import Any

from gevent import getcurrent
from gevent.exceptions import HubDestroyed
from gevent.hub import Hub

from gstalk.connection.critical import section_of
from gstalk.connection.loop import InHub
from gstalk.protocol.request import PENDING, Outcome
from gstalk.protocol.stream import Stream

__all__ = ["Waking"]


class Waking(InHub):
    """What has been settled on a connection, and the greenlets to tell.

    Attributes:
        uri: The server's, for messages.
        hub, section: Those that the connection belongs to.
        stream: The order of requests.
    """

    __slots__ = ("_wake_due", "hub", "section", "stream", "uri")

    def __init__(self, uri: str, hub: Hub) -> None:
        self.uri = uri
        self.hub = hub
        self.section = section_of(hub)
        self.stream = Stream(uri)
        self._wake_due = False  # somebody will wake them in this turn of the loop

    def wait(self, request: Outcome) -> Any:
        """`wait_for`, spelled out for the sake of the hot path; `join` says why the loop is written so."""
        request.waiter = getcurrent()
        switch = self.hub.switch
        try:
            while True:
                if request.result is PENDING and request.error is None:
                    switch()
                    continue
                break
        finally:
            request.waiter = None
        if request.error is not None:
            raise request.take_error()
        return request.result

    def complete(self, call: Outcome) -> None:
        """Wake whoever waits for a call that has been answered by other means than a reply."""
        self.stream.done.append(call)
        if not self._wake_due:  # `_wake_soon` would look, too: a call less for each job
            self._wake_soon()

    def _wake(self) -> None:
        """Switch to the greenlets of all calls in `done`. Only ever runs in the hub."""
        stream, section = self.stream, self.section
        done: list[Outcome] = []
        try:
            self._wake_due = False
            is_hub_inside, section.is_hub_inside = section.is_hub_inside, False  # what greenlets do is not the hub's
            while stream.done:
                done, stream.done = stream.done, []
                for call in done:
                    waiter = call.waiter
                    if waiter is not None:  # else nobody waits any more, and a bare switch would hit what he does now
                        try:
                            waiter.switch()
                        except BaseException:  # a raw greenlet that dies of it ends here, not the others' replies
                            self.hub.handle_error(waiter, *sys.exc_info())
            section.is_hub_inside = is_hub_inside
        except HubDestroyed:
            raise
        except BaseException:  # a signal's
            stream.done[:0] = done
            self._wake_due = False
            self._wake_soon()
            raise

    def _wake_soon(self) -> None:
        if not self._wake_due and self.stream.done:
            for _ in range(2):  # a signal may strike the first one before its first line
                self.hub.loop.run_callback(self._wake)
            self._wake_due = True
