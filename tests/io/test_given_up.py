"""Jobs whose attempts are used up: `given_up_func`, and what becomes of them after it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent
import pytest
from gevent.event import Event

import gstalk
from gstalk.pool import handling
from tests.io.working import (
    BUG,
    ONE_JOB,
    OwnBase,
    Worker,
    async_def,
    cut,
    end_by_sleep,
    lose,
    raising,
    refuse_automatic_delete,
    state,
    tag,
)
from tests.servers import wait_until

pytestmark = pytest.mark.real


ONCE = gstalk.RetryPolicy(max_attempts=1)
ONCE_THEN_GONE = gstalk.RetryPolicy(max_attempts=1, exhausted="delete")
IN_VAIN = "a hook of gstalk's Config raised: "


class GivingUp:
    """A `given_up_func` that keeps what it got, and then does as it is told."""

    def __init__(self, then: Callable[[gstalk.Job], object] = lambda job: None) -> None:
        self.got: list[tuple[gstalk.Job, BaseException]] = []
        self.then = then
        self.began = Event()

    def __call__(self, job: gstalk.Job, exception: BaseException) -> None:
        self.got.append((job, exception))
        self.began.set()
        self.then(job)

    @property
    def errors(self) -> list[BaseException]:
        return [exception for _, exception in self.got]


def given_up(worker: Worker) -> list[gstalk.Event]:
    return [event for event in worker.events if event.kind == "given_up"]


@pytest.mark.parametrize("exhausted", ["bury", "delete"])
def test_given_up_func_is_called_in_the_handlers_greenlet_while_the_job_is_reserved(work, conn, tube, exhausted):
    places: list[Any] = []
    seen: list[Any] = []
    error = ValueError("own")

    def handler(job: gstalk.Job) -> None:
        tag.set(f"job {job.id}")
        places.append(gevent.getcurrent())
        raise error

    def then(job: gstalk.Job) -> None:
        places.append(gevent.getcurrent())
        seen.append((tag.get(), job.body, job.is_finished, job.is_lost, state(conn, job.id)))

    giving_up = GivingUp(then)
    policy = gstalk.RetryPolicy(max_attempts=2, first_delay=0, exhausted=exhausted)
    worker = work(handler, retry=policy, given_up_func=giving_up, num_greenlets=1)
    job_id = conn.put(tube, b"body", priority=9)
    wait_until(lambda: len(worker.errors) == 2)
    assert len(set(places)) == 1
    assert seen == [(f"job {job_id}", b"body", False, False, "reserved")]
    assert giving_up.errors == [error]
    assert error.__traceback__ is not None
    past = {"bury": "buried", "delete": "deleted"}[exhausted]
    assert worker.errors[1] == (
        error,
        f"job {job_id} of {conn.uri}: its handler failed, attempt 2; given up and {past}",
    )
    assert state(conn, job_id) == (past if exhausted == "bury" else None)
    assert exhausted == "delete" or conn.stats_job(job_id).pri == 9


FINISHING: dict[str, tuple[Callable[[gstalk.Job], object], str | None]] = {
    "delete": (gstalk.Job.delete, None),
    "bury": (lambda job: job.bury(77), "buried"),
    "release": (lambda job: job.release(77, 100), "delayed"),
}


@pytest.mark.parametrize("policy", [ONCE, ONCE_THEN_GONE], ids=["bury", "delete"])
@pytest.mark.parametrize("word", FINISHING)
def test_job_that_given_up_func_finishes_is_left_as_it_is(work, conn, tube, word, policy):
    do, becomes = FINISHING[word]
    worker = work(raising(ValueError()), retry=policy, given_up_func=GivingUp(do))
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    ((_, message),) = worker.errors
    assert message == (
        f"job {job_id} of {conn.uri}: its handler failed, attempt 1; given up, and finished by given_up_func"
    )
    worker.stop()
    assert state(conn, job_id) == becomes
    assert becomes is None or conn.stats_job(job_id).pri == 77
    assert [event.kind for event in worker.events if event.job_id] == ["handling", word, "given_up", "handled"]


def time_out(job: gstalk.Job) -> None:
    with gevent.Timeout(0.01):
        gevent.sleep(60)


VAIN: dict[str, Callable[[gstalk.Job], object]] = {
    "raises": raising(ValueError("no room for dead letters")),
    "raises gstalk's": raising(gstalk.JobLostError("of another job")),
    "raises a server's": raising(gstalk.OutOfMemoryError()),
    "raises Retry": raising(gstalk.Retry()),
    "times out": time_out,
    "exits": lambda job: sys.exit(1),
    "raises a BaseException": raising(OwnBase()),
}


@pytest.mark.parametrize("policy", [ONCE, ONCE_THEN_GONE], ids=["bury", "delete"])
@pytest.mark.parametrize("how", VAIN)
def test_given_up_func_that_raises_is_logged_and_the_job_buried(work, conn, tube, caplog, how, policy):
    """Also where it was to be deleted: nobody has looked at it."""
    giving_up = GivingUp(VAIN[how])
    worker = work(raising(ValueError("own")), retry=policy, given_up_func=giving_up)
    job_id = conn.put(tube, b"", priority=9)
    wait_until(lambda: worker.errors)
    ((error, message),) = worker.errors
    assert str(error) == "own"
    assert message == f"job {job_id} of {conn.uri}: its handler failed, attempt 1; given up and buried"
    stats = conn.stats_job(job_id)
    assert (stats.state, stats.pri, len(giving_up.got)) == ("buried", 9, 1)
    (record,) = [each for each in caplog.records if each.getMessage().startswith(IN_VAIN)]
    told = vars(record)
    assert (told["job_id"], told["uri"], told["attempt"]) == (job_id, conn.uri, 1)
    assert "outcome" not in told
    assert len(given_up(worker)) == 1


def test_given_up_func_that_gives_back_a_coroutine_has_done_nothing(work, conn, tube, caplog):
    worker = work(raising(ValueError()), retry=ONCE_THEN_GONE, given_up_func=lambda job, error: async_def(job))
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert state(conn, job_id) == "buried"
    assert [each for each in caplog.records if each.getMessage().startswith(IN_VAIN)]


def test_given_up_func_that_raises_after_its_delete_has_deleted(work, conn, tube, caplog):
    def then(job: gstalk.Job) -> None:
        job.delete()
        raise ValueError("too late")

    worker = work(raising(ValueError()), retry=ONCE, given_up_func=GivingUp(then))
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert worker.errors[0][1].endswith("; given up, and finished by given_up_func")
    assert state(conn, job_id) is None
    assert "too late" in caplog.text


class OwnRetry(gstalk.Retry):
    pass


@pytest.mark.parametrize("own", [OwnRetry(delay=3), gstalk.Retry(priority=3), KeyError("x"), SystemExit(1)], ids=repr)
def test_given_up_func_gets_what_the_handler_raised(work, conn, tube, own):
    """The object itself, with its cause and its traceback."""
    giving_up = GivingUp(gstalk.Job.delete)
    work(raising(own), retry=ONCE, given_up_func=giving_up)
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) is None)
    assert giving_up.errors == [own]
    assert giving_up.errors[0] is own


def test_given_up_func_gets_what_gstalk_says_where_the_handler_raised_nothing_right(work, conn, tube):
    giving_up = GivingUp(gstalk.Job.delete)
    wrong = gstalk.Retry(delay=-1)
    by_body = {b"forgets": lambda job: None, b"wrong": raising(wrong), b"slow": lambda job: gevent.sleep(60)}
    work(lambda job: by_body[job.body](job), retry=ONCE, given_up_func=giving_up, num_greenlets=1, time_limit=0.05)
    conn.put_many(tube, list(by_body))
    wait_until(lambda: conn.stats_tube(tube).cmd_delete == 3)
    assert [type(error) for error in giving_up.errors] == [
        gstalk.JobNotFinishedError,
        gstalk.InvalidArgumentError,
        gstalk.TimeLimitExceeded,
    ]
    assert giving_up.errors[1].__cause__ is wrong


@pytest.mark.parametrize(
    ("error", "policy", "becomes"),
    [
        (gstalk.Bury(), ONCE, "buried"),
        (ValueError(), gstalk.RetryPolicy(max_attempts=2, first_delay=100), "delayed"),
        (gstalk.Retry(delay=100), gstalk.RetryPolicy(max_attempts=2), "delayed"),
        (ValueError(), gstalk.RetryPolicy(max_attempts=None, first_delay=100), "delayed"),
    ],
    ids=["Bury", "an attempt left", "Retry", "never"],
)
def test_job_whose_attempts_are_not_used_up_is_not_given_up(work, conn, tube, error, policy, becomes):
    giving_up = GivingUp()
    worker = work(raising(error), retry=policy, given_up_func=giving_up)
    job_id = conn.put(tube, b"")
    wait_until(lambda: state(conn, job_id) == becomes)
    worker.stop()
    assert (giving_up.got, given_up(worker)) == ([], [])


@pytest.mark.parametrize("exhausted", ["bury", "delete"])
@pytest.mark.parametrize("finishes", [True, False])
def test_job_lost_with_its_worker_too_often_is_given_up_without_its_handler(
    work, server, conn, tube, exhausted, finishes
):
    job_id = conn.put(tube, b"")
    lose(conn, server.uri, job_id, 3)
    ran: list[Any] = []
    giving_up = GivingUp(gstalk.Job.delete if finishes else lambda job: None)
    policy = gstalk.RetryPolicy(max_attempts=1, exhausted=exhausted)
    worker = work(ran.append, retry=policy, given_up_func=giving_up)
    wait_until(lambda: worker.errors)
    (error,) = giving_up.errors
    assert isinstance(error, gstalk.RetriesExhaustedError)
    assert (error.job_id, error.attempts) == (job_id, 4)
    assert worker.errors[0][0] is error
    assert state(conn, job_id) == (None if finishes else "buried")
    assert ran == []
    kinds = [event.kind for event in worker.events if event.job_id]
    assert kinds == ["delete" if finishes else "bury", "given_up"]  # no handler began, and none has ended


def test_auto_delete_refused_when_the_handler_has_ended_gives_the_job_up(play, work):
    """Nobody waits for that delete; so the function has a greenlet of its own, in the job's context."""
    contexts: list[str] = []
    giving_up = GivingUp(lambda job: contexts.append(tag.get()))
    played = refuse_automatic_delete(play, work, retry=ONCE, given_up_func=giving_up)
    wait_until(lambda: b"bury 7 9" in played.lines)
    assert [type(error) for error in giving_up.errors] == [gstalk.InternalError]
    assert contexts == ["job 7"]


def test_time_limit_is_the_handlers_alone(work, conn, tube):
    done = Event()

    def then(job: gstalk.Job) -> None:
        gevent.sleep(0.2)
        job.delete()
        done.set()

    giving_up = GivingUp(then)
    worker = work(lambda job: gevent.sleep(60), retry=ONCE, given_up_func=giving_up, time_limit=0.05)
    conn.put(tube, b"")
    assert done.wait(5)
    wait_until(lambda: worker.errors)
    assert worker.kinds() == [gstalk.TimeLimitExceeded]


def test_timeout_that_the_handler_left_behind_hits_given_up_func_once(work, conn, tube, caplog):
    """It can't be told from one of its own, so the job is buried, and what it has done isn't done again."""

    def handler(job: gstalk.Job) -> None:
        gevent.Timeout.start_new(0.05)
        raise ValueError

    giving_up = GivingUp(lambda job: gevent.sleep(5))
    worker = work(handler, retry=ONCE_THEN_GONE, given_up_func=giving_up)
    job_id = conn.put(tube, b"")
    wait_until(lambda: worker.errors)
    assert worker.errors[0][1].endswith("attempt 1; given up and buried")
    assert (state(conn, job_id), len(giving_up.got), len(worker.errors)) == ("buried", 1, 1)
    assert IN_VAIN in caplog.text


def test_kill_in_given_up_func_buries_the_job_and_ends_the_greenlet(work, conn, tube):
    me: list[Any] = []

    def then(job: gstalk.Job) -> None:
        me.append(gevent.getcurrent())
        gevent.sleep(60)

    giving_up = GivingUp(then)
    worker = work(raising(ValueError()), retry=ONCE_THEN_GONE, given_up_func=giving_up, num_greenlets=1)
    job_id = conn.put(tube, b"")
    assert giving_up.began.wait(5)
    wait_until(lambda: me)
    me[0].kill()
    assert state(conn, job_id) == "buried"
    assert len(given_up(worker)) == 1
    giving_up.then = gstalk.Job.delete
    other = conn.put(tube, b"")  # by the greenlet that has taken its place
    wait_until(lambda: state(conn, other) is None)


def swallow_its_kill(job: gstalk.Job) -> None:
    with suppress(BaseException):
        gevent.sleep(60)


def delete_at_its_end(job: gstalk.Job) -> None:
    try:
        gevent.sleep(60)
    finally:
        job.delete()


@pytest.mark.parametrize("how", [end_by_sleep, swallow_its_kill, delete_at_its_end])
@pytest.mark.parametrize("policy", [ONCE, ONCE_THEN_GONE], ids=["bury", "delete"])
def test_stop_0_in_given_up_func_releases_the_job(work, conn, tube, how, policy):
    """As it does with every job in hand; it is given up the next time."""
    giving_up = GivingUp(how)
    worker = work(raising(ValueError()), retry=policy, given_up_func=giving_up)
    job_id = conn.put(tube, b"", priority=9)
    assert giving_up.began.wait(5)
    worker.stop(0)
    stats = conn.stats_job(job_id)
    assert (stats.state, stats.pri, stats.releases) == ("ready", 9, 1)
    assert [message for _, message in worker.errors] == [
        f"job {job_id} of {conn.uri}: its handler failed, attempt 1; released"
    ]
    assert given_up(worker) == []


def test_stop_lets_given_up_func_finish(work, conn, tube):
    go_on = Event()

    def then(job: gstalk.Job) -> None:
        go_on.wait()
        job.delete()

    giving_up = GivingUp(then)
    worker = work(raising(ValueError()), retry=ONCE, given_up_func=giving_up)
    job_id = conn.put(tube, b"")
    assert giving_up.began.wait(5)
    gevent.spawn_later(0.05, go_on.set)
    worker.stop()
    assert state(conn, job_id) is None
    assert len(given_up(worker)) == 1


def test_ctrl_c_that_leaves_given_up_func_releases_the_job_and_stops_receive(work, conn, tube):
    own = KeyboardInterrupt("own")
    worker = work(raising(ValueError()), retry=ONCE_THEN_GONE, given_up_func=GivingUp(raising(own)))
    job_id = conn.put(tube, b"", priority=9)
    wait_until(lambda: worker.raised)
    assert worker.raised is own
    stats = conn.stats_job(job_id)
    assert (stats.state, stats.pri, stats.releases) == ("ready", 9, 1)
    assert given_up(worker) == []


def test_job_lost_while_given_up_func_runs_is_not_given_up(own_server, work, connect):
    conn = connect(own_server.uri)
    giving_up = GivingUp(cut)
    worker = work(raising(ValueError()), own_server.uri, "t", retry=ONCE, given_up_func=giving_up)
    job_id = conn.put("t", b"")
    wait_until(lambda: worker.errors)
    assert worker.errors[0][1] == (
        f"job {job_id} of {conn.uri}: its handler failed, attempt 1; the job goes back by itself"
    )
    assert given_up(worker) == []


def test_job_whose_bury_the_server_refuses_is_not_given_up(play, work, monkeypatch):
    """It goes back instead, and may be given up the next time."""
    monkeypatch.setattr(handling, "PAUSE", 0.01)
    giving_up = GivingUp()
    played = play({"reserve-with-timeout": ONE_JOB, "bury": BUG})
    worker = work(raising(ValueError()), played.uri, "default", retry=ONCE, given_up_func=giving_up)
    wait_until(lambda: b"release 7 9 0" in played.lines)
    ((_, message),) = worker.errors
    start = f"job 7 of {played.uri}: its handler failed, attempt 1; released, since it could not be retried: "
    assert message.startswith(start)
    assert (len(giving_up.got), given_up(worker)) == (1, [])


@pytest.mark.parametrize("refused", [True, False])
def test_delete_interrupted_in_given_up_func_is_waited_for(play, work, refused):
    """If the server refuses it, the job is still held, and has its fate."""
    answer = Event()

    def answer_late(line: bytes) -> bytes | None:
        answer.wait()
        return BUG if refused else None

    def then(job: gstalk.Job) -> None:
        gevent.spawn_later(0.05, answer.set)
        with gevent.Timeout(0.01, False):  # type: ignore[arg-type]  # the stubs lack False
            job.delete()
        assert not job.is_finished

    played = play({"reserve-with-timeout": ONE_JOB, "delete": answer_late})
    giving_up = GivingUp(then)
    worker = work(raising(ValueError()), played.uri, "default", retry=ONCE, given_up_func=giving_up)
    wait_until(lambda: worker.errors)
    end = "given up and buried" if refused else "given up, and finished by given_up_func"
    assert worker.errors[0][1] == f"job 7 of {played.uri}: its handler failed, attempt 1; {end}"
    assert (played.count("delete"), played.count("bury"), len(giving_up.got)) == (1, int(refused), 1)


@pytest.mark.slow
def test_auto_touch_goes_on_while_given_up_func_runs(work, conn, tube):

    def then(job: gstalk.Job) -> None:
        gevent.sleep(2.5)
        job.delete()

    giving_up = GivingUp(then)
    worker = work(raising(ValueError()), retry=ONCE, given_up_func=giving_up, auto_touch=True)
    job_id = conn.put(tube, b"", ttr=1)
    wait_until(lambda: worker.errors)
    assert worker.errors[0][1].endswith("; given up, and finished by given_up_func")
    assert state(conn, job_id) is None


def test_event_of_a_job_given_up_has_what_failed_and_no_body(work, conn, tube):
    own = ValueError("own")
    worker = work(raising(own), retry=ONCE)
    job_id = conn.put(tube, b"secret")
    wait_until(lambda: len([event for event in worker.events if event.kind == "handled"]) == 1)
    assert given_up(worker) == [
        gstalk.Event(kind="given_up", uri=conn.uri, tube=tube, job_id=job_id, attempt=1, exception=own)
    ]
    assert [event.kind for event in worker.events if event.job_id] == ["handling", "bury", "given_up", "handled"]
    assert "secret" not in repr(worker.events)
