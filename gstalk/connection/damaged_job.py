"""A job that the server itself has ruined, and that would end every connection which reserves it.

A beanstalkd that was killed while it compacted its binlog may come back with a job whose body is cut, or all zero
bytes, the line end behind it included. Whoever reserves that job gets a reply which breaks the protocol; the
connection must be closed, the job is ready again, and the next reserve gets the same one. So it has to be put out of
the way, over a connection of its own on which nothing else is said.
"""

from __future__ import annotations

import re

import gevent
from gevent.hub import Hub

from gstalk.config import Config
from gstalk.connection.connect import dial
from gstalk.connection.transport import READ, WRITE, Transport, wait
from gstalk.errors import ConnectError, ConnectionLostError
from gstalk.protocol import commands
from gstalk.protocol.replies import MAX_REPLY
from gstalk.protocol.stream import MAX_LINE
from gstalk.uri import Address

__all__ = ["bury_ruined"]

LEAST_URGENT = 2**32 - 1  # if it is kicked one day, it is not to be first


def bury_ruined(hub: Hub, address: Address, config: Config, server_id: str | None, job_id: int) -> bool:
    """Bury a job, if the server hands it out in ruins once more.

    Args:
        server_id: Of the server's process that did so before: in another one the id may mean another job.

    Returns:
        Whether it did and said that the job is buried. A job that is whole, or gone, is left as it is.

    Blocks:
        At most `conn_timeout`.

    Protocol:
        ``reserve-job <id>`` -> ``RESERVED <id> <bytes>`` and a body without an end; ``bury <id> <pri>`` -> ``BURIED``.
    """
    with gevent.Timeout(config.conn_timeout, False):  # type: ignore[arg-type]  # the stubs lack False
        transport = None
        try:
            try:
                transport, stats = dial(hub, address, config.tls_context, config.conn_timeout)
            except ConnectError:
                return False  # it will be met again
            if stats.id != server_id:
                return False
            line, rest = _ask(hub, transport, commands.by_id(commands.RESERVE_JOB, job_id))
            told = re.fullmatch(rb"RESERVED %d ([0-9]{1,10})" % job_id, line)
            if not told or int(told[1]) > MAX_REPLY:
                return False
            body, size = bytearray(rest), int(told[1]) + 2
            while len(body) < size:
                if not (more := _more(hub, transport)):
                    return False
                body += more
            if body[-2:] == b"\r\n":
                return False  # closing gives it back
            line, _ = _ask(hub, transport, commands.bury(job_id, LEAST_URGENT))
            return line == b"BURIED"
        finally:
            if transport is not None:
                transport.close()
    return False


def _ask(hub: Hub, transport: Transport, command: bytes) -> tuple[bytes, bytes]:
    """Send a command, and read the line that answers it, and what came with that; nothing if the server goes."""
    try:
        all_taken = transport.write(command)
    except ConnectionLostError:
        return b"", b""
    while not all_taken:
        wait(hub, transport.fileno(), WRITE)
        try:  # never around a wait: what that raises is the caller's own, whatever its class
            all_taken = transport.flush()
        except ConnectionLostError:
            return b"", b""
    answer = b""
    while b"\r\n" not in answer:
        if len(answer) > MAX_LINE or not (more := _more(hub, transport)):
            return b"", b""
        answer += more
    line, _, rest = answer.partition(b"\r\n")
    return line, rest


def _more(hub: Hub, transport: Transport) -> bytes:
    """Read on; `b""` if the server has gone."""
    while True:
        try:
            data = transport.read()
        except ConnectionLostError:
            return b""
        if data is not None:
            return data
        wait(hub, transport.fileno(), READ)
