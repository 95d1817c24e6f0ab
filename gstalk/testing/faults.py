"""A network in a bad mood: a proxy in this hub that slows, stalls, slices and cuts what passes through it.

Directions are named as the client sees them: "up" is what it sends, "down" is what it is answered, "both" is either.
What a verb sets holds for the connections that are open and for those to come.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer

__all__ = ["Direction", "FaultProxy"]

Direction = Literal["up", "down", "both"]

_CHUNK = 65536
_LINGER = 1  # seconds that a side has to notice a cut


class FaultProxy:
    """A proxy on a free port of 127.0.0.1 whose moods change at run time. Also a context manager.

    A half-closed connection passes through as one. Nothing is changed before a verb is called.

    Args:
        upstream: The server's URI (``"beanstalk://127.0.0.1:11300"``, ``"unix:///path"``), or its host and port.
        on_data: Called with "up" or "down", the bytes as they came, and the connection's number (from 1), before
            anything is done to them. It must not wait.

    Attributes:
        connections: Connections accepted so far.
        bytes_up: Bytes passed on to the server.
        bytes_down: Bytes passed on to clients.
    """

    def __init__(
        self, upstream: str | tuple[str, int], *, on_data: Callable[[str, bytes, int], None] | None = None
    ) -> None:
        self._upstream = upstream
        self._on_data = on_data
        self._moods = {"up": _Mood(), "down": _Mood()}
        self._door: Literal["open", "refusing", "holding"] = "open"
        self._opened = Event()
        self._links: set[_Link] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve, spawn=Pool())
        self.connections = 0

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """Where the proxy listens: what `gstalk.dial` takes instead of the server's own."""
        return f"beanstalk://127.0.0.1:{self._server.server_port}"

    @property
    def bytes_up(self) -> int:
        return self._moods["up"].passed

    @property
    def bytes_down(self) -> int:
        return self._moods["down"].passed

    @property
    def open_connections(self) -> int:
        return len(self._links)

    def start(self) -> None:
        """Listen."""
        self._server.start()

    def stop(self) -> None:
        """Cut everything, and listen no more."""
        self.close_all()
        self._server.stop(0)

    # -- what passes -------------------------------------------------------------------------------------------

    def slice(self, size: int | None, direction: Direction = "both") -> None:
        """Send at most `size` bytes at a time; `None` ends it."""
        self.drip(size, 0, direction)

    def drip(self, size: int | None, seconds: float, direction: Direction = "both") -> None:
        """Send `size` bytes, wait, send `size` bytes, and so on; a size of `None` ends it."""
        for mood in self._of(direction):
            mood.size, mood.pause = size or _CHUNK, seconds if size else 0

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Keep everything that comes for so long; 0 ends it."""
        for mood in self._of(direction):
            mood.delay = seconds

    def stall(self, direction: Direction = "both") -> None:
        """Pass nothing on, and read nothing more, until `resume`."""
        for mood in self._of(direction):
            mood.flowing.clear()

    def resume(self, direction: Direction = "both") -> None:
        """End `stall`; what came meanwhile is passed on."""
        for mood in self._of(direction):
            mood.flowing.set()

    # -- ends --------------------------------------------------------------------------------------------------

    def cut(self, after: int, direction: Literal["up", "down"] = "down", *, reset: bool = False) -> None:
        """After so many more bytes, whichever connection carries the last of them is cut; once.

        With 0 that is the connection of the next byte, which does not pass. Both sides see an orderly end of stream
        (FIN), with `reset` a reset (RST). Another `cut` in the same direction replaces this one.
        """
        mood = self._moods[direction]
        mood.left, mood.reset = after, reset

    def reset(self) -> None:
        """Reset all connections (RST)."""
        for link in list(self._links):
            link.end(reset=True)

    def close_all(self) -> None:
        """Close all connections (FIN)."""
        for link in list(self._links):
            link.end()

    # -- the door ----------------------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Close new connections as soon as they are accepted, until `accept`."""
        self._door = "refusing"
        self._opened.set()

    def hold(self) -> None:
        """Accept new connections and leave them at that, until `accept`."""
        self._door = "holding"
        self._opened.clear()

    def accept(self) -> None:
        """End `refuse` and `hold`; connections that were held go on."""
        self._door = "open"
        self._opened.set()

    def _of(self, direction: Direction) -> list[_Mood]:
        return list(self._moods.values()) if direction == "both" else [self._moods[direction]]

    def _serve(self, client: Any, address: object) -> None:
        self.connections += 1
        link = _Link(client, self.connections)
        self._links.add(link)
        try:
            if self._door == "holding":
                link.run(self._opened.wait)
            if self._door == "open" and not link.ended:
                link.server = _connect(self._upstream)
                link.run(lambda: self._pump(link, "up"), lambda: self._pump(link, "down"))
        except OSError:
            pass  # there is no server: the client sees its connection close
        finally:
            self._links.discard(link)
            link.close()

    def _pump(self, link: _Link, direction: Literal["up", "down"]) -> None:
        mood = self._moods[direction]
        source, target = (link.client, link.server) if direction == "up" else (link.server, link.client)
        try:
            while True:
                mood.flowing.wait()
                data = source.recv(_CHUNK)
                if data and self._on_data is not None:
                    self._on_data(direction, data, link.number)
                if mood.delay:
                    gevent.sleep(mood.delay)
                mood.flowing.wait()
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                while data:
                    data = data[self._pass(link, mood, target, data) :]
                    if link.ended:
                        return
        except OSError:
            link.end(reset=True)  # what one side did to us, the other one sees

    def _pass(self, link: _Link, mood: _Mood, target: Any, data: bytes) -> int:
        """Send a piece; returns its size."""
        piece = data[: mood.size if mood.left is None else min(mood.size, mood.left)]
        if mood.left is not None:
            mood.left -= len(piece)
        is_last = mood.left == 0
        if is_last:
            mood.left = None
        target.sendall(piece)
        mood.passed += len(piece)
        if is_last:
            link.end(reset=mood.reset)
        elif mood.pause:
            gevent.sleep(mood.pause)
            mood.flowing.wait()
        return len(piece)


class _Mood:
    """How a direction is treated."""

    def __init__(self) -> None:
        self.size = _CHUNK
        self.pause = self.delay = 0.0
        self.flowing = Event()
        self.flowing.set()
        self.left: int | None = None  # bytes until the cut
        self.reset = False
        self.passed = 0


class _Link:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, client: Any, number: int) -> None:
        self.client = client
        self.server: Any = None
        self.number = number
        self.pumps: list[Any] = []
        self.ended = False
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, *functions: Callable[[], object]) -> None:
        """Run these until they return, or the link is ended."""
        self.pumps = [gevent.spawn(function) for function in functions]
        gevent.joinall(self.pumps)

    def end(self, *, reset: bool = False) -> None:
        """Cut both connections; does not wait."""
        if self.ended:
            return
        self.ended = True
        for sock in self._sockets():
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
            else:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
        gevent.killall([pump for pump in self.pumps if pump is not gevent.getcurrent()], block=False)

    def close(self) -> None:
        """Close what is left. What was sent to us meanwhile is read first, or the kernel would reset instead."""
        gevent.killall(self.pumps)  # they may still read, where it wasn't they who ended
        try:
            with gevent.Timeout(_LINGER, False):  # type: ignore[arg-type]  # the stubs lack False
                for sock in self._sockets():
                    with suppress(OSError):
                        while self.ended and sock.recv(_CHUNK):
                            pass
        finally:
            for sock in self._sockets():
                sock.close()

    def _sockets(self) -> list[Any]:
        return [sock for sock in (self.client, self.server) if sock is not None]


def _connect(upstream: str | tuple[str, int]) -> Any:
    if isinstance(upstream, str) and upstream.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(upstream.removeprefix("unix://"))
        except BaseException:
            sock.close()
            raise
        return sock
    if isinstance(upstream, str):
        host, _, port = upstream.removeprefix("beanstalk://").rpartition(":")
        upstream = host.strip("[]"), int(port)
    sock = socket.create_connection(upstream)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
