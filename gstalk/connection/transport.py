"""Sockets: connecting them, and moving bytes without ever waiting. Nothing here knows what the bytes mean.

Plain and TLS connections are the same non-blocking code; TLS is `SSLContext.wrap_bio` around it, which is public, the
same in every patch mode, and waits for nobody. `OSError` and `ssl.SSLError` end here: they leave as
`ConnectionLostError`, or from `connect` as `ConnectError`.

A wait and the socket call after it are separate steps, and only the call stands inside a `try`: the caller's own
`gevent.Timeout` may well raise an `OSError` of his at the wait, and that one must pass.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

import gevent
from gevent import socket, ssl
from gevent.hub import Hub
from gevent.monkey import get_original

from gstalk.connection import forks
from gstalk.connection.clock import monotonic
from gstalk.connection.forks import look, under_way
from gstalk.errors import ConnectError, ConnectionLostError
from gstalk.traces import bare
from gstalk.uri import Address, server_name

if TYPE_CHECKING:
    from socket import socket as Socket

    SockAddr = tuple[Any, ...] | str
else:
    # The standard library's own, patched or not: it never waits here, and gevent's costs a call more for each read and
    # send, and can't be closed when its loop is gone.
    Socket = get_original("socket", "socket")

__all__ = ["READ", "WRITE", "TlsTransport", "Transport", "connect", "wait"]

READ, WRITE = 1, 2  # libev's events
CHUNK = 65536  # a larger read makes a lone put half as slow again: each one allocates it whole
MUCH = 120_000  # what is read at once while the socket is full; from 128 KiB on the C library maps memory for each anew
RECORD = 16384  # the most that one TLS record holds
LEAVING = 0.1  # seconds for which a fork waits for look-ups under way

_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000))
_native_sleep = get_original("time", "sleep")  # in a fork nothing may switch
_native_close = get_original("os", "close")  # and gevent's may


def wait(hub: Hub, fd: int, events: int) -> None:
    """Wait until the descriptor is ready; without a limit, so callers hold a `gevent.Timeout`."""
    watcher = hub.loop.io(fd, events)
    try:
        hub.wait(watcher)
    finally:
        watcher.close()
    if under_way:
        look()


class Transport:
    """A connected, non-blocking socket.

    Attributes:
        sent: Bytes of all that was written which the kernel has taken.
    """

    __slots__ = ("__weakref__", "_backlog", "_chunk", "_sock", "sent")

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        self._backlog = bytearray()
        self._chunk = CHUNK
        self.sent = 0
        forks.register("transport", self, Transport._forked)

    def fileno(self) -> int:
        return self._sock.fileno()

    def write(self, data: bytes) -> bool:
        """Hand bytes to the kernel, and keep what it doesn't take. `True`: it took all."""
        if self._backlog:
            self._backlog += data
            return self.flush()
        taken = self._send(data)
        self.sent += taken
        if taken == len(data):
            return True
        with memoryview(data) as view:
            self._backlog += view[taken:]
        return False

    def flush(self) -> bool:
        """Try again to hand over what was kept. `True`: nothing is left."""
        while self._backlog:
            with memoryview(self._backlog) as view, view[: 4 * CHUNK] as part:
                taken = self._send(part)
            if not taken:
                return False
            self.sent += taken
            del self._backlog[:taken]
        return True

    def count_anew(self) -> None:
        """Have `sent` start at 0; all that was written before has been taken."""
        self.sent = 0

    def delivered(self) -> tuple[int, int]:
        """How many of the bytes that the kernel took have reached the other side, and how many have not yet."""
        return self._counted(self.sent)

    def _counted(self, taken: int) -> tuple[int, int]:
        try:
            waiting = struct.unpack("i", fcntl.ioctl(self._sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
        except OSError:  # a system that doesn't tell
            waiting = 0
        return taken - waiting, waiting

    def read(self) -> bytes | None:
        """Read what has come; `b""` at the end of the stream, `None` where nothing is there."""
        if under_way:
            look()
        try:
            data = self._sock.recv(self._chunk)
            self._chunk = CHUNK if len(data) < CHUNK else MUCH  # where much has come, more is on its way
            return data
        except BlockingIOError:
            return None
        except OSError as error:
            raise ConnectionLostError(_reason(error)) from error

    def half_close(self) -> bool:
        """Say that no more will come. `False` where that can't be said without ending the other direction too."""
        if under_way:
            look()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def sever(self) -> None:
        """End both directions, and keep the descriptor: for another thread, since only its own may close it.

        A number that is free could be another file's in the next moment, and the thread may be about to use it.
        """
        if under_way:
            look()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close at once, with nothing said."""
        self._sock.close()

    def _forked(self) -> None:
        """In a child: leave the parent's connection to the parent, with nothing said.

        The null device takes the descriptor's place, so that a greenlet which was copied in the middle of a dial wakes
        and finds no socket. With the number free it could wait for a file that somebody opens.
        """
        if self._sock.fileno() < 0:
            return
        try:
            null = os.open(os.devnull, os.O_RDWR)
            try:
                os.dup2(null, self._sock.fileno(), inheritable=False)
            finally:
                _native_close(null)
        except OSError:  # no descriptor left
            self._sock.close()

    def _send(self, data: bytes | memoryview) -> int:
        if under_way:
            look()
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLostError(_reason(error)) from error


class TlsTransport(Transport):
    """The same with TLS inside. `sent` counts the plain bytes of records that the kernel has taken whole."""

    __slots__ = ("_incoming", "_outgoing", "_plain", "_records", "_taken", "_tls", "_written")

    def __init__(self, sock: Socket, context: ssl.SSLContext, hostname: str) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=hostname)
        self._plain = 0  # plain bytes encrypted so far
        self._written = 0  # encrypted bytes put into the backlog so far
        self._taken = 0  # and taken by the kernel
        # Where each record ends, plain and encrypted. The server can't read a part of one, so half a record is unsent.
        self._records: deque[tuple[int, int]] = deque()

    def handshake(self) -> int:
        """Go on with the handshake as far as it goes; returns the event to wait for, 0 when it is done."""
        if not self.flush():
            return WRITE
        if self._feed():
            raise ConnectionLostError("the server closed the connection in the handshake")
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            self._pull()
            self.flush()  # the alert that tells the server why
            raise ConnectionLostError(_reason(error)) from error
        self._pull()
        if not self.flush():
            return WRITE
        return 0 if done else READ

    def write(self, data: bytes) -> bool:
        with memoryview(data) as view:
            for start in range(0, len(data), RECORD):
                with view[start : start + RECORD] as part:
                    self._encrypt(part)
        return self.flush()

    def flush(self) -> bool:
        while self._backlog:
            with memoryview(self._backlog) as view, view[: 4 * CHUNK] as part:
                taken = self._send(part)
            if not taken:
                return False
            del self._backlog[:taken]
            self._taken += taken
            while self._records and self._records[0][1] <= self._taken:
                self.sent = self._records.popleft()[0]
        return True

    def count_anew(self) -> None:
        self.sent = self._plain = 0

    def delivered(self) -> tuple[int, int]:
        return self._counted(self._taken)

    def read(self) -> bytes | None:
        ended = self._feed()
        parts = []
        try:
            while part := self._tls.read(CHUNK):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            # What was decrypted before it is good; the error comes again at the next read.
            if not parts and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                raise ConnectionLostError(_reason(error)) from error
            ended = True
        self._pull()  # TLS answers key updates while it reads
        if self._backlog:
            self.flush()
        if parts:
            return b"".join(parts)
        return b"" if ended else None

    def half_close(self) -> bool:
        return False  # a close_notify ends both directions

    def _feed(self) -> bool:
        data = super().read()
        if data:
            self._incoming.write(data)
        elif data == b"":
            self._incoming.write_eof()
            return True
        return False

    def _encrypt(self, part: memoryview) -> None:
        try:
            self._tls.write(part)
        except ssl.SSLError as error:
            raise ConnectionLostError(_reason(error)) from error
        self._pull()
        self._plain += len(part)
        self._records.append((self._plain, self._written))

    def _pull(self) -> None:
        data = self._outgoing.read()
        self._written += len(data)
        self._backlog += data


def connect(hub: Hub, address: Address, context: ssl.SSLContext | None, deadline: float | None) -> Transport:
    """Connect a socket, TLS included.

    Each address that a name stands for gets its share of the time left, so that one which swallows packets leaves
    time for the others.

    Args:
        hub: The hub that waits.
        address: Where to.
        context: For TLS; `None` makes one that trusts the system's CAs and checks the host's name.
        deadline: When the caller's timeout ends, by `time.monotonic`; `None`: never.

    Raises:
        ConnectError: The last of the addresses' reasons.

    Blocks:
        Until connected; the caller bounds it with a `gevent.Timeout`.
    """
    places = _resolve(hub, address)
    refusals: list[ConnectError] = []
    for number, (family, place) in enumerate(places, 1):
        left = len(places) - number
        share = None
        if deadline is not None and left:
            share = gevent.Timeout(max(deadline - monotonic(), 0) / (left + 1))
            share.start()
        try:
            made = _connect_one(hub, address, family, place, context)
        except gevent.Timeout as timeout:
            if timeout is not share:
                raise
            made = ConnectError(f"connect to {address}: no answer in time")
        finally:
            if share is not None:
                share.close()
                share = None  # when it has struck, its traceback holds this frame
        if isinstance(made, Transport):
            return made
        refusals.append(made)
        del made
    if not refusals:
        raise ConnectError(f"connect to {address}: the name stands for no address")
    raise refusals.pop()  # out of this frame, which its traceback holds


def _connect_one(
    hub: Hub, address: Address, family: int, place: SockAddr, context: ssl.SSLContext | None
) -> Transport | ConnectError:
    """Try one address. What goes wrong is returned: what is raised is the caller's own."""
    try:
        sock = Socket(family, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor left
        return _refused(address, error)
    transport = Transport(sock)
    connected = False
    try:
        sock.setblocking(False)
        try:
            code = sock.connect_ex(place)
        except OSError as error:
            return _refused(address, error)
        if waits := code == errno.EINPROGRESS:  # EAGAIN: a unix socket's backlog is full, and nothing is under way
            wait(hub, sock.fileno(), WRITE)
        try:
            if waits:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            if family != socket.AF_UNIX:
                _tune(sock)
        except OSError as error:
            return _refused(address, error)
        if address.is_tls:
            try:
                transport = tls = TlsTransport(sock, context or _default_context(), server_name(str(address.host)))
            except (OSError, ValueError) as error:  # a context for servers, for instance
                return _refused(address, error, "TLS: ")
            events = WRITE
            while events:
                try:
                    events = tls.handshake()
                except ConnectionLostError as error:
                    return _refused(address, error, "TLS: ")
                if events:
                    wait(hub, sock.fileno(), events)
        connected = True
        return transport
    finally:
        if not connected:
            transport.close()


def _refused(address: Address, error: BaseException | None, what: str = "") -> ConnectError:
    refused = ConnectError(f"connect to {address}: {what}{_reason(error)}")
    refused.__cause__ = None if error is None else bare(error)
    return refused


def _resolve(hub: Hub, address: Address) -> list[tuple[int, SockAddr]]:
    """Look the address up; a path or a number asks nobody."""
    if address.path is not None:
        return [(socket.AF_UNIX, address.path)]
    host, port = str(address.host), int(address.port or 0)
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    # One look-up for all who ask: a resolver that hangs must not take one of gevent's few threads for each dial.
    key = (hub, host, port)
    lookup = _lookups.by_key.get(key)
    if lookup is None:
        lookup = _lookups.by_key[key] = gevent.spawn(_look_up, key)
    lookup.join()
    found = lookup.value
    if not isinstance(found, list):
        raise _refused(address, found)
    return [(family, place) for family, _, _, _, place in found]


def _look_up(key: tuple[Hub, str, int]) -> object:
    try:
        return socket.getaddrinfo(key[1], key[2], type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, RuntimeError) as error:  # the last one where the interpreter's exit has begun
        return error.with_traceback(None)  # its frames hold what holds it: this greenlet, and gevent's thread's result
    finally:
        if _lookups.by_key.get(key) is gevent.getcurrent():  # a child may have begun another one
            del _lookups.by_key[key]


def _tune(sock: Socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:  # Linux has them all, other systems some
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@cache  # reading the system's CAs holds the hub for some 16 ms: once, not for each dial
def _default_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(error: BaseException | None) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    text = getattr(error, "strerror", None) or str(error)
    return str(text).lower() if text else type(error).__name__


class _Lookups:
    """Look-ups under way, by who asks for what."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[Hub, str, int], gevent.Greenlet[..., Any]] = {}

    def let_them_leave(self) -> None:
        """Before a fork: let gevent's threads leave the C library's locks.

        A child that inherits one held can't look up again. Those who wait for the network hold none, so a moment is
        enough.
        """
        end = monotonic() + LEAVING
        while monotonic() < end and any(len(hub.threadpool) for hub, _, _ in list(self.by_key)):
            _native_sleep(0.001)

    def forked(self) -> None:
        """In a child: end those who wait for a thread that isn't there."""
        for (hub, _, _), lookup in list(self.by_key.items()):
            if forks.is_here(hub):
                lookup.kill(block=False)
        self.by_key.clear()


_lookups = _Lookups()
forks.prepare(_lookups.let_them_leave)
forks.register("look-ups", _lookups, _Lookups.forked)
