"""A connection's end: it comes once, for a reason, and every request and everybody who waits is told of it.

A connection that has ended never comes back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from gevent.exceptions import HubDestroyed
from gevent.hub import Hub

from gstalk.connection import forks, threads
from gstalk.connection.transport import Transport
from gstalk.connection.waking import Waking
from gstalk.errors import ConnectionClosedError, ConnectionLostError, DisconnectedError
from gstalk.protocol.request import Request, lost
from gstalk.traces import bare

__all__ = ["Ending", "drop"]


class Ending(Waking):
    """How a connection ends.

    Attributes:
        requests: Commands that have no reply yet, oldest first.
        clear: Commands may be appended.
        failure: Why it is over; `None`: it isn't.
        on_failure: Called once, when it is over; must not switch.
    """

    __slots__ = ("_appended", "_transport", "clear", "failure", "on_failure", "requests")

    def __init__(self, uri: str, hub: Hub) -> None:
        super().__init__(uri, hub)
        self.requests = self.stream.requests
        self.clear = True
        self.failure: tuple[type[DisconnectedError], str, BaseException | None] | None = None
        self.on_failure: Callable[[], None] | None = None
        self._appended = 0  # where the stream ends that has been appended
        self._transport: Transport | None = None
        forks.register("pipeline", self, Ending._forked)

    def watchers(self) -> list[Any]:
        """Those of the loop's that are active."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Let go of the loop and the socket, and tell those who wait for room; each step may come twice."""
        raise NotImplementedError

    @property
    def sent(self) -> int:
        """How much of the stream the kernel has taken."""
        return self._transport.sent if self._transport is not None else 0

    def fail(
        self, kind: type[DisconnectedError], why: str, cause: BaseException | None = None, sent: int | None = None
    ) -> None:
        """Close the connection, and tell every request why. Idempotent; never switches.

        Args:
            kind: What is raised in those who wait, and from now on.
            why: Its message.
            cause: What is chained to it, as a copy without its traceback, which would hold this connection.
            sent: How much of the stream counts as sent; `None`: what the kernel has taken.
        """
        if self.failure is not None:
            return
        sent = self.sent if sent is None else sent
        self.failure = (kind, why, None if cause is None else bare(cause))
        try:
            self._finish(sent)
        except BaseException:  # a signal's: again, from where it struck, or somebody would wait for ever
            try:
                self._finish(sent)
            except BaseException:  # the end of the stack strikes each time: the hub has room
                self.hub.loop.run_callback(self._finish, sent)
            raise

    def struck(self, error: BaseException) -> None:
        """End a connection whose work a signal's exception has hit: what came of it nobody knows."""
        if not isinstance(error, HubDestroyed):  # that has other ways
            self._wake_due = False  # the read that was to wake all has ended here
            self.fail(ConnectionLostError, f"{type(error).__name__} hit in the middle", sent=self._appended)
            self._wake_soon()  # also those of an end that it has hit

    def abandon(self, why: str = "its thread has ended") -> None:
        """Close the socket, no more: the thread has ended, and with it its loop and all who waited."""
        self.failure = (ConnectionClosedError, why, None)
        self.clear = False
        threads.close_watchers(self.hub, self.watchers())
        if self._transport is not None:
            self._transport.close()
        if self.on_failure is not None:  # its jobs are lost
            self.on_failure()

    def sever(self) -> None:
        """From another thread: have the server see the end. The rest is for this connection's own hub to do."""
        if (transport := self._transport) is not None:
            transport.sever()

    def _forked(self) -> None:
        """In a child: the connection is the parent's, who goes on and sends all of it."""
        why = "this connection belongs to the parent process: dial again"
        if forks.is_here(self.hub):
            self.fail(ConnectionClosedError, why, sent=self._appended)
        elif self.failure is None:
            self.abandon(why)

    def error(self, what: str) -> DisconnectedError:
        """Build the error of a command that came too late."""
        assert self.failure is not None
        kind, why, cause = self.failure
        error = kind(f"{what} at {self.uri}: {why}; it was not sent", "no")
        error.__cause__ = cause
        return error

    def fail_late(self, *requests: Request) -> None:
        """Fail requests that come after the end."""
        for request in requests:
            request.fail(self.error(request.command.name))
            if request.then is not None:
                request.then(request)
            self.complete(request)

    def give_up(self, which: Callable[[Request], bool]) -> None:
        """Tell these requests' callers at once that the connection is being closed; replies are still taken.

        Each may have been acted on: what the kernel has not taken yet still goes out, before what others wait for.
        """
        for request in self.requests:
            if which(request):
                request.fail(lost(request, ConnectionClosedError, "you closed it", self._appended))
                self.complete(request)

    def _finish(self, sent: int) -> None:
        """Let go of everything, and tell all who wait; each step may come twice."""
        self.clear = False
        self.let_go()
        assert self.failure is not None
        kind, why, cause = self.failure

        def make(request: Request) -> DisconnectedError:
            error = lost(request, kind, why, sent)
            error.__cause__ = cause
            return error

        self.stream.fail(make)
        self._wake_soon()
        if self.on_failure is not None:
            self.on_failure()


def drop(holder: list[Any]) -> None:
    """Close the socket of a connection that nobody refers to any more, in whichever thread that is noticed."""
    pipe: Ending = holder[0]
    if pipe.failure is None:
        fail = partial(pipe.fail, ConnectionClosedError, "nobody referred to it any more")
        if pipe.hub.loop is None:
            pipe.abandon()
        elif threads.get_hub_if_exists() is not pipe.hub:
            threads.call(pipe.hub, fail)
            pipe.sever()  # that thread may have ended, and its loop, if somebody else's, never turn again
        elif pipe.section.is_interrupted:
            threads.call(pipe.hub, fail)
        else:
            fail()
        warnings.warn(f"unclosed connection to {pipe.uri}", ResourceWarning, stacklevel=2)  # last: it may be an error
