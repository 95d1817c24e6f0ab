"""Conn.close, a Conn that is dropped, and one in a forked child."""

from __future__ import annotations

import gc
import os
import time

import gevent
import pytest

import gstalk
from tests.io.calling import call, held, interrupt
from tests.servers import wait_until

pytestmark = pytest.mark.real


# -- close -------------------------------------------------------------------------------------------------------


def test_close_is_idempotent_and_disconnects(conn):
    assert conn.is_connected
    conn.close()
    conn.close()
    assert not conn.is_connected


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_close_waits_for_settling_calls(conn, other, tube, name):
    job = held(conn, tube, priority=66)
    settler = call(getattr(job, name))
    conn.close()
    settler.get()
    assert job.is_finished
    if name == "delete":
        assert other.peek(job.id) is None
    else:
        stats = other.stats_job(job.id)
        assert (stats.state, stats.pri) == ("ready" if name == "release" else "buried", 66)


def test_close_many_deletes_all_are_carried_out(conn, other, tube):
    conn.put_many(tube, [b""] * 200)
    jobs = [conn.reserve_with_timeout(0) for _ in range(200)]
    deleters = [gevent.spawn(job.delete) for job in jobs]
    gevent.sleep(0)
    conn.close()
    gevent.joinall(deleters, raise_error=True)
    assert all(job.is_finished for job in jobs)
    assert other.stats_tube(tube).current_jobs_reserved == 0
    assert other.stats_tube(tube).current_jobs_ready == 0


def test_close_other_calls_in_flight_raise_closed_with_sent(play, connect):
    conn = connect(play({"put": b""}).uri)
    putter = call(conn.put, "default", b"")
    conn.close()
    with pytest.raises(gstalk.ConnectionClosedError) as caught:
        putter.get()
    assert caught.value.sent == "maybe"


def test_close_ends_reserves(conn, connect):
    reservers = [call(conn.reserve) for _ in range(3)]
    conn.close()
    for reserver in reservers:
        with pytest.raises(gstalk.ConnectionClosedError):
            reserver.get()


def test_close_ends_reserves_at_once_while_it_waits_for_a_delete(play, connect):
    def late(line):
        gevent.sleep(1.5)
        return b"DELETED\r\n"

    conn = connect(play({"delete": late}).uri)
    conn._line._may_wait = False
    reservers = [call(conn.reserve) for _ in range(3)]
    gevent.sleep(0.1)  # none of their asks is in flight
    deleter = call(conn.delete, 5)
    closer = call(conn.close)
    gevent.joinall(reservers, timeout=1)
    assert all(isinstance(reserver.exception, gstalk.ConnectionClosedError) for reserver in reservers)
    assert not closer.ready()
    assert conn._line._timer is None
    gevent.joinall([closer, deleter], raise_error=True)


def test_close_gives_jobs_back_and_loses_them(conn, other, tube):
    job = held(conn, tube, priority=12)
    conn.close()
    assert job.is_lost
    wait_until(lambda: other.stats_job(job.id).state == "ready")
    assert other.stats_job(job.id).pri == 12


@pytest.mark.slow
def test_close_silent_server_waits_at_most_conn_timeout(play, connect):
    conn = connect(play({"delete": b"", "list-tube-used": b""}).uri, conn_timeout=0.3)
    deleter = call(conn.delete, 7)
    began = time.monotonic()
    conn.close()
    assert 0.2 < time.monotonic() - began < 5
    with pytest.raises(gstalk.DisconnectedError) as caught:
        deleter.get()
    assert caught.value.sent == "maybe"


@pytest.mark.parametrize("interruption", [gevent.Timeout(60), gevent.GreenletExit(), KeyboardInterrupt(), ValueError()])
def test_close_interrupted_closes_at_once(play, connect, interruption):
    conn = connect(play({"delete": b"", "list-tube-used": b""}).uri, conn_timeout=30)
    deleter = call(conn.delete, 7)
    assert interrupt(conn.close, interruption) is interruption
    with pytest.raises(gstalk.ConnectionClosedError):
        deleter.get(timeout=5)


def test_close_while_another_greenlet_closes_returns(play, connect):
    conn = connect(play({"delete": b"", "list-tube-used": b""}).uri, conn_timeout=0.3)
    deleter = call(conn.delete, 7)
    closers = [call(conn.close) for _ in range(2)]
    gevent.joinall([deleter, *closers])
    assert all(closer.successful() for closer in closers)


def test_dropped_conn_closes_its_socket_with_a_warning(own_server):
    watching = gstalk.dial(own_server.uri)
    dropped = gstalk.dial(own_server.uri)
    assert watching.stats().current_connections == 2
    dropped.put("default", b"x")
    with pytest.warns(ResourceWarning, match="unclosed connection to"):
        del dropped  # at once: no collector is needed
    wait_until(lambda: watching.stats().current_connections == 1)
    watching.close()


def test_dropped_conn_that_holds_jobs_gives_them_back_at_once(connect, server, tube):
    """A job holds its connection, and is not held by it: no collector has to find out that both are gone."""
    other = connect()
    conn = gstalk.dial(server.uri)
    conn.watch(tube)
    ids = other.put_many(tube, [b"x"] * 3, ttr=3600)
    job, _ = conn.reserve(), conn.reserve()
    conn.reserve()  # nobody refers to this one, and it is reserved all the same
    assert other.stats_tube(tube).current_jobs_reserved == 3
    gc.disable()
    try:
        del conn
        assert job.stats().state == "reserved"
        with pytest.warns(ResourceWarning, match="unclosed connection to"):
            del job, _
            gevent.sleep(0)  # the read that woke us is over
        wait_until(lambda: other.stats_tube(tube).current_jobs_ready == len(ids))
    finally:
        gc.enable()


def test_dropped_conn_is_held_by_its_jobs(server, tube, connect):
    conn = gstalk.dial(server.uri)
    conn.watch(tube)
    job = held(conn, tube)
    owner = conn
    del conn
    gc.collect()
    assert job.stats().state == "reserved"
    job.delete()
    owner.close()


# -- fork --------------------------------------------------------------------------------------------------------


def test_forked_child_conn_raises_closed_and_its_jobs_lost_and_the_parent_goes_on(conn, other, tube):
    job = held(conn, tube)
    read, write = os.pipe()
    child = gevent.os.fork()
    if not child:
        said = []
        for method in (conn.stats, job.delete, conn.reserve):
            try:
                method()
            except BaseException as error:
                said.append(type(error).__name__)
        os.write(write, ",".join(said).encode())
        os._exit(0)
    os.close(write)
    gevent.os.waitpid(child, 0)
    answer = os.read(read, 1000)
    os.close(read)
    assert answer == b"ConnectionClosedError,JobLostError,ConnectionClosedError"
    assert other.stats_job(job.id).state == "reserved"
    job.delete()
    assert conn.stats_tube(tube).current_jobs_reserved == 0
