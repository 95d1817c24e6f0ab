"""Servers that go silent in every way: each call ends in time, and what is slow but alive is let live."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess
from gevent.server import StreamServer

import gstalk
from gstalk.testing import Beanstalkd, FaultProxy
from tests.servers import ok, wait_until

pytestmark = [pytest.mark.real, pytest.mark.timing]

LIMIT = 0.4  # the connections' conn_timeout
SLACK = 0.25  # the promise is 0.1 s; a busy machine gets some more


@pytest.fixture(params=["tcp", "tls"])
def line(request, own_server, terminator, trusting) -> Iterator[tuple[FaultProxy, Callable[..., gstalk.Conn]]]:
    """A proxy before a real server, and what dials through it."""
    if request.param == "tcp":
        with FaultProxy(own_server.uri) as proxy:
            yield proxy, lambda **options: gstalk.dial(proxy.uri, **options)
        return
    with FaultProxy(("127.0.0.1", terminator.ports["good"])) as proxy:
        uri = proxy.uri.replace("beanstalk://127.0.0.1", "tls://localhost")
        yield proxy, lambda **options: gstalk.dial(uri, tls_context=trusting, **options)


SILENCES: dict[str, Callable[[FaultProxy], None]] = {
    "stalls": lambda proxy: proxy.stall(),
    "hears nothing": lambda proxy: proxy.stall("up"),
    "says nothing": lambda proxy: proxy.stall("down"),
    "drips": lambda proxy: proxy.drip(1, 0.05, "down"),
}
CALLS: list[Callable[[gstalk.Conn], Any]] = [
    lambda conn: conn.put("silent", b"x", delay=1000),
    lambda conn: conn.put_many("silent", [b"x"] * 3, delay=1000),
    lambda conn: conn.delete(2**60),
    lambda conn: conn.peek(2**60),
    lambda conn: conn.stats(),
    lambda conn: conn.reserve_with_timeout(0),
]


def timed(call: Callable[[], Any], began: float | None = None) -> tuple[object, float]:
    """What a call raised or returned, and after how many seconds, from its own beginning or an earlier one."""
    began = began or time.monotonic()
    try:
        result = call()
    except Exception as error:
        result = error
    return result, time.monotonic() - began


@pytest.mark.parametrize("silence", SILENCES)
def test_server_that_goes_silent_ends_every_call_in_time(line, silence, tube):
    proxy, dial = line
    conn = dial(conn_timeout=LIMIT)
    held = [conn.reserve_job(job_id) for job_id in conn.put_many(tube, [b"x"] * 2)]
    SILENCES[silence](proxy)
    began = time.monotonic()  # for the connection the silence begins with the first of them
    calls = [gevent.spawn(timed, partial(call, conn), began) for call in CALLS]
    calls.append(gevent.spawn(timed, held[0].delete, began))
    for call in calls:
        error, seconds = call.get(timeout=5)
        if isinstance(error, gstalk.PutManyError):
            error = error.results[0]
        assert isinstance(error, gstalk.CommandTimeoutError)
        assert isinstance(error, TimeoutError)
        assert error.sent == "maybe"
        assert LIMIT - 0.01 <= seconds < LIMIT + SLACK
    assert not conn.is_connected
    assert [job.is_lost for job in held] == [True, True]
    with pytest.raises(gstalk.CommandTimeoutError) as caught:
        conn.stats()
    assert caught.value.sent == "no"
    proxy.resume()
    conn.close()


def test_server_that_is_stopped_ends_every_call_in_time(own_server):
    with gstalk.dial(own_server.uri, conn_timeout=LIMIT) as conn:
        own_server.pause()
        try:
            error, seconds = timed(lambda: conn.put("default", b"x"))
        finally:
            own_server.resume()
    assert isinstance(error, gstalk.CommandTimeoutError)
    assert seconds < LIMIT + SLACK


@pytest.mark.parametrize("silence", SILENCES)
def test_dial_of_a_silent_server_ends_in_time(line, silence):
    proxy, dial = line
    SILENCES[silence](proxy)
    error, seconds = timed(lambda: dial(conn_timeout=LIMIT))
    assert isinstance(error, gstalk.ConnectError)
    assert error.sent == "no"
    assert LIMIT - 0.01 <= seconds < LIMIT + SLACK
    proxy.resume()


def test_dial_of_a_server_that_only_accepts_ends_in_time():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        error, seconds = timed(lambda: gstalk.dial(f"127.0.0.1:{listener.getsockname()[1]}", conn_timeout=LIMIT))
    assert isinstance(error, gstalk.ConnectError)
    assert seconds < LIMIT + SLACK


@pytest.mark.parametrize("silence", SILENCES)
def test_producers_put_ends_within_its_own_timeout(own_server, silence):
    with FaultProxy(own_server.uri) as proxy, gstalk.Producer(proxy.uri, conn_timeout=30) as producer:
        assert producer.wait_connected(5)
        SILENCES[silence](proxy)
        puts = [gevent.spawn(timed, lambda: producer.put("default", b"x", timeout=LIMIT)) for _ in range(10)]
        for put in puts:
            error, seconds = put.get(timeout=5)
            assert isinstance(error, gstalk.PutTimeoutError)
            assert error.sent == "maybe"
            assert LIMIT - 0.01 <= seconds < LIMIT + SLACK
        proxy.resume()
        proxy.drip(None, 0)


# -- slow, but alive -------------------------------------------------------------------------------------------------


def test_thousand_commands_in_line_behind_a_slow_server_are_no_timeout(play):
    def slowly(line: bytes) -> None:
        gevent.sleep(0.001)

    played = play({"list-tube-used": slowly})
    with gstalk.dial(played.uri, conn_timeout=LIMIT) as conn:
        began = time.monotonic()
        calls = [gevent.spawn(conn.list_tube_used) for _ in range(1000)]
        assert {call.get(timeout=30) for call in calls} == {"default"}
        assert time.monotonic() - began > 2 * LIMIT


def test_large_body_that_comes_slowly_arrives():
    with Beanstalkd("-z", "1000000") as server, FaultProxy(server.uri) as proxy:
        with gstalk.dial(proxy.uri, conn_timeout=LIMIT) as conn:
            job_id = conn.put("default", b"x" * 600_000)
            proxy.drip(65536, LIMIT / 5, "down")
            job, seconds = timed(lambda: conn.peek(job_id))
            assert isinstance(job, gstalk.Job)
            assert job.body == b"x" * 600_000
            assert seconds > 2 * LIMIT
            proxy.drip(1000, LIMIT / 10, "down")
            error, seconds = timed(lambda: conn.peek(job_id))
            assert isinstance(error, gstalk.CommandTimeoutError)
            assert seconds < LIMIT + SLACK


def test_large_body_that_goes_slowly_arrives():
    with Beanstalkd("-z", "20000000") as server, FaultProxy(server.uri) as proxy:
        with gstalk.dial(proxy.uri, conn_timeout=LIMIT) as conn:
            proxy.drip(65536, 0.01, "up")
            job_id, seconds = timed(lambda: conn.put("default", b"x" * 12_000_000))
            assert isinstance(job_id, int)
            assert seconds > 2 * LIMIT
            proxy.stall("up")
            error, seconds = timed(lambda: conn.put("default", b"x" * 12_000_000))
            assert isinstance(error, gstalk.CommandTimeoutError)
            assert error.sent == "no"
            assert seconds < 3 * LIMIT + SLACK  # the proxy's kernel takes some of it before it stalls


def test_reply_that_has_come_is_no_timeout_after_the_hub_was_held(own_server):
    limit = 1  # on a busy machine the server needs some time, too
    with gstalk.dial(own_server.uri, conn_timeout=limit) as conn, gstalk.Producer(own_server.uri) as producer:
        producer.wait_connected()
        calls: list[Any] = [gevent.spawn(conn.put, "default", b"x") for _ in range(100)]
        calls += [gevent.spawn(partial(producer.put, timeout=limit), "default", b"x") for _ in range(100)]
        own_server.pause()
        gevent.sleep(0.02)  # all are sent
        own_server.resume()
        time.sleep(2 * limit)  # holds the hub, while the answers come
        assert len({call.get(timeout=5) for call in calls}) == 200
        assert conn.is_connected


STOPPED = """
import sys, gevent, gstalk
conn = gstalk.dial(sys.argv[1], conn_timeout=1)
job = conn.reserve_job(5)
what = sys.argv[2]
if what == "reserve":
    found = conn.reserve_with_timeout(1)
    print(found and found.id, conn.is_connected)
elif what == "close":
    deleter = gevent.spawn(job.delete)
    gevent.sleep(0)
    conn.close()
    print(deleter.get(), job.is_finished, job.is_lost)
else:
    print(getattr(job, what)(), job.is_finished, job.is_lost, conn.is_connected)
"""


# What is called, the command, its reply, and what the process then says.
STOPPED_IN: list[tuple[str, str, bytes, str]] = [
    ("delete", "delete", b"DELETED\r\n", "None True False True"),
    ("release", "release", b"RELEASED\r\n", "None True False True"),
    ("bury", "bury", b"BURIED\r\n", "None True False True"),
    ("touch", "touch", b"TOUCHED\r\n", "None False False True"),
    ("close", "delete", b"DELETED\r\n", "None True False"),
    ("reserve", "reserve-with-timeout", b"RESERVED 7 1\r\nx\r\n", "7 True"),
]


@pytest.mark.slow
def test_reply_that_came_while_the_process_was_stopped_counts(play):
    """Every time limit is over when it goes on, and the answer lies in the kernel. All of them wait side by side."""

    def begin(what: str, word: str, reply: bytes) -> Any:
        def answer(_: bytes) -> bytes:
            os.kill(child.pid, signal.SIGSTOP)
            gevent.spawn_later(1.6, os.kill, child.pid, signal.SIGCONT)
            return reply

        played = play({"reserve-job": b"RESERVED 5 1\r\nx\r\n", word: answer})
        child = subprocess.Popen([sys.executable, "-c", STOPPED, played.uri, what], stdout=subprocess.PIPE, text=True)
        return child

    children = {what: begin(what, word, reply) for what, word, reply, _ in STOPPED_IN}
    said = {what: (child.communicate(timeout=30)[0].strip(), child.returncode) for what, child in children.items()}
    assert said == {what: (expected, 0) for what, _, _, expected in STOPPED_IN}


def test_idle_connection_is_never_late(own_server):
    with gstalk.dial(own_server.uri, conn_timeout=0.3) as conn:
        conn.put("default", b"x")
        own_server.pause()
        gevent.sleep(0.7)
        own_server.resume()
        assert conn.put("default", b"x") == 2


# -- ends in the middle ------------------------------------------------------------------------------------------------

REPLIES: dict[str, tuple[bytes, Callable[[gstalk.Conn], Any]]] = {
    "INSERTED": (b"INSERTED 12\r\n", lambda conn: conn.put("default", b"x")),
    "BURIED id": (b"BURIED 12\r\n", lambda conn: conn.put("default", b"x")),
    "JOB_TOO_BIG": (b"JOB_TOO_BIG\r\n", lambda conn: conn.put("default", b"x")),
    "DRAINING": (b"DRAINING\r\n", lambda conn: conn.put("default", b"x")),
    "OUT_OF_MEMORY": (b"OUT_OF_MEMORY\r\n", lambda conn: conn.put("default", b"x")),
    "INTERNAL_ERROR": (b"INTERNAL_ERROR\r\n", lambda conn: conn.put("default", b"x")),
    "RESERVED": (b"RESERVED 12 5\r\nhe\r\no\r\n", lambda conn: conn.reserve_job(12)),
    "RESERVED in a wait": (b"RESERVED 12 5\r\nhe\r\no\r\n", lambda conn: conn.reserve_with_timeout(0)),
    "TIMED_OUT": (b"TIMED_OUT\r\n", lambda conn: conn.reserve_with_timeout(0)),
    "DEADLINE_SOON": (b"DEADLINE_SOON\r\n", lambda conn: conn.reserve_with_timeout(0)),
    "FOUND": (b"FOUND 12 5\r\nhe\r\no\r\n", lambda conn: conn.peek(12)),
    "NOT_FOUND": (b"NOT_FOUND\r\n", lambda conn: conn.peek(12)),
    "DELETED": (b"DELETED\r\n", lambda conn: conn.delete(12)),
    "RELEASED": (b"RELEASED\r\n", lambda conn: conn.release(12, 5)),
    "BURIED": (b"BURIED\r\n", lambda conn: conn.bury(12, 5)),
    "TOUCHED": (b"TOUCHED\r\n", lambda conn: conn.touch(12)),
    "KICKED n": (b"KICKED 12\r\n", lambda conn: conn.kick("default", 12)),
    "KICKED": (b"KICKED\r\n", lambda conn: conn.kick_job(12)),
    "USING": (b"USING other\r\n", lambda conn: conn.use("other")),
    "WATCHING": (b"WATCHING 2\r\n", lambda conn: conn.watch("other")),
    "NOT_IGNORED": (b"NOT_IGNORED\r\n", lambda conn: conn.ignore("default")),
    "PAUSED": (b"PAUSED\r\n", lambda conn: conn.pause_tube("default", 1)),
    "OK": (ok("---\nid: 12\n"), lambda conn: conn.stats_job(12)),
    "OK list": (ok("---\n- a\n"), lambda conn: conn.list_tubes()),
}


@contextmanager
def cutting(reply: bytes, reset: bool) -> Iterator[str]:
    """A server that answers the first command of a connection well, to the second says `reply`, and is gone."""

    def handle(sock: Any, address: object) -> None:
        sock.recv(65536)
        sock.sendall(ok("---\nid: 4a\n"))
        sock.recv(65536)
        sock.sendall(reply)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        else:
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.stop()


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("name", REPLIES)
def test_reply_cut_at_any_byte_is_a_lost_connection_for_all(name, reset):
    reply, call = REPLIES[name]
    for size in range(len(reply)):
        with cutting(reply[:size], reset) as uri, gstalk.dial(uri) as conn:
            calls = [gevent.spawn(timed, lambda: call(conn)), gevent.spawn(timed, conn.list_tube_used)]
            for each in calls:
                error, seconds = each.get(timeout=5)
                assert isinstance(error, gstalk.ConnectionLostError), (size, error)
                assert error.sent == "maybe"
                assert seconds < 1
            assert not conn.is_connected


def test_body_cut_in_the_middle_loses_the_job_to_the_server(own_server, other_of):
    watcher = other_of(own_server)
    job_id = watcher.put("default", b"x" * 60000)
    with FaultProxy(own_server.uri) as proxy, gstalk.dial(proxy.uri) as conn:
        proxy.cut(30000)
        with pytest.raises(gstalk.ConnectionLostError):
            conn.reserve()
    wait_until(lambda: watcher.stats_job(job_id).state == "ready")


@pytest.fixture
def other_of(connect: Callable[..., gstalk.Conn]) -> Callable[[Beanstalkd], gstalk.Conn]:
    return lambda server: connect(server.uri)
