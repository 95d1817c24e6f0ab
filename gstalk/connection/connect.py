"""Dialing: a connection counts as one when a command was answered on it, not before.

A server at its limit of descriptors, or one behind a proxy, accepts connections and never says a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import gevent
from gevent import ssl
from gevent.hub import Hub

from gstalk.connection.clock import monotonic
from gstalk.connection.transport import READ, WRITE, Transport, connect, wait
from gstalk.errors import ConnectError, ConnectionLostError, ProtocolError
from gstalk.protocol import commands
from gstalk.protocol.commands import Command
from gstalk.protocol.session import Session, Slot
from gstalk.protocol.stats import ServerStats
from gstalk.traces import bare
from gstalk.uri import Address

__all__ = ["dial"]


def dial(
    hub: Hub,
    address: Address,
    context: ssl.SSLContext | None,
    conn_timeout: float | None,
    used: str = "default",
    watched: Sequence[str] = ("default",),
) -> tuple[Transport, ServerStats]:
    """Connect, and set up what the new connection uses and watches, in one write: connected means answered.

    Raises:
        ConnectError: Whatever went wrong, in time or at all; the cause is chained.

    Blocks:
        Until the greeting is answered, at most `conn_timeout` seconds.
    """
    greeting = _greeting(used, watched)
    session = Session(str(address))
    deadline = None if conn_timeout is None else monotonic() + conn_timeout
    mine = gevent.Timeout(conn_timeout)
    mine.start()
    transport = None
    try:
        transport = connect(hub, address, context, deadline)
        slots = [Slot(command, session) for command, _ in greeting]
        session.slots.extend(slots)
        data = b"".join(data for _, data in greeting)
        while session.slots:
            try:
                all_taken = transport.write(data) if data else _advance(transport, session)
            except (ConnectionLostError, ProtocolError) as error:
                raise ConnectError(f"connect to {address}: {error}") from error
            data = b""
            if session.slots:
                wait(hub, transport.fileno(), READ if all_taken else READ | WRITE)
        for slot in slots:
            if slot.error is not None:
                raise ConnectError(f"connect to {address}: {slot.error}") from slot.error
        if len(slots) > 1 and slots[-1].command is not commands.USE and slots[-1].result != len(watched):
            raise ConnectError(f"connect to {address}: watches {slots[-1].result} tubes instead of {len(watched)}")
    except BaseException as error:
        if transport is not None:
            transport.close()
        if error is mine:
            raise ConnectError(f"connect to {address}: no answer within {conn_timeout} s") from None
        raise
    finally:
        mine.close()
        mine = None  # type: ignore[assignment]  # when it has struck, its traceback holds this frame
        session.done.clear()
        session.slots.clear()
    return transport, slots[0].result


def _greeting(used: str, watched: Sequence[str]) -> list[tuple[Command, bytes]]:
    """The first commands of a connection, `stats` in front."""
    greeting = [(commands.STATS, commands.plain(commands.STATS))]
    if used != "default":
        greeting.append((commands.USE, commands.by_tube(commands.USE, used)))
    if list(watched) != ["default"]:
        greeting += [(commands.WATCH, commands.by_tube(commands.WATCH, tube)) for tube in watched]
        if "default" not in watched:
            greeting.append((commands.IGNORE, commands.by_tube(commands.IGNORE, "default")))
    return greeting


def _advance(transport: Transport, session: Session) -> bool:
    """Move what can be moved without waiting; tell whether all has been sent. Whatever it raises is the server's."""
    all_taken = transport.flush()
    data = transport.read()
    if data == b"":
        raise ConnectionLostError("the server closed the connection before its first answer")
    if data and (broken := session.receive(data)) is not None:
        raise bare(broken)  # a copy: the slot that has the other one stands in a frame of its traceback
    return all_taken
