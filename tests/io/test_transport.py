"""A socket that can't be opened, a server that leaves in the middle of something, a line that is full."""

from __future__ import annotations

import errno
import fcntl
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

import gstalk
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.transport import Transport
from gstalk.testing import FaultProxy
from tests.servers import ok, wait_until

pytestmark = pytest.mark.real


@contextmanager
def serving(handle: Callable[[Any, Any], None], path: Path | None = None) -> Iterator[str]:
    listener: Any = ("127.0.0.1", 0)
    if path is not None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
    server = StreamServer(listener, handle)
    server.start()
    try:
        yield f"unix://{path}" if path else f"127.0.0.1:{server.server_port}"
    finally:
        server.stop(0)


def make_narrow(pipe: Pipeline) -> None:
    """Have a socket be full soon: the kernel would take more at once than we ever have under way."""
    assert pipe._transport is not None
    pipe._transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


@pytest.fixture
def narrow(server) -> Iterator[tuple[FaultProxy, gstalk.Conn]]:
    with FaultProxy(server.uri) as proxy, gstalk.dial(proxy.uri, conn_timeout=30) as conn:
        make_narrow(conn._connection.pipe)
        yield proxy, conn


def test_dial_without_a_free_descriptor_raises_connect_error(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = socket.socket()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
    lowest.close()
    try:
        with pytest.raises(gstalk.ConnectError) as caught:
            gstalk.dial(server.uri)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.sent == "no"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EMFILE
    gstalk.dial(server.uri).close()


def test_dial_of_a_tls_server_that_leaves_in_the_handshake_raises_connect_error():
    def handle(sock, address):
        sock.recv(65536)
        sock.shutdown(socket.SHUT_WR)

    with serving(handle) as uri, pytest.raises(gstalk.ConnectError, match="TLS") as caught:
        gstalk.dial(f"tls://{uri}")
    assert caught.value.sent == "no"


def test_dial_whose_first_command_cannot_be_sent_raises_connect_error(server, monkeypatch):
    def refuse(self: Transport, data: bytes) -> bool:
        raise gstalk.ConnectionLostError("connection reset by peer")

    monkeypatch.setattr(Transport, "write", refuse)
    with pytest.raises(gstalk.ConnectError, match="connection reset by peer"):
        gstalk.dial(server.uri)


def test_reply_that_came_before_the_end_is_read_when_a_send_fails(tmp_path):
    late: list[gstalk.ConnectionLostError] = []

    def handle(sock, address):
        sock.recv(100)
        sock.sendall(ok("---\nid: 4a\n"))
        sock.recv(100)
        sock.sendall(b"INSERTED 7\r\n")
        sock.close()
        # In the same turn of the loop: the next command is sent before the reply is read.
        try:
            conn.put("default", b"second")
        except gstalk.ConnectionLostError as error:
            late.append(error)

    with serving(handle, tmp_path / "socket") as uri:
        conn = gstalk.dial(uri)
        assert conn.put("default", b"first") == 7
        wait_until(lambda: late)
        assert late[0].sent == "no"
        assert not conn.is_connected


def test_callers_interrupted_while_the_line_is_full_leave_it_to_the_others(server, other, tube):
    with FaultProxy(server.uri) as proxy, gstalk.dial(proxy.uri) as conn:
        conn.use(tube)
        proxy.stall()
        puts = [gevent.spawn(conn.put, tube, b"%d" % n, delay=1000) for n in range(2500)]
        gevent.sleep(0.05)
        wait_until(lambda: len(conn._connection.pipe._room) > 1000)
        killed = [put for n, put in enumerate(puts) if n % 3 == 0]
        gevent.killall(killed)
        proxy.resume()
        ids = [put.get(timeout=10) for put in puts if put not in killed]
        assert len(set(ids)) == len(ids) == 2500 - len(killed)
        # Of those that were killed, the ones that had room were sent, the ones that waited for it were not.
        assert len(ids) < other.stats_tube(tube).current_jobs_delayed < 2500


def test_large_commands_wait_for_a_full_socket_and_all_arrive(narrow, other, tube):
    proxy, conn = narrow
    proxy.stall("up")
    puts = [gevent.spawn(conn.put, tube, b"x" * 60000, delay=1000) for _ in range(200)]
    wait_until(lambda: conn._connection.pipe._progress.is_blocked)
    proxy.resume()
    assert len({put.get(timeout=10) for put in puts}) == 200
    assert other.stats_tube(tube).current_jobs_delayed == 200


def test_connection_cut_while_its_socket_is_full_tells_what_was_not_sent(narrow, tube):
    proxy, conn = narrow
    proxy.stall("up")
    puts = [gevent.spawn(conn.put, tube, b"x" * 60000, delay=1000) for _ in range(200)]
    wait_until(lambda: conn._connection.pipe._progress.is_blocked)
    proxy.reset()
    gevent.joinall(puts, timeout=5, raise_error=False)
    errors = [put.exception for put in puts if isinstance(put.exception, gstalk.ConnectionLostError)]
    assert len(errors) == 200
    said = [error.sent for error in errors]
    assert said[-1] == "no"
    assert said == sorted(said)  # "maybe" for the first ones, "no" for those behind them


def test_close_behind_a_full_socket_calls_nothing_unsent_that_it_still_sends(narrow, other, tube):
    proxy, conn = narrow
    job = conn.reserve_job(conn.put(tube, b"held"))
    proxy.stall("up")
    puts = [gevent.spawn(conn.put, tube, b"x" * 60000, delay=1000) for _ in range(10)]
    wait_until(lambda: conn._connection.pipe._progress.is_blocked)
    delete = gevent.spawn(job.delete)
    gevent.sleep(0)
    close = gevent.spawn(conn.close)
    gevent.joinall(puts, timeout=5, raise_error=False)
    assert [getattr(put.exception, "sent", None) for put in puts] == ["maybe"] * 10
    proxy.resume()
    delete.get(timeout=10)
    close.get(timeout=10)
    assert other.stats_tube(tube).current_jobs_delayed == 10  # the delete stood behind them


def test_producers_put_in_a_full_line_whose_time_is_over_may_have_been_sent(server, other, tube):
    with FaultProxy(server.uri) as proxy, gstalk.Producer(proxy.uri, conn_timeout=30) as producer:
        assert producer.wait_connected(5)
        make_narrow(producer._queue.pool.connections[0].pipe)
        proxy.stall("up")
        puts = [gevent.spawn(producer.put, tube, b"x" * 60000, delay=1000, timeout=0.3) for _ in range(15)]
        gevent.joinall(puts, timeout=5, raise_error=False)
        assert [getattr(put.exception, "sent", None) for put in puts] == ["maybe"] * 15
        proxy.resume()
        wait_until(lambda: other.stats_tube(tube).current_jobs_delayed == 15)


def test_room_used_behind_the_writers_back_is_progress(server, tube, monkeypatch):
    """A flush may use the room in the socket before the watcher for it is called, and TLS sends when it reads."""
    sends = Transport._send
    room = [True]
    monkeypatch.setattr(Transport, "_send", lambda self, data: sends(self, data[:1000]) if room[0] else 0)
    with gstalk.dial(server.uri, conn_timeout=0.3) as conn:
        transport = conn._connection.pipe._transport
        assert transport is not None
        room[0] = False
        put = gevent.spawn(conn.put, tube, b"x" * 60000, delay=1000)
        for _ in range(40):
            gevent.sleep(0.02)
            room[0] = True
            taken = transport._send(bytes(transport._backlog))
            del transport._backlog[:taken]
            transport.sent += taken
            room[0] = False
        room[0] = True
        assert put.get(timeout=10)


def test_read_takes_more_at_once_while_much_is_there():
    """A stream of large bodies takes half of the reads; a small reply pays nothing for it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            for which in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, which, 1 << 20)
        ours.setblocking(False)
        transport = Transport(ours)
        theirs.setblocking(False)
        sent = sum(theirs.send(bytes(1000)) for _ in range(140))
        sizes = []
        while (data := transport.read()) is not None:
            sizes.append(len(data))
        theirs.send(bytes(100))
        sizes.append(len(transport.read() or b""))
        assert sizes == [65536, sent - 65536, 100]


def test_delivered_where_the_system_does_not_tell_is_all_that_it_took(server, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    with gstalk.dial(server.uri) as conn:
        transport = conn._connection.pipe._transport
        assert transport is not None
        conn.put("t", b"x")
        monkeypatch.setattr(fcntl, "ioctl", refuse)
        assert transport.delivered() == (transport.sent, 0)
        assert transport.sent > 0
