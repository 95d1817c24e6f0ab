"""Reserves on one Conn: waiting, timeouts, sharing, DEADLINE_SOON, jobs that ran out, interruption."""

from __future__ import annotations

import datetime
import time
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.connection import reserved as reserved_jobs
from gstalk.connection.reserving import ReserveLine
from tests.io.calling import SLACK, call, hold, waiting
from tests.servers import wait_until

pytestmark = pytest.mark.real


# -- timeouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holding", [False, True])
@pytest.mark.parametrize("timeout", [0, 0.2, 1.3, datetime.timedelta(seconds=0.3)], ids=str)
def test_reserve_with_timeout_nothing_there_returns_none_in_time(conn, other, tube, timeout, holding):
    if holding:
        hold(conn, other, tube)
    began = time.monotonic()
    assert conn.reserve_with_timeout(timeout) is None
    seconds = timeout.total_seconds() if isinstance(timeout, datetime.timedelta) else timeout
    assert seconds <= time.monotonic() - began + 0.001
    assert time.monotonic() - began < seconds + SLACK


def test_reserve_whose_time_is_over_does_not_wait_with_others(conn, tube, monkeypatch):
    """Nobody waits on the server yet, since another command was in flight: the ask is his, and no wait for both."""
    set_timer = ReserveLine._set_timer
    monkeypatch.setattr(ReserveLine, "_set_timer", lambda line, seconds: set_timer(line, 0.5))
    other_command, patient = gevent.spawn(conn.stats), gevent.spawn(conn.reserve_with_timeout, 3.9)
    other_command.join()
    gevent.sleep(0.1)
    began = time.monotonic()
    assert conn.reserve_with_timeout(0) is None
    assert time.monotonic() - began < SLACK
    conn.put(tube, b"for the patient one")
    assert not patient.ready()
    conn.watch(tube)
    assert patient.get(timeout=2).body == b"for the patient one"


def test_reserve_whose_place_in_line_is_struck_leaves_no_timer(conn, monkeypatch):
    """A Ctrl-C in the middle of `join` ends the connection; nothing of this may keep the process from ending."""

    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    line = conn._line
    timers: list[Any] = []
    once = line.once
    monkeypatch.setattr(ReserveLine, "once", lambda *args, **options: timers.append(once(*args[1:], **options)))
    monkeypatch.setattr(ReserveLine, "_ask", strike)
    with pytest.raises(KeyboardInterrupt):
        conn.reserve_with_timeout(0.02)  # its timer was begun, and not yet noted
    assert not conn.is_connected
    [timer] = timers
    wait_until(lambda: not timer.active)


def test_reserve_with_timeout_zero_asks_once(play, connect):
    played = play()
    assert connect(played.uri).reserve_with_timeout(0) is None
    assert [line for line in played.lines if line.startswith(b"reserve")] == [b"reserve-with-timeout 0"]


def test_reserve_with_timeout_zero_job_there_returns_it(conn, tube):
    job_id = conn.put(tube, b"x")
    assert conn.reserve_with_timeout(0).id == job_id


def test_reserve_with_timeout_wrong_value_is_refused_and_asks_nothing(play, connect):
    played = play()
    conn = connect(played.uri)
    for timeout in (-1, -0.001, float("nan"), float("inf"), datetime.timedelta(seconds=-1)):
        with pytest.raises(gstalk.InvalidArgumentError):
            conn.reserve_with_timeout(timeout)
    for wrong in (True, "1", b"1"):
        with pytest.raises(TypeError):
            conn.reserve_with_timeout(wrong)
    assert played.count("reserve-with-timeout") == 0


def test_reserve_with_timeout_huge_waits(conn, other, tube):
    reserver = call(conn.reserve_with_timeout, 10**9)
    job_id = other.put(tube, b"x")
    assert reserver.get().id == job_id


def test_reserve_with_different_timeouts_each_ends_in_its_own_time(conn):
    ended: list[tuple[float, float]] = []
    began = time.monotonic()

    def reserve(timeout):
        assert conn.reserve_with_timeout(timeout) is None
        ended.append((timeout, time.monotonic() - began))

    gevent.joinall([gevent.spawn(reserve, timeout) for timeout in (0.6, 0.1, 1.2, 0.3, 0)], raise_error=True)
    for timeout, took in ended:
        assert timeout - 0.001 <= took < timeout + SLACK
    assert [timeout for timeout, _ in ended] == [0, 0.1, 0.3, 0.6, 1.2]


def test_reserve_beside_one_whose_time_is_over_goes_on(conn, other, tube):
    reserver = call(conn.reserve)
    assert conn.reserve_with_timeout(0.2) is None
    assert not reserver.ready()
    job_id = other.put(tube, b"x")
    assert reserver.get(timeout=5).id == job_id


# -- waiting on the server -----------------------------------------------------------------------------------------


def test_reserve_waits_until_there_is_a_job(conn, other, tube):
    reserver = waiting(conn, other)
    job_id = other.put(tube, b"x")
    job = reserver.get(timeout=5)
    assert (job.id, job.body, job.tube) == (job_id, b"x", tube)


@pytest.mark.slow
def test_reserve_idle_waits_on_the_server_without_polling(own_server, connect):
    other, conn = connect(own_server.uri), connect(own_server.uri)
    before = other.stats().cmd_reserve_with_timeout
    reserver = call(conn.reserve)
    gevent.sleep(1.5)  # nothing is to happen: there is no event to wait for
    assert other.stats().cmd_reserve_with_timeout == before + 1
    reserver.kill()


@pytest.mark.slow
def test_reserve_longer_than_reserve_timeout_is_sent_anew_unseen_by_the_caller(own_server, connect):
    other, conn = connect(own_server.uri), connect(own_server.uri, reserve_timeout=1)
    reserver = call(conn.reserve)
    connections = other.stats().total_connections
    wait_until(lambda: other.stats().cmd_reserve_with_timeout == 3)
    assert other.stats().total_connections == connections
    job_id = other.put("default", b"x")
    assert reserver.get(timeout=5).id == job_id


@pytest.mark.slow
def test_reserve_longer_than_conn_timeout_is_no_lack_of_progress(connect, server, tube):
    conn = connect(server.uri, conn_timeout=0.3)
    conn.watch(tube)
    conn.ignore("default")
    assert conn.reserve_with_timeout(1.2) is None


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [None, 1], ids=str)
def test_reserve_on_a_server_that_stalls_raises_command_timeout(own_server, connect, timeout):
    conn = connect(own_server.uri, conn_timeout=0.3, reserve_timeout=1)
    reserver = call(conn.reserve) if timeout is None else call(conn.reserve_with_timeout, timeout)
    gevent.sleep(0.05)
    own_server.pause()
    try:
        with pytest.raises(gstalk.CommandTimeoutError):
            reserver.get(timeout=10)
    finally:
        own_server.resume()


def test_reserve_on_a_server_that_is_killed_raises_lost_in_every_caller(own_server, connect):
    other, conn = connect(own_server.uri), connect(own_server.uri)
    reserver = waiting(conn, other)
    second = call(conn.reserve)
    own_server.kill()
    for each in (reserver, second):
        with pytest.raises(gstalk.ConnectionLostError):
            each.get(timeout=5)


# -- sharing -----------------------------------------------------------------------------------------------------


def test_many_greenlets_reserving_share_the_jobs(conn, other, tube):
    got: list[int] = []

    def work():
        while (job := conn.reserve_with_timeout(3)) is not None:
            got.append(job.id)
            gevent.sleep(0.001)
            job.delete()
            if job.body == b"last":
                break

    workers = [gevent.spawn(work) for _ in range(20)]
    ids = other.put_many(tube, [b"%d" % number for number in range(400)])
    wait_until(lambda: len(got) == 400)
    others = other.put_many(tube, [b"last"] * 20)
    gevent.joinall(workers, raise_error=True)
    assert sorted(got) == sorted([*ids, *others])


def test_many_greenlets_reserving_all_get_one_of_as_many_jobs(conn, other, tube):
    reservers = [call(conn.reserve) for _ in range(20)]
    ids = other.put_many(tube, [b"x"] * 20)
    gevent.joinall(reservers, timeout=10)
    assert sorted(reserver.get().id for reserver in reservers) == ids


def test_first_in_line_gets_the_first_job(conn, other, tube):
    first, second = waiting(conn, other), call(conn.reserve)
    ids = [other.put(tube, b"a")]
    assert first.get(timeout=5).id == ids[0]
    assert not second.ready()
    ids.append(other.put(tube, b"b"))
    assert second.get(timeout=5).id == ids[1]


def test_producers_and_workers_on_one_conn_lose_and_double_nothing(own_server, connect):
    conn, other = connect(own_server.uri), connect(own_server.uri)
    connections = other.stats().total_connections or 0
    put: list[int] = []
    got: list[int] = []
    done = Event()

    def work():
        while not done.is_set():
            job = conn.reserve_with_timeout(1.5)
            if job is not None:
                assert job.body == b"body"
                got.append(job.id)
                job.delete()

    def produce():
        for _ in range(50):
            put.append(conn.put("default", b"body"))
            gevent.sleep(0)

    workers = [call(work) for _ in range(10)]
    gevent.joinall([gevent.spawn(produce) for _ in range(10)], raise_error=True)
    wait_until(lambda: len(got) >= 500)
    done.set()
    gevent.joinall(workers, raise_error=True)
    assert sorted(got) == sorted(put)
    assert len(set(got)) == 500
    stats = other.stats()
    assert stats.total_connections <= connections + 1
    assert stats.current_jobs_ready == stats.current_jobs_reserved == 0


# -- DEADLINE_SOON -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_deadline_soon_is_raised_in_the_call_that_asked_and_then_there_is_quiet(conn, other, tube):
    job = hold(conn, other, tube, ttr=1)
    with pytest.raises(gstalk.DeadlineSoonError) as caught:
        conn.reserve()
    began = time.monotonic()
    assert conn.uri in str(caught.value)
    before = other.stats().cmd_reserve_with_timeout
    for timeout in (0, 0.05, 0):
        assert conn.reserve_with_timeout(timeout) is None
    if time.monotonic() - began < 0.2:
        assert other.stats().cmd_reserve_with_timeout == before
    job.touch()
    job.delete()
    assert conn.is_connected


@pytest.mark.slow
def test_deadline_soon_a_loop_asks_few_reserves(own_server, connect):
    conn, other = connect(own_server.uri), connect(own_server.uri)
    job = hold(conn, other, "t", ttr=1)
    before = other.stats().cmd_reserve_with_timeout
    errors = 0
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        try:
            conn.reserve_with_timeout(0.1)
        except gstalk.DeadlineSoonError:
            errors += 1
    assert 1 <= errors <= 5
    assert other.stats().cmd_reserve_with_timeout - before <= 10
    assert not job.is_finished


@pytest.mark.slow
def test_deadline_soon_calls_in_the_quiet_time_wait_for_its_end_and_get_jobs(conn, other, tube):
    job = hold(conn, other, tube, ttr=1)
    with pytest.raises(gstalk.DeadlineSoonError):
        conn.reserve()
    job.delete()
    job_id = other.put(tube, b"x")
    assert conn.reserve_with_timeout(5).id == job_id


def test_deadline_soon_a_ready_job_comes_first(conn, other, tube):
    hold(conn, other, tube, ttr=1)
    job_id = other.put(tube, b"x")
    assert conn.reserve().id == job_id


def test_deadline_soon_hits_one_caller_and_the_others_wait_on(play, connect):
    asks = [b"DEADLINE_SOON\r\n", b"RESERVED 7 1\r\nx\r\n", b"RESERVED 8 1\r\nx\r\n", b"TIMED_OUT\r\n"]
    conn = connect(play({"reserve-job": b"RESERVED 5 1\r\nx\r\n", "reserve-with-timeout": asks}).uri)
    conn.reserve_job(5)
    reservers: list[Any] = [gevent.spawn(conn.reserve_with_timeout, 5) for _ in range(2)]
    gevent.joinall(reservers)
    failed = [each for each in reservers if each.exception is not None]
    assert len(failed) <= 1
    assert all(type(each.exception) is gstalk.DeadlineSoonError for each in failed)
    assert {each.value.id for each in reservers if each.value} <= {7, 8}
    assert len([each for each in reservers if each.value]) == 1


def test_reserve_whose_time_is_over_is_told_none_only_when_its_own_ask_was_answered(play, connect):
    """The answer may be a job."""
    first, second = Event(), Event()
    answers = iter([first, second])

    def answer(_: bytes) -> bytes:
        next(answers).wait()
        return b"TIMED_OUT\r\n"

    played = play({"reserve-job": b"RESERVED 5 1\r\nx\r\n"})
    conn = connect(played.uri)
    conn.reserve_job(5)  # it asks, and doesn't wait on the server
    played.replies[b"reserve-with-timeout"] = [answer, answer, b"TIMED_OUT\r\n"]
    patient, hasty = call(conn.reserve_with_timeout, 0.3), call(conn.reserve_with_timeout, 0.02)
    gevent.sleep(0.05)
    first.set()
    wait_until(lambda: conn._line._answered == 1)
    gevent.sleep(0.01)
    assert not hasty.ready()
    second.set()
    assert hasty.get() is None
    assert patient.get() is None


@pytest.mark.parametrize(("asked", "sent"), [(True, "maybe"), (False, "no")])
def test_reserve_ended_by_close_tells_whether_it_was_asked(play, connect, asked, sent):
    """While a delete is waited for, reserves end at once: the server may have answered an ask, or never got one."""
    replies = {"reserve-job": b"RESERVED 5 1\r\nx\r\n", "delete": b"", "list-tube-used": b""}
    played = play({**replies, "reserve-with-timeout": b"" if asked else b"DEADLINE_SOON\r\n"})
    conn = connect(played.uri, conn_timeout=0.5)
    job = conn.reserve_job(5)
    if not asked:
        with pytest.raises(gstalk.DeadlineSoonError):
            conn.reserve()  # the next one waits for the end of the quiet time
    reserver = call(conn.reserve)
    deleter = call(job.delete)
    closer = call(conn.close)
    gevent.joinall([reserver])
    assert not closer.ready()
    assert type(reserver.exception) is gstalk.ConnectionClosedError
    assert (reserver.exception.sent, str(reserver.exception)) == (sent, f"reserve at {conn.uri}: you closed it")
    gevent.joinall([deleter, closer])


@pytest.mark.parametrize("reserve", ["reserve", "reserve_with_timeout"])
def test_reserve_that_comes_while_a_close_waits_is_refused(play, connect, reserve):
    """What comes now would reserve a job that is lost in a moment."""
    played = play({"reserve-job": b"RESERVED 5 1\r\nx\r\n", "delete": b""})
    conn = connect(played.uri, conn_timeout=0.5)
    deleter = call(conn.reserve_job(5).delete)
    closer = call(conn.close)
    with pytest.raises(gstalk.ConnectionClosedError, match="it was not sent$"):
        getattr(conn, reserve)(*[0] * (reserve != "reserve"))
    assert not closer.ready()
    gevent.joinall([deleter, closer])
    assert played.count("reserve-with-timeout") == 0


# -- jobs that ran out ---------------------------------------------------------------------------------------------


def reserved(reserve):
    """Reserve, and go on after DEADLINE_SOON."""
    while True:
        try:
            return reserve()
        except gstalk.DeadlineSoonError:
            pass


@pytest.mark.slow
def test_jobs_that_ran_out_are_held_no_longer_and_the_conn_waits_again(conn, other, tube):
    """Nobody refers to them, and the server doesn't tell that their time is over: it has to be asked."""
    for _ in range(100):
        hold(conn, other, tube, ttr=1)
    reserver = call(reserved, conn.reserve)
    wait_until(lambda: not conn._connection.reserved.by_id, 20)
    wait_until(lambda: other.stats().current_waiting == 1, 5)
    before = other.stats().cmd_reserve_with_timeout
    gevent.sleep(0.3)
    assert other.stats().cmd_reserve_with_timeout == before
    other.put(tube, b"x")
    assert reserver.get().body == b"x"


@pytest.mark.slow
def test_jobs_that_ran_out_are_noticed_by_who_asks_without_waiting(conn, other, tube):
    for _ in range(100):
        hold(conn, other, tube, ttr=1)

    def gone():
        reserved(lambda: conn.reserve_with_timeout(0))
        return not conn._connection.reserved.by_id

    wait_until(gone, 20)


@pytest.mark.slow
def test_job_that_ran_out_in_somebodys_hands_is_lost(conn, other, tube, monkeypatch):
    monkeypatch.setattr(reserved_jobs, "AGE", 0.1)
    job = hold(conn, other, tube, ttr=3)
    other.watch(f"{tube}-held")
    reserver = call(reserved, conn.reserve)
    taken = reserved(lambda: other.reserve_with_timeout(10))
    assert taken.id == job.id
    wait_until(lambda: (taken.touch(), job.is_lost)[1], 10)
    with pytest.raises(gstalk.JobLostError):
        job.delete()
    assert taken.stats().state == "reserved"
    taken.delete()
    other.put(tube, b"x")
    reserver.get().delete()


@pytest.mark.slow
def test_jobs_that_are_held_are_asked_about_once_in_their_time(own_server, connect, tube):
    conn, other = connect(own_server.uri), connect(own_server.uri)
    kept = [conn.reserve_job(other.put(tube, b"x", ttr=600)) for _ in range(3)]
    dropped = [conn.reserve_job(other.put(tube, b"x", ttr=600)).id for _ in range(2)]
    before = other.stats().cmd_stats_job
    assert conn.reserve_with_timeout(2.5) is None
    assert other.stats().cmd_stats_job - before == len(dropped)
    assert all(job.time_left() > 500 for job in kept)
    assert {other.stats_job(job_id).state for job_id in dropped} == {"reserved"}  # until their time is over


# -- interruption ------------------------------------------------------------------------------------------------

INTERRUPTIONS = [lambda: gevent.Timeout(60), gevent.GreenletExit, KeyboardInterrupt, lambda: ValueError("own")]


def interruptible(method):
    """Start a call in a greenlet that keeps what is raised there in a list, instead of telling the hub."""
    raised: list[BaseException] = []

    def run():
        try:
            return method()
        except BaseException as error:
            raised.append(error)

    return call(run), raised


@pytest.mark.parametrize("make", INTERRUPTIONS)
@pytest.mark.parametrize("holding", [False, True])
def test_reserve_interrupted_a_later_job_goes_to_others(conn, other, connect, tube, make, holding):
    third = connect()
    if holding:
        hold(conn, other, tube)
    greenlet, raised = interruptible(conn.reserve)
    gevent.sleep(0.02)
    error = make()
    greenlet.kill(error)
    assert raised == [error]
    job_id = other.put(tube, b"x", priority=33)
    job = third.reserve_with_timeout(5)
    assert (job.id, job.stats().pri) == (job_id, 33)
    job.delete()
    assert conn.reserve_with_timeout(0) is None


@pytest.mark.parametrize("holding", [False, True])
@pytest.mark.parametrize("turns", range(6))
def test_reserve_interrupted_as_its_job_arrives_the_job_goes_back_at_once(conn, other, tube, turns, holding):
    if holding:
        hold(conn, other, tube)
    greenlet, _ = interruptible(conn.reserve)
    gevent.sleep(0.02)
    putter = call(other.put, tube, b"x")
    for _ in range(turns):
        gevent.sleep(0)
    greenlet.kill(block=False)
    job_id = putter.get()
    gevent.joinall([greenlet])
    if greenlet.value is not None:  # it was faster
        greenlet.value.release()
    wait_until(lambda: other.stats_job(job_id).state == "ready", 5)
    assert other.stats_job(job_id).pri == 1024
    assert conn.is_connected


def test_reserve_interrupted_with_its_job_in_the_reply_is_released_with_its_own_priority(conn, other, tube):
    """The reply is there, the greenlet woken for it, and killed before it runs."""
    job_id = other.put(tube, b"x", priority=321)
    greenlet, _ = interruptible(lambda: conn.reserve_with_timeout(0))
    greenlet.kill(block=False)
    gevent.joinall([greenlet])
    wait_until(lambda: other.stats_job(job_id).state == "ready", 5)
    stats = other.stats_job(job_id)
    assert (stats.pri, stats.reserves, stats.releases) == (321, 1, 1)


def test_reserve_interrupted_one_of_many_the_others_get_their_jobs(conn, other, tube):
    pairs = [interruptible(conn.reserve) for _ in range(10)]
    for greenlet, _ in pairs[::2]:
        greenlet.kill()
    ids = other.put_many(tube, [b"x"] * 5)
    left = [greenlet for greenlet, _ in pairs[1::2]]
    gevent.joinall(left, timeout=10)
    assert sorted(greenlet.value.id for greenlet in left) == ids
    assert conn.stats_tube(tube).current_jobs_ready == 0


@pytest.mark.slow
def test_reserve_interrupted_at_random_no_job_is_lost_or_kept(own_server, connect):
    conn, other = connect(own_server.uri), connect(own_server.uri)
    ids = set(other.put_many("default", [b"x"] * 200))
    done: set[int] = set()

    def work(number):
        turn = number
        while len(done) < 200:
            turn += 1
            # More patient with each turn: a server that is always slower than the first ones would get nothing done.
            with gevent.Timeout(0.0003 * (turn % 9) * (1 + turn / 100), False):  # type: ignore[arg-type]
                job = conn.reserve()
                done.add(job.id)
                job.delete()
            gevent.sleep(0)

    # Each interrupted delete is carried out, each interrupted reserve given back: in the end nothing is left.
    workers = [gevent.spawn(work, number) for number in range(20)]
    wait_until(lambda: other.stats().current_jobs_ready == other.stats().current_jobs_reserved == 0, 30)
    done |= ids
    gevent.joinall(workers, timeout=10, raise_error=True)
    assert other.stats().cmd_delete == 200
    assert done == ids
    assert conn.is_connected


def test_reserve_interrupted_by_the_users_timeout_passes_it_unchanged(conn):
    mine = gevent.Timeout(0.05)
    with pytest.raises(gevent.Timeout) as caught:
        with mine:
            conn.reserve()
    assert caught.value is mine
