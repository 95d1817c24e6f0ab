"""Where a server may be: unix sockets, IPv4, IPv6, names."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

import gstalk
from gstalk.testing import Beanstalkd
from tests.servers import wait_until

pytestmark = pytest.mark.real


@pytest.fixture
def unix_server() -> Iterator[Beanstalkd]:
    with Beanstalkd(unix=True) as running:
        yield running


def test_unix_socket_conn_puts_reserves_and_deletes(unix_server, connect):
    conn = connect(unix_server.uri)
    assert conn.uri == unix_server.uri
    job_id = conn.put("default", b"x" * 60000)
    job = conn.reserve()
    assert (job.id, job.body, job.uri) == (job_id, b"x" * 60000, unix_server.uri)
    job.delete()
    assert conn.put_many("default", [b"x"] * 2000) == list(range(job_id + 1, job_id + 2001))


def test_unix_socket_waiting_reserve_is_called_back(unix_server, connect):
    conn, other = connect(unix_server.uri), connect(unix_server.uri)
    reserver = gevent.spawn(conn.reserve)
    wait_until(lambda: other.stats().current_waiting == 1)
    job_id = conn.put("default", b"x")
    assert reserver.get(timeout=5).id == job_id
    assert other.stats().current_connections == 2


def test_unix_socket_server_gone_raises_lost(unix_server, connect):
    conn = connect(unix_server.uri)
    unix_server.kill()
    wait_until(lambda: not conn.is_connected)
    with pytest.raises(gstalk.ConnectionLostError):
        conn.stats()
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial(unix_server.uri)
    assert unix_server.uri in str(caught.value)


def test_unix_socket_missing_or_no_socket_raises_connect_error(tmp_path: Path):
    plain = tmp_path / "file"
    plain.write_text("")
    for path in (tmp_path / "missing", plain, tmp_path):
        with pytest.raises(gstalk.ConnectError) as caught:
            gstalk.dial(f"unix://{path}")
        assert str(path) in str(caught.value)


def test_unix_socket_whose_backlog_is_full_raises_connect_error(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        code = 0
        while not code:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            code = sock.connect_ex(str(tmp_path / "socket"))
        assert code == errno.EAGAIN
        with pytest.raises(gstalk.ConnectError) as caught:
            gstalk.dial(f"unix://{tmp_path}/socket", conn_timeout=1)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EAGAIN


def test_unix_socket_missing_chains_the_cause(tmp_path: Path):
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial(f"unix://{tmp_path}/missing")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_unix_socket_path_too_long_is_refused():
    with pytest.raises(gstalk.InvalidArgumentError):
        gstalk.dial("unix:///" + "x" * 108)


def test_unix_socket_producer_and_consumer(unix_server):
    done = []
    consumer = gstalk.Consumer(unix_server.uri, "default", auto_delete=True)
    with gstalk.Producer(unix_server.uri) as producer:
        receiver = gevent.spawn(consumer.receive, lambda job: done.append(job.id))
        ids = producer.put_many("default", [b"x"] * 100)
        wait_until(lambda: len(done) == 100)
        consumer.stop()
        receiver.get(timeout=10)
    assert sorted(done) == ids


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "localhost:{}", "beanstalk://127.0.0.1:{}", "BEANSTALK://localhost:{}/"]
)
def test_ipv4_and_names_connect(server, connect, form):
    conn = connect(form.format(server.port))
    assert conn.stats().pid == server.pid
    assert conn.uri.endswith(f":{server.port}")


@pytest.fixture
def ipv6_port(server: Beanstalkd) -> Iterator[int]:
    """A port of ::1 from which bytes are passed on to the server."""
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 on this machine")

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(sock: socket.socket, address: object) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as upstream:
            gevent.joinall([gevent.spawn(pass_on, sock, upstream), gevent.spawn(pass_on, upstream, sock)])

    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        listener.bind(("::1", 0))
    except OSError as error:
        listener.close()
        pytest.skip(f"no IPv6 loopback: {error}")
    listener.listen()
    proxy = StreamServer(listener, serve)
    proxy.start()
    yield listener.getsockname()[1]
    proxy.stop()
    listener.close()


@pytest.mark.parametrize("form", ["[::1]:{}", "beanstalk://[::1]:{}/"])
def test_ipv6_connects(server, connect, ipv6_port, form):
    conn = connect(form.format(ipv6_port))
    assert conn.stats().pid == server.pid
    assert conn.uri == f"beanstalk://[::1]:{ipv6_port}"
    conn.close()


def stands_for(monkeypatch, *hosts):
    """Have every name stand for these addresses."""

    def look_up(host, port, **_):
        kinds = {host: socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts}
        return [(kind, socket.SOCK_STREAM, 6, "", (host, port)) for host, kind in kinds.items()]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_name_whose_first_address_refuses_the_next_is_tried(server, connect, monkeypatch):
    stands_for(monkeypatch, "::1", "127.0.0.1")
    assert connect(f"queue.example:{server.port}").stats().pid == server.pid


def test_name_for_which_all_addresses_refuse_raises_connect_error(own_server, monkeypatch):
    own_server.kill()
    stands_for(monkeypatch, "127.0.0.2", "127.0.0.1")
    with pytest.raises(gstalk.ConnectError) as caught:
        gstalk.dial(f"queue.example:{own_server.port}")
    assert str(caught.value) == f"connect to beanstalk://queue.example:{own_server.port}: connection refused"


def test_name_that_changes_its_address_is_looked_up_at_each_dial(server, connect, monkeypatch):
    stands_for(monkeypatch, "127.0.0.9")
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(f"queue.example:{server.port}")
    stands_for(monkeypatch, "127.0.0.1")
    connect(f"queue.example:{server.port}").stats()


@pytest.mark.slow
def test_name_whose_look_up_hangs_raises_connect_error_in_time_and_holds_nobody_up(server, connect, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: gevent.sleep(2))
    dialers = [gevent.spawn(gstalk.dial, f"queue.example:{server.port}", conn_timeout=0.2) for _ in range(20)]
    began = time.monotonic()
    connect(f"127.0.0.1:{server.port}").stats()
    gevent.joinall(dialers)
    assert time.monotonic() - began < 1.9
    assert {type(dialer.exception) for dialer in dialers} == {gstalk.ConnectError}
    gevent.sleep(2)  # the look-up's own end, so that it isn't left behind
