"""What becomes of one job: what its handler may be, gives back, raises or leaves behind, and what the server says."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.connection.hooks import Hooks
from gstalk.pool import handling
from gstalk.pool.handling import Handling
from tests.io.working import BUG, NEVER, ONE_JOB, OwnBase, Worker, async_def, cut, lose, raising, state
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real

TWICE = gstalk.RetryPolicy(max_attempts=2, first_delay=0)


# -- "it returned" is not "it was done" --------------------------------------------------------------------------


def generator(job: gstalk.Job) -> Generator[None]:
    yield


async def async_generator(job: gstalk.Job) -> Any:
    yield


class AsyncCall:
    async def __call__(self, job: gstalk.Job) -> None: ...


class Later:
    """An awaitable that is no coroutine, as asyncio's futures are."""

    def __await__(self) -> Generator[Any, None, None]:
        yield


@pytest.mark.parametrize("by_tube", [False, True])
@pytest.mark.parametrize(
    "handler",
    [
        None,
        5,
        lambda: None,
        lambda job, more: None,
        lambda job, *, more: None,
        async_def,
        generator,
        async_generator,
        AsyncCall(),
        AsyncCall().__call__,
        functools.partial(async_def),
        functools.partial(generator),
        functools.partial(AsyncCall()),
    ],
)
def test_receive_handler_that_can_not_be_called_or_would_run_nothing_is_refused_before_it_connects(
    play, handler, by_tube
):
    played = play()
    consumer = gstalk.Consumer(played.uri, ["a", "b"], auto_delete=True)
    handlers = {"a": lambda job: None, "b": handler} if by_tube else handler
    with pytest.raises(TypeError, match="^handler "):
        consumer.receive(handlers)
    assert played.connections == 0


UNFINISHED: dict[str, Callable[[gstalk.Job], object]] = {
    "coroutine": lambda job: async_def(job),
    "generator": lambda job: generator(job),
    "async generator": lambda job: async_generator(job),
    "generator expression": lambda job: (each for each in [job]),
    "awaitable": lambda job: Later(),
    "partial": functools.partial(lambda more, job: async_def(job), 1),
    "method": type("Holder", (), {"handle": lambda self, job: async_def(job)})().handle,
}


@pytest.mark.parametrize("kind", UNFINISHED)
def test_handler_that_gives_back_what_has_not_run_has_failed(work, conn, tube, kind):
    """With auto_delete it once was deleted, and nobody heard that nothing had been done."""
    worker = work(UNFINISHED[kind], auto_delete=True, retry=TWICE)
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) == "buried")
    wait_until(lambda: len(worker.errors) == 2)
    assert worker.kinds() == [TypeError, TypeError]
    error, message = worker.errors[0]
    assert str(error).startswith("handler must run to its end when it is called; this one gave back an object")
    assert message == f"job {job_id} of {conn.uri}: its handler failed, attempt 1; released, with a delay of 0 s"


def test_handler_that_finishes_its_job_and_gives_back_a_coroutine_is_told(work, conn, tube):
    def handler(job: gstalk.Job) -> Awaitable[None]:
        job.bury()
        return async_def(job)

    worker = work(handler)
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    ((error, message),) = worker.errors
    assert isinstance(error, TypeError)
    assert message == f"job {job_id} of {conn.uri}: its handler failed, attempt 1; the job was finished"


@pytest.mark.parametrize("result", [True, 1, "done", b"", [], {"a": 1}, object(), iter([1])], ids=type)
def test_handler_that_gives_back_anything_else_has_done_its_work(work, conn, tube, result):
    worker = work(lambda job: result, auto_delete=True)
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) is None)
    worker.stop()
    assert worker.errors == []


# -- jobs lost before they ran -----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3])
def test_job_lost_less_than_three_times_runs_however_few_its_attempts(work, server, conn, tube, most):
    job_id = conn.put(tube, b"")
    lose(conn, server.uri, job_id, 2)
    ran: list[int] = []
    policy = gstalk.RetryPolicy(max_attempts=most, exhausted="delete")
    worker = work(lambda job: ran.append(job.id), auto_delete=True, retry=policy)
    wait_until(lambda: state(conn, job_id) is None)
    assert ran == [job_id]
    assert worker.errors == []


def test_job_lost_three_times_is_buried_also_where_exhausted_ones_are_deleted(work, server, conn, tube):
    """It may never have run: somebody should look at it."""
    job_id = conn.put(tube, b"", priority=21)
    lose(conn, server.uri, job_id, 3)
    ran: list[Any] = []
    worker = work(ran.append, retry=gstalk.RetryPolicy(max_attempts=1, exhausted="delete"))
    wait_until(lambda: state(conn, job_id) == "buried")
    wait_until(lambda: worker.errors)
    ((error, message),) = worker.errors
    assert isinstance(error, gstalk.RetriesExhaustedError)
    assert (error.job_id, error.attempts) == (job_id, 4)
    assert message == f"job {job_id} of {server.uri}: attempt 4; given up and buried"
    assert conn.stats_job(job_id).pri == 21
    assert ran == []


def test_job_that_is_hit_before_its_handler_is_not_deleted_unrun(work, conn, tube, monkeypatch):
    """A timeout that another job's handler forgot may strike while the server is asked about this one."""
    stats, asked = gstalk.Job.stats, []

    def hit_once(job: gstalk.Job) -> gstalk.JobStats:
        asked.append(job)
        if len(asked) == 1:
            raise gevent.Timeout
        return stats(job)

    monkeypatch.setattr(gstalk.Job, "stats", hit_once)
    job_id = conn.put(tube, b"")
    ran: list[Any] = []
    worker = work(ran.append, retry=gstalk.RetryPolicy(max_attempts=1, exhausted="delete"))
    wait_until(lambda: worker.errors)
    ((_, message),) = worker.errors
    assert message.endswith("it could not be looked at, attempt 1; given up and buried")
    assert state(conn, job_id) == "buried"
    assert ran == []


@pytest.mark.slow
def test_stops_that_race_with_waiting_reserves_cost_no_job(own_server, connect, figures):
    """A reserve that wins against `stop` adds to a job's `reserves`, and to nothing else."""
    conn = connect(own_server.uri)
    policy = gstalk.RetryPolicy(max_attempts=1, exhausted="delete")
    ran: list[int] = []
    jobs: list[int] = []

    def handler(job: gstalk.Job) -> None:
        ran.append(job.id)

    for _ in range(40):
        worker = Worker(own_server.uri, "t", handler, num_greenlets=2, auto_delete=True, retry=policy)
        assert worker.consumer.wait_connected(5)
        wait_until(lambda: conn.stats_tube("t").current_waiting == 1)
        own_server.pause()  # it finds the put and our leaving at the same time
        putting = gevent.spawn(conn.put, "t", b"")
        gevent.sleep(0.005)
        worker.consumer.stop()
        gevent.sleep(0.005)
        own_server.resume()
        jobs.append(putting.get(timeout=10))
        worker.receiver.get(timeout=20)
    left = [job_id for job_id in jobs if state(conn, job_id) == "ready"]
    figures |= {"won by a reserve": sum((conn.stats_job(each).reserves or 0) > 0 for each in left)}
    worker = Worker(own_server.uri, "t", handler, auto_delete=True, retry=policy)
    wait_until(lambda: not (stats := conn.stats_tube("t")).current_jobs_ready and not stats.current_jobs_reserved)
    worker.stop()
    buried = {job.id for job in iter(lambda: conn.peek_buried("t"), None) if conn.delete(job) is None}
    assert {*ran, *buried} == set(jobs)  # none was deleted unrun


# -- decisions that can't be carried out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        gstalk.Bury(-1),
        gstalk.Bury(priority=2**32),
        gstalk.Bury(priority=True),
        gstalk.Bury(priority="x"),  # type: ignore[arg-type]
        gstalk.Retry(delay=-1),
        gstalk.Retry(delay=float("nan")),
        gstalk.Retry(delay="x"),
        gstalk.Retry(delay=2**32),
        gstalk.Retry(priority="x"),  # type: ignore[arg-type]
        gstalk.Retry(priority=-1),
    ],
    ids=repr,
)
def test_wrong_retry_or_bury_is_a_failure_whose_attempts_end(work, conn, tube, wrong):
    runs: list[int] = []

    def handler(job: gstalk.Job) -> None:
        runs.append(job.id)
        raise wrong

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=3, first_delay=0))
    job_id = conn.put(tube, b"", priority=5)
    wait_until(lambda: state(conn, job_id) == "buried")
    wait_until(lambda: len(worker.errors) == 3)
    assert runs == [job_id] * 3
    assert conn.stats_job(job_id).pri == 5
    start = f"job {job_id} of {conn.uri}: its handler failed, attempt "
    assert [message for _, message in worker.errors] == [
        f"{start}1; released, with a delay of 0 s",
        f"{start}2; released, with a delay of 0 s",
        f"{start}3; given up and buried",
    ]
    for error, _ in worker.errors:
        assert isinstance(error, (TypeError, gstalk.InvalidArgumentError))
        assert error.__cause__ is wrong


def test_wrong_retry_is_released_with_the_policys_delay(work, conn, tube):
    work(raising(gstalk.Retry(delay=-1)), retry=gstalk.RetryPolicy(first_delay=100, jitter=False))
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) == "delayed")
    assert conn.stats_job(job_id).delay == 100


def ill(play: Any, **replies: Any) -> Any:
    """A server that hands out job 7 again and again, and is ill otherwise."""
    return play({"reserve-with-timeout": ONE_JOB[0], **{word.replace("_", "-"): r for word, r in replies.items()}})


OUT = b"OUT_OF_MEMORY\r\n"
ILL: list[tuple[str, BaseException | None, dict[str, Any], gstalk.RetryPolicy]] = [
    ("a failure not released", ValueError(), {"release": OUT}, NEVER),
    ("a failure not released, by a bug", ValueError(), {"release": BUG}, NEVER),
    ("stats refused", ValueError(), {"stats_job": BUG}, NEVER),
    ("a retry not released", gstalk.Retry(delay=0), {"release": OUT}, NEVER),
    ("a retry with its priority not released", gstalk.Retry(0, 3), {"release": BUG}, NEVER),
    ("a bury refused", gstalk.Bury(), {"bury": BUG}, NEVER),
    ("a bury with its priority refused", gstalk.Bury(1), {"bury": BUG}, NEVER),
    ("given up, not buried", ValueError(), {"bury": BUG}, gstalk.RetryPolicy(max_attempts=1)),
    ("given up, not deleted", ValueError(), {"delete": BUG}, gstalk.RetryPolicy(max_attempts=1, exhausted="delete")),
    ("an automatic delete refused, and its release", None, {"delete": BUG, "release": OUT}, NEVER),
]


@pytest.mark.parametrize(("error", "replies", "policy"), [case[1:] for case in ILL], ids=[case[0] for case in ILL])
def test_fate_that_the_server_refuses_is_told_and_no_hot_loop(play, work, monkeypatch, error, replies, policy):
    """The job goes back, since nobody can do more about it; but not at once, or it would run again at once."""
    monkeypatch.setattr(handling, "PAUSE", 1000.0)
    runs: list[int] = []

    def handler(job: gstalk.Job) -> None:
        runs.append(job.id)
        if error is not None:
            raise error

    played = ill(play, **replies)
    if error is None:  # its greenlet is free
        played.replies[b"reserve-with-timeout"] = list(ONE_JOB)
    worker = work(handler, played.uri, "default", auto_delete=True, num_greenlets=1, retry=policy)
    wait_until(lambda: worker.errors)
    told, message = worker.errors[0]
    gevent.sleep(0.1)
    assert runs == [7]
    assert len(worker.errors) == 1
    known = "unknown" if "stats_job" in replies else "1"
    if error is None:
        start = f"job 7 of {played.uri}: not deleted, attempt 1; released, since it could not be retried: "
        assert message.startswith(start)
    elif isinstance(error, ValueError):
        assert told is error
        start = f"job 7 of {played.uri}: its handler failed, attempt {known}; released, since it could not be retried: "
        assert message.startswith(start)
    else:
        assert isinstance(told, gstalk.ServerError)
        assert message == f"job 7 of {played.uri}: could not be retried or buried, attempt {known}; released"
    released = played.count("release")
    worker.stop(0)  # ends the pause
    if "stats_job" not in replies and "release" not in replies:
        assert played.count("release") == released + 1


def test_fate_refused_goes_back_after_its_pause(play, work, monkeypatch):
    monkeypatch.setattr(handling, "PAUSE", 0.05)
    played = play({"reserve-with-timeout": ONE_JOB, "bury": BUG})
    worker = work(raising(gstalk.Bury()), played.uri, "default", retry=NEVER)
    wait_until(lambda: b"release 7 9 0" in played.lines)
    assert worker.kinds() == [gstalk.InternalError]


def test_pause_hit_by_what_the_handler_left_behind_ends_there(play, work, monkeypatch):
    monkeypatch.setattr(handling, "PAUSE", 1000.0)
    played = play({"reserve-with-timeout": ONE_JOB, "bury": BUG})

    def handler(job: gstalk.Job) -> None:
        gevent.Timeout.start_new(0.1)
        raise gstalk.Bury

    worker = work(handler, played.uri, "default", retry=NEVER)
    wait_until(lambda: b"release 7 9 0" in played.lines)
    assert worker.kinds() == [gstalk.InternalError, gevent.Timeout]
    assert worker.errors[1][1] == f"job 7 of {played.uri}: hit before it was given back, attempt 1"


@pytest.mark.parametrize("error", [ValueError("own"), gstalk.Retry(delay=3)])
def test_release_that_buries_is_told_and_the_job_left_there(play, work, error):
    played = play({"reserve-with-timeout": ONE_JOB, "release": b"BURIED\r\n"})
    worker = work(raising(error), played.uri, "default", retry=NEVER)
    wait_until(lambda: worker.errors)
    worker.stop()
    ((told, message),) = worker.errors
    if isinstance(error, ValueError):
        assert told is error
        assert "attempt 1; buried by the server, since it could not be retried: " in message
    else:
        assert isinstance(told, gstalk.BuriedError)
        assert message == f"job 7 of {played.uri}: could not be retried or buried, attempt 1; buried by the server"
    assert played.count("release") == 1


# -- jobs that are lost before their handler, and what is told of lost and finished ones -------------------------


def test_job_lost_before_its_handler_is_not_handled(own_server, work, connect):
    """Here while a hook waits; the handler's work would only be done twice."""
    conn = connect(own_server.uri)
    gone = Event()
    ran: list[int] = []
    events: list[gstalk.Event] = []

    def told(event: gstalk.Event) -> None:
        events.append(event)
        if event.kind == "disconnect":
            gone.set()
        if event.kind == "handling" and not gone.is_set():
            own_server.kill()
            gone.wait()

    conn.put("t", b"")
    worker = work(lambda job: ran.append(job.id), own_server.uri, "t", event_func=told, retry=NEVER)
    wait_until(lambda: [event for event in events if event.kind == "handled"])
    (handled,) = [event for event in events if event.kind == "handled"]
    assert isinstance(handled.exception, gstalk.JobLostError)
    assert ran == []
    assert [message for _, message in worker.errors if message.startswith("job ")] == []


@pytest.mark.parametrize("now", ["lost", "settling", "finished"])
def test_job_not_ours_any_more_is_not_handled(play, now):
    with gstalk.dial(play({"reserve-with-timeout": ONE_JOB}).uri) as conn:
        job: Any = conn.reserve_with_timeout(0)
        connection = job._owner
        job._state = now
        ran: list[gstalk.Job] = []
        told: list[Any] = []
        config = gstalk.Config(error_func=lambda *error: told.append(error), event_func=told.append)
        Handling(ran.append, ["default"], {}, config, Hooks(config)).handle(connection, job, False)
        assert (ran, told) == ([], [])
        connection.reserved.unattended.clear()
        job._state = "held"


def run_out(job: gstalk.Job) -> None:
    gevent.sleep(2.1)  # its time is over, and this connection says something: the server notices
    with pytest.raises(gstalk.JobLostError):
        job.touch()


TOLD: list[tuple[str, Callable[[gstalk.Job], object], bool, str]] = [
    ("raised", lambda job: None, True, "attempt 1; released, with a delay of 100 s"),
    ("deleted", gstalk.Job.delete, True, "attempt 1; the job was finished"),
    ("deleted, not looked at", gstalk.Job.delete, False, "attempt unknown; the job was finished"),
    ("buried, not looked at", gstalk.Job.bury, False, "attempt 1; the job was finished"),
    ("released, not looked at", lambda job: job.release(delay=9), False, "attempt 1; the job was finished"),
    ("cut", cut, True, "attempt 1; the server has taken the job back"),
    ("cut, not looked at", cut, False, "attempt unknown; the server has taken the job back"),
]


@pytest.mark.parametrize(("do", "look", "end"), [case[1:] for case in TOLD], ids=[case[0] for case in TOLD])
def test_failure_is_told_with_job_server_and_attempt(work, conn, tube, do, look, end):
    """What the server can't tell any more is said to be unknown."""

    def handler(job: gstalk.Job) -> None:
        do(job)
        raise ValueError

    policy = gstalk.RetryPolicy(max_attempts=25 if look else None, first_delay=100, jitter=False)
    worker = work(handler, retry=policy)
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert worker.errors[0][1] == f"job {job_id} of {conn.uri}: its handler failed, {end}"


@pytest.mark.slow
@pytest.mark.parametrize("look", [True, False])
def test_failure_of_a_job_that_ran_out_is_told_with_its_attempt(work, conn, tube, look):
    conn.pause_tube(tube, 0)  # makes it
    done = Event()

    def handler(job: gstalk.Job) -> None:
        if done.is_set():
            job.delete()
            return
        done.set()
        conn.pause_tube(tube, 60)  # nobody has it again meanwhile
        run_out(job)
        raise ValueError

    worker = work(handler, retry=gstalk.RetryPolicy(max_attempts=25 if look else None), num_greenlets=1)
    job_id = conn.put(tube, b"", ttr=1)
    wait_until(lambda: worker.errors)
    conn.pause_tube(tube, 0)
    assert worker.errors[0][1] == (
        f"job {job_id} of {conn.uri}: its handler failed, attempt 1; the server has taken the job back"
    )


# -- settling that fails -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["delete", "stats-job", "touch"])
def test_auto_touch_goes_on_after_a_refusal(play, work, refused):
    stats = b"OK 20\r\n---\nttr: 1\nreserves: 1\r\n".replace(b"OK 20", b"OK %d" % len(b"---\nttr: 1\nreserves: 1"))
    played = play({"reserve-with-timeout": ONE_JOB, "stats-job": [stats], refused: BUG})
    touched: list[int] = []
    done = Event()

    def handler(job: gstalk.Job) -> None:
        if refused == "delete":
            wait_until(lambda: played.count("touch"))
            with pytest.raises(gstalk.InternalError):
                job.delete()
        touched.append(played.count("touch"))
        wait_until(lambda: played.count("touch") >= touched[0] + 2)
        done.set()

    work(handler, played.uri, "default", auto_touch=True, retry=NEVER)
    assert done.wait(10)


@pytest.mark.slow
def test_auto_touch_goes_on_while_a_settling_is_under_way(play, work):
    """Its timer finds the job in the middle of a delete, which is then refused."""
    slow = Event()

    def refuse(line: bytes) -> bytes:
        slow.wait()
        return BUG

    body = b"---\nttr: 1\nreserves: 1"
    replies = {"reserve-with-timeout": ONE_JOB, "stats-job": b"OK %d\r\n%b\r\n" % (len(body), body), "delete": refuse}
    played = play(replies)
    done = Event()

    def handler(job: gstalk.Job) -> None:
        gevent.spawn_later(0.8, slow.set)  # two ticks
        with pytest.raises(gstalk.InternalError):
            job.delete()
        before = played.count("touch")
        wait_until(lambda: played.count("touch") > before)
        done.set()

    work(handler, played.uri, "default", auto_touch=True, retry=NEVER)
    assert done.wait(10)


SETTLING: dict[str, Callable[[gstalk.Job], object]] = {
    "delete": gstalk.Job.delete,
    "release": lambda job: job.release(5, 77),
    "bury": lambda job: job.bury(5),
}


@pytest.mark.parametrize("then", ["returns", "raises", "asks for a retry"])
@pytest.mark.parametrize("word", SETTLING)
def test_settling_interrupted_and_refused_when_the_handler_has_ended_gives_the_job_its_fate(play, work, word, then):
    """The server still holds the job for us, and nobody else would ever see to it."""
    answer = Event()

    def refuse(line: bytes) -> bytes | None:
        if line in (b"delete 7", b"release 7 5 77", b"bury 7 5"):
            answer.wait()
            return BUG
        return None

    played = play({"reserve-with-timeout": ONE_JOB, word: refuse})
    ended = Event()

    def handler(job: gstalk.Job) -> None:
        with gevent.Timeout(0.02, False):  # type: ignore[arg-type]  # the stubs lack False
            SETTLING[word](job)
        assert not job.is_finished
        ended.set()
        if then == "raises":
            raise ValueError
        if then != "returns":
            raise gstalk.Retry

    policy = gstalk.RetryPolicy(first_delay=50, jitter=False, max_attempts=None)
    worker = work(handler, played.uri, "default", retry=policy)
    assert ended.wait(5)
    if then == "returns":
        gevent.sleep(0)  # the handler's greenlet has gone on
    answer.set()
    wait_until(lambda: b"release 7 9 50" in played.lines)
    if then == "asks for a retry":
        return  # and had it, with nothing to tell
    past = {"delete": "deleted", "release": "released", "bury": "buried"}[word]
    wait_until(lambda: worker.errors)
    if then == "returns":  # the others ask for the job first, and have the refusal before they are told
        ((error, message),) = worker.errors
        assert isinstance(error, gstalk.InternalError)
        assert message == f"job 7 of {played.uri}: not {past}, attempt 1; released, with a delay of 50 s"


@pytest.mark.parametrize("end", [b"NOT_FOUND\r\n", CUT])
def test_settling_interrupted_and_lost_when_the_handler_has_ended_is_told(play, work, end):
    answer = Event()

    def lose(line: bytes) -> Any:
        answer.wait()
        return end

    played = play({"reserve-with-timeout": ONE_JOB, "delete": lose})

    def handler(job: gstalk.Job) -> None:
        with gevent.Timeout(0.02, False):  # type: ignore[arg-type]  # the stubs lack False
            job.delete()
        gevent.spawn(answer.set)

    worker = work(handler, played.uri, "default", retry=NEVER)
    wait_until(lambda: [message for _, message in worker.errors if message.startswith("job 7")])
    (message,) = [message for _, message in worker.errors if message.startswith("job 7")]
    # The server that was played still tells of the job where the connection has not ended.
    assert re.fullmatch(rf"job 7 of {played.uri}: not deleted, attempt unknown; it may run again", message)


@pytest.mark.parametrize("exhausted", [False, True])
def test_auto_delete_refused_gives_the_job_its_fate(play, work, exhausted):
    """Once it was held by nobody until its time was over, and then ran again."""
    played = play({"reserve-with-timeout": ONE_JOB, "delete": BUG})
    policy = gstalk.RetryPolicy(first_delay=50, jitter=False, max_attempts=1 if exhausted else None)
    worker = work(lambda job: None, played.uri, "default", auto_delete=True, retry=policy)
    wait_until(lambda: (b"bury 7 9" if exhausted else b"release 7 9 50") in played.lines)
    wait_until(lambda: worker.errors)
    ((error, message),) = worker.errors
    assert isinstance(error, gstalk.InternalError)
    fate = "given up and buried" if exhausted else "released, with a delay of 50 s"
    assert message == f"job 7 of {played.uri}: not deleted, attempt 1; {fate}"


def test_auto_delete_refused_while_receive_ends_is_told(play, work):
    stopped = Event()

    def refuse(line: bytes) -> bytes:
        stopped.wait()
        gevent.sleep(0.05)
        return BUG

    played = play({"reserve-with-timeout": ONE_JOB, "delete": refuse})
    worker = work(lambda job: None, played.uri, "default", auto_delete=True, retry=NEVER)
    wait_until(lambda: played.count("delete"))
    worker.consumer.stop()
    stopped.set()
    worker.receiver.get(timeout=20)
    assert worker.kinds() == [gstalk.InternalError]


def test_unattended_job_is_forgotten_when_its_delete_is_answered(work, conn, tube):
    worker = work(lambda job: None, auto_delete=True)
    conn.put_many(tube, [b""] * 20)
    wait_until(lambda: conn.stats_tube(tube).cmd_delete == 20)
    (connection,) = worker.consumer._run.pool.connections
    wait_until(lambda: not connection.reserved.unattended)


# -- what else a handler may do ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        gstalk.JobLostError("of another job"),
        gstalk.JobFinishedError("of another job"),
        gstalk.JobNotFinishedError("of another job"),
        gstalk.RetriesExhaustedError("of another job"),
        gstalk.BuriedError("of another job"),
        gstalk.ConnectionClosedError("of another connection"),
        gstalk.InternalError("of another server"),
        gstalk.ProtocolError("of another server"),
        gevent.GreenletExit("own"),
        gevent.Timeout(60),
        SystemExit(0),
        OwnBase("own"),
        GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_handler_that_raises_what_gstalk_raises_too_has_failed(work, conn, tube, error):
    """Whose an exception is shows in the job's state, never in its class."""
    worker = work(raising(error), retry=gstalk.RetryPolicy(first_delay=100, jitter=False))
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert worker.errors == [
        (error, f"job {job_id} of {conn.uri}: its handler failed, attempt 1; released, with a delay of 100 s")
    ]
    assert state(conn, job_id) == "delayed"


@pytest.mark.parametrize("kind", [gstalk.JobLostError, gstalk.ConnectionLostError, gstalk.InternalError, ValueError])
@pytest.mark.parametrize("phase", ["look", "fate"])
def test_timeout_left_behind_with_an_error_of_gstalks_class_loses_no_job(play, work, kind, phase):
    """It hits while the server's answer is waited for; the job was once taken for lost, and held by nobody."""
    slow = [b"stats-job 8" if phase == "look" else b"stats-job 7"]

    def answer_late(line: bytes) -> None:
        if line in slow:
            slow.clear()
            gevent.sleep(0.2)

    def handler(job: gstalk.Job) -> None:
        gevent.Timeout.start_new(0.05, kind("left behind"))
        if phase == "fate":
            raise RuntimeError("own")
        job.delete()

    replies = [ONE_JOB[0], b"RESERVED 8 1\r\nx\r\n", b"TIMED_OUT\r\n"]
    played = play({"reserve-with-timeout": replies, "stats-job": answer_late})
    policy = gstalk.RetryPolicy(max_attempts=25 if phase == "look" else None)
    by_tube = dict.fromkeys(["default", "other"], handler)  # with two tubes each job is asked for its own
    given: Any = (handler, ["default"]) if phase == "fate" else (by_tube, list(by_tube))
    worker = work(given[0], played.uri, given[1], retry=policy, num_greenlets=1)
    job_id = 8 if phase == "look" else 7
    wait_until(lambda: [line for line in played.lines if line.startswith(b"release %d " % job_id)])
    wait_until(lambda: "left behind" in str(worker.errors))


def test_handler_whose_greenlet_deletes_the_job_later_has_failed(work, conn, tube):
    seen: list[BaseException] = []
    tried = Event()

    def delete_later(job: gstalk.Job) -> None:
        gevent.sleep(0.05)
        try:
            job.delete()
        except gstalk.JobFinishedError as error:
            seen.append(error)
        tried.set()

    worker = work(lambda job: gevent.spawn(delete_later, job) and None, retry=gstalk.RetryPolicy(first_delay=100))
    job_id = conn.put(tube, b"")
    assert tried.wait(5)
    assert len(seen) == 1
    wait_until(lambda: worker.kinds() == [gstalk.JobNotFinishedError])
    assert state(conn, job_id) == "delayed"


def test_handler_that_deletes_anothers_job_is_told_by_the_others_own_delete(work, conn, tube):
    jobs: list[gstalk.Job] = []
    both = Event()

    def handler(job: gstalk.Job) -> None:
        jobs.append(job)
        if len(jobs) == 2:
            jobs[0].delete()
            both.set()
        both.wait()
        job.delete()

    worker = work(handler, num_greenlets=2)
    ids = conn.put_many(tube, [b""] * 2)
    wait_until(lambda: worker.errors)
    ((error, message),) = worker.errors
    assert isinstance(error, gstalk.JobFinishedError)
    assert message == f"job {jobs[0].id} of {conn.uri}: its handler failed, attempt 1; the job was finished"
    wait_until(lambda: [state(conn, each) for each in ids] == [None, None])
