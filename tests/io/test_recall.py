"""Commands beside a reserve that waits on the server: it is recalled, and nobody's command or job is lost."""

from __future__ import annotations

import sys
import time
from typing import Any

import gevent
import pytest
from gevent import subprocess
from gevent.server import StreamServer

import gstalk
from tests.io.calling import SLACK, call, hold, waiting
from tests.servers import ok, wait_until

pytestmark = pytest.mark.real


def test_put_beside_a_waiting_reserve_dials_once_in_the_conns_life(own_server, connect):
    other, conn = connect(own_server.uri), connect(own_server.uri)
    connections = other.stats().total_connections
    for _ in range(5):
        reserver = call(conn.reserve)
        gevent.sleep(0.02)
        job_id = conn.put("default", b"x")
        job = reserver.get(timeout=5)
        assert job.id == job_id
        job.delete()
    assert other.stats().total_connections == connections + 1
    assert other.stats().current_connections == 2


@pytest.mark.timing
def test_put_beside_a_reserve_waits_little_once_the_conn_has_dialed(conn, other, tube):
    waiting(conn, other)
    conn.put(f"{tube}-else", b"the one that dials")
    times: list[float] = []
    for _ in range(50):
        began = time.monotonic()
        conn.put(f"{tube}-else", b"x")
        times.append(time.monotonic() - began)
        gevent.sleep(0.002)
    times.sort()
    assert times[40] < 0.05
    assert times[-1] < 0.05 + SLACK


@pytest.mark.timing
def test_job_reaches_a_conn_that_asks_within_its_longest_pause(conn, other, tube):
    hold(conn, other, tube)
    times = []
    for _ in range(10):
        reserver = call(conn.reserve)
        gevent.sleep(0.1)
        began = time.monotonic()
        other.put(tube, b"x")
        reserver.get(timeout=5).delete()
        times.append(time.monotonic() - began)
    assert sorted(times)[5] < 0.1


@pytest.mark.slow
def test_reserve_that_asks_polls_with_pauses(own_server, connect):
    other, conn = connect(own_server.uri), connect(own_server.uri)
    hold(conn, other, "t")
    before = other.stats().cmd_reserve_with_timeout
    assert conn.reserve_with_timeout(1) is None
    assert other.stats().cmd_reserve_with_timeout - before < 40


@pytest.mark.parametrize(
    "command",
    [
        lambda conn, tube: conn.stats(),
        lambda conn, tube: conn.put_many(f"{tube}-else", [b"a", b"b"]),
        lambda conn, tube: conn.peek_ready(f"{tube}-else"),
        lambda conn, tube: conn.use(f"{tube}-else"),
        lambda conn, tube: conn.watch(f"{tube}-else"),
        lambda conn, tube: conn.stats_tube(tube),
        lambda conn, tube: conn.reserve_with_timeout(0),
        lambda conn, tube: conn.kick(tube, 1),
        lambda conn, tube: conn.list_tubes_watched(),
    ],
)
def test_command_of_any_kind_beside_a_waiting_reserve_is_answered(conn, other, tube, command):
    reserver = waiting(conn, other)
    with gevent.Timeout(5):
        command(conn, tube)
    job_id = other.put(tube, b"x")
    assert reserver.get(timeout=5).id == job_id


def test_recalled_reserve_keeps_watch_list_and_used_tube(conn, other, tube):
    conn.watch(f"{tube}-a")
    conn.watch(f"{tube}-b")
    conn.ignore(f"{tube}-a")
    conn.use(f"{tube}-used")
    reserver = waiting(conn, other)
    assert conn.list_tube_used() == f"{tube}-used"
    assert sorted(conn.list_tubes_watched()) == sorted([tube, f"{tube}-b"])
    job_id = other.put(f"{tube}-b", b"x")
    assert reserver.get(timeout=5).id == job_id


def test_watch_beside_a_waiting_reserve_takes_effect_for_it(conn, other, tube):
    reserver = waiting(conn, other)
    conn.watch(f"{tube}-new")
    job_id = other.put(f"{tube}-new", b"x")
    assert reserver.get(timeout=5).id == job_id


def test_recalled_reserve_many_commands_in_the_meantime_keep_their_order(conn, other, tube):
    waiting(conn, other)
    putters = [gevent.spawn(conn.put, f"{tube}-{number % 3}", b"%d" % number) for number in range(100)]
    gevent.joinall(putters, raise_error=True)
    ids = [putter.get() for putter in putters]
    assert ids == sorted(ids)
    assert [other.peek(job_id).body for job_id in ids] == [b"%d" % number for number in range(100)]


def test_recalled_reserve_from_a_server_with_another_id_breaks_the_conn(play, connect):
    stats = [ok("---\nid: 4a\n"), ok("---\nid: 5b\n")]
    conn = connect(play({"stats": stats, "reserve-with-timeout": b""}).uri)
    reserver = call(conn.reserve)
    why = "the server was restarted while a reserve was recalled; it was not sent"
    with pytest.raises(gstalk.ConnectionLostError, match=f": {why}$") as caught:
        conn.put("default", b"")
    assert caught.value.sent == "no"
    with pytest.raises(gstalk.ConnectionLostError):
        reserver.get(timeout=5)
    assert not conn.is_connected


def test_recalled_reserve_server_gone_breaks_the_conn(own_server, connect, monkeypatch):
    complaints: list[Any] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *error: complaints.append(error))
    conn = connect(own_server.uri)
    reserver = call(conn.reserve)
    gevent.sleep(0.05)
    own_server.pause()
    putter = call(conn.put, "default", b"")
    own_server.kill()
    for each in (putter, reserver):
        with pytest.raises(gstalk.ConnectionLostError, match=": could not connect again to end a reserve: ") as caught:
            each.get(timeout=5)
        assert isinstance(caught.value.__cause__, gstalk.ConnectError)
    assert [error for error in complaints if error[2] not in (putter.exception, reserver.exception)] == []


def test_recalled_reserve_by_a_greenlet_that_is_killed_breaks_the_conn(play, connect):
    stats = [ok("---\nid: 4a\n"), b""]
    played = play({"stats": stats, "reserve-with-timeout": b""})
    conn = connect(played.uri)
    reserver = call(conn.reserve)
    putter = call(conn.put, "default", b"")
    wait_until(lambda: played.count("stats") == 2)
    recall = conn._connection._recall
    assert recall is not None
    recall.greenlet.kill()
    for each in (putter, reserver):
        with pytest.raises(gstalk.ConnectionLostError, match=": GreenletExit hit while connecting again; "):
            each.get(timeout=5)


@pytest.mark.slow
@pytest.mark.timing
def test_recalled_reserve_from_a_server_that_is_stopped_ends_all_in_time(own_server, connect):
    conn = connect(own_server.uri, conn_timeout=0.5)
    other = connect(own_server.uri)
    reserver = waiting(conn, other)
    own_server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(gstalk.CommandTimeoutError) as caught:
            conn.put("default", b"x")
        assert time.monotonic() - began < 0.95  # one conn_timeout, not a second one for a dial
        assert caught.value.sent == "no"
        reserver.join()
        assert isinstance(reserver.exception, gstalk.CommandTimeoutError)
    finally:
        own_server.resume()


def test_recalled_reserve_its_end_keeps_the_process_waiting():
    """The server's answer comes, and a while later the end: nothing else is under way then."""
    first: list[Any] = []

    def handle(sock, address):
        mine = not first
        first.append(sock)
        while data := sock.recv(1000):
            for line in data.split(b"\r\n"):
                if line.startswith(b"stats"):
                    sock.sendall(ok("---\nid: 4a\n"))
                elif line.startswith(b"put"):
                    sock.sendall(b"INSERTED 9\r\n")
        if mine:
            sock.sendall(b"TIMED_OUT\r\n")
            gevent.sleep(0.3)

    script = """
import sys, gevent, gstalk
conn = gstalk.dial(sys.argv[1], conn_timeout=None)
reserver = gevent.spawn(conn.reserve)
gevent.sleep(0.1)
reserver.kill()
print(conn.put("default", b""))
conn.close()
"""
    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        command = [sys.executable, "-c", script, f"127.0.0.1:{server.server_port}"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    finally:
        server.stop(0)
    assert (said.stdout, said.stderr) == ("9\n", "")


def test_recalled_reserve_the_job_that_won_the_race_is_not_lost(conn, other, connect, tube):
    """A job that goes to the old connection while it is half-closed goes back, and is reserved again."""
    third = connect()
    reserver = waiting(conn, other)
    jobs = [call(other.put, tube, b"x"), call(conn.put, f"{tube}-else", b"y")]
    gevent.joinall(jobs, raise_error=True)
    assert reserver.get(timeout=5).id == jobs[0].value
    assert third.stats_tube(tube).current_jobs_ready == 0


def test_conn_closed_while_a_reserve_is_called_back_ends_everything(conn, other):
    reserver = waiting(conn, other)
    putter = call(conn.put, "default", b"")
    conn.close()
    for each in (putter, reserver):
        with pytest.raises(gstalk.ConnectionClosedError):
            each.get(timeout=5)


def test_conn_closed_while_a_reserve_is_called_back_ends_the_dial_too(play, connect):
    played = play({"stats": [ok("---\nid: 4a\n"), b""], "reserve-with-timeout": b""})
    conn = connect(played.uri, conn_timeout=60)
    reserver = call(conn.reserve)
    putter = call(conn.put, "default", b"")
    wait_until(lambda: played.count("stats") == 2)
    conn.close()
    wait_until(lambda: played.open == 0)
    for each in (putter, reserver):
        with pytest.raises(gstalk.ConnectionClosedError):
            each.get(timeout=5)


def test_conn_closed_after_a_recall_tells_all_that_the_server_may_have_acted(play, connect):
    """It has had the reserve of each, as long as that waited there."""
    silent = {"delete": b"", "list-tube-used": b""}
    played = play({"stats": ok("---\nid: 4a\n"), "reserve-with-timeout": [b"", b"TIMED_OUT\r\n", b""], **silent})
    conn = connect(played.uri, conn_timeout=1)
    reservers = [call(conn.reserve) for _ in range(2)]
    wait_until(lambda: played.count("reserve-with-timeout") == 1)
    settling = [call(conn.delete, 1)]
    wait_until(lambda: played.count("delete") == 1)
    settling.append(call(conn.close))
    for each in reservers:
        with pytest.raises(gstalk.ConnectionClosedError) as caught:
            each.get(timeout=5)
        assert caught.value.sent == "maybe"
        said = str(caught.value).removesuffix("; the server may have acted")
        assert said == f"reserve at {played.uri}: you closed it"
    gevent.joinall(settling)
