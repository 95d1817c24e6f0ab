"""Handlers that fail in every way: each job gets its fate, error_func is told, and no handler's place is lost."""

from __future__ import annotations

import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest

import gstalk
from tests.faults.hub import silent_hub
from tests.faults.programs.running import Program
from tests.servers import wait_until
from tests.survival.work import HANDLERS, WORKER, Worker

pytestmark = [pytest.mark.real, pytest.mark.slow]

TWICE = gstalk.RetryPolicy(max_attempts=2, first_delay=0)


# -- handlers that fail ------------------------------------------------------------------------------------------


def leak_a_timeout(job: gstalk.Job) -> None:
    gevent.Timeout.start_new(0.001)
    gevent.sleep(30)


def swallow_all(job: gstalk.Job) -> None:
    try:
        me: Any = gevent.getcurrent()
        me.kill()
    except BaseException:
        pass


def be_killed(job: gstalk.Job) -> None:
    """Before its first switch: the kill is on its way when the handler first waits."""
    me: Any = gevent.getcurrent()
    me.kill(block=False)
    gevent.sleep(30)


def fail(error: Callable[[], BaseException]) -> Callable[[gstalk.Job], None]:
    def handler(job: gstalk.Job) -> None:
        raise error()

    return handler


FAILURES: dict[str, tuple[Callable[[gstalk.Job], object], type[BaseException]]] = {
    "Exception": (fail(lambda: ValueError("no")), ValueError),
    "SystemExit": (lambda job: sys.exit(3), SystemExit),
    "GreenletExit": (fail(gevent.GreenletExit), gevent.GreenletExit),
    "leaking Timeout": (leak_a_timeout, gevent.Timeout),
    "swallowed BaseException": (swallow_all, gstalk.JobNotFinishedError),
    "kill": (be_killed, gevent.GreenletExit),
    "nothing done": (lambda job: None, gstalk.JobNotFinishedError),
}


@pytest.mark.soak
@pytest.mark.parametrize("failure", FAILURES)
def test_handlers_that_fail_leave_each_job_its_fate_and_all_others_their_place(
    server, conn, tube, many, figures, failure
):
    handler, kind = FAILURES[failure]
    jobs = many(100, 1000)
    with silent_hub(), Worker(server.uri, tube, handler, retry=TWICE) as worker:
        ids = conn.put_many(tube, [b"x"] * jobs)
        wait_until(lambda: conn.stats_tube(tube).current_jobs_buried == jobs, 50)
        worker.all_run(conn, tube)
    assert worker.runs == dict.fromkeys(ids, 2)
    assert {type(error) for error, _ in worker.told} == {kind}
    message = rf"job (\d+) of {server.uri}: its handler failed, attempt "
    message += r"(?:(1); released, with a delay of 0 s|(2); given up and buried)"
    told = Counter(match.groups() for _, text in worker.told if (match := re.fullmatch(message, text)))
    assert told == {each: 1 for job_id in ids for each in ((str(job_id), "1", None), (str(job_id), None, "2"))}
    assert len(worker.told) == 2 * jobs
    figures |= {"failures": worker.runs.total(), "told": len(worker.told), "buried": jobs, "lost": 0}
    conn.kick(tube, jobs)
    assert {conn.reserve().id for _ in ids} == set(ids)


@pytest.mark.soak
def test_handlers_that_leave_a_timeout_behind_lose_no_job_and_no_place(server, conn, tube, rng, many, figures):
    """It hits whatever their greenlet does then: another job's handler, or the wait for a job."""

    def handler(job: gstalk.Job) -> None:
        gevent.Timeout.start_new(rng.random() / 100)
        if rng.random() < 0.5:
            gevent.sleep(rng.random() / 200)
        job.delete()

    jobs = many(200, 1000)
    retry = gstalk.RetryPolicy(max_attempts=None, first_delay=0)
    with silent_hub(), Worker(server.uri, tube, handler, retry=retry) as worker:
        for left in range(jobs, 0, -HANDLERS):  # few at a time, so that there are waits between them
            conn.put_many(tube, [b"x"] * min(left, HANDLERS))
            gevent.sleep(rng.random() / 100)
        wait_until(lambda: len(worker.runs) == jobs and conn.stats_tube(tube).cmd_delete == jobs, 30)
        gevent.sleep(0.02)  # the last of them
        worker.all_run(conn, tube)
    assert {type(error) for error, _ in worker.told} == {gevent.Timeout}
    where = Counter("in a wait" if "waited" in message else "in a handler" for _, message in worker.told)
    assert where["in a wait"] > 0
    assert where["in a handler"] > 0
    figures |= {"left behind": worker.runs.total(), "hit": where.total(), **where}


def killing(worker: Worker, when: str, rng: random.Random) -> Counter[str]:
    """From here on, greenlets of the Pool are killed before they have run at all, or with a job in their hands."""
    run: Any = worker.consumer._run
    crew, asker = run._crew, run._asker
    spawn, got = crew._greenlets.spawn, asker._got
    kills: Counter[str] = Counter()

    def spawn_and_kill(*args: Any) -> Any:
        greenlet = spawn(*args)
        if rng.random() < 0.5:
            greenlet.kill(block=False)
            kills["unborn"] += 1
        return greenlet

    def got_and_kill(source: Any, request: Any) -> None:
        call = crew._idle[-1] if crew._idle else None
        got(source, request)
        if call is not None and isinstance(call.result, tuple) and rng.random() < 0.5:
            call.waiter.throw(gevent.GreenletExit())
            kills["in hand"] += 1

    crew._greenlets.spawn = spawn_and_kill
    asker._got = got_and_kill
    return kills


@pytest.mark.soak
def test_greenlets_killed_before_their_first_switch_lose_no_job_and_no_place(server, conn, tube, rng, many, figures):
    """What their handler has not begun is another's: it has not failed, and nobody is told."""
    goal = many(100, 1000)
    jobs = 0
    with silent_hub(), Worker(server.uri, tube, gstalk.Job.delete) as worker:
        kills = killing(worker, "hand", rng)
        while kills["in hand"] < goal or kills["unborn"] < goal:
            conn.put_many(tube, [b"x"] * 20)
            jobs += 20
            wait_until(lambda: conn.stats_tube(tube).cmd_delete == jobs)  # noqa: B023
        worker.all_run(conn, tube)
    assert set(worker.runs.values()) == {1}
    assert len(worker.runs) == jobs
    assert worker.told == []
    figures |= {"jobs": jobs, **kills}


def test_handler_that_cannot_be_looked_at_has_its_job_released_though_the_server_is_ill(play):
    """A job that the server won't say anything about goes back by the end of its connection, not after its time."""
    reserved = [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"]
    played = play({"reserve-with-timeout": reserved, "stats-job": b"INTERNAL_ERROR\r\n"})
    ran: list[gstalk.Job] = []
    with Worker(played.uri, "default", ran.append) as worker:
        wait_until(lambda: played.connections == 2)
        assert worker.consumer.wait_connected(5)
    assert ran == []
    ((error, message),) = worker.told
    assert isinstance(error, gstalk.InternalError)
    assert message == (
        f"job 7 of {played.uri}: it could not be looked at, attempt unknown; released, since it could not be retried: "
        f"stats-job 7 at {played.uri}: a bug in the server; it may have acted"
    )


@pytest.mark.parametrize(
    ("word", "reply", "fate"),
    [
        ("stats-job", b"INTERNAL_ERROR\r\n", "released, since it could not be retried: "),
        ("release", b"INTERNAL_ERROR\r\n", "attempt 1; released, since it could not be retried: "),
        ("release", b"BURIED\r\n", "attempt 1; buried by the server, since it could not be retried: "),
    ],
)
def test_handler_that_fails_on_an_ill_server_is_told_all_the_same(play, word, reply, fate):
    reserved = [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"]
    played = play({"reserve-with-timeout": reserved, word: reply})
    error = ValueError("own")
    retry = gstalk.RetryPolicy(max_attempts=None)  # nothing is looked at
    with Worker(played.uri, "default", fail(lambda: error), retry=retry) as worker:
        wait_until(lambda: worker.told)
    ((told, message),) = worker.told
    assert told is error
    assert message.startswith(f"job 7 of {played.uri}: its handler failed")
    assert fate in message


# -- in processes of their own -----------------------------------------------------------------------------------


KILLED = 9  # what a worker says whose job has ended it


def run_worker(*args: object) -> tuple[int, list[Any]]:
    """Run a worker until a job kills it; what it said."""
    with Program(WORKER, *args) as program:
        code, said, errors = program.end()
    assert errors == ""
    return code, said


@pytest.mark.soak
@pytest.mark.parametrize("handlers", [1, 10])
def test_job_that_kills_its_worker_is_buried_after_max_attempts_and_runs_again_after_a_kick(
    own_server, connect, many, figures, handlers
):
    """The worker process is started again each time. Those in flight beside the deadly job lose the same attempts."""
    conn = connect(own_server.uri)
    args = ("deadly", own_server.uri, "t", "max_attempts=3", f"num_greenlets={handlers}")
    deaths = beside = 0
    for _ in range(many(1, 10)):
        deadly = conn.put("t", b"die", priority=5)
        harmless = conn.put_many("t", [b""] * 30, priority=6)
        for turn in (1, 2):  # each kick grants a fresh set of attempts
            for _ in range(3):
                code, _ = run_worker(*args)
                assert code == KILLED
                deaths += 1
            with Program(WORKER, *args) as program:
                wait_until(lambda: conn.stats_job(deadly).buries == turn)  # noqa: B023
                wait_until(lambda: conn.stats_tube("t").current_jobs_ready == 0)
                wait_until(lambda: conn.stats_tube("t").current_jobs_reserved == 0)
                program.process.send_signal(signal.SIGTERM)
                code, said, _ = program.end()
            stats = conn.stats_job(deadly)
            assert (stats.state, stats.pri, stats.reserves) == ("buried", 5, 4 * turn)
            text = f"job {deadly} of {own_server.uri}: attempt {4 * turn}; given up and buried"
            assert ["RetriesExhaustedError", text] in said
            assert (code, said[-1]) == (0, ["returned", 0, 0])
            conn.kick_job(deadly)
        given_up = [job_id for job_id in harmless if conn.peek(job_id) is not None]
        assert {conn.stats_job(job_id).state for job_id in given_up} <= {"buried"}
        assert len(given_up) <= handlers - 1
        beside += len(given_up)
        with Program(WORKER, "quick", *args[1:]) as program:  # mended
            wait_until(lambda: conn.peek(deadly) is None)  # noqa: B023
            program.process.send_signal(signal.SIGTERM)
            code, said, _ = program.end()
        assert (code, said) == (0, ["begins", ["returned", 0, 0]])
        for job_id in given_up:
            conn.delete(job_id)
    figures |= {"workers killed": deaths, "given up beside": beside}


def test_job_that_repeats_by_its_release_is_never_buried_for_that(own_server, connect):
    conn = connect(own_server.uri)
    job_id = conn.put("t", b"")
    for _ in range(4):
        code, said = run_worker("repeating", own_server.uri, "t", "max_attempts=3", "num_greenlets=1")
        assert (code, said) == (KILLED, ["begins"])
    stats = conn.stats_job(job_id)
    assert (stats.state, stats.buries, stats.reserves, stats.releases) == ("ready", 0, 12, 12)


@pytest.mark.soak
@pytest.mark.timing
def test_sigint_while_a_handler_computes_ends_receive_and_its_job_is_released(own_server, connect, many, figures):
    conn = connect(own_server.uri)
    longest = 0.0
    rounds = many(3, 100)
    for number in range(rounds):
        job_id = conn.put("t", b"", priority=number)
        with Program(WORKER, "computing", own_server.uri, "t") as program:
            assert [program.read(), program.read()] == ["begins", "computes"]
            began = monotonic()
            program.process.send_signal(signal.SIGINT)
            assert program.read() == ["KeyboardInterrupt", 0, 0]
            longest = max(longest, monotonic() - began)
            code, said, errors = program.end()
        assert (code, said, errors) == (0, [], "")
        stats = conn.stats_job(job_id)
        assert (stats.state, stats.pri, stats.releases) == ("ready", number, 1)
        conn.delete(job_id)
    assert longest < 2
    figures |= {"interrupts": rounds, "longest": f"{longest:.2f} s"}
