"""Servers that play what the real one can't be made to say, and one that terminates TLS."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.subprocess
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer

import gstalk
from gstalk.connection.clock import monotonic
from gstalk.testing.beanstalkd import free_port

LOOKS = 20  # that `wait_until` grants, whatever the time
MORE = 5  # seconds beyond its time in which it ends, wherever it waits
CUT = object()  # instead of a reply: the server says no more, and closes


def wait_until(holds: Callable[[], object], seconds: float = 10) -> None:
    """Look, again and again, until something holds.

    Where the machine has kept us from running for most of these seconds we have not looked often: a few looks more
    are granted then. A look that takes so long itself is ended.
    """
    late = AssertionError(f"did not come to hold within {seconds} s")
    end, looks = monotonic() + seconds, 0
    with gevent.Timeout(seconds + MORE, late):
        while not holds():
            looks += 1
            if looks > LOOKS and monotonic() > end:
                raise late
            gevent.sleep(0.005)


def dial_in_time(uri: str, conn_timeout: float) -> gstalk.Conn:
    """Dial with a time so short that a busy machine may keep the server, which is in this process, from keeping it."""
    for _ in range(20):
        with contextlib.suppress(gstalk.ConnectError):
            return gstalk.dial(uri, conn_timeout=conn_timeout)
    return gstalk.dial(uri, conn_timeout=conn_timeout)


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
        self.open = 0  # how many of them the other side has not closed
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
        self.open += 1
        try:
            self._answer(sock)
        finally:
            self.open -= 1

    def _answer(self, sock: socket.socket) -> None:
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
            try:
                sock.sendall(reply)
            except OSError:  # the client has gone
                return

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


# -- TLS ---------------------------------------------------------------------------------------------------------

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
PLACES = {
    "good": "crt {dir}/localhost.pem",
    "by-name": "crt {dir}/localhost.pem strict-sni",
    "by-address": "crt {dir}/address.pem",
    "wrong-host": "crt {dir}/elsewhere.pem",
    "self-signed": "crt {dir}/self.pem",
    "expired": "crt {dir}/expired.pem",
    "client": "crt {dir}/localhost.pem ca-file {dir}/ca.crt verify required",
    "tls12": "crt {dir}/localhost.pem ssl-max-ver TLSv1.2",
    "idle": "crt {dir}/localhost.pem",
}


class Terminator:
    """A haproxy that terminates TLS in several ways, each on a port of its own."""

    def __init__(self, place: Path, upstream: int) -> None:
        self.ports: dict[str, int] = {}
        lines = ["defaults", "  mode tcp", "  timeout connect 5s", "  timeout client 1h", "  timeout server 1h"]
        for name, options in PLACES.items():
            self.ports[name] = free_port()
            lines += [f"frontend {name}", f"  bind 127.0.0.1:{self.ports[name]} ssl {options.format(dir=place)}"]
            lines += ["  timeout client 500ms"] * (name == "idle") + ["  default_backend beanstalkd"]
        lines += ["backend beanstalkd", f"  server one 127.0.0.1:{upstream}", ""]
        config = place / f"haproxy-{self.ports['good']}.cfg"  # others may stand in the same place
        config.write_text("\n".join(lines))
        self._log = config.with_suffix(".log")
        self._command = [str(HAPROXY), "-db", "-f", str(config)]
        self._process: Any = None

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = gevent.subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._listens, 20)

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"haproxy ended: {self._log.read_text()}"
        with socket.socket() as sock:
            return bool(sock.connect_ex(("127.0.0.1", self.ports["good"])) == 0)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def uri(self, name: str, host: str = "localhost", scheme: str = "tls") -> str:
        return f"{scheme}://{host}:{self.ports[name]}"
