"""Consumer: handlers and the fate of their jobs, what `receive` and `stop` promise, several servers, idleness."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

import gstalk
from gstalk.connection.transport import Transport
from gstalk.testing import Beanstalkd, FaultProxy
from tests.faults.hub import silent_hub
from tests.io.working import Worker, state
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real

AT_ONCE = gstalk.RetryPolicy(first_delay=0, max_delay=0)


# -- what it is made of ------------------------------------------------------------------------------------------


def test_consumer_malformed_uri_tube_or_option_is_refused(server):
    for uris, tubes in (("redis://x", "t"), ([], "t"), (server.uri, []), (server.uri, ["t", "a b"])):
        with pytest.raises(gstalk.InvalidArgumentError):
            gstalk.Consumer(uris, tubes)
    with pytest.raises(TypeError):
        gstalk.Consumer(server.uri, [b"t"])  # type: ignore[list-item]
    with pytest.raises(gstalk.InvalidArgumentError):
        gstalk.Consumer(server.uri, "t", num_greenlets=0)


def test_receive_handler_that_cannot_be_called_is_refused(server):
    consumer = gstalk.Consumer(server.uri, ["a", "b"])
    with pytest.raises(TypeError):
        consumer.receive(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        consumer.receive({"a": print, "b": None})  # type: ignore[dict-item]
    with pytest.raises(gstalk.InvalidArgumentError):
        consumer.receive({"a": print})


def test_receive_watches_the_tubes_and_not_default(work, conn, other, tube):
    worker = work(lambda job: job.delete(), tubes=[tube, f"{tube}-b"])
    assert worker.consumer.wait_connected(5)
    left = other.put("default", b"")
    put = [other.put(tube, b""), other.put(f"{tube}-b", b"")]
    wait_until(lambda: [state(other, job_id) for job_id in put] == [None, None])
    assert state(other, left) == "ready"
    other.delete(left)


def test_is_connected_is_false_outside_of_receive(work, tube):
    worker = work(lambda job: None)
    assert worker.consumer.wait_connected(5)
    assert worker.consumer.is_connected
    worker.stop()
    assert not worker.consumer.is_connected
    assert worker.consumer.wait_connected(0) is False


def test_receive_uses_multiply_connections_per_uri(own_server, work, connect):
    conn = connect(own_server.uri)
    work(lambda job: None, own_server.uri, multiply=3)
    wait_until(lambda: conn.stats().current_connections == 4)


def test_receive_beside_another_raises_runtime_error(work, tube):
    worker = work(lambda job: None)
    gevent.sleep(0)
    with pytest.raises(RuntimeError):
        worker.consumer.receive(print)


def test_receive_again_after_a_stop_works(server, conn, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    for turn in range(3):
        got: list[Any] = []

        def handler(job, got=got):
            got.append(job.body)
            job.delete()
            consumer.stop()

        conn.put(tube, b"%d" % turn)
        consumer.receive(handler)
        assert got == [b"%d" % turn]


# -- handlers ----------------------------------------------------------------------------------------------------


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


def test_handlers_no_more_run_and_no_more_jobs_are_reserved_than_num_greenlets(work, conn, tube):
    running = most = 0
    reserved = []

    def handler(job):
        nonlocal running, most
        running += 1
        most = max(most, running)
        reserved.append(conn.stats_tube(tube).current_jobs_reserved)
        gevent.sleep(0.002)
        running -= 1
        job.delete()

    conn.put_many(tube, [b""] * 200)
    work(handler, num_greenlets=7, multiply=3)
    wait_until(lambda: len(reserved) == 200)
    assert most == 7
    assert max(reserved) <= 7


def test_handler_runs_in_greenlets_beside_each_other(work, conn, tube):
    here, gate = [], Event()

    def handler(job):
        here.append(job.id)
        gate.wait()
        job.delete()

    work(handler)
    conn.put_many(tube, [b""] * 10)
    wait_until(lambda: len(here) == 10)
    gate.set()


def test_handlers_greenlet_serves_many_jobs_and_keeps_its_local_data(work, conn, tube):
    mine = local()
    counts: list[int] = []

    def handler(job):
        mine.jobs = getattr(mine, "jobs", 0) + 1
        counts.append(mine.jobs)

    work(handler, num_greenlets=1, auto_delete=True)
    conn.put_many(tube, [b""] * 3)
    wait_until(lambda: counts == [1, 2, 3])


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
    error = make()

    def handler(job):
        attempts.append(job.id)
        if len(attempts) < 3:
            raise error
        job.delete()

    worker = work(handler, retry=AT_ONCE, num_greenlets=2)
    job_id = conn.put(tube, b"secret")
    wait_until(lambda: len(attempts) == 3)
    wait_until(lambda: len(worker.errors) == 2)
    for number, (told, message) in enumerate(worker.errors, 1):
        assert told is error
        for part in (str(job_id), server.uri, f"attempt {number}"):
            assert part in message
        assert "secret" not in message
    assert attempts == [job_id] * 3


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


def test_handlers_that_die_cost_no_concurrency(work, conn, tube):
    running: list[int] = []
    gate = Event()
    me: Callable[[], Any] = gevent.getcurrent

    def handler(job):
        job.delete()
        match job.body:
            case b"kill":
                me().kill()
            case b"exit":
                sys.exit(1)
            case b"swallow":
                try:
                    me().kill()
                except BaseException:
                    pass
            case b"wait":
                running.append(job.id)
                gate.wait()

    work(handler, num_greenlets=5)
    conn.put_many(tube, [b"kill", b"exit", b"swallow", b"raise"] * 25)
    conn.put_many(tube, [b"wait"] * 5)
    wait_until(lambda: len(running) == 5)
    gate.set()


def test_handlers_greenlets_killed_while_they_wait_are_replaced(work, conn, tube):
    running: list[int] = []
    gate = Event()

    def handler(job):
        running.append(job.id)
        gate.wait()
        job.delete()

    worker = work(handler, num_greenlets=5)
    assert worker.consumer.wait_connected(5)
    greenlets = worker.consumer._run._crew._greenlets
    wait_until(lambda: len(worker.consumer._run._crew._idle) == 5)
    gevent.killall(list(greenlets), block=False)
    ids = conn.put_many(tube, [b""] * 3)  # handed to some of those that are about to die
    ids += conn.put_many(tube, [b""] * 2)
    wait_until(lambda: sorted(running) == ids)
    gate.set()


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


# -- outages -----------------------------------------------------------------------------------------------------


def test_connection_lost_handlers_jobs_are_lost_and_run_again_after_it_is_back(own_server, work, connect):
    results: list[Any] = []
    started = Event()

    def handler(job):
        started.set()
        if not results:
            wait_until(lambda: job.is_lost)
            for call in (job.delete, job.touch):
                with pytest.raises(gstalk.JobLostError):
                    call()
            results.append("lost")
            raise ValueError
        job.delete()
        results.append(job.body)

    conn = connect(own_server.uri)
    conn.put("t", b"before")
    worker = work(handler, own_server.uri, "t", reconnect_timeout=0.2)
    assert started.wait(5)
    own_server.restart()
    wait_until(lambda: results == ["lost"])
    with gstalk.dial(own_server.uri) as again:
        again.put("t", b"after")
        wait_until(lambda: results == ["lost", b"after"])
    assert ValueError in worker.kinds()


RUINED = b"RESERVED 7 3\r\n\0\0\0\0\0"


def test_job_without_an_end_is_buried_and_the_others_are_worked_off(play, work):
    """What a beanstalkd that was killed may hand out; whoever reserves it has to close the connection."""
    played = play(
        {
            "reserve-with-timeout": [RUINED, b"RESERVED 8 2\r\nok\r\n", b"TIMED_OUT\r\n"],
            "reserve-job": RUINED,
            "bury": b"BURIED\r\n",
        }
    )
    done = []
    worker = work(lambda job: done.append(job.body), played.uri, auto_delete=True)
    wait_until(lambda: done and worker.errors)
    assert done == [b"ok"]
    assert [line for line in played.lines if b"7" in line] == [b"reserve-job 7", b"bury 7 4294967295"]
    ((error, message),) = worker.errors
    assert isinstance(error, gstalk.ProtocolError)
    assert message == f"reserve at {played.uri} failed; job 7 has no end, the server has ruined it: buried"


@pytest.mark.parametrize(
    "again", [b"RESERVED 7 3\r\nabc\r\n", b"NOT_FOUND\r\n", b"RESERVED 9 3\r\n\0\0\0\0\0", b"RESERVED 7 3\r\n\0", CUT]
)
def test_job_without_an_end_is_left_alone_if_it_has_one_when_asked_again(play, work, again):
    played = play({"reserve-with-timeout": [RUINED, b"TIMED_OUT\r\n"], "reserve-job": again})
    worker = work(lambda job: None, played.uri, conn_timeout=0.5)
    wait_until(lambda: worker.errors)
    assert played.count("bury") == 0
    assert [message for _, message in worker.errors] == [f"reserve at {played.uri} failed"]


def test_job_without_an_end_after_a_restart_is_left_alone(play, work):
    """Its id may be another job's."""
    ids = [b"OK 10\r\n---\nid: %d\n\r\n" % life for life in (1, 2)]
    played = play({"stats": ids, "reserve-with-timeout": [RUINED, b"TIMED_OUT\r\n"], "reserve-job": RUINED})
    worker = work(lambda job: None, played.uri)
    wait_until(lambda: worker.errors)
    assert played.count("reserve-job") == played.count("bury") == 0


def test_job_that_a_real_server_has_ruined_is_buried(tmp_path, work, connect):
    with Beanstalkd(binlog=str(tmp_path)) as server:
        conn = connect(server.uri)
        ruined, good = (conn.put("ruins", body, priority=n) for n, body in enumerate([b"to be ruined", b"good"]))
        server.kill()
        (place,) = [path for path in tmp_path.glob("binlog.*") if b"to be ruined" in path.read_bytes()]
        place.write_bytes(place.read_bytes().replace(b"to be ruined\r\n", bytes(14)))
        server.start()
        done = []
        worker = work(lambda job: done.append(job.id), server.uri, "ruins", auto_delete=True)
        wait_until(lambda: done and worker.errors)
        assert done == [good]
        assert state(connect(server.uri), ruined) == "buried"
        worker.stop()


@pytest.mark.slow
def test_connection_whose_keepalive_cannot_be_sent_is_lost_and_nothing_else(own_server, work, connect, monkeypatch):
    sends = Transport.write
    connect(own_server.uri).put("t", b"x")

    def write(self, data):
        if data == b"list-tube-used\r\n" and refused == []:
            refused.append(self)
            raise gstalk.ConnectionLostError("connection reset by peer")
        return sends(self, data)

    refused: list[Transport] = []
    monkeypatch.setattr(Transport, "write", write)
    with silent_hub():
        jobs = []

        def handler(job):
            jobs.append(job)
            gevent.sleep(2)
            job.delete()

        worker = work(handler, own_server.uri, "t", multiply=2)
        wait_until(lambda: len(jobs) == 2)
        assert len(refused) == 1
        assert jobs[0].is_lost
        worker.stop()


def test_deadline_soon_is_no_error_and_asks_little(own_server, work, connect):
    conn = connect(own_server.uri)
    done = []

    def handler(job):
        gevent.sleep(0.9)
        job.delete()
        done.append(job.id)

    conn.put("t", b"", ttr=1)
    worker = work(handler, own_server.uri, "t")
    wait_until(lambda: done)
    assert worker.errors == []
    assert int(conn.stats().cmd_reserve_with_timeout or 0) < 60


def test_job_whose_connection_is_held_comes_through_another(work, conn, tube):
    """While a handler holds a job on the only connection, other jobs are still taken quickly."""
    gate, quick = Event(), []

    def handler(job):
        if job.body == b"slow":
            gate.wait()
        else:
            quick.append(time.monotonic())
        job.delete()

    work(handler)
    conn.put(tube, b"slow")
    wait_until(lambda: conn.stats_tube(tube).current_jobs_reserved == 1)
    gevent.sleep(0.3)
    began = time.monotonic()
    conn.put(tube, b"quick")
    wait_until(lambda: quick)
    assert quick[0] - began < 0.05 + 1
    gate.set()


# -- several servers ---------------------------------------------------------------------------------------------


def test_several_servers_all_are_worked_off_one_of_them_down(work, own_server, server, conn, tube):
    with Beanstalkd() as third:
        own_server.kill()
        got = []

        def handler(job):
            job.delete()
            got.append(job.uri)

        work(handler, [server.uri, own_server.uri, third.uri])
        with gstalk.dial(third.uri) as other:
            conn.put_many(tube, [b""] * 50)
            other.put_many(tube, [b""] * 50)
            wait_until(lambda: len(got) == 100)
            assert got.count(server.uri) == 50


@pytest.mark.slow
def test_several_servers_one_busy_does_not_starve_the_other(work, own_server, server, connect, conn, tube):
    other = connect(own_server.uri)
    got: list[tuple[str, float]] = []

    def handler(job):
        gevent.sleep(0.02)
        job.delete()
        got.append((job.uri, time.monotonic()))

    conn.put_many(tube, [b""] * 600)
    work(handler, [server.uri, own_server.uri], num_greenlets=4)
    wait_until(lambda: len(got) > 20)
    began = time.monotonic()
    other.put(tube, b"")
    wait_until(lambda: own_server.uri in [uri for uri, _ in got])
    assert next(when for uri, when in got if uri == own_server.uri) - began < 1.5


# -- idleness ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("multiply", [1, 3])
def test_idle_consumer_sends_nothing(own_server, work, connect, multiply):
    conn = connect(own_server.uri)
    worker = work(lambda job: job.delete(), own_server.uri, "t", multiply=multiply)
    wait_until(lambda: conn.stats().current_connections == multiply + 1 and conn.stats().current_waiting)
    conn.put("t", b"")
    wait_until(lambda: conn.stats().current_jobs_ready == conn.stats().current_jobs_reserved == 0)
    gevent.sleep(0.2)
    before = conn.stats()
    gevent.sleep(2)  # nothing is to happen: there is no event to wait for
    after = conn.stats()
    changed = {
        name: (value, getattr(after, name))
        for name, value in vars(before).items()
        if name.startswith("cmd_") and getattr(after, name) != value
    }
    assert changed == {"cmd_stats": (before.cmd_stats, int(before.cmd_stats or 0) + 1)}
    assert after.total_connections == before.total_connections
    assert worker.errors == []


@pytest.mark.timing
@pytest.mark.slow
def test_idle_consumer_gets_a_job_at_once(own_server, work, connect):
    conn = connect(own_server.uri)
    times: list[float] = []
    handled = Event()
    began = 0.0

    def handler(job):
        times.append(time.monotonic() - began)
        job.delete()
        handled.set()

    work(handler, own_server.uri, "t")
    wait_until(lambda: conn.stats().current_waiting == 1)
    for _ in range(50):
        handled.clear()
        began = time.monotonic()
        conn.put("t", b"")
        assert handled.wait(5)
        wait_until(lambda: conn.stats().current_waiting == 1)
    assert sorted(times)[25] < 0.02


@pytest.mark.slow
def test_idle_longer_than_reserve_timeout_goes_on(own_server, work, connect):
    conn = connect(own_server.uri)
    got: list[gstalk.Job] = []
    worker = work(got.append, own_server.uri, "t", reserve_timeout=1, auto_delete=True)
    wait_until(lambda: int(conn.stats().cmd_reserve_with_timeout or 0) >= 3)
    conn.put("t", b"")
    wait_until(lambda: got)
    assert worker.errors == []


# -- stop --------------------------------------------------------------------------------------------------------


def nothing_left(conn, count=1):
    """At `receive`'s return the server has let go of all: of the connections and of the jobs."""
    stats = conn.stats()
    assert (stats.current_connections, stats.current_jobs_reserved, stats.current_waiting) == (count, 0, 0)


@pytest.mark.parametrize("multiply", [1, 3])
def test_stop_idle_returns_at_once_and_the_server_has_let_go(own_server, work, connect, multiply):
    conn = connect(own_server.uri)
    worker = work(lambda job: None, own_server.uri, "t", multiply=multiply)
    wait_until(lambda: conn.stats().current_connections == multiply + 1)
    began = time.monotonic()
    worker.stop()
    nothing_left(conn)
    assert time.monotonic() - began < 3


def test_stop_lets_handlers_finish_their_jobs(own_server, work, connect):
    conn = connect(own_server.uri)
    here, gate = [], Event()

    def handler(job):
        here.append(job.id)
        gate.wait()
        job.touch()
        job.delete()

    worker = work(handler, own_server.uri, "t", num_greenlets=3)
    conn.put_many("t", [b""] * 10)
    wait_until(lambda: len(here) == 3)
    worker.consumer.stop()
    gevent.sleep(0.05)
    assert not worker.receiver.ready()
    gate.set()
    worker.receiver.get(timeout=5)
    assert worker.errors == []
    assert conn.stats_tube("t").current_jobs_ready == 7
    nothing_left(conn)


@pytest.mark.parametrize("where", ["handler", "greenlet", "thread", "signal"])
def test_stop_from_anywhere_returns_at_once_and_ends_receive(server, conn, tube, where):
    consumer = gstalk.Consumer(server.uri, tube)
    took = []

    def stop(*_):
        began = time.monotonic()
        consumer.stop()
        took.append(time.monotonic() - began)

    def handler(job):
        job.delete()
        if where == "handler":
            stop()
        elif where == "greenlet":
            gevent.spawn(stop)
        elif where == "thread":
            threading.Thread(target=stop).start()
        else:
            signal.raise_signal(signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, stop)
    try:
        conn.put(tube, b"")
        consumer.receive(handler)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert max(took) < 1
    assert conn.stats_tube(tube).current_jobs_reserved == 0


@pytest.mark.parametrize("auto_touch", [False, True])
def test_stop_after_its_timeout_kills_handlers_and_releases_their_jobs(own_server, work, connect, auto_touch):
    conn = connect(own_server.uri)
    ended: list[str] = []
    here: list[int] = []

    def handler(job):
        here.append(job.id)
        try:
            gevent.sleep(30)
        except gevent.GreenletExit:
            ended.append("killed")
            raise

    worker = work(handler, own_server.uri, "t", auto_touch=auto_touch)
    ids = [conn.put("t", b"", priority=number) for number in range(5)]
    wait_until(lambda: len(here) == 5)
    began = time.monotonic()
    worker.stop(0.2)
    assert 0.15 < time.monotonic() - began < 3
    assert ended == ["killed"] * 5
    for number, job_id in enumerate(ids):
        stats = conn.stats_job(job_id)
        assert (stats.state, stats.pri, stats.delay) == ("ready", number, 0)
    assert worker.errors == []
    nothing_left(conn)


@pytest.mark.parametrize(("config", "argument", "killed"), [(0.1, (), True), (0.1, (None,), False), (None, (), False)])
def test_stop_time_left_out_is_configs_and_none_kills_nobody(work, conn, tube, config, argument, killed):
    here = Event()
    ended: list[bool] = []

    def handler(job):
        here.set()
        try:
            gevent.sleep(0.5)
        except gevent.GreenletExit:
            ended.append(True)
            raise
        job.delete()
        ended.append(False)

    worker = work(handler, stop_timeout=config)
    job_id = conn.put(tube, b"")
    assert here.wait(5)
    worker.stop(*argument)
    assert ended == [killed]
    assert state(conn, job_id) == ("ready" if killed else None)


def test_stop_handler_that_swallows_the_kill_is_left_and_its_job_released(own_server, work, connect):
    conn = connect(own_server.uri)
    gate, here = Event(), []

    def handler(job):
        here.append(job)
        while not gate.is_set():
            try:
                gate.wait()
            except BaseException:
                pass

    worker = work(handler, own_server.uri, "t")
    job_id = conn.put("t", b"")
    wait_until(lambda: here)
    worker.stop(0)
    assert state(conn, job_id) == "ready"
    nothing_left(conn)
    with pytest.raises((gstalk.JobLostError, gstalk.JobFinishedError)):
        here[0].delete()
    gate.set()


@pytest.mark.slow
def test_stop_again_with_a_shorter_time_wins_and_a_longer_one_does_not(work, conn, tube):
    for times in ((None, 0.2), (0.2, None), (20, 0.2), (0.2, 20)):
        started = Event()

        def handler(job, started=started):
            started.set()
            gevent.sleep(10)

        worker = work(handler)
        conn.put(tube, b"")
        assert started.wait(5)
        began = time.monotonic()
        for timeout in times:
            worker.consumer.stop(timeout)
        worker.receiver.get(timeout=5)
        assert time.monotonic() - began < 3
        conn.delete(conn.peek_ready(tube))


def test_stop_before_the_first_receive_makes_that_return_and_only_that(server, conn, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    consumer.stop()
    consumer.receive(lambda job: None)
    conn.put(tube, b"")

    def handler(job):
        job.delete()
        consumer.stop()

    consumer.receive(handler)
    consumer.stop()
    conn.put(tube, b"")
    consumer.receive(handler)
    assert conn.stats_tube(tube).current_jobs_ready == 0


def test_stop_wrong_timeout_is_refused(server, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    with pytest.raises(gstalk.InvalidArgumentError):
        consumer.stop(-1)
    with pytest.raises(TypeError):
        consumer.stop("1")  # type: ignore[arg-type]


def test_stop_in_an_outage_returns_soon(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t")
    assert worker.consumer.wait_connected(5)
    own_server.kill()
    wait_until(lambda: not worker.consumer.is_connected)
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_stop_on_a_server_that_stalls_returns_within_conn_timeout(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t", conn_timeout=0.5)
    assert worker.consumer.wait_connected(5)
    gevent.sleep(0.1)
    own_server.pause()
    try:
        began = time.monotonic()
        worker.stop()
        assert time.monotonic() - began < 3
    finally:
        own_server.resume()


@pytest.mark.slow
def test_stop_on_a_server_that_stalls_interrupted_returns_at_once(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t", conn_timeout=30)
    assert worker.consumer.wait_connected(5)
    gevent.sleep(0.1)
    own_server.pause()
    try:
        worker.consumer.stop()
        gevent.sleep(0.1)
        assert not worker.receiver.ready()
        errors = [ValueError("first"), ValueError("second")]
        for error in errors:
            worker.receiver.kill(error, block=False)
            gevent.sleep(0.05)
        worker.receiver.join(timeout=2)
        assert worker.raised is errors[0]
    finally:
        own_server.resume()


def test_stop_interrupted_while_a_stalled_server_is_left_closes_its_connections(own_server, work):
    worker = work(lambda job: None, own_server.uri, "t", conn_timeout=30)
    assert worker.consumer.wait_connected(5)
    gevent.sleep(0.1)
    pipe = worker.consumer._run.pool.links[0].pipe
    own_server.pause()
    try:
        worker.consumer.stop()
        for error in (ValueError("mine"), ValueError("at once")):
            gevent.sleep(0.1)
            worker.receiver.kill(error, block=False)
        worker.receiver.join(timeout=5)
        assert str(worker.raised) == "mine"
        assert pipe.failure is not None
    finally:
        own_server.resume()


def test_stop_handler_that_asks_on_a_connection_taking_leave_is_told_so(own_server, work, connect):
    """Its wait can't be called back any more; to try for ever would block the hub."""
    told: list[gstalk.DisconnectedError] = []

    def handler(job: gstalk.Job) -> None:
        link: Any = job._owner
        job.delete()
        wait_until(lambda: link._end_wait is not None)
        own_server.pause()
        worker.consumer.stop()
        wait_until(lambda: link.pipe._on_end is not None)
        signal.setitimer(signal.ITIMER_REAL, 5)
        try:
            job.stats()
        except gstalk.ConnectionClosedError as error:
            told.append(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            own_server.resume()

    def blocked(*_: object) -> None:
        raise AssertionError("the hub is blocked")

    before = signal.signal(signal.SIGALRM, blocked)
    try:
        connect(own_server.uri).put("t", b"x")
        worker = work(handler, own_server.uri, "t")
        worker.receiver.join(timeout=20)
        assert worker.receiver.ready()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [error.sent for error in told] == ["no"]
    assert worker.errors == []


@pytest.mark.slow
def test_stop_while_error_func_never_returns_ends_receive_all_the_same(play, work):
    entered = Event()

    def error_func(error: BaseException, message: str) -> None:
        entered.set()
        gevent.sleep(1000)

    played = play({"reserve-with-timeout": [b"INTERNAL_ERROR\r\n", b"TIMED_OUT\r\n"]})
    worker = work(lambda job: None, played.uri, error_func=error_func)
    assert entered.wait(5)
    worker.consumer.stop(0)
    worker.receiver.join(timeout=10)
    assert worker.receiver.ready()


def test_stop_while_a_wait_is_called_back_the_server_has_let_go_of_what_that_won(own_server, work, connect):
    with FaultProxy(own_server.uri) as proxy:
        conn = connect(own_server.uri)
        worker = work(lambda job: None, proxy.uri, "t")
        wait_until(lambda: conn.stats().current_waiting == 1)
        proxy.delay(0.3, "up")
        [source] = worker.consumer._run._asker._sources.values()
        worker.consumer._run._asker._recall(source)
        conn.put("t", b"x")
        assert conn.stats().current_jobs_reserved == 1
        worker.stop()
        assert conn.stats().current_jobs_reserved == 0


@pytest.mark.slow
def test_stop_at_any_moment_under_load_every_job_is_deleted_or_ready(own_server, connect):
    conn = connect(own_server.uri)
    deleted: set[int] = set()

    def handler(job):
        gevent.sleep(0)
        job.delete()
        deleted.add(job.id)

    ids: set[int] = set()
    for turn in range(20):
        ids |= set(conn.put_many("t", [b""] * 50))
        worker = Worker(own_server.uri, "t", handler, multiply=2)
        gevent.sleep(0.003 * turn)
        worker.stop()
        stats = conn.stats()
        assert (stats.current_jobs_reserved, stats.current_waiting) == (0, 0)
        # A connection that was being dialed holds nothing; it is closed, and what the server makes of that not awaited.
        wait_until(lambda: conn.stats().current_connections == 1)
        stats = conn.stats_tube("t")
        assert stats.current_jobs_ready == len(ids - deleted)
        assert (stats.current_jobs_buried, stats.current_jobs_delayed) == (0, 0)
        assert worker.errors == []


INTERRUPTIONS = [lambda: gevent.Timeout(60), gevent.GreenletExit, KeyboardInterrupt, lambda: ValueError("own")]


@pytest.mark.parametrize("make", INTERRUPTIONS)
def test_receive_interrupted_is_a_stop_and_the_exception_goes_on(own_server, work, connect, make):
    conn = connect(own_server.uri)
    here, gate = [], Event()

    def handler(job):
        here.append(job.id)
        gate.wait()
        job.delete()

    worker = work(handler, own_server.uri, "t")
    conn.put("t", b"")
    wait_until(lambda: here)
    error = make()
    worker.receiver.kill(error, block=False)
    gevent.sleep(0.05)
    assert not worker.receiver.ready()
    gate.set()
    worker.receiver.join(timeout=5)
    assert worker.raised is error
    assert conn.stats_tube("t").total_jobs == 1
    assert conn.stats().cmd_delete == 1
    nothing_left(conn)


def test_receive_interrupted_twice_stops_at_once_and_the_first_exception_goes_on(own_server, work, connect):
    conn = connect(own_server.uri)
    here = []

    def handler(job):
        here.append(job.id)
        gevent.sleep(30)

    worker = work(handler, own_server.uri, "t")
    job_id = conn.put("t", b"")
    wait_until(lambda: here)
    first, second = ValueError("first"), ValueError("second")
    worker.receiver.kill(first, block=False)
    gevent.sleep(0.05)
    worker.receiver.kill(second, block=False)
    worker.receiver.join(timeout=5)
    assert worker.raised is first
    assert state(conn, job_id) == "ready"
    nothing_left(conn)


def test_keyboard_interrupt_in_a_handler_releases_its_job_and_ends_receive(own_server, work, connect):
    conn = connect(own_server.uri)
    others: list[str] = []
    gate = Event()

    def handler(job):
        if job.body == b"ctrl-c":
            raise KeyboardInterrupt
        gate.wait()
        job.delete()
        others.append("finished")

    worker = work(handler, own_server.uri, "t")
    conn.put("t", b"other")
    wait_until(lambda: conn.stats().current_jobs_reserved == 1)
    job_id = conn.put("t", b"ctrl-c", priority=8)
    wait_until(lambda: worker.consumer._run is None or worker.consumer._run._stop_at is not None)
    gate.set()
    worker.receiver.join(timeout=5)
    assert isinstance(worker.raised, KeyboardInterrupt)
    assert others == ["finished"]
    assert (conn.stats_job(job_id).state, conn.stats_job(job_id).pri) == ("ready", 8)
    assert worker.errors == []
    nothing_left(conn)


# -- hooks -------------------------------------------------------------------------------------------------------


def test_hooks_that_raise_harm_nothing(work, conn, tube):
    def bad(*_):
        raise RuntimeError("hook")

    done = []

    def handler(job):
        done.append(job.id)
        if len(done) < 5:
            raise ValueError
        job.delete()

    work(handler, retry=AT_ONCE, error_func=bad, info_func=bad, event_func=bad)
    conn.put(tube, b"")
    wait_until(lambda: len(done) == 5)


def test_error_func_left_out_errors_go_to_the_standard_logger(server, conn, tube, caplog):
    consumer = gstalk.Consumer(server.uri, tube)

    def handler(job):
        consumer.stop()
        raise ValueError("own")

    job_id = conn.put(tube, b"")
    consumer.receive(handler)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.name == "gstalk"
    assert str(job_id) in record.getMessage()
    assert "own" in record.getMessage()


def test_events_tell_of_handled_and_failed_jobs(work, conn, server, tube):
    def handler(job):
        if job.body == b"bad":
            raise ValueError
        job.delete()

    worker = work(handler)
    good, bad = conn.put(tube, b"good"), conn.put(tube, b"bad")
    wait_until(lambda: len([event for event in worker.events if event.kind == "handled"]) == 2)
    found = {event.job_id: event for event in worker.events if event.kind == "handled"}
    assert found[good].exception is None
    assert (found[bad].uri, found[bad].tube, found[bad].attempt) == (server.uri, tube, 1)
    assert isinstance(found[bad].exception, ValueError)
    assert isinstance(found[good].duration, float)
