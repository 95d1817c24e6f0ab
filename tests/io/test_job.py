"""Job: its fields and methods, and the same by Conn with an id, until it is finished or lost."""

from __future__ import annotations

import time

import pytest

import gstalk
from tests.io.calling import call, held
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real


# -- reserve_job, delete, release, bury, touch, kick ---------------------------------------------------------------


def test_reserve_job_ready_delayed_or_buried_is_reserved(conn, other, tube):
    ready, delayed = conn.put(tube, b"ready"), conn.put(tube, b"delayed", delay=100)
    held(conn, tube, b"buried", priority=0).bury()
    buried = conn.peek_buried(tube).id
    for job_id, body in ((ready, b"ready"), (delayed, b"delayed"), (buried, b"buried")):
        job = other.reserve_job(job_id)
        assert (job.id, job.body) == (job_id, body)
        assert job.stats().state == "reserved"


def test_reserve_job_missing_or_reserved_raises_not_found(conn, other, tube):
    with pytest.raises(gstalk.NotFoundError):
        conn.reserve_job(2**63)
    job = held(conn, tube)
    with pytest.raises(gstalk.NotFoundError):
        other.reserve_job(job.id)


BY_ID = ["delete", "touch", "kick_job", "release", "bury", "stats_job", "reserve_job"]


@pytest.mark.parametrize("name", [*BY_ID, "peek"])
def test_job_id_wrong_is_refused(conn, name):
    for value in (0, -1, 2**64):
        with pytest.raises(gstalk.InvalidArgumentError):
            getattr(conn, name)(value)
    for wrong in (True, "1", 1.0, None, b"1"):
        with pytest.raises(TypeError):
            getattr(conn, name)(wrong)
    assert conn.is_connected


@pytest.mark.parametrize("name", BY_ID)
def test_job_id_unknown_raises_not_found(conn, name):
    with pytest.raises(gstalk.NotFoundError):
        getattr(conn, name)(2**64 - 1)
    assert conn.is_connected


def test_kick_makes_buried_jobs_ready_and_returns_how_many(conn, tube):
    for _ in range(3):
        held(conn, tube).bury()
    assert conn.kick(tube, 2) == 2
    assert conn.kick(tube, 5) == 1
    assert conn.kick(tube, 5) == 0
    assert conn.stats_tube(tube).current_jobs_ready == 3


def test_kick_without_buried_jobs_makes_delayed_ones_ready(conn, tube):
    conn.put(tube, b"", delay=100)
    assert conn.kick(tube, 1) == 1
    assert conn.peek_ready(tube) is not None


def test_kick_wrong_bound_is_refused(conn, tube):
    for bound in (-1, 2**32):
        with pytest.raises(gstalk.InvalidArgumentError):
            conn.kick(tube, bound)
    for wrong in (True, "1", 1.5):
        with pytest.raises(TypeError):
            conn.kick(tube, wrong)


def test_kick_job_ready_raises_not_found(conn, tube):
    with pytest.raises(gstalk.NotFoundError):
        conn.kick_job(conn.put(tube, b""))


# -- Job ---------------------------------------------------------------------------------------------------------


def test_job_fields_after_a_reserve(conn, tube):
    before = time.monotonic()
    job = held(conn, tube, b"body")
    assert (job.body, job.tube, job.uri) == (b"body", tube, conn.uri)
    assert before <= job.reserved_at <= time.monotonic()
    assert (job.is_finished, job.is_lost) == (False, False)


def test_job_tube_is_unknown_with_several_watched_until_stats(conn, tube):
    conn.watch("another")
    job = held(conn, tube)
    assert job.tube is None
    assert job.stats().tube == tube
    assert job.tube == tube


def test_job_tube_after_reserve_job_is_unknown(conn, other, tube):
    job = conn.reserve_job(other.put("elsewhere", b""))
    assert job.tube is None
    job.delete()


SETTLING = ["delete", "release", "bury"]


@pytest.mark.parametrize("first", SETTLING)
def test_job_finished_refuses_another_and_sends_nothing(play, connect, first):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n"})
    job = connect(played.uri).reserve_with_timeout(0)
    getattr(job, first)()
    before = list(played.lines)
    for second in (*SETTLING, "touch"):
        with pytest.raises(gstalk.JobFinishedError):
            getattr(job, second)()
    assert played.lines == before


@pytest.mark.parametrize("first", SETTLING)
def test_job_while_one_is_under_way_refuses_another(conn, tube, first):
    job = held(conn, tube)
    settler = call(getattr(job, first))
    for second in (*SETTLING, "touch"):
        with pytest.raises(gstalk.JobFinishedError):
            getattr(job, second)()
    settler.get()
    assert job.is_finished


@pytest.mark.parametrize(
    ("name", "args"), [("delete", ()), ("release", (5,)), ("release", ()), ("bury", (5,)), ("bury", ())]
)
@pytest.mark.parametrize("reply", [b"INTERNAL_ERROR\r\n", b"OUT_OF_MEMORY\r\n"])
def test_job_settling_that_failed_is_unfinished_again(play, connect, name, args, reply):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", name: [reply, None]})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.ServerError):
        getattr(job, name)(*args)
    assert (job.is_finished, job.is_lost) == (False, False)
    getattr(job, name)(*args)
    assert job.is_finished


def test_job_release_answered_buried_raises_buried_and_is_finished(play, connect):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "release": b"BURIED\r\n"})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.BuriedError) as caught:
        job.release()
    assert caught.value.job_id == 7
    assert job.is_finished


@pytest.mark.parametrize("name", ["delete", "release", "bury", "touch"])
def test_job_not_found_by_the_server_is_lost(play, connect, name):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", name: b"NOT_FOUND\r\n"})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.JobLostError):
        getattr(job, name)()
    assert (job.is_finished, job.is_lost) == (False, True)
    before = list(played.lines)
    for each in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError):
            getattr(job, each)()
    assert played.lines == before


@pytest.mark.parametrize("name", ["stats", "time_left", "kick"])
def test_job_stats_not_found(play, connect, name):
    replies = {"stats-job": b"NOT_FOUND\r\n", "kick-job": b"NOT_FOUND\r\n"}
    job = connect(play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", **replies}).uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.NotFoundError if name == "kick" else gstalk.JobLostError):
        getattr(job, name)()


@pytest.mark.slow
def test_job_whose_time_is_over_is_lost(conn, other, tube):
    job = held(conn, tube, ttr=1)
    wait_until(lambda: (conn.list_tube_used(), other.stats_job(job.id).state)[1] == "ready")
    taken = other.reserve_with_timeout(5)
    assert taken.id == job.id
    with pytest.raises(gstalk.JobLostError):
        job.delete()
    assert job.is_lost
    taken.delete()


@pytest.mark.slow
def test_job_reserved_again_by_the_same_connection_the_older_is_lost_and_its_delete_not_sent(conn, other, tube):
    stale = held(conn, tube, ttr=1)
    wait_until(lambda: (conn.list_tube_used(), other.stats_job(stale.id).state)[1] == "ready")
    again = conn.reserve_with_timeout(5)
    assert again.id == stale.id
    assert stale.is_lost
    for name in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError):
            getattr(stale, name)()
    assert again.stats().state == "reserved"
    again.delete()
    assert not stale.is_finished


def test_job_connection_gone_is_lost_and_sends_nothing(conn, other, tube):
    job, done = held(conn, tube), held(conn, tube)
    done.delete()
    conn.close()
    assert (job.is_lost, done.is_lost, done.is_finished) == (True, False, True)
    for name in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError) as caught:
            getattr(job, name)()
        gone = "lost with its connection (you closed it); nothing was sent"
        assert str(caught.value) == f"{name} {job.id} at {conn.uri}: {gone}"
        with pytest.raises(gstalk.JobFinishedError):
            getattr(done, name)()


def test_job_connection_lost_while_it_is_deleted_raises_disconnected_and_is_lost(play, connect):
    conn = connect(play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "delete": CUT}).uri)
    job = conn.reserve_with_timeout(0)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        job.delete()
    assert caught.value.sent == "maybe"
    assert job.is_lost


def test_job_kick_and_stats_work_whatever_became_of_it(conn, tube):
    job = held(conn, tube)
    job.bury()
    assert job.stats().state == "buried"
    job.kick()
    assert job.stats().state == "ready"
    assert job.is_finished


def test_job_stats_are_job_stats(conn, tube):
    stats = held(conn, tube, priority=5, ttr=70).stats()
    assert isinstance(stats, gstalk.JobStats)
    assert (stats.tube, stats.state, stats.pri, stats.ttr, stats.reserves) == (tube, "reserved", 5, 70, 1)


def test_job_time_left_of_reserved_and_of_other_jobs(conn, tube):
    job = held(conn, tube, ttr=50)
    assert 45 <= job.time_left() <= 50
    assert isinstance(job.time_left(), float)
    job.release(delay=100)
    assert job.time_left() == 0


def test_job_repr_shows_no_body(conn, tube):
    assert "secret" not in repr(held(conn, tube, b"secret"))
