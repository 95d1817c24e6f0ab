"""Each mood of the proxy, seen from a client's and a server's raw socket."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.queue import Queue
from gevent.server import StreamServer

from gstalk.testing import FaultProxy, Server
from tests.servers import wait_until


class Ends:
    """A proxy between a listening socket and its clients; `pair` gives both ends of a new connection."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, int]] = []
        self._accepted: Queue[Any] = Queue()
        self._sockets: list[Any] = []
        self._listener = StreamServer(("127.0.0.1", 0), self._keep)
        self._listener.start()
        self.proxy = FaultProxy(self._listener.address, on_data=lambda *seen: self.seen.append(seen))
        self.proxy.start()

    def _keep(self, sock: Any, address: object) -> None:
        mine = socket.socket(fileno=sock.detach())  # the server closes its own when this returns
        mine.settimeout(10)
        self._sockets.append(mine)
        self._accepted.put(mine)

    def client(self) -> Any:
        sock = socket.create_connection(("127.0.0.1", int(self.proxy.uri.rpartition(":")[2])), timeout=10)
        self._sockets.append(sock)
        return sock

    def pair(self) -> tuple[Any, Any]:
        return self.client(), self._accepted.get(timeout=10)

    def close(self) -> None:
        self.proxy.stop()
        self._listener.stop()
        for sock in self._sockets:
            sock.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def read(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def is_silent(sock: Any) -> bool:
    with gevent.Timeout(0.1, False):  # type: ignore[arg-type]  # the stubs lack False
        sock.recv(1)
        return False
    return True


def is_reset(sock: Any) -> bool:
    try:
        while sock.recv(65536):
            pass
    except OSError as error:
        return error.errno == errno.ECONNRESET
    return False


def test_nothing_set_passes_everything_and_counts_it(ends):
    client, server = ends.pair()
    client.sendall(b"up")
    assert read(server, 2) == b"up"
    server.sendall(b"x" * 300_000)
    assert read(client, 300_000) == b"x" * 300_000
    assert (ends.proxy.bytes_up, ends.proxy.bytes_down, ends.proxy.connections) == (2, 300_000, 1)


def test_observer_sees_what_came_and_on_which_connection(ends):
    for number in (1, 2):
        client, server = ends.pair()
        client.sendall(b"a%d" % number)
        assert read(server, 2) == b"a%d" % number
    server.sendall(b"b")
    assert read(client, 1) == b"b"
    assert ends.seen == [("up", b"a1", 1), ("up", b"a2", 2), ("down", b"b", 2)]


def test_half_close_passes_as_one(ends):
    client, server = ends.pair()
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert read(server, 5) == b"last"
    server.sendall(b"answer")
    server.close()
    assert read(client, 7) == b"answer"


def test_slice_sends_small_pieces(ends):
    ends.proxy.slice(1)
    client, server = ends.pair()
    client.sendall(b"abc")
    assert read(server, 3) == b"abc"


@pytest.mark.slow
@pytest.mark.timing
def test_drip_sends_a_piece_at_a_time(ends):
    ends.proxy.drip(2, 0.05, "down")
    client, server = ends.pair()
    start = monotonic()
    server.sendall(b"x" * 10)
    assert read(client, 2) == b"xx"
    assert read(client, 8) == b"x" * 8
    assert monotonic() - start >= 0.19
    ends.proxy.drip(None, 0)
    server.sendall(b"y" * 10)
    assert read(client, 10) == b"y" * 10


@pytest.mark.timing
def test_delay_keeps_what_comes(ends):
    client, server = ends.pair()
    ends.proxy.delay(0.1, "up")
    start = monotonic()
    client.sendall(b"a")
    assert read(server, 1) == b"a"
    assert monotonic() - start >= 0.09
    ends.proxy.delay(0)


def test_stall_in_one_direction_leaves_the_other(ends):
    client, server = ends.pair()
    ends.proxy.stall("down")
    server.sendall(b"down")
    client.sendall(b"up")
    assert read(server, 2) == b"up"
    assert is_silent(client)
    ends.proxy.resume()
    assert read(client, 4) == b"down"


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cut_ends_the_stream_after_so_many_bytes_once(ends, after):
    client, server = ends.pair()
    ends.proxy.cut(after)
    server.sendall(b"0123456789")
    assert read(client, 10) == b"0123456789"[:after]
    assert server.recv(1) == b""
    client, server = ends.pair()
    server.sendall(b"0123456789")
    assert read(client, 10) == b"0123456789"


def test_cut_upwards_ends_the_stream_for_both(ends):
    client, server = ends.pair()
    ends.proxy.cut(3, "up")
    client.sendall(b"012345")
    assert read(server, 6) == b"012"
    assert client.recv(1) == b""


def test_cut_with_reset_resets_both(ends):
    client, server = ends.pair()
    ends.proxy.cut(3, reset=True)
    server.sendall(b"012345")
    assert is_reset(client)
    assert is_reset(server)


def test_reset_resets_all(ends):
    pairs = [ends.pair() for _ in range(3)]
    ends.proxy.reset()
    assert all(is_reset(sock) for pair in pairs for sock in pair)


def test_close_all_ends_all_in_order_also_where_bytes_are_unread(ends):
    pairs = [ends.pair() for _ in range(3)]
    ends.proxy.stall()
    for client, _ in pairs:
        client.sendall(b"never read")
    ends.proxy.close_all()
    assert all(sock.recv(1) == b"" for pair in pairs for sock in pair)
    for pair in pairs:
        for sock in pair:
            sock.close()
    wait_until(lambda: ends.proxy.open_connections == 0)


def test_peers_reset_passes_as_one(ends):
    client, server = ends.pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.close()
    assert is_reset(client)


def test_refuse_closes_at_once_until_accept(ends):
    ends.proxy.refuse()
    assert ends.client().recv(1) == b""
    ends.proxy.accept()
    client, server = ends.pair()
    client.sendall(b"a")
    assert read(server, 1) == b"a"


def test_hold_accepts_and_does_nothing_until_accept(ends):
    ends.proxy.hold()
    client = ends.client()
    client.sendall(b"a")
    assert is_silent(client)
    assert ends.proxy.bytes_up == 0
    ends.proxy.accept()
    server = ends._accepted.get(timeout=10)
    assert read(server, 1) == b"a"


def test_held_connection_is_cut(ends):
    ends.proxy.hold()
    client = ends.client()
    wait_until(lambda: ends.proxy.open_connections)
    ends.proxy.close_all()
    assert client.recv(1) == b""


def test_no_server_closes_the_connection():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with FaultProxy(unused.getsockname()) as proxy:
            with socket.create_connection(("127.0.0.1", int(proxy.uri.rpartition(":")[2])), timeout=10) as client:
                assert client.recv(1) == b""


@pytest.mark.parametrize("unix", [False, True])
def test_upstream_is_named_by_its_uri(unix):
    with Server(unix=unix) as server, FaultProxy(server.uri) as proxy:
        with socket.create_connection(("127.0.0.1", int(proxy.uri.rpartition(":")[2])), timeout=10) as client:
            client.sendall(b"list-tube-used\r\n")
            assert read(client, 15) == b"USING default\r\n"


def test_stop_ends_everything(ends):
    client, server = ends.pair()
    ends.proxy.stop()
    assert client.recv(1) == b""
    assert server.recv(1) == b""
