"""How a connection ends: once, for its first reason, and all who wait are told of it, whatever strikes meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.exceptions import HubDestroyed

import gstalk
from gstalk.connection import forks
from gstalk.connection.ending import Ending, drop
from gstalk.protocol import commands
from gstalk.protocol.request import Request
from tests.io.calling import held
from tests.servers import wait_until

URI = "beanstalk://here:11300"


class Pipe(Ending):
    """A connection that can end, and no more: it notes what it lets go of, and has a socket if it is given one."""

    def __init__(self) -> None:
        super().__init__(URI, get_hub())
        self.timer = self.hub.loop.timer(60)
        self.timer.start(lambda: None)
        self.steps: list[Any] = []  # the errors that are to strike its letting go, then what it has done
        self.on_failure = lambda: self.steps.append("on_failure")

    def watchers(self) -> list[Any]:
        return [self.timer]

    def let_go(self) -> None:
        self.timer.close()
        if self.steps and isinstance(self.steps[0], BaseException):
            raise self.steps.pop(0)
        self.steps.append("let_go")

    def connect(self, sent: int) -> None:
        """Have a socket whose kernel has taken so much of the stream."""
        close, sever = (lambda step=step: self.steps.append(step) for step in ("close", "sever"))
        self._transport = SimpleNamespace(sent=sent, close=close, sever=sever)  # type: ignore[assignment]

    def send(self, job_id: int = 7) -> Request:
        """A delete, of ten bytes."""
        request = Request(commands.DELETE, URI, job_id)
        self._appended += 10
        request.end = self._appended
        self.requests.append(request)
        return request


@pytest.fixture
def pipe() -> Any:
    pipe = Pipe()
    yield pipe
    pipe.timer.close()


def ended_in(pipe: Pipe, ending: Callable[[], object], seconds: float = 5) -> list[BaseException]:
    """Have a greenlet wait for a delete; in its middle something ends the connection. What is raised in it."""
    raised: list[BaseException] = []
    request = pipe.send()

    def wait() -> None:
        try:
            pipe.wait(request)
        except gstalk.GstalkError as error:
            raised.append(error)

    waiter = gevent.spawn(wait)
    gevent.sleep(0)
    ending()
    waiter.join(seconds)
    waiter.kill()
    return raised


# -- fail --------------------------------------------------------------------------------------------------------------


def test_end_comes_once_and_its_first_reason_counts(pipe):
    why = ValueError("why")

    def fail_twice() -> None:
        pipe.fail(gstalk.ConnectionLostError, "first", why)
        pipe.fail(gstalk.ConnectionClosedError, "second")

    (error,) = ended_in(pipe, fail_twice)
    assert (type(error), str(error)) == (
        gstalk.ConnectionLostError,
        "delete 7 at beanstalk://here:11300: first; it was not sent",
    )
    late = pipe.error("touch 8")
    assert (type(late), str(late)) == (
        gstalk.ConnectionLostError,
        "touch 8 at beanstalk://here:11300: first; it was not sent",
    )
    assert late.sent == "no"
    assert [str(each.__cause__) for each in (error, late)] == ["why", "why"]
    assert why not in [each.__cause__ for each in (error, late)]  # it would hold the frames in which it was raised
    assert (pipe.steps, pipe.clear) == (["let_go", "on_failure"], False)


@pytest.mark.parametrize(
    ("kernel", "sent", "outcomes"),
    [
        (None, None, ["no", "no", "no"]),
        (0, None, ["no", "no", "no"]),
        (19, None, ["maybe", "no", "no"]),
        (20, None, ["maybe", "maybe", "no"]),
        (20, 30, ["maybe", "maybe", "maybe"]),
        (30, 0, ["no", "no", "no"]),
    ],
)
def test_request_may_have_been_acted_on_if_the_kernel_has_taken_all_of_it_or_its_end_says_so(
    pipe, kernel, sent, outcomes
):
    requests = [pipe.send(job_id) for job_id in (1, 2, 3)]
    if kernel is not None:
        pipe.connect(kernel)
    pipe.fail(gstalk.ConnectionLostError, "gone", None, sent)
    assert [request.error.sent for request in requests] == outcomes
    assert len({id(request.error) for request in requests}) == 3  # an object is raised once
    assert not pipe.requests


@pytest.mark.parametrize("times", [1, 2])
def test_end_that_a_signal_or_the_end_of_the_stack_strikes_is_told_all_the_same(pipe, times):
    pipe.steps += [RecursionError() for _ in range(times)]

    def fail() -> None:
        with pytest.raises(RecursionError):
            pipe.fail(gstalk.ConnectionLostError, "gone")

    (error,) = ended_in(pipe, fail)
    assert str(error).endswith(": gone; it was not sent")
    assert pipe.steps == ["let_go", "on_failure"]


def test_end_without_anybody_to_tell_is_an_end(pipe):
    pipe.on_failure = None
    pipe.fail(gstalk.ConnectionClosedError, "you closed it")
    assert (pipe.failure, pipe.steps) == ((gstalk.ConnectionClosedError, "you closed it", None), ["let_go"])
    assert pipe.error("stats").__cause__ is None


def test_request_that_comes_after_the_end_is_failed_acted_on_and_told(pipe):
    pipe.fail(gstalk.ConnectionLostError, "gone", ValueError("why"))
    acted: list[Request] = []
    request, other = Request(commands.DELETE, URI, 7, acted.append), Request(commands.TOUCH, URI, 8)
    waiters = [gevent.spawn(pipe.wait, each) for each in (request, other)]
    gevent.sleep(0)
    pipe.fail_late(request)
    pipe.fail_late(other)
    assert acted == [request]
    for waiter, name in zip(waiters, ("delete", "touch"), strict=True):
        with pytest.raises(gstalk.ConnectionLostError) as caught:
            waiter.get(timeout=5)
        assert (str(caught.value), str(caught.value.__cause__)) == (f"{name} at {URI}: gone; it was not sent", "why")


# -- struck ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_over", [False, True])
def test_exception_that_strikes_a_read_ends_the_connection_and_wakes_those_whom_the_read_was_to_wake(pipe, is_over):
    pipe.connect(0)

    def strike() -> None:
        pipe._wake_due = True  # a read is going on
        if is_over:
            pipe.fail(gstalk.ConnectionLostError, "the server closed the connection")
        pipe.struck(KeyboardInterrupt())

    (error,) = ended_in(pipe, strike)
    assert isinstance(error, gstalk.ConnectionLostError)
    what = "the server closed the connection; it was not sent"
    assert str(error).endswith(what if is_over else "KeyboardInterrupt hit in the middle; the server may have acted")


def test_end_of_the_hub_is_no_end_of_the_connections_own_and_a_signals_is(pipe):
    pipe.struck(HubDestroyed(True))
    assert pipe.failure is None
    pipe.struck(gevent.GreenletExit())
    assert pipe.failure is not None


# -- giving up ---------------------------------------------------------------------------------------------------------


def test_requests_that_are_given_up_are_told_at_once_and_their_replies_still_taken(pipe):
    (error,) = ended_in(pipe, lambda: pipe.give_up(lambda request: request.key == 7))
    assert (type(error), str(error)) == (
        gstalk.ConnectionClosedError,
        "delete 7 at beanstalk://here:11300: you closed it; the server may have acted",
    )
    assert [request.key for request in pipe.requests] == [7]
    assert ended_in(pipe, lambda: pipe.give_up(lambda request: False), 0.05) == []
    assert pipe.failure is None


# -- threads and processes ---------------------------------------------------------------------------------------------


@pytest.mark.real
def test_connection_of_a_thread_that_has_ended_is_let_go_without_a_word(conn, other, tube):
    job = held(conn, tube)
    pipe = conn._connection.pipe
    watchers = pipe.watchers()
    assert any(watcher.active for watcher in watchers)
    pipe.abandon()
    assert not any(watcher.active for watcher in watchers)
    assert job.is_lost
    wait_until(lambda: other.stats_tube(tube).current_jobs_ready == 1)
    with pytest.raises(gstalk.ConnectionClosedError, match=r": its thread has ended; it was not sent$"):
        conn.put(tube, b"x")
    assert not conn.is_connected


def test_abandoned_connection_closes_its_socket_and_tells_whom_it_has_to_but_nobody_who_waits(pipe):
    request = pipe.send()
    pipe.connect(10)
    pipe.abandon("why")
    assert pipe.steps == ["close", "on_failure"]
    assert (pipe.clear, pipe.timer.active, request.is_settled) == (False, False, False)
    assert str(pipe.error("put")) == f"put at {URI}: why; it was not sent"
    pipe.fail(gstalk.ConnectionLostError, "later")
    assert str(pipe.error("put")) == f"put at {URI}: why; it was not sent"


def test_abandoned_connection_that_never_had_a_socket_is_over_too(pipe):
    pipe.on_failure = None
    pipe.abandon()
    assert (pipe.failure, pipe.steps) == ((gstalk.ConnectionClosedError, "its thread has ended", None), [])


def test_severed_connection_is_not_over_for_its_own_hub(pipe):
    pipe.sever()
    pipe.connect(0)
    pipe.sever()
    assert (pipe.steps, pipe.failure, pipe.clear) == (["sever"], None, True)


def test_child_ends_what_it_has_inherited_and_calls_all_of_it_sent(pipe):
    """The parent sends the rest."""
    assert pipe in forks._living["pipeline"]
    request = pipe.send()
    pipe.connect(0)
    forks._living["pipeline"][pipe](pipe)
    assert type(request.error) is gstalk.ConnectionClosedError
    assert str(request.error) == (
        f"delete 7 at {URI}: this connection belongs to the parent process: dial again; the server may have acted"
    )


@pytest.mark.parametrize("is_over", [False, True])
def test_child_abandons_what_belongs_to_a_thread_that_is_not_there(pipe, monkeypatch, is_over):
    monkeypatch.setattr(forks, "is_here", lambda hub: False)
    pipe.connect(0)
    request = pipe.send()
    if is_over:
        pipe.fail(gstalk.ConnectionLostError, "gone")
        pipe.steps.clear()
    pipe._forked()
    assert pipe.steps == ([] if is_over else ["close", "on_failure"])
    assert request.is_settled == is_over
    why = "gone" if is_over else "this connection belongs to the parent process: dial again"
    assert str(pipe.error("put")) == f"put at {URI}: {why}; it was not sent"


# -- nobody refers to it any more --------------------------------------------------------------------------------------


def dropped(pipe: Pipe) -> None:
    with pytest.warns(ResourceWarning, match=f"^unclosed connection to {URI}$"):
        drop([pipe])


def test_dropped_connection_ends_in_its_own_thread_at_once(pipe):
    dropped(pipe)
    assert pipe.failure == (gstalk.ConnectionClosedError, "nobody referred to it any more", None)
    assert pipe.steps == ["let_go", "on_failure"]


def test_dropped_connection_that_is_over_is_not_warned_of(pipe):
    pipe.fail(gstalk.ConnectionLostError, "gone")
    drop([pipe])  # warnings are errors here
    assert pipe.failure == (gstalk.ConnectionLostError, "gone", None)


def test_dropped_connection_ends_soon_where_a_finalizer_runs_in_the_middle_of_a_callback(pipe):
    seen: list[object] = []

    def in_hub() -> None:
        pipe.section.is_hub_inside = True
        dropped(pipe)
        seen.append(pipe.failure)
        pipe.section.is_hub_inside = False

    get_hub().loop.run_callback(in_hub)
    wait_until(lambda: pipe.failure is not None, 5)
    assert seen == [None]
    assert pipe.failure == (gstalk.ConnectionClosedError, "nobody referred to it any more", None)


def test_dropped_connection_of_another_thread_is_severed_and_ends_there(pipe):
    pipe.connect(0)
    seen: list[object] = []

    def elsewhere() -> None:
        dropped(pipe)
        seen.extend([pipe.failure, *pipe.steps])

    get_hub().threadpool.apply(elsewhere)
    assert seen == [None, "sever"]
    wait_until(lambda: pipe.failure is not None, 5)
    assert pipe.steps == ["sever", "let_go", "on_failure"]


def test_dropped_connection_whose_hub_is_gone_is_abandoned(pipe):
    hub: Any = SimpleNamespace(loop=None)
    pipe.timer.close()
    pipe.hub = hub
    pipe.connect(0)
    dropped(pipe)
    assert pipe.failure == (gstalk.ConnectionClosedError, "its thread has ended", None)
    assert pipe.steps == ["close", "on_failure"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dropped_conn_closes_its_socket_also_where_warnings_are_errors(play):
    dropped = gstalk.dial(play().uri)
    pipe = dropped._connection.pipe
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del dropped
    assert pipe.failure is not None
