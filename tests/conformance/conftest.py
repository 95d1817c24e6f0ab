"""Both servers, behind raw sockets: nothing of the client is used here."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket

from gstalk.testing import Beanstalkd, Server


class Wire:
    """A connection that sends literal bytes and expects literal bytes."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def expect(self, data: bytes) -> None:
        while len(self._rest) < len(data) and (more := self.sock.recv(65536)):
            self._rest += more
        got, self._rest = self._rest[: len(data)], self._rest[len(data) :]
        assert got == data

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
        while len(self._rest) < int(size) + 2:
            self._rest += self.sock.recv(65536)
        body, self._rest = self._rest[: int(size)].decode(), self._rest[int(size) + 2 :]
        lines = body.splitlines()
        assert lines[0] == "---"
        return dict(line.split(": ", 1) for line in lines[1:] if line)

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
            import os

            os.kill(self.server.pid, signal.SIGUSR1)
            gevent.sleep(0.1)
        else:
            self.server.drain()

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
    if request.param == "real" and Beanstalkd.find() is None:
        pytest.skip("no beanstalkd on this machine: install it, or name it in $GSTALK_BEANSTALKD")
    with Server() if request.param == "memory" else Beanstalkd() as server:
        both = Both(server)
        yield both
        both.close()


@pytest.fixture
def wire(both: Both) -> Wire:
    return both.wire()
