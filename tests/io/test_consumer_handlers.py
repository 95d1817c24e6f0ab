"""A Consumer's handlers: which jobs they get, how many run, and what becomes of a job by how its handler ends."""

from __future__ import annotations

import weakref
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from tests.io.working import AT_ONCE, state
from tests.servers import wait_until

pytestmark = pytest.mark.real


def test_handler_gets_every_job_once_with_its_tube_and_uri(work, conn, server, tube):
    got: list[tuple[int, bytes, str | None, str]] = []

    def handler(job):
        got.append((job.id, job.body, job.tube, job.uri))
        job.delete()

    work(handler)
    ids = conn.put_many(tube, [b"%d" % number for number in range(1000)])
    wait_until(lambda: len(got) >= 1000)
    assert sorted(got) == [(job_id, b"%d" % number, tube, server.uri) for number, job_id in enumerate(ids)]
    wait_until(lambda: conn.stats_tube(tube).current_jobs_reserved == 0)


def test_handlers_by_tube_with_one_and_with_several_watched(work, conn, tube):
    for tubes in ([tube], [tube, f"{tube}-b"]):
        got: list[Any] = []

        def handler(name, got=got):
            def handle(job):
                got.append((name, job.tube, job.body))
                job.delete()

            return handle

        worker = work({name: handler(name) for name in [*tubes, "unwatched"]}, tubes=tubes)
        for name in tubes:
            conn.put(name, name.encode())
        wait_until(lambda: len(got) == len(tubes))  # noqa: B023
        assert sorted(got) == [(name, name, name.encode()) for name in tubes]
        worker.stop()
        assert worker.errors == []


FAILURES: list[Any] = [
    lambda: ValueError("own"),
    lambda: SystemExit(3),
    lambda: gevent.Timeout(60),
    lambda: gevent.GreenletExit(),
    lambda: gstalk.ConnectionLostError("of another connection"),
    lambda: StopIteration(),
]


@pytest.mark.parametrize("make", FAILURES)
def test_handler_that_raises_its_job_is_released_and_error_func_told(work, conn, server, tube, make):
    attempts = []
    priorities = []
    error = make()

    def handler(job):
        priorities.append(job.stats().pri)
        attempts.append(job.id)
        if len(attempts) < 3:
            raise error
        job.delete()

    worker = work(handler, retry=AT_ONCE, num_greenlets=2)
    job_id = conn.put(tube, b"secret", priority=7)
    wait_until(lambda: len(attempts) == 3)
    wait_until(lambda: len(worker.errors) == 2)
    for number, (told, message) in enumerate(worker.errors, 1):
        assert told is error
        for part in (str(job_id), server.uri, f"attempt {number}"):
            assert part in message
        assert "secret" not in message
    assert attempts == [job_id] * 3
    assert priorities == [7] * 3


def test_delay_is_told_as_the_server_counts_it(work, conn, tube):
    """In whole seconds, whatever chance made of it."""
    worker = work(lambda job: None, retry=gstalk.RetryPolicy(first_delay=0.6))
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    (_, message) = worker.errors[0]
    assert message == f"job {job_id} of {conn.uri}: its handler failed, attempt 1; released, with a delay of 1 s"


def test_handler_that_forgets_its_job_has_failed(work, conn, tube):
    worker = work(lambda job: None)
    job_id = conn.put(tube, b"", priority=17)
    wait_until(lambda: worker.errors)
    assert worker.kinds() == [gstalk.JobNotFinishedError]
    wait_until(lambda: state(conn, job_id) == "delayed")
    assert conn.stats_job(job_id).pri == 17


def test_handler_that_deletes_and_then_raises_is_told_and_its_job_stays_deleted(work, conn, tube):
    def handler(job):
        job.delete()
        raise ValueError

    worker = work(handler)
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert worker.kinds() == [ValueError]
    assert state(conn, job_id) is None


@pytest.mark.parametrize("name", ["release", "bury"])
def test_handler_that_releases_or_buries_its_job_has_not_failed(work, conn, tube, name):
    done = Event()

    def handler(job):
        job.release(delay=100) if name == "release" else job.bury()
        done.set()

    worker = work(handler)
    job_id = conn.put(tube, b"")
    assert done.wait(5)
    wait_until(lambda: state(conn, job_id) == ("delayed" if name == "release" else "buried"))
    worker.stop()
    assert worker.errors == []


def test_handler_that_always_fails_has_its_job_buried_after_max_attempts(work, conn, tube):
    def handler(job):
        raise ValueError

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=3, first_delay=0))
    job_id = conn.put(tube, b"", priority=18)
    wait_until(lambda: state(conn, job_id) == "buried")
    stats = conn.stats_job(job_id)
    assert (stats.reserves, stats.pri) == (3, 18)
    wait_until(lambda: len(worker.errors) == 3)
    conn.kick_job(job_id)
    wait_until(lambda: conn.stats_job(job_id).buries == 2)
    assert conn.stats_job(job_id).reserves == 6


def test_handler_that_always_fails_has_its_job_deleted_where_that_is_asked_for(work, conn, tube):
    def handler(job):
        raise ValueError

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=1, exhausted="delete"))
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) is None)
    wait_until(lambda: len(worker.errors) == 1)


def test_handler_that_fails_delays_grow(work, conn, tube):
    def handler(job):
        raise ValueError

    policy = gstalk.RetryPolicy(first_delay=10, factor=3, jitter=False)
    work(handler, retry=policy)
    job_id = conn.put(tube, b"")
    for number, delay in enumerate((10, 30, 90), 1):
        wait_until(lambda: state(conn, job_id) == "delayed" and conn.stats_job(job_id).releases == number)  # noqa: B023
        assert conn.stats_job(job_id).delay == delay
        if number < 3:
            conn.kick_job(job_id)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("delayed", 1024, 1)),
        ({"delay": 50.5}, ("delayed", 1024, 51)),
        ({"priority": 3, "delay": 9}, ("delayed", 3, 9)),
    ],
)
def test_handler_raises_retry_releases_and_tells_nobody(work, conn, tube, given, expected):
    def handler(job):
        raise gstalk.Retry(**given)

    worker = work(handler, retry=gstalk.RetryPolicy(jitter=False))
    job_id = conn.put(tube, b"")
    wait_until(lambda: conn.stats_job(job_id).releases)
    stats = conn.stats_job(job_id)
    assert (stats.state, stats.pri, stats.delay) == expected
    worker.stop()
    assert worker.errors == []


def test_handler_raises_retry_counts_as_an_attempt(work, conn, tube):
    def handler(job):
        raise gstalk.Retry(delay=0)

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=4))
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) == "buried")
    assert conn.stats_job(job_id).reserves == 4
    assert worker.errors == []


@pytest.mark.parametrize(("given", "priority"), [({}, 44), ({"priority": 3}, 3)])
def test_handler_raises_bury_buries_and_tells_nobody(work, conn, tube, given, priority):
    def handler(job):
        raise gstalk.Bury(**given)

    worker = work(handler)
    job_id = conn.put(tube, b"", priority=44)
    wait_until(lambda: state(conn, job_id) == "buried")
    assert conn.stats_job(job_id).pri == priority
    worker.stop()
    assert worker.errors == []


@pytest.mark.parametrize("error", [gstalk.Retry(delay=0), gstalk.Bury(), ValueError("made once")], ids=repr)
def test_error_object_that_a_handler_raises_for_each_job_keeps_few_jobs(work, conn, tube, error):
    """Python puts the frames of each raise before those of the last one, and the frames hold the jobs."""
    jobs: list[weakref.ref[gstalk.Job]] = []

    def handler(job):
        jobs.append(weakref.ref(job))
        raise error

    worker = work(handler, num_greenlets=3, retry=gstalk.RetryPolicy(max_attempts=4, first_delay=0))
    conn.put_many(tube, [b""] * 10)
    wait_until(lambda: conn.stats_tube(tube).current_jobs_buried == 10)
    worker.stop()
    assert len(jobs) >= 10
    assert sum(job() is not None for job in jobs) <= 3


@pytest.mark.parametrize(
    "wrong", [gstalk.Retry(delay=-1), gstalk.Retry(delay="x"), gstalk.Retry(priority=-1), gstalk.Bury(priority=2**32)]
)
def test_handler_raises_a_wrong_retry_or_bury_releases_and_tells(work, conn, tube, wrong):
    attempts = []

    def handler(job):
        attempts.append(job.id)
        if len(attempts) == 1:
            raise wrong
        job.delete()

    worker = work(handler)
    conn.put(tube, b"")
    wait_until(lambda: len(attempts) == 2)
    assert len(worker.errors) == 1
    assert isinstance(worker.errors[0][0], (TypeError, gstalk.InvalidArgumentError))


def test_auto_delete_deletes_what_the_handler_left_and_nothing_else(work, conn, tube):
    done = []

    def handler(job):
        if job.body == b"bury":
            job.bury()
        elif job.body == b"fail":
            raise ValueError
        done.append(job.body)

    worker = work(handler, auto_delete=True)
    ids = {body: conn.put(tube, body) for body in (b"leave", b"bury", b"fail")}
    wait_until(lambda: len(done) == 2 and worker.errors)
    wait_until(lambda: [state(conn, each) for each in ids.values()] == [None, "buried", "delayed"])
    assert worker.kinds() == [ValueError]


def test_auto_delete_that_fails_is_told(play, work):
    reserved = [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"]

    def asked(line):
        if line == b"reserve-with-timeout 30" and len(reserved) == 1:
            gevent.sleep(0.05)
        return reserved.pop(0) if len(reserved) > 1 else reserved[0]

    played = play({"reserve-with-timeout": asked, "delete": b"INTERNAL_ERROR\r\n"})
    worker = work(lambda job: None, played.uri, "default", auto_delete=True)
    wait_until(lambda: worker.errors)
    assert worker.kinds() == [gstalk.InternalError]
    assert "7" in worker.errors[0][1]


@pytest.mark.slow
def test_auto_touch_keeps_the_job_of_a_slow_handler(work, conn, tube):
    done = []

    def handler(job):
        gevent.sleep(2.5)
        job.delete()
        done.append(job.id)

    worker = work(handler, auto_touch=True)
    job_id = conn.put(tube, b"", ttr=1)
    wait_until(lambda: done)
    assert done == [job_id]
    assert worker.errors == []
    assert state(conn, job_id) is None


@pytest.mark.slow
def test_time_to_run_over_the_handlers_delete_raises_lost_and_the_job_runs_again(work, conn, tube):
    runs = []

    def handler(job):
        runs.append(job.id)
        if len(runs) == 1:
            wait_until(lambda: job.is_lost or len(runs) > 1)
            with pytest.raises(gstalk.JobLostError):
                job.delete()
            raise ValueError
        job.delete()

    worker = work(handler)
    job_id = conn.put(tube, b"", ttr=1)
    wait_until(lambda: len(runs) == 2 and worker.errors)
    wait_until(lambda: state(conn, job_id) is None)
    assert runs == [job_id] * 2


@pytest.mark.slow
def test_time_limit_is_raised_in_the_handler_and_counts_as_failure(work, conn, tube):
    seen = []

    def handler(job):
        try:
            gevent.sleep(20)
        except Exception:
            seen.append("swallowed")
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    worker = work(handler, time_limit=0.2)
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert seen == ["TimeLimitExceeded"]
    assert worker.kinds() == [gstalk.TimeLimitExceeded]
    assert issubclass(gstalk.TimeLimitExceeded, gevent.Timeout)
    wait_until(lambda: state(conn, job_id) == "delayed")


def test_auto_delete_does_not_delete_a_job_that_was_lost_meanwhile(work, conn, tube):
    runs = []

    def handler(job):
        runs.append(job.id)
        if len(runs) == 1:
            wait_until(lambda: len(runs) == 2)  # its time is over, and it was reserved again
            assert job.is_lost

    worker = work(handler, auto_delete=True)
    job_id = conn.put(tube, b"", ttr=1)
    wait_until(lambda: state(conn, job_id) is None)
    wait_until(lambda: worker.kinds() == [gstalk.JobLostError])
    assert runs == [job_id] * 2


@pytest.mark.parametrize("how", ["forgotten timeout", "second kill"])
def test_handler_hit_again_after_it_failed_its_job_goes_back_and_is_told(own_server, work, connect, how):
    """The server is stopped for a moment, so that the second blow falls while its answer is waited for."""
    conn = connect(own_server.uri)
    blows: list[Any] = []
    runs: list[int] = []

    def handler(job):
        runs.append(job.id)
        if len(runs) > 1:
            job.delete()
            return
        own_server.pause()
        me: Any = gevent.getcurrent()
        if how == "forgotten timeout":
            blows.append(gevent.Timeout.start_new(0.1))
        else:
            blows.append(gevent.spawn_later(0.1, me.kill, block=False))
        raise ValueError

    worker = work(handler, own_server.uri, "t", retry=AT_ONCE, num_greenlets=1)
    conn.put("t", b"")
    wait_until(lambda: runs)
    gevent.sleep(0.3)
    own_server.resume()
    wait_until(lambda: len(runs) == 2, 5)
    assert worker.errors


def test_job_lost_with_its_worker_too_often_is_buried_before_its_handler(work, server, conn, tube):
    job_id = conn.put(tube, b"", priority=21)
    for _ in range(3):
        with gstalk.dial(server.uri) as worker_that_dies:
            wait_until(lambda: conn.stats_job(job_id).state == "ready")
            worker_that_dies.reserve_job(job_id)
    wait_until(lambda: conn.stats_job(job_id).state == "ready")
    ran: list[Any] = []
    worker = work(ran.append, retry=gstalk.RetryPolicy(max_attempts=3))
    wait_until(lambda: state(conn, job_id) == "buried")
    wait_until(lambda: worker.errors)
    ((error, _),) = worker.errors
    assert isinstance(error, gstalk.RetriesExhaustedError)
    assert (error.job_id, error.attempts) == (job_id, 4)
    assert ran == []
    assert conn.stats_job(job_id).pri == 21


def test_job_released_often_is_not_taken_for_lost(work, conn, tube):
    job_id = conn.put(tube, b"")
    for _ in range(5):
        conn.reserve_job(job_id).release()
    ran = []

    def handler(job):
        ran.append(job.id)
        job.delete()

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=3))
    wait_until(lambda: ran)
    assert worker.errors == []


def test_job_that_its_handlers_released_has_made_attempts_when_one_fails(work, conn, tube):
    job_id = conn.put(tube, b"")

    def handler(job):
        if job.stats().reserves < 3:
            job.release()
        else:
            raise ValueError

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=3))
    wait_until(lambda: state(conn, job_id) == "buried")
    wait_until(lambda: worker.kinds() == [ValueError])


def test_first_jobs_after_a_connect_are_looked_at_and_no_others(own_server, work, connect):
    conn = connect(own_server.uri)
    done: list[int] = []
    work(lambda job: done.append(job.id), own_server.uri, "t", num_greenlets=3, auto_delete=True)
    conn.put_many("t", [b""] * 50)
    wait_until(lambda: len(done) == 50)
    assert conn.stats().cmd_stats_job == 3
