"""What a connection does about jobs: whose they are, how each is settled, touched, given back, and looked after."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import get_hub, getcurrent
from gevent.event import Event

import gstalk
from gstalk.connection import pipeline
from gstalk.connection.clock import monotonic
from gstalk.connection.connection import Connection
from gstalk.connection.critical import critical
from gstalk.connection.pipeline import Pipeline
from gstalk.protocol import commands
from gstalk.protocol.request import Request
from tests.faults.hub import silent_hub
from tests.io.calling import call, held, in_thread
from tests.io.striking import Exit, Strike
from tests.servers import CUT, ok, wait_until

pytestmark = pytest.mark.real

SILENCE = b""
RESERVED = b"RESERVED 7 1\r\nx\r\n"


# -- whose a job is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_settle_by_conn_is_the_jobs_own_method(conn, tube, name):
    job = held(conn, tube)
    getattr(conn, name)(job)
    assert job.is_finished
    with pytest.raises(gstalk.JobFinishedError):
        getattr(conn, name)(job)


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_settle_by_id_finishes_the_held_job(conn, tube, name):
    job = held(conn, tube)
    getattr(conn, name)(job.id)
    assert job.is_finished
    with pytest.raises(gstalk.JobFinishedError):
        job.delete()


@pytest.mark.parametrize("name", ["delete", "release", "bury"])
def test_settle_by_peeked_job_finishes_the_held_one(conn, tube, name):
    job = held(conn, tube)
    peeked = conn.peek(job.id)
    getattr(conn, name)(peeked)
    assert job.is_finished


@pytest.mark.parametrize("name", ["delete", "touch", "kick_job", "release", "bury"])
def test_settle_job_that_another_connection_reserved_is_refused(conn, other, tube, name):
    job = held(conn, tube)
    with pytest.raises(gstalk.InvalidArgumentError):
        getattr(other, name)(job)
    assert job.stats().state == "reserved"
    assert not job.is_finished


def test_stats_job_of_a_job_that_another_connection_reserved_is_refused(play, connect, conn):
    """Their servers may be different ones, where the same id means another job, or none."""
    job = connect(play({"reserve-with-timeout": b"RESERVED 987654321 1\r\nx\r\n"}).uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.InvalidArgumentError):
        conn.stats_job(job)
    assert not job.is_lost


def test_delete_peeked_job_of_another_connection_is_sent_as_it_is(conn, other, tube):
    peeked = conn.peek(conn.put(tube, b""))
    other.delete(peeked)
    assert conn.peek(peeked.id) is None


def test_delete_peeked_job_reserved_by_another_raises_not_found(conn, other, tube):
    job = held(conn, tube)
    peeked = other.peek(job.id)
    with pytest.raises(gstalk.NotFoundError):
        peeked.delete()
    with pytest.raises(gstalk.NotFoundError):
        other.delete(job.id)
    job.delete()


@pytest.mark.parametrize("name", ["delete", "release", "bury", "touch"])
def test_job_by_id_not_found_raises_not_found_and_loses_the_held_one(play, connect, name):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", name: b"NOT_FOUND\r\n"})
    conn = connect(played.uri)
    job = conn.reserve_with_timeout(0)
    with pytest.raises(gstalk.NotFoundError):
        getattr(conn, name)(7)
    assert job.is_lost


# -- settling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_id", [False, True])
def test_release_without_priority_keeps_the_jobs_own(conn, tube, by_id):
    job = held(conn, tube, priority=77)
    conn.release(job.id if by_id else job, delay=50)
    stats = conn.stats_job(job.id)
    assert (stats.pri, stats.delay, stats.state, stats.releases) == (77, 50, "delayed", 1)


def test_release_with_priority_and_fraction_of_delay(conn, tube):
    job = held(conn, tube, priority=77)
    job.release(5, 1.01)
    stats = job.stats()
    assert (stats.pri, stats.delay, stats.state) == (5, 2, "delayed")


@pytest.mark.parametrize("by_id", [False, True])
def test_bury_without_priority_keeps_the_jobs_own(conn, tube, by_id):
    job = held(conn, tube, priority=77)
    conn.bury(job.id if by_id else job)
    stats = conn.stats_job(job.id)
    assert (stats.pri, stats.state) == (77, "buried")


def test_bury_with_priority(conn, tube):
    job = held(conn, tube)
    job.bury(0)
    assert job.stats().pri == 0


@pytest.mark.parametrize(
    ("method", "args", "kind"),
    [
        ("release", (-1,), gstalk.InvalidArgumentError),
        ("release", (2**32,), gstalk.InvalidArgumentError),
        ("release", (1.5,), TypeError),
        ("release", (1, float("nan")), gstalk.InvalidArgumentError),
        ("release", (None, -1), gstalk.InvalidArgumentError),
        ("release", (None, "1"), TypeError),
        ("bury", (-1,), gstalk.InvalidArgumentError),
        ("bury", (True,), TypeError),
    ],
)
def test_settle_wrong_argument_leaves_the_job_unfinished(conn, tube, method, args, kind):
    job = held(conn, tube)
    with pytest.raises(kind):
        getattr(job, method)(*args)
    assert not job.is_finished
    assert not job.is_lost
    job.delete()


def test_job_release_whose_priority_cannot_be_asked_is_unfinished_again(play, connect):
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "stats-job": [b"OUT_OF_MEMORY\r\n", None]})
    job = connect(played.uri).reserve_with_timeout(0)
    with pytest.raises(gstalk.OutOfMemoryError):
        job.release()
    assert (job.is_finished, job.is_lost) == (False, False)
    job.release()
    assert played.lines[-1] == b"release 7 9 0"


@pytest.mark.parametrize("pri", ["", "pri: -5\n", "pri: 4294967296\n"])
def test_job_release_whose_priority_cannot_be_is_a_protocol_error(play, connect, pri):
    told = ok(f"---\nid: 1\ntube: default\nstate: reserved\n{pri}")
    played = play({"reserve-with-timeout": b"RESERVED 1 1\r\nx\r\n", "stats-job": told})
    conn = connect(played.uri)
    job = conn.reserve_with_timeout(0)
    with silent_hub():
        with pytest.raises(gstalk.ProtocolError, match="pri is"):
            job.release()
        assert job.is_lost
        assert not conn.is_connected


@pytest.mark.parametrize("reply", [b"DELETED\r\n", b"NOT_FOUND\r\n", b"INTERNAL_ERROR\r\n"])
def test_job_reserved_again_before_its_delete_is_answered_the_answer_decides(play, connect, reply):
    """So it is after a process was stopped for longer than its job's time to run."""
    played = play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "delete": reply})
    conn = connect(played.uri)
    job = conn.reserve_with_timeout(0)
    reserver, deleter = call(conn.reserve_with_timeout, 0), call(job.delete)
    gevent.joinall([reserver, deleter])
    assert played.lines[-2:] == [b"reserve-with-timeout 0", b"delete 7"]
    again = reserver.get()
    if reply == b"DELETED\r\n":
        assert deleter.successful()
        assert (job.is_finished, job.is_lost, again.is_finished, again.is_lost) == (True, False, True, False)
        with pytest.raises(gstalk.JobFinishedError):
            again.delete()
    else:
        assert type(deleter.exception) is (gstalk.JobLostError if b"NOT" in reply else gstalk.InternalError)
        assert (job.is_finished, job.is_lost, again.is_finished, again.is_lost) == (False, True, False, False)


# -- touch and kick-job ------------------------------------------------------------------------------------------------


def test_touch_starts_the_time_to_run_anew(conn, tube):
    job = held(conn, tube, ttr=10)
    wait_until(lambda: job.time_left() < 9)
    job.touch()
    assert job.time_left() >= 9
    conn.touch(job)
    conn.touch(job.id)


def test_job_whose_touch_finds_it_gone_while_its_delete_is_under_way_is_finished_if_that_succeeds(play, connect):
    """The server deletes a job whose time is over, though it refuses to touch it, as long as nobody else has it."""
    conn = connect(play({"reserve-with-timeout": b"RESERVED 7 1\r\nx\r\n", "touch": b"NOT_FOUND\r\n"}).uri)
    job = conn.reserve_with_timeout(0)
    toucher, deleter = call(job.touch), call(job.delete)
    gevent.joinall([toucher, deleter])
    assert type(toucher.exception) is gstalk.JobLostError
    assert deleter.successful()
    assert (job.is_finished, job.is_lost) == (True, False)


def test_kick_job_by_id_by_job_and_by_its_own_method(conn, tube):
    for kick in (lambda job: conn.kick_job(job.id), conn.kick_job, gstalk.Job.kick):
        job = held(conn, tube, priority=0)
        job.bury()
        kick(job)
        assert job.stats().state == "ready"
        conn.delete(job.id)


# -- reserving ---------------------------------------------------------------------------------------------------------


class Got:
    """What a reserve has brought, and whether that was told in the hub."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.in_hub: list[bool] = []

    def __call__(self, request: Request) -> None:
        self.in_hub.append(getcurrent() is get_hub())
        self.requests.append(request)


def test_reserve_that_does_not_wait_brings_a_job_that_is_held_or_none(line):
    talk, got, began = line({"reserve-with-timeout": [RESERVED, None]}), Got(), monotonic()
    for _ in range(2):
        talk.connection.ask(got)
        assert talk.connection.pipe.clear
    assert talk.settle() == [b"reserve-with-timeout 0"] * 2
    job, none = (request.result for request in got.requests)
    assert (job.id, job.body, job.tube, none) == (7, b"x", "default", None)
    assert began <= job.reserved_at <= talk.connection.pipe.read_at
    assert talk.connection.reserved.holds(job)
    assert got.in_hub == [True, True]


@pytest.mark.parametrize("times", [1, 4])
def test_reserves_of_one_ask_go_out_in_one_piece_and_each_brings_its_own_answer(line, times):
    answers = [b"RESERVED %d 1\r\nx\r\n" % number for number in (7, 8, 9)]
    talk, got, size = line({"reserve-with-timeout": [*answers, None]}), Got(), len(b"reserve-with-timeout 0\r\n")
    talk.played.reads.clear()
    start = talk.connection.pipe.sent
    talk.connection.ask(got, times)
    ends = [request.end - start for request in talk.connection.pipe.requests]
    talk.settle()
    assert talk.played.reads[0].startswith(b"reserve-with-timeout 0\r\n" * times)
    assert ends == [size * number for number in range(1, times + 1)]
    assert [request.result and request.result.id for request in got.requests] == [7, 8, 9, None][:times]


def test_reserves_of_one_ask_that_follows_the_last_answer_go_out_at_once(line, monkeypatch):
    """The server has nothing else to answer: nothing is gained by a wait for more to send."""
    monkeypatch.setattr(pipeline, "HOLD", 60)
    talk, got = line({"reserve-with-timeout": None}), Got()
    talk.connection.ask(lambda _: talk.connection.ask(got, 30))
    wait_until(lambda: len(got.requests) == 30)


def test_reserves_of_one_ask_that_comes_too_late_are_all_told(line):
    talk, got = line({"reserve-with-timeout": RESERVED}), Got()
    talk.connection.cut()
    talk.connection.ask(got, 3)
    assert [request.error.sent for request in got.requests] == ["no"] * 3


@pytest.mark.parametrize("kind", [Strike, Exit])
def test_reserves_of_one_ask_that_a_signal_strikes_at_any_line_are_told_once_or_all_or_none_in_flight(line, kind):
    told: list[int] = []
    for number in range(1, 100):
        talk, got, strike = line({"reserve-with-timeout": SILENCE}), Got(), kind(Pipeline.append, number)
        sys.settrace(strike.trace)
        try:
            talk.connection.ask(got, 3)
            break
        except Strike:
            told.append(len(got.requests))
            assert len(set(map(id, got.requests))) == len(got.requests)
            assert len(talk.connection.pipe.requests) in ((0,) if got.requests else (0, 3))
            assert talk.connection.is_connected == (not got.requests)
        finally:
            sys.settrace(None)
    assert len(told) == number - 1 > 10
    assert set(told) == {0, 3}


def test_reserve_that_waits_holds_other_commands_back_until_it_is_answered(line):
    answer, got = Event(), Got()

    def wait(_: bytes) -> bytes:
        answer.wait()
        return RESERVED

    talk = line({"reserve-with-timeout": wait})
    request = talk.connection.begin_wait(60, got, talk.connection.recall)
    assert (request.patience, talk.connection.pipe.clear, talk.connection._end_wait is None) == (60, False, False)
    answer.set()
    wait_until(lambda: got.requests)
    assert (talk.connection.pipe.clear, talk.connection._end_wait, request.result.id) == (True, None, 7)
    assert talk.settle() == [b"reserve-with-timeout 60"]


def test_reserve_that_waits_is_ended_by_whoever_comes(line):
    talk, got = line({"reserve-with-timeout": SILENCE}), Got()
    request = talk.connection.begin_wait(60, got, talk.connection.recall)
    talk.connection.delete(8)
    assert got.requests == [request]
    assert str(request.error).partition(": ")[2] == "connection closed to end a reserve; the server may have acted"
    assert talk.sent == [b"reserve-with-timeout 60", b"stats", b"delete 8"]


def test_reserve_that_waits_when_the_connection_ends_brings_the_error(line):
    talk, got = line({"reserve-with-timeout": SILENCE}), Got()
    talk.connection.begin_wait(60, got, lambda: None)
    talk.connection.cut()
    assert type(got.requests[0].error) is gstalk.ConnectionClosedError
    talk.connection.begin_wait(60, got, talk.connection.recall)
    assert str(got.requests[1].error) == (
        f"reserve-with-timeout at {talk.connection.uri}: you closed it; it was not sent"
    )
    assert not talk.connection.pipe.clear


def test_job_of_a_connection_that_watches_several_tubes_does_not_know_its_own(line):
    talk = line()
    assert talk.connection.hold(7, b"x").tube == "default"
    talk.connection.watch("mail")
    assert talk.connection.hold(8, b"x").tube is None
    talk.connection.ignore("default")
    assert talk.connection.hold(9, b"x").tube == "mail"


def test_peeked_job_is_held_by_nobody(line):
    connection = line().connection
    job = connection.peeked((7, b"x"), "mail")
    assert (job.id, job.body, job.tube, job.reserved_at) == (7, b"x", "mail", None)
    assert connection.peeked(None, "mail") is None
    assert not connection.reserved.holds(job)


# -- giving back -------------------------------------------------------------------------------------------------------


def test_job_that_is_given_back_is_released_with_its_own_priority_and_nobody_waits(line):
    talk = line()
    job = talk.connection.hold(7, b"x")
    talk.connection.give_back(job)
    assert (job.is_finished, talk.sent) == (False, [])
    wait_until(lambda: job.is_finished)
    talk.connection.give_back(job)  # there is nothing to give any more
    assert talk.settle() == [b"stats-job 7", b"release 7 9 0"]


def test_job_of_a_connection_that_is_over_is_not_given_back(line):
    talk = line()
    job = talk.connection.hold(7, b"x")
    talk.connection.cut()
    talk.connection.return_job(job)
    assert job.is_lost


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        ({"release": b"INTERNAL_ERROR\r\n"}, "release 7 at {}: a bug in the server; it may have acted"),
        ({"stats-job": b"OUT_OF_MEMORY\r\n"}, "stats-job 7 at {}: the server has no room for it"),
    ],
)
def test_job_that_the_server_does_not_take_back_ends_the_connection(line, replies, why):
    """Else the server would keep it for its time to run."""
    talk = line(replies)
    job = talk.connection.hold(7, b"x")
    talk.connection.return_job(job)
    wait_until(lambda: not talk.connection.is_connected)
    kind, said, cause = talk.connection.pipe.failure
    assert (kind, said) == (
        gstalk.ConnectionLostError, f"job 7 could not be given back: {why.format(talk.connection.uri)}",
    )  # fmt: skip
    assert isinstance(cause, gstalk.ServerError)
    assert job.is_lost


@pytest.mark.parametrize("replies", [{"release": b"NOT_FOUND\r\n"}, {"stats-job": b"NOT_FOUND\r\n"}])
def test_job_that_is_the_servers_already_need_not_be_given_back(line, replies):
    talk = line(replies)
    job = talk.connection.hold(7, b"x")
    talk.connection.return_job(job)
    wait_until(lambda: job.is_lost)
    assert talk.connection.is_connected


def test_job_is_returned_inside_the_section(line, monkeypatch):
    connection, owners = line().connection, []
    monkeypatch.setattr(Connection, "give_back", lambda self, job: owners.append(self.section.owner))
    connection.return_job(connection.hold(7, b"x"))
    assert (owners, connection.section.owner) == ([getcurrent()], None)


# -- what nobody waits for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "state"), [(None, "finished"), (b"NOT_FOUND\r\n", "lost"), (b"INTERNAL_ERROR\r\n", "held")]
)
def test_delete_that_nobody_waits_for_decides_about_its_job(line, reply, state):
    talk = line({"delete": reply})
    job = talk.connection.hold(7, b"x")
    talk.connection.delete_unwaited(job)
    talk.connection.delete_unwaited(job)  # one is under way
    assert talk.settle() == [b"delete 7"]
    assert (job.is_finished, job.is_lost) == (state == "finished", state == "lost")


@pytest.mark.parametrize(("reply", "is_lost"), [(None, False), (b"NOT_FOUND\r\n", True)])
def test_touch_that_nobody_waits_for_tells_the_job_if_it_is_lost(line, reply, is_lost):
    talk = line({"touch": reply})
    job = talk.connection.hold(7, b"x")
    talk.connection.touch_unwaited(job)
    assert talk.settle() == [b"touch 7"]
    assert job.is_lost == is_lost


def test_events_tell_of_what_nobody_waits_for(line):
    events: list[gstalk.Event] = []
    talk = line(event_func=events.append)
    talk.connection.delete_unwaited(talk.connection.hold(7, b"x"))
    talk.connection.give_back(talk.connection.hold(8, b"x"))
    wait_until(lambda: len(events) == 2)
    assert [(event.kind, event.job_id, event.tube) for event in events] == [
        ("delete", 7, "default"), ("release", 8, "default"),
    ]  # fmt: skip
    job = talk.connection.hold(9, b"x")
    talk.connection.bury(job, 3)
    talk.connection.delete(talk.connection.hold(10, b"x"))
    assert [(event.kind, event.job_id) for event in events[2:]] == [("bury", 9), ("delete", 10)]


def test_server_is_asked_about_jobs_that_nobody_refers_to_and_lets_those_go_that_it_has_not(line):
    talk = line({"stats-job": [b"NOT_FOUND\r\n", None]})
    for job_id in (7, 8):
        talk.connection.hold(job_id, b"x")
    talk.connection.look_after_jobs()
    assert talk.settle() == [b"stats-job 7", b"stats-job 8"]
    assert list(talk.connection.reserved.by_id) == [8]
    talk.connection.look_after_jobs()  # not again so soon
    assert len(talk.settle()) == 2


# -- in the middle of it -----------------------------------------------------------------------------------------------


class Struck(BaseException):
    """What a signal handler raises."""


SETTLE: dict[str, Callable[[Connection, Any], object]] = {
    "delete": lambda connection, job: connection.delete(job),
    "delete_unwaited": lambda connection, job: connection.delete_unwaited(job),
    "release": lambda connection, job: connection.release(job, 5),
    "release, asked": lambda connection, job: connection.release(job),
    "return_job": lambda connection, job: connection.return_job(job),
}


@pytest.mark.parametrize("name", SETTLE)
def test_signal_that_strikes_when_a_job_is_marked_and_nothing_sent_ends_the_connection(line, monkeypatch, name):
    talk = line()
    job = talk.connection.hold(7, b"x")

    def strike(*_: object) -> None:
        raise Struck

    with monkeypatch.context() as patched, pytest.raises(Struck):
        patched.setattr(Pipeline, "append", strike)
        SETTLE[name](talk.connection, job)
    assert (talk.connection.pipe.failure[1], job.is_lost) == ("Struck hit in the middle", True)
    assert talk.connection.section.owner is None


@pytest.mark.parametrize("name", SETTLE)
def test_signal_that_strikes_before_a_job_is_marked_leaves_all_as_it_was(line, monkeypatch, name):
    talk = line()
    job = talk.connection.hold(7, b"x")

    def strike(*_: object) -> None:
        raise Struck

    with monkeypatch.context() as patched, pytest.raises(Struck):
        patched.setattr(type(talk.connection.reserved), "settle", strike)
        SETTLE[name](talk.connection, job)
    assert talk.connection.section.owner is None
    talk.connection.delete(job)
    assert talk.settle() == [b"delete 7"]


def test_signal_that_strikes_a_command_by_id_leaves_the_connection_to_the_pipeline(line, monkeypatch):
    talk = line()
    with monkeypatch.context() as patched, pytest.raises(Struck):
        patched.setattr(Pipeline, "request", lambda *_: (_ for _ in ()).throw(Struck()))
        talk.connection.release(7, 5)
    assert talk.connection.is_connected


@critical
def inside(connection: Connection, call: Callable[[], object]) -> None:
    """A greenlet in whose middle of a step a signal handler sleeps."""
    with connection.section:
        call()


@pytest.mark.parametrize("name", ["delete", "release", "touch"])
def test_job_that_is_finished_while_a_call_waits_for_its_turn_is_refused(line, name):
    """A signal handler sleeps in the middle of another greenlet's step, which then deletes the job."""
    talk = line()
    connection, job, go_on = talk.connection, talk.connection.hold(7, b"x"), Event()

    def sleep_and_settle() -> None:
        go_on.wait()
        connection.reserved.settle(job)
        request = connection.pipe.request(commands.DELETE, 7, connection.reserved.settled, job)
        connection.pipe.append(b"delete 7\r\n", request)

    sleeper = gevent.spawn(inside, connection, sleep_and_settle)
    gevent.sleep(0)
    waiting = gevent.spawn(getattr(connection, name), job, *([5] if name == "release" else []))
    gevent.sleep(0.01)
    assert (waiting.ready(), connection.section.owner, talk.sent) == (False, sleeper, [])
    go_on.set()
    with pytest.raises(gstalk.JobFinishedError) as caught:
        waiting.get(timeout=5)
    assert str(caught.value) == f"{name} 7 at {connection.uri}: the job is finished, or being finished now"
    sleeper.get(timeout=5)
    assert talk.settle() == [b"delete 7"]


def test_delete_that_nobody_waits_for_waits_for_its_turn_and_sends_nothing_if_the_job_is_finished_by_then(line):
    talk = line()
    connection, jobs, go_on = talk.connection, [talk.connection.hold(job_id, b"x") for job_id in (7, 8)], Event()
    sleeper = gevent.spawn(inside, connection, go_on.wait)
    gevent.sleep(0)
    deleters: list[Any] = [gevent.spawn(connection.delete_unwaited, job) for job in (jobs[0], jobs[0], jobs[1])]
    gevent.sleep(0.01)
    assert (talk.sent, connection.section.owner) == ([], sleeper)
    go_on.set()
    gevent.joinall([sleeper, *deleters], raise_error=True)
    assert sorted(talk.settle()) == [b"delete 7", b"delete 8"]
    assert [job.is_finished for job in jobs] == [True, True]


def test_job_that_is_reserved_again_before_its_priority_is_told_is_not_released(line):
    """It is another one's by now: of the same connection, as it happens."""
    talk = line()
    job = talk.connection.hold(7, b"x")
    releaser = call(talk.connection.release, job)
    again = talk.connection.hold(7, b"x")
    with pytest.raises(gstalk.JobLostError) as caught:
        releaser.get(timeout=5)
    assert (
        str(caught.value) == f"release 7 at {talk.connection.uri}: the server has taken the job back; nothing was sent"
    )
    assert (job.is_lost, talk.settle()) == (True, [b"stats-job 7"])
    assert talk.connection.reserved.holds(again)


def test_job_that_is_reserved_again_before_its_priority_is_refused_is_lost_and_the_refusal_told(line):
    talk = line({"stats-job": b"OUT_OF_MEMORY\r\n"})
    job = talk.connection.hold(7, b"x")
    releaser = call(talk.connection.release, job)
    again = talk.connection.hold(7, b"x")
    with pytest.raises(gstalk.OutOfMemoryError):
        releaser.get(timeout=5)
    assert (job.is_lost, again.is_lost) == (True, False)


def test_job_that_the_server_has_taken_back_says_so(line):
    talk = line({"touch": b"NOT_FOUND\r\n"})
    job = talk.connection.hold(7, b"x")
    with pytest.raises(gstalk.JobLostError):
        talk.connection.touch(job)
    for name in ("delete", "release", "bury", "touch"):
        with pytest.raises(gstalk.JobLostError) as caught:
            getattr(talk.connection, name)(job)
        why = "the server has taken it back; nothing was sent"
        assert str(caught.value) == f"{name} 7 at {talk.connection.uri}: {why}"
    assert talk.settle() == [b"touch 7"]


def test_job_of_another_connection_is_refused_with_the_way_out(line):
    job, connection = line().connection.hold(7, b"x"), line().connection
    for name in ("delete", "release", "bury", "touch", "kick_job", "stats_job"):
        with pytest.raises(gstalk.InvalidArgumentError) as caught:
            getattr(connection, name)(job)
        word = name.replace("_", "-")
        why = "another connection has reserved this job; use the job's own method"
        assert str(caught.value) == f"{word} 7 at {connection.uri}: {why}"


@pytest.mark.parametrize("name", ["delete", "release", "bury", "touch", "kick_job", "stats_job"])
def test_job_is_refused_in_another_thread_be_it_held_peeked_or_an_id(line, name):
    talk = line()
    job, peeked = talk.connection.hold(7, b"x"), talk.connection.peeked((8, b"x"), "mail")
    method = getattr(talk.connection, name)
    raised = in_thread(*(partial(method, each) for each in (job, peeked, 9)))
    assert [type(error) for error in raised] == [gstalk.WrongHubError] * 3
    assert (talk.settle(), job.is_finished) == ([], False)


def test_statistics_of_a_job_tell_it_its_tube_and_lose_one_that_is_gone(line):
    talk = line({"stats-job": [ok("---\nid: 7\ntube: mail\n"), b"NOT_FOUND\r\n"]})
    job = talk.connection.hold(7, b"x")
    assert talk.connection.stats_job(job).tube == job.tube == "mail"
    with pytest.raises(gstalk.JobLostError):
        talk.connection.stats_job(job)
    assert job.is_lost
    for neither in (talk.connection.peeked((7, b"x"), "mail"), 7):  # they were never ours to lose
        with pytest.raises(gstalk.NotFoundError) as caught:
            talk.connection.stats_job(neither)
        assert type(caught.value) is gstalk.NotFoundError


def test_connection_that_ends_in_the_middle_of_a_release_is_told_as_the_second_step_too(line):
    talk = line({"stats-job": CUT})
    job = talk.connection.hold(7, b"x")
    with pytest.raises(gstalk.ConnectionLostError, match="^stats-job 7 at "):
        talk.connection.release(job)
    assert job.is_lost
