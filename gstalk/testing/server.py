"""A beanstalkd for tests and development, in this process: `Engine` behind a socket.

It runs in the hub of the thread that starts it, so its clients must be greenlets of that hub, or other processes.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any

import gevent
from gevent import get_hub, socket

from gstalk.connection.clock import monotonic
from gstalk.testing.engine import Engine
from gstalk.testing.wire import Client

__all__ = ["Server"]

BACKLOG = 1 << 20  # bytes that wait for a slow reader before nothing more is read from it
LOOK = 0.01  # seconds between two looks at a clock that somebody else moves


class Server:
    """An in-memory server that speaks the whole protocol. Also a context manager.

    Args:
        host: Where to listen.
        port: 0 takes a free one.
        unix: Listen on a unix socket instead: at this path, in place of a socket that is there already, or with `True`
            in a directory of its own.
        max_job_size: The largest body, in bytes.
        clock: Tells the server's time, in seconds that never go backwards; it may jump. What is due by it happens
            within 10 ms. `None`: the machine's own clock, which tools that freeze time don't replace.
        silent_expiry: Whether a job whose time to run is over becomes ready then, as the protocol says. `False`: when
            its holder next says something, or goes. The real server is in between: it misses most of the times that
            run out while their holder is silent.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix: bool | str = False,
        max_job_size: int = 65535,
        clock: Callable[[], float] | None = None,
        silent_expiry: bool = True,
    ) -> None:
        self._host = host
        self._port = port
        self._directory = tempfile.mkdtemp(prefix="gstalk-") if unix is True else None
        self._path = os.path.abspath(unix) if isinstance(unix, str) else f"{self._directory}/socket" if unix else None
        self._max_job_size = max_job_size
        self._silent_expiry = silent_expiry
        self._clock = clock or monotonic
        self._may_jump = clock is not None
        self._is_frozen = False
        self._ahead = 0.0
        self._listener: Any = None
        self._acceptor: Any = None
        self._timer: Any = None
        self._links: dict[Client, _Link] = {}
        self.engine = self._new_engine()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """Where it listens, once it has started: what `gstalk.dial` takes."""
        if self._path is not None:
            return f"unix://{self._path}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"beanstalk://{host}:{self._port}"

    def now(self) -> float:
        """The server's time."""
        return self._clock() + self._ahead

    def freeze(self) -> None:
        """Stop the server's time, for good: from here on only `advance` moves it."""
        now = self.now()
        self._clock, self._ahead, self._is_frozen = (lambda: now), 0.0, True

    def advance(self, seconds: float) -> None:
        """Move the server's time on: what is due by then happens now, one thing after the other."""
        end = self.now() + seconds
        while (due := self.engine.next_deadline) is not None and due <= end:
            self._ahead += max(due - self.now(), 0)
            self.settle(due)
        self._ahead += max(end - self.now(), 0)
        self.settle()

    def drain(self) -> None:
        """Take no new jobs, until `restart`."""
        self.engine.is_draining = True

    def start(self) -> None:
        """Listen."""
        place: Any = self._path or (self._host, self._port)
        if self._path is not None:
            family = socket.AF_UNIX
            if self._directory is not None:
                os.makedirs(self._directory, exist_ok=True)
            _remove_socket(self._path)
        else:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(1024)
        except BaseException:
            listener.close()
            raise
        if self._path is None:
            self._port = listener.getsockname()[1]
        self._listener = listener
        self._acceptor = gevent.spawn(self._accept)

    def stop(self) -> None:
        """Close everything, and forget the jobs; `start` begins again in the same place."""
        if self._acceptor is not None:
            self._acceptor.kill()
            self._listener.close()
            self._acceptor = self._listener = None
            if self._path is not None:
                _remove_socket(self._path)
        self.disconnect_all()
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self.engine = self._new_engine()

    def _new_engine(self) -> Engine:
        return Engine(self._max_job_size, self.now(), self._silent_expiry)

    def restart(self) -> None:
        """Drop all connections and jobs, and begin again in the same place: ids from 1, another instance id."""
        self.stop()
        self.start()

    def disconnect_all(self) -> None:
        """Cut all connections; the jobs stay."""
        for link in list(self._links.values()):
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                gevent.sleep(0.1)  # out of descriptors, or the client has gone already
                continue
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(self.engine)
            self._links[client] = link = _Link(self, client, sock)
            link.start()

    def settle(self, now: float = 0) -> None:
        """Do what is due, send what is to be sent, and set the timer for what comes next.

        Args:
            now: A time that has been reached, whatever rounding says.
        """
        self.engine.run(max(now, self.now()))
        while self.engine.talking:
            client, _ = self.engine.talking.popitem()
            link = self._links.get(client)
            if link is not None:
                link.flush()
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        due = self.engine.next_deadline
        if due is not None and self._listener is not None and not self._is_frozen:
            pause = max(due - self.now(), 0.0005)
            self._timer = get_hub().loop.timer(min(pause, LOOK) if self._may_jump else pause)
            self._timer.start(self.settle, update=True)

    def forget(self, client: Client) -> None:
        self._links.pop(client, None)


def _remove_socket(path: str) -> None:
    """Remove what a server has left there; a file of any other kind stays, and is in the way."""
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass


class _Link:
    """A connection's socket: one greenlet reads; what a full socket does not take, another one writes."""

    def __init__(self, server: Server, client: Client, sock: Any) -> None:
        self._server = server
        self._client = client
        self._sock = sock
        self._reader: Any = None
        self._writer: Any = None

    def start(self) -> None:
        self._client.is_gone = self._is_gone
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        server, client = self._server, self._client
        while self._take():
            server.settle()
            while len(client.out) > BACKLOG and self._writer is not None:
                self._writer.join()
        client.half_close()
        server.settle()

    def _take(self) -> bool:
        """Take what has come; returns whether more may come.

        Whether the client has said its last must be known before what it has said is carried out.
        """
        try:
            data = self._sock.recv(65536)
        except OSError:
            return False
        self._client.take(data)
        return bool(data) and self._take_at_once()

    def _take_at_once(self) -> bool:
        """Take what there is without waiting."""
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            self._sock.settimeout(timeout)
        self._client.take(data)
        return bool(data)

    def _send(self) -> bool:
        """Send what can be sent without waiting; returns whether the client takes it."""
        out = self._client.out
        timeout = self._sock.gettimeout()
        self._sock.settimeout(0)
        try:
            sent = self._sock.send(out) if out else 0
            del out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            out.clear()
            return False
        finally:
            self._sock.settimeout(timeout)
        return True

    def _is_gone(self) -> bool:
        return self._writer is None and not self._send()

    def flush(self) -> None:
        """Send without waiting; never switches."""
        if self._writer is None and self._sock.fileno() >= 0:
            self._send()
            if self._client.out:
                self._writer = gevent.spawn(self._write)
            elif self._client.ended:
                self.close()

    def _write(self) -> None:
        out = self._client.out
        try:
            while out:
                part = bytes(out[:65536])
                del out[: len(part)]
                self._sock.sendall(part)
        except OSError:
            out.clear()
        finally:
            self._writer = None
        if self._client.ended:
            self.close()

    def close(self) -> None:
        self._server.forget(self._client)
        self._client.close(self._server.now())
        self._sock.close()
        if self._reader is not None and self._reader is not gevent.getcurrent():
            self._reader.kill(block=False)
        self._server.settle()
