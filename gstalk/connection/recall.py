"""Ending a reserve that waits on the server, so that other commands can go out.

The server hears nothing else from a connection while a reserve waits. So the socket is half-closed, which the server
answers at once, and read to its end; then another one is dialed. A job that won the race goes back by itself when the
server sees the end. The new connection must be one to the same server process, since elsewhere the same ids mean other
jobs.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent
from gevent import getcurrent

from gstalk.connection.critical import critical
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.transport import Transport
from gstalk.errors import CommandTimeoutError, ConnectError, ConnectionClosedError, ConnectionLostError
from gstalk.protocol.stats import ServerStats

__all__ = ["Recall", "is_under_way_here"]

Dial = Callable[[], tuple[Transport, ServerStats]]


class _RecallGreenlet(gevent.Greenlet):  # type: ignore[type-arg]  # it takes none at run time
    """One that ends a wait."""


def is_under_way_here() -> bool:
    """Tell whether this greenlet ends a wait: a signal handler in it can't wait for what is answered after that."""
    return isinstance(getcurrent(), _RecallGreenlet)


class Recall:
    """One recall; its greenlet begins at once.

    Args:
        old: The pipe on which a reserve waits.
        new: The pipe on which commands gather meanwhile.
        dial: Makes the new connection, and asks who is there.
        server_id: Of the server's process that has the wait.

    Attributes:
        greenlet: It ends when the new pipe is attached, or has failed.
    """

    __slots__ = ("_dial", "_new", "_old", "_server_id", "greenlet")

    def __init__(self, old: Pipeline, new: Pipeline, dial: Dial, server_id: str | None) -> None:
        self._old = old
        self._new = new
        self._dial: Dial | None = dial
        self._server_id = server_id
        self.greenlet = _RecallGreenlet.spawn(self._run)
        self.greenlet.rawlink(self._ended)

    def cut(self) -> None:
        """Give it up, for the connection is closed; never switches."""
        self.greenlet.kill(block=False)
        self._old.fail(ConnectionClosedError, "you closed it")  # the greenlet may not have begun

    def _ended(self, _: object) -> None:
        """A signal may have struck the greenlet before its first line."""
        self._dial = None  # it refers to the connection, which refers to this
        self._old.fail(ConnectionClosedError, "closed to end a reserve")
        if not self._new.attached:
            self._new.fail(ConnectionLostError, "interrupted while connecting again")

    @critical
    def _run(self) -> None:
        pipe = self._new
        transport: Transport | None = None
        try:
            if not self._end_wait():
                why = f"no progress for {pipe.conn_timeout} s in calling a reserve back; connection closed"
                pipe.fail(CommandTimeoutError, why)
            if pipe.failure is not None:  # it was stuck, or closed meanwhile
                return
            assert self._dial is not None
            transport, server = self._dial()
            if server.id != self._server_id:
                pipe.fail(ConnectionLostError, "the server was restarted while a reserve was recalled")
            else:
                with pipe.section:
                    pipe.attach(transport)
        except ConnectError as error:
            pipe.fail(ConnectionLostError, f"could not connect again to end a reserve: {error}", error)
        except BaseException as error:
            pipe.fail(ConnectionLostError, f"{type(error).__name__} hit while connecting again")
            raise
        finally:
            if transport is not None and not pipe.attached:
                transport.close()

    def _end_wait(self) -> bool:
        """Read the old connection to its end; tell whether that was reached in time.

        It comes before the new connection is dialed, or the old wait could still win the next job.
        """
        old = self._old
        try:
            end = old.end()
            with gevent.Timeout(old.conn_timeout, False):  # type: ignore[arg-type]  # the stubs lack False
                old.wait(end)
            return end.is_settled
        finally:
            old.fail(ConnectionClosedError, "closed to end a reserve")
