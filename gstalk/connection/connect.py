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
from gstalk.protocol.request import Request
from gstalk.protocol.stats import ServerStats
from gstalk.protocol.stream import Stream
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
    stream = Stream(str(address))
    deadline = None if conn_timeout is None else monotonic() + conn_timeout
    mine = gevent.Timeout(conn_timeout)
    mine.start()
    transport = None
    try:
        transport = connect(hub, address, context, deadline)
        requests = [Request(command, stream.uri) for command, _ in greeting]
        stream.requests.extend(requests)
        data = b"".join(data for _, data in greeting)
        while stream.requests:
            try:
                all_taken = transport.write(data) if data else _advance(transport, stream)
            except (ConnectionLostError, ProtocolError) as error:
                raise ConnectError(f"connect to {address}: {error}") from error
            data = b""
            if stream.requests:
                wait(hub, transport.fileno(), READ if all_taken else READ | WRITE)
        for request in requests:
            if request.error is not None:
                raise ConnectError(f"connect to {address}: {request.error}") from request.error
        if len(requests) > 1 and requests[-1].command is not commands.USE and requests[-1].result != len(watched):
            raise ConnectError(f"connect to {address}: watches {requests[-1].result} tubes instead of {len(watched)}")
    except BaseException as error:
        if transport is not None:
            transport.close()
        if error is mine:
            raise ConnectError(f"connect to {address}: no answer within {conn_timeout} s") from None
        raise
    finally:
        mine.close()
        mine = None  # type: ignore[assignment]  # when it has struck, its traceback holds this frame
        stream.done.clear()
        stream.requests.clear()
    return transport, requests[0].result


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


def _advance(transport: Transport, stream: Stream) -> bool:
    """Move what can be moved without waiting; tell whether all has been sent. Whatever it raises is the server's."""
    all_taken = transport.flush()
    data = transport.read()
    if data == b"":
        raise ConnectionLostError("the server closed the connection before its first answer")
    if data and (broken := stream.receive(data)) is not None:
        raise bare(broken)  # a copy: the request that has the other one stands in a frame of its traceback
    return all_taken
