"""Both servers, behind raw sockets: nothing of the client is used here.

The embedded server is a beanstalkd 1.12. A later one says two things otherwise: 1.13 writes the names of tubes in
statistics with quotes, and takes nothing but a plain number as a reserve's timeout.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket

from gstalk.testing import Beanstalkd, Server


class Wire:
    """A connection that sends literal bytes and expects literal bytes."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is sent has come when `send` returns
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def expect(self, data: bytes) -> None:
        assert self._read(len(data)) == data

    def say(self, data: bytes, reply: bytes) -> None:
        self.send(data)
        self.expect(reply)

    def line(self) -> bytes:
        while b"\r\n" not in self._rest:
            more = self.sock.recv(65536)
            assert more, f"closed after {self._rest!r}"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def ask(self, data: bytes) -> dict[str, str]:
        """Send a command that is answered with a dictionary."""
        self.send(data)
        word, size = self.line().split()
        assert word == b"OK"
        lines = self._read(int(size) + 2).decode().splitlines()
        assert lines[0] == "---"
        said = dict(line.split(": ", 1) for line in lines[1:] if line)
        return {key: value.strip('"') for key, value in said.items()}

    def replies(self, like: bytes) -> bytes:
        """Read as many replies as there are in `like`, each with a body where that has one."""
        got = b""
        while like:
            head, _, like = like.partition(b"\r\n")
            line = self.line()
            got += line + b"\r\n"
            if head.startswith((b"OK ", b"FOUND ", b"RESERVED ")):
                like = like[int(head.split()[-1]) + 2 :]
            if line.startswith((b"OK ", b"FOUND ", b"RESERVED ")):
                got += self._read(int(line.split()[-1]) + 2)
        return got

    def _read(self, size: int) -> bytes:
        while len(self._rest) < size and (more := self.sock.recv(65536)):
            self._rest += more
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def silent(self) -> bool:
        """Whether nothing comes for a moment."""
        assert not self._rest
        with gevent.Timeout(0.1, False):  # type: ignore[arg-type]  # the stubs lack False
            self._rest += self.sock.recv(65536)
        return not self._rest

    def at_end(self) -> bool:
        return not self._rest and self.sock.recv(1) == b""

    def close(self) -> None:
        self.sock.close()


class Both:
    """A server of either kind."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self._wires: list[Wire] = []

    def wire(self) -> Wire:
        wire = Wire(int(self.server.uri.rpartition(":")[2]))
        self._wires.append(wire)
        return wire

    def drain(self) -> None:
        if isinstance(self.server, Beanstalkd):
            os.kill(self.server.pid, signal.SIGUSR1)
            gevent.sleep(0.1)
        else:
            self.server.drain()

    def refused_by_later_ones(self, wire: Wire) -> bool:
        """Whether the last command, which 1.12 takes, was refused; that is right for a real server that is later."""
        if not isinstance(self.server, Beanstalkd) or wire.silent():
            return False
        wire.expect(b"BAD_FORMAT\r\n")
        assert wire.ask(b"stats\r\n")["version"] != "1.12"
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """The server sees what is sent meanwhile all at once, afterwards."""
        if isinstance(self.server, Beanstalkd):
            self.server.pause()
            if hasattr(os, "waitid"):  # macOS lacks it before Python 3.13
                os.waitid(os.P_PID, self.server.pid, os.WSTOPPED | os.WNOWAIT)  # only now it stands still
        yield  # the embedded one runs when this greenlet waits
        if isinstance(self.server, Beanstalkd):
            self.server.resume()

    def pass_time(self, seconds: float) -> None:
        if isinstance(self.server, Beanstalkd):
            gevent.sleep(seconds)
        else:
            self.server.advance(seconds)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.real)])
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    yield from serving(Server() if request.param == "memory" else Beanstalkd())


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.real)])
def both_missing(request: pytest.FixtureRequest) -> Iterator[Both]:
    """The embedded server misses what runs out in silence always, the real one mostly."""
    yield from serving(Server(silent_expiry=False) if request.param == "memory" else Beanstalkd())


def serving(server: Server | Beanstalkd) -> Iterator[Both]:
    if isinstance(server, Beanstalkd) and server.find() is None:
        pytest.skip("no beanstalkd on this machine: install it, or name it in $GSTALK_BEANSTALKD")
    with server, closing(Both(server)) as both:
        yield both


@pytest.fixture
def wire(both: Both) -> Wire:
    return both.wire()


@pytest.fixture
def wire_missing(both_missing: Both) -> Wire:
    return both_missing.wire()
