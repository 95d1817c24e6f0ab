"""Servers for the tests in this directory: the real one, and one that plays what the real one can't be made to say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer

import gstalk
from gstalk.testing import Beanstalkd

CUT = object()  # instead of a reply: the server says no more, and closes
_tubes = (f"tube-{number}" for number in itertools.count())


def wait_until(holds: Callable[[], object], seconds: float = 10) -> None:
    """Look, again and again, until something holds."""
    with gevent.Timeout(seconds, AssertionError(f"did not come to hold within {seconds} s")):
        while not holds():
            gevent.sleep(0.005)


def ok(text: str) -> bytes:
    """An OK reply with this body."""
    body = text.encode()
    return b"OK %d\r\n%b\r\n" % (len(body), body)


class Played:
    """A server that answers each command as beanstalkd would, or with what it was told to say.

    Args:
        replies: From a command's word to its reply: bytes (none at all: silence), `CUT`, a function of the line, or a
            list of these, taken one after the other, the last one for ever.
    """

    def __init__(self, replies: dict[str, Any]) -> None:
        self.replies = {word.encode(): list(r) if isinstance(r, list) else [r] for word, r in replies.items()}
        self.lines: list[bytes] = []
        self.reads: list[bytes] = []
        self.connections = 0
        self._ids = itertools.count(1)
        self._server = StreamServer(("127.0.0.1", 0), self._serve, spawn=Pool())
        self._server.start()
        self.uri = f"beanstalk://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.stop(0)

    def count(self, word: str) -> int:
        return sum(line.partition(b" ")[0] == word.encode() for line in self.lines)

    def _serve(self, sock: socket.socket, address: object) -> None:
        self.connections += 1
        state: dict[str, Any] = {"used": b"default", "watched": {b"default"}}
        buffer = b""
        while True:
            while b"\r\n" not in buffer:
                if not (data := self._read(sock)):
                    return
                buffer += data
            line, _, buffer = buffer.partition(b"\r\n")
            self.lines.append(line)
            if line.startswith(b"put "):
                size = int(line.rpartition(b" ")[2]) + 2
                while len(buffer) < size:
                    if not (data := self._read(sock)):
                        return
                    buffer += data
                buffer = buffer[size:]
            reply = self._reply(line, state)
            if reply is CUT:
                sock.shutdown(socket.SHUT_WR)  # closing with unread bytes would reset, and what was said could be lost
                while self._read(sock):
                    pass
                return
            sock.sendall(reply)

    def _read(self, sock: socket.socket) -> bytes:
        try:
            data: bytes = sock.recv(65536)
        except OSError:
            return b""
        self.reads.append(data)
        return data

    def _reply(self, line: bytes, state: dict[str, Any]) -> Any:
        word, _, rest = line.partition(b" ")
        told = self.replies.get(word)
        reply = None if told is None else told.pop(0) if len(told) > 1 else told[0]
        if callable(reply):
            reply = reply(line)
        if reply is not None:
            return reply
        if word == b"use":
            state["used"] = rest
        elif word == b"watch":
            state["watched"].add(rest)
        elif word == b"ignore":
            state["watched"].discard(rest)
        match word:
            case b"stats":
                return ok("---\nid: 4a\n")
            case b"stats-job":
                return ok(f"---\nid: {rest.decode()}\ntube: default\nstate: reserved\npri: 9\nttr: 60\nreserves: 1\n")
            case b"use" | b"list-tube-used":
                return b"USING %b\r\n" % state["used"]
            case b"watch" | b"ignore":
                return b"WATCHING %d\r\n" % len(state["watched"])
            case b"put":
                return b"INSERTED %d\r\n" % next(self._ids)
            case b"reserve-with-timeout":
                return b"TIMED_OUT\r\n"
        said = {b"delete": b"DELETED", b"release": b"RELEASED", b"bury": b"BURIED", b"touch": b"TOUCHED"}
        return said.get(word, b"UNKNOWN_COMMAND") + b"\r\n"


@pytest.fixture(scope="session")
def server() -> Iterator[Beanstalkd]:
    """A real beanstalkd that all tests share, each with a tube of its own."""
    with Beanstalkd() as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[Beanstalkd]:
    """A real beanstalkd for this test alone, which may drain, stop or kill it."""
    with Beanstalkd() as running:
        yield running


@pytest.fixture
def play() -> Iterator[Callable[..., Played]]:
    """Start a `Played` server: ``play({"put": b"DRAINING\\r\\n"})``."""
    with ExitStack() as stack:

        def start(replies: dict[str, Any] | None = None) -> Played:
            played = Played(replies or {})
            stack.callback(played.close)
            return played

        yield start


@pytest.fixture
def tube() -> str:
    return next(_tubes)


@pytest.fixture
def connect(server: Beanstalkd, tube: str) -> Iterator[Callable[..., gstalk.Conn]]:
    """Dial; closed at the test's end. Without a URI: the shared server, watching the test's tube alone."""
    conns = []

    def dial(uri: str | None = None, **options: Any) -> gstalk.Conn:
        conn = gstalk.dial(uri or server.uri, **options)
        conns.append(conn)
        if uri is None:
            conn.watch(tube)
            conn.ignore("default")
        return conn

    yield dial
    for conn in conns:
        conn.close()


@pytest.fixture
def conn(connect: Callable[..., gstalk.Conn]) -> gstalk.Conn:
    return connect()


@pytest.fixture
def other(connect: Callable[..., gstalk.Conn]) -> gstalk.Conn:
    """A second connection, for what somebody else does or sees."""
    return connect()
