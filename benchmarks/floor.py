"""The floor: the least that a gevent program does to share a connection between greenlets.

It has one watcher, sends once in a turn of the event loop, and knows the replies that it hopes for. It checks nothing,
ends no wait, survives no error, and would hang at the first surprise: what gstalk costs beyond it is the price of that.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from typing import Any
from urllib.parse import urlsplit

from gevent import get_hub, getcurrent

from benchmarks.cases import Case
from benchmarks.clients import bodies, gather, tubes
from benchmarks.meter import Meter

__all__ = ["FLOORS"]


class Floor:
    """A connection that greenlets share."""

    def __init__(self, uri: str, tube: str) -> None:
        parts = urlsplit(uri)
        self._sock = socket.create_connection((str(parts.hostname), int(parts.port or 0)))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.sendall(f"use {tube}\r\nwatch {tube}\r\nignore default\r\n".encode())
        with self._sock.makefile("rb", buffering=0) as replies:
            for _ in range(3):
                replies.readline()
        self._sock.setblocking(False)
        self._hub = get_hub()
        self._out: list[bytes] = []
        self._waiting: deque[Any] = deque()
        self._rest = b""
        self._reader = self._hub.loop.io(self._sock.fileno(), 1)
        self._reader.start(self._read)

    def close(self) -> None:
        self._reader.close()
        self._sock.close()

    def put(self, body: bytes) -> int:
        job_id: int = self._call(b"put %d %d %d %d\r\n%b\r\n" % (1024, 0, 60, len(body), body))
        return job_id

    def reserve(self) -> tuple[int, bytes]:
        job: tuple[int, bytes] = self._call(b"reserve-with-timeout 0\r\n")
        return job

    def delete(self, job_id: int) -> None:
        self._call(b"delete %d\r\n" % job_id)

    def _call(self, data: bytes) -> Any:
        if not self._out:
            self._hub.loop.run_callback(self._flush)
        self._out.append(data)
        self._waiting.append(getcurrent())
        return self._hub.switch()

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        while data:  # a full socket has the whole program wait
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                select.select([], [self._sock], [])

    def _read(self) -> None:
        data, at = self._rest + self._sock.recv(65536), 0
        while (end := data.find(b"\r\n", at)) >= 0:
            word, *numbers = data[at:end].split()
            reply: Any = None
            if word == b"INSERTED":
                reply = int(numbers[0])
            elif word == b"RESERVED":
                body, end = end + 2, end + 2 + int(numbers[1])
                if len(data) < end + 2:
                    break
                reply = int(numbers[0]), data[body:end]
            at = end + 2
            self._waiting.popleft().switch(reply)
        self._rest = data[at:]


def put(case: Case, uris: list[str], meter: Meter) -> None:
    floor, body = Floor(uris[0], tubes(case)[0]), bodies(case)
    gather(case, lambda number: floor.put(body), meter)
    floor.close()


def work(case: Case, uris: list[str], meter: Meter) -> None:
    floor = Floor(uris[0], tubes(case)[0])
    gather(case, lambda number: floor.delete(floor.reserve()[0]), meter)
    floor.close()


FLOORS = {"put": put, "work": work}
