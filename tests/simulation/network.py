"""Sockets in memory that behave as Linux's do: what a send takes, what a read finds, how a connection ends.

A connection is two `Endpoint`s. Bytes travel in pieces, each after its latency and never past another; a sender's
buffer and the receiver's are one capacity. The ends:

- **close** with everything read: the other side finds the end of the stream behind the bytes. With something unread:
  a reset instead. What comes for a closed socket is answered with a reset.
- **reset**: what had arrived can still be read, then one read or send fails with ECONNRESET; from then on a read finds
  the end, and a send fails with EPIPE. Where the end of the stream had come before, a read finds that, and sends fail.
- **half-close**: the bytes that were sent arrive, then the end; the other direction goes on.
- a send to a process that is gone is taken; the answer, a reset, comes a round trip later.
- what is sent and never acknowledged ends the connection after `USER_TIMEOUT`, a line that is silent for ever after
  `KEEPALIVE`: ETIMEDOUT, as gstalk asks the kernel for it.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.loop import READ, WRITE, VirtualLoop

__all__ = ["Endpoint", "Line", "SimulatedSocket", "network_of"]

USER_TIMEOUT, KEEPALIVE = 20.0, 30.0
FOREVER = float("inf")
FIN, RST = b"FIN", b"RST"


class Line:
    """How one connection's packets travel.

    Attributes:
        latency: Seconds that a piece takes at least.
        jitter: Seconds that it may take on top.
        slicing: The chance that what is sent arrives in several pieces.
        capacity: Bytes that may be on their way, or wait to be read, in each direction.
    """

    __slots__ = ("capacity", "jitter", "latency", "rng", "slicing")

    def __init__(self, rng: Random, latency: float, jitter: float, slicing: float, capacity: int) -> None:
        self.rng = rng
        self.latency, self.jitter, self.slicing, self.capacity = latency, jitter, slicing, capacity

    def delay(self) -> float:
        return self.latency + self.jitter * self.rng.random()


class Endpoint:
    """One side of a connection, as its kernel has it.

    Attributes:
        notify: Called when there may be something to read, or room to write.
        peer: The other side.
        stalled_until: Nothing from this side arrives before.
    """

    def __init__(self, loop: VirtualLoop, line: Line) -> None:
        self.loop = loop
        self.line = line
        self.peer: Endpoint = self
        self.notify: Callable[[], None] = lambda: None
        self.received = bytearray()
        self.has_end = False  # the other side's end of the stream has come
        self.error = 0
        self.is_reset = self.is_closed = self.is_shut = False
        self.is_connected = False
        self.stalled_until = 0.0
        self.record: bytearray | None = None  # all that was ever sent, where somebody wants to know
        self._on_way: deque[tuple[float, bytes | bytearray, bytes]] = deque()  # when, data, or FIN and RST
        self._in_flight = 0
        self._is_pumping = False

    # -- what a program does -----------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        return self.line.capacity - self._in_flight - len(self.peer.received)

    def ready(self) -> int:
        if self.error or self.is_reset:
            return READ | WRITE
        events = READ if self.received or self.has_end else 0
        if self.is_connected:
            capacity = self.line.capacity
            if 3 * (capacity - self._in_flight - len(self.peer.received)) >= capacity:
                events |= WRITE
        return events

    def send(self, data: bytes | bytearray | memoryview) -> int:
        self._raise_error()
        if self.is_reset or self.is_shut:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        taken = min(self.room, len(data)) if self.is_connected else 0
        if taken <= 0 < len(data):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        line = self.line
        part = bytes(data[:taken])
        if self.record is not None:
            self.record += part
        if taken > 1 and line.rng.random() < line.slicing:
            cuts = sorted(line.rng.randrange(1, taken) for _ in range(line.rng.randint(1, 3)))
            for start, end in itertools.pairwise([0, *cuts, taken]):
                if start < end:
                    self._travel(part[start:end], b"")
        elif taken:
            self._travel(part, b"")
        self._in_flight += taken
        return taken

    def recv(self, size: int) -> bytes:
        received, peer = self.received, self.peer
        if received:
            if 3 * peer.room < self.line.capacity:  # else the other side could send all the time
                self.loop.after(self.line.delay(), peer.notified)
            data = bytes(received[:size])
            del received[:size]
            return data
        if self.has_end:  # for a read the end of the stream comes before any error
            return b""
        self._raise_error()
        if self.is_reset:
            return b""
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def shut(self) -> None:
        if self.is_reset or not self.is_connected:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if not self.is_shut:
            self.is_shut = True
            self._travel(b"", FIN)

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self.is_reset or not self.is_connected:
            return
        if self.received:
            self.received.clear()
            self._travel(b"", RST)
            self.is_reset = True
        elif not self.is_shut:
            self.is_shut = True
            self._travel(b"", FIN)

    @property
    def has_unread_reply(self) -> bool:
        """Whether a whole line has come, and then the end, which wasn't this side's doing."""
        return (self.has_end or self.is_reset) and not self.is_shut and b"\r\n" in self.received

    def _raise_error(self) -> None:
        if self.error:
            error, self.error = self.error, 0
            raise OSError(error, os.strerror(error))

    # -- what the network does ---------------------------------------------------------------------------------

    def notified(self) -> None:
        """The other side has read something."""
        self.notify()

    def fail(self, error: int) -> None:
        """The kernel gives the connection up."""
        if not self.is_reset and not self.is_closed:
            self.error = error
            self.is_reset = True
            self.notify()

    def cut(self, with_reset: bool = True) -> None:
        """What is on its way is lost, and both sides find the connection reset."""
        for side in (self, self.peer):
            side._on_way.clear()
            side._in_flight = 0
        if with_reset:
            for side in (self, self.peer):
                side.fail(errno.EPIPE if side.has_end else errno.ECONNRESET)

    def stall(self, seconds: float) -> None:
        """Nothing from this side arrives for so long; with infinity, never again."""
        self.stalled_until = max(self.stalled_until, self.loop.time + seconds)
        if seconds == FOREVER:
            self.loop.after(USER_TIMEOUT if self._in_flight else KEEPALIVE, self._given_up)

    def _given_up(self) -> None:
        self.fail(errno.ETIMEDOUT)

    def _travel(self, data: bytes | bytearray, kind: bytes) -> None:
        on_way = self._on_way
        when = self.loop.time + self.line.delay()
        if on_way and on_way[-1][0] > when:
            when = on_way[-1][0]
        on_way.append((when, data, kind))
        if not self._is_pumping:
            self._is_pumping = True
            self._pump_at(on_way[0][0])

    def _pump_at(self, when: float) -> None:
        if when < self.stalled_until:
            when = self.stalled_until
        if when == FOREVER:
            self._is_pumping = False
        else:
            self.loop.at(when, self._pump)

    def _pump(self) -> None:
        now, on_way = self.loop.time, self._on_way
        arrived = False
        while on_way and on_way[0][0] <= now and self.stalled_until <= now:
            _, data, kind = on_way.popleft()
            self._arrive(data, kind)
            arrived = True
            if self.line.rng.random() < 0.5:
                break  # whoever reads may find this piece alone
        if on_way:
            self._pump_at(max(on_way[0][0], now))
        else:
            self._is_pumping = False
        if arrived:
            self.peer.notify()

    def _arrive(self, data: bytes | bytearray, kind: bytes) -> None:
        peer = self.peer
        self._in_flight -= len(data)
        if kind == RST:
            peer.fail(errno.EPIPE if peer.has_end else errno.ECONNRESET)
        elif peer.is_reset:
            return
        elif kind == FIN:
            peer.has_end = True
        elif peer.is_closed:  # nobody reads that any more
            peer.is_reset = True
            peer._travel(b"", RST)
        else:
            peer.received += data


class SimulatedSocket:
    """The socket that gstalk gets, as much of it as gstalk uses. `network` is the world that it belongs to."""

    network: Any = None  # whoever connects: `connect(socket, place)`; set while a world runs

    def __init__(self, family: int = -1, kind: int = -1) -> None:
        self.watchers: dict[Any, None] = {}
        self.endpoint: Endpoint | None = None
        self._fd = self.network.opened(self)

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockopt(self, *_: object) -> int:
        assert self.endpoint is not None
        error, self.endpoint.error = self.endpoint.error, 0
        return error

    def connect_ex(self, place: tuple[str, int]) -> int:
        return self.network.connect(self, place)

    def ready(self) -> int:
        return self.endpoint.ready() if self.endpoint is not None else 0

    def send(self, data: bytes | memoryview) -> int:
        return self._open().send(data)

    def recv(self, size: int) -> bytes:
        return self._open().recv(size)

    def shutdown(self, how: int) -> None:
        self._open().shut()
        self.network.half_closed(self)

    def close(self) -> None:
        if self._fd >= 0:
            self.network.closed(self)
            self._fd = -1
            if self.endpoint is not None:
                self.endpoint.close()

    def _open(self) -> Endpoint:
        if self._fd < 0 or self.endpoint is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.endpoint


def network_of(network: Any) -> type[SimulatedSocket]:
    """The class of the sockets of one world."""
    return type("Socket", (SimulatedSocket,), {"network": network})
