"""Callers of a Conn that are interrupted: no reply reaches somebody else, and no job is lost."""

from __future__ import annotations

import contextlib
import random

import gevent
import pytest

import gstalk
from tests.io.calling import call, held, interrupt
from tests.servers import ok, wait_until

pytestmark = pytest.mark.real


INTERRUPTIONS = [lambda: gevent.Timeout(60), gevent.GreenletExit, KeyboardInterrupt, lambda: ValueError("own")]


@pytest.mark.parametrize("make", INTERRUPTIONS)
def test_interrupted_put_is_carried_out_and_the_next_reply_is_its_own(conn, tube, make):
    error = make()
    assert interrupt(lambda: conn.put(tube, b"interrupted"), error) is error
    job_id = conn.put(tube, b"next")
    assert conn.peek(job_id).body == b"next"
    assert conn.stats_tube(tube).current_jobs_ready == 2


@pytest.mark.parametrize("make", INTERRUPTIONS)
@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_interrupted_settling_is_carried_out(conn, other, tube, name, make):
    job = held(conn, tube, priority=55)
    error = make()
    assert interrupt(getattr(job, name), error) is error
    wait_until(lambda: job.is_finished)
    if name == "delete":
        assert other.peek(job.id) is None
    else:
        assert other.stats_job(job.id).pri == 55


def test_interrupted_call_passes_the_exception_unchanged(conn, tube):
    timeout = gevent.Timeout(0)
    with pytest.raises(gevent.Timeout) as caught:
        with timeout:
            while True:
                conn.put(tube, b"")
    assert caught.value is timeout


def test_interrupted_reserve_job_goes_back_with_its_own_priority(conn, other, tube):
    job_id = other.put(tube, b"", priority=44)
    error = gevent.GreenletExit()
    assert interrupt(lambda: conn.reserve_job(job_id), error) is error
    wait_until(lambda: other.stats_job(job_id).releases == 1, 5)
    stats = other.stats_job(job_id)
    assert (stats.state, stats.pri) == ("ready", 44)


@pytest.mark.parametrize("name", ["reserve", "reserve_job"])
def test_interrupted_between_a_reserves_reply_and_its_return_the_job_goes_back(play, connect, name):
    """Both replies come in one read, and whoever is woken by the first throws into the one whose job has come."""
    word = "reserve-job" if name == "reserve_job" else "reserve-with-timeout"
    played = play({"list-tubes": b"", word: ok("---\n- default\n") + b"RESERVED 7 1\r\nx\r\n"})
    conn = connect(played.uri)
    error = ValueError("the caller's own")
    raised = []

    def reserve():
        try:
            conn.reserve_job(7) if name == "reserve_job" else conn.reserve_with_timeout(0)
        except BaseException as caught:
            raised.append(caught)

    def strike():
        conn.list_tubes()
        gevent.get_hub().loop.run_callback(gevent.getcurrent().switch)
        reserver.throw(error)

    striker = call(strike)
    reserver = call(reserve)
    striker.get()
    assert raised == [error]
    wait_until(lambda: played.lines[-1] == b"release 7 9 0")
    assert conn.is_connected


@pytest.mark.parametrize("word", ["release", "stats-job"])
def test_job_that_the_server_does_not_take_back_goes_with_the_connection(play, connect, word):
    """It would stay reserved for its ttr, and nobody would know of it."""
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", word: b"INTERNAL_ERROR\r\n"})
    conn = connect(played.uri)
    with gevent.Timeout(5, AssertionError("it waits for ever")):
        reserver = call(conn.reserve_with_timeout, 0)
        reserver.kill(block=False)
        gevent.joinall([reserver])
    wait_until(lambda: not conn.is_connected)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        conn.stats()
    assert f"job 7 could not be given back: {word} 7 at {conn.uri}: a bug in the server" in str(caught.value)


@pytest.mark.parametrize("seed", range(3))
def test_interrupted_at_random_no_reply_goes_astray(conn, tube, seed):
    chance = random.Random(seed)
    wrong = []

    def work(number):
        for turn in range(10):
            body = b"%d-%d" % (number, turn)
            job_id = None
            with contextlib.suppress(gevent.Timeout), gevent.Timeout(chance.random() * 0.003):
                job_id = conn.put(f"{tube}-{number % 3}", body)
                if conn.peek(job_id).body != body:
                    wrong.append(body)
                conn.delete(job_id)

    gevent.joinall([gevent.spawn(work, number) for number in range(50)], raise_error=True)
    assert wrong == []
    assert conn.is_connected
    job_id = conn.put(tube, b"end")
    assert conn.peek(job_id).body == b"end"
