"""`Config.event_func`: each kind, its fields, where it is called, and that the table in docs/events.md is true."""

from __future__ import annotations

import contextvars
import dataclasses
import re
import runpy
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

import gstalk
from gstalk.config import EVENT_KINDS
from gstalk.connection.hooks import Hooks
from tests.servers import CUT, Played, wait_until

pytestmark = pytest.mark.real

PAGE = Path(__file__).parent.parent.parent / "docs" / "events.md"
ROWS = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
FIELDS = {kind: {"kind", "uri", *re.findall(r"`(\w+)`", fields)} for kind, _, fields in ROWS}
AT_ONCE = gstalk.RetryPolicy(first_delay=0, max_delay=0)

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


class Told:
    """An `event_func` that keeps what it is told, and in which greenlet and context that was."""

    def __init__(self) -> None:
        self.events: list[gstalk.Event] = []
        self.places: list[tuple[Any, str]] = []
        self.wrong: list[gstalk.Event] = []  # what a hook raises, gstalk takes care of

    def __call__(self, event: gstalk.Event) -> None:
        given = {each.name for each in dataclasses.fields(event) if getattr(event, each.name) is not None}
        if not given <= FIELDS[event.kind] or gevent.getcurrent() is gevent.get_hub():
            self.wrong.append(event)
        self.events.append(event)
        self.places.append((gevent.getcurrent(), where.get()))

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def of(self, kind: str) -> list[gstalk.Event]:
        return [event for event in self.events if event.kind == kind]


@pytest.fixture
def told() -> Iterator[Told]:
    """Fails a test in which an event had fields that the table doesn't list, or was told in the hub."""
    telling = Told()
    yield telling
    assert telling.wrong == []


def caught(function: Any, *args: Any) -> BaseException | None:
    """Call it; returns what it raised, Ctrl-C too, which gevent would give to the main greenlet."""
    try:
        function(*args)
    except BaseException as error:
        return error
    return None


@pytest.fixture
def work(server: Any, tube: str, told: Told) -> Iterator[Callable[..., Any]]:
    """Have a Consumer handle the test's tube until the test ends; returns the greenlet and the Consumer."""
    running = []

    def start(handler: Any, tubes: Any = None, **options: Any) -> tuple[Any, gstalk.Consumer]:
        options.setdefault("error_func", lambda error, message: None)
        consumer = gstalk.Consumer(server.uri, tubes or tube, event_func=told, **options)
        running.append((gevent.spawn(caught, consumer.receive, handler), consumer))
        return running[-1]

    yield start
    for receiver, consumer in running:
        consumer.stop(0)
        receiver.join(20)


def test_table_of_the_documentation_is_the_code():
    assert {kind: when for kind, when, _ in ROWS} == EVENT_KINDS


def test_job_given_up_tells_the_fields_of_the_table(work, connect, server, tube, told):
    def fail(job: gstalk.Job) -> None:
        raise KeyError

    connect(server.uri).put(tube, b"x")
    work(fail, retry=gstalk.RetryPolicy(max_attempts=1))
    wait_until(lambda: told.of("handled"))
    (event,) = told.of("given_up")
    given = {each.name for each in dataclasses.fields(event) if getattr(event, each.name) is not None}
    assert given == FIELDS["given_up"]


# -- one connection ----------------------------------------------------------------------------------------------


def test_conn_put_tells_what_it_did(connect, server, tube, told):
    job_id = connect(server.uri, event_func=told).put(tube, b"x")
    (event,) = told.events
    assert (event.kind, event.uri, event.tube, event.job_id) == ("put", server.uri, tube, job_id)
    assert event.exception is None
    assert event.attempt is None
    assert event.duration is not None
    assert 0 < event.duration < 10


def test_conn_put_refused_by_the_server_tells_the_error(connect, server, tube, told):
    conn = connect(server.uri, event_func=told)
    with pytest.raises(gstalk.JobTooBigError) as caught:
        conn.put(tube, b"x" * 70_000)
    assert [(event.kind, event.job_id, event.exception) for event in told.events] == [("put", None, caught.value)]


def test_conn_put_buried_tells_its_id(play, told):
    played = play({"put": b"BURIED 7\r\n"})
    with gstalk.dial(played.uri, event_func=told) as conn, pytest.raises(gstalk.BuriedError):
        conn.put("default", b"")
    assert [(event.kind, event.job_id) for event in told.events] == [("put", 7)]


def test_conn_put_of_a_wrong_argument_tells_nothing(connect, server, tube, told):
    conn = connect(server.uri, event_func=told)
    with pytest.raises(TypeError):
        conn.put(tube, "text")
    assert told.events == []


def test_conn_put_interrupted_tells_what_hit_it(play, told):
    with gstalk.dial(play({"put": b""}).uri, event_func=told) as conn:
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.05):
            conn.put("default", b"")
        assert [event.exception for event in told.of("put")] == [caught.value]


def test_conn_put_many_tells_of_each_body_sent(connect, server, tube, told):
    conn = connect(server.uri, event_func=told)
    with pytest.raises(gstalk.PutManyError) as caught:
        conn.put_many(tube, [b"a", "bad", b"x" * 70_000, b"b"])
    sent = [result for result in caught.value.results if not isinstance(result, TypeError)]
    assert [event.exception or event.job_id for event in told.of("put")] == sent
    assert {event.tube for event in told.events} == {tube}
    assert all(event.duration is not None and event.duration > 0 for event in told.events)


def test_conn_settling_tells_of_jobs_and_of_ids(connect, server, tube, told):
    conn = connect(server.uri, event_func=told)
    conn.watch(tube)
    conn.ignore("default")
    ids = conn.put_many(tube, [b""] * 6)
    del told.events[:]
    conn.reserve().delete()
    conn.reserve().release(delay=100)
    conn.reserve().release(7, 100)
    conn.reserve().bury()
    conn.reserve().bury(9)
    conn.delete(ids[5])
    assert told.kinds == ["delete", "release", "release", "bury", "bury", "delete"]
    assert [event.job_id for event in told.events] == ids
    assert [event.tube for event in told.events] == [tube] * 5 + [None]
    assert all(event.exception is None and event.duration for event in told.events)


def test_conn_settling_refused_tells_the_error(connect, server, tube, told):
    conn = connect(server.uri, event_func=told)
    conn.watch(tube)
    conn.put(tube, b"")
    job = conn.reserve()
    with gstalk.dial(server.uri) as thief:
        for settle in (conn.delete, conn.release, conn.bury):
            with pytest.raises(gstalk.NotFoundError) as caught:
                settle(2**40)
            assert told.events[-1].exception is caught.value
            assert told.events[-1].kind == settle.__name__
        assert thief.peek(job.id) is not None


def test_job_that_nobody_waits_for_tells_of_its_release(connect, server, tube, told, conn):
    watching = connect(server.uri, event_func=told)
    watching.watch(tube)
    asking = gevent.spawn(watching.reserve)
    wait_until(lambda: conn.stats_tube(tube).current_waiting)
    asking.kill(block=False)
    job_id = conn.put(tube, b"")  # it may win the race with the end of the wait, and is back either way
    job = watching.reserve()
    assert job.id == job_id
    where.set("here")
    job._owner.give_back(job)
    wait_until(lambda: told.of("release"))
    assert told.of("release")[-1].job_id == job_id
    assert told.places[-1][1] == "here"


def test_release_that_comes_to_nothing_is_told_of_once(play, connect, told):
    """The server doesn't know the job any more when its priority is asked for, so there is no second step."""
    replies = {"reserve-with-timeout": [b"RESERVED 7 1\r\nx\r\n", b"TIMED_OUT\r\n"], "stats-job": b"NOT_FOUND\r\n"}
    conn = connect(play(replies).uri, event_func=told)
    job = conn.reserve_with_timeout(0)
    job._owner.give_back(job)
    conn.list_tube_used()
    wait_until(lambda: told.of("release"))
    assert [(event.job_id, type(event.exception)) for event in told.events] == [(7, gstalk.JobLostError)]


# -- Producer ----------------------------------------------------------------------------------------------------


def test_producer_put_tells_of_its_tries(play, told):
    played = play({"put": [CUT, b"DRAINING\r\n", b"INSERTED 5\r\n"]})
    drained = play({"put": b"INSERTED 6\r\n"})
    with gstalk.Producer([played.uri, drained.uri], event_func=told, info_func=print) as producer:
        producer.wait_connected()
        job_id = producer.put("default", b"", timeout=10)
    (put,) = told.of("put")
    retries = told.of("put_retry")
    assert (put.job_id, put.exception, put.attempt) == (job_id, None, len(retries) + 1)
    assert put.uri in (played.uri, drained.uri)
    assert [retry.attempt for retry in retries] == list(range(1, len(retries) + 1))


def test_producer_put_that_fails_tells_the_error(play, told):
    with gstalk.Producer(play({"put": b"JOB_TOO_BIG\r\n"}).uri, event_func=told) as producer:
        with pytest.raises(gstalk.JobTooBigError) as caught:
            producer.put("default", b"")
    (put,) = told.of("put")
    assert (put.exception, put.job_id, put.attempt) == (caught.value, None, 1)


def test_producer_put_without_a_server_tells_no_uri(told):
    with gstalk.Producer("127.0.0.1:1", event_func=told, error_func=lambda *_: None) as producer:
        with pytest.raises(gstalk.PutTimeoutError):
            producer.put("default", b"", timeout=0.05)
        with pytest.raises(gstalk.PutManyError):
            producer.put_many("default", [b""] * 2, timeout=0.05)
    assert [(put.uri, put.attempt) for put in told.events] == [(None, None)] * 3


def test_producer_put_many_tells_of_each_body_sent(server, tube, told):
    with gstalk.Producer(server.uri, event_func=told) as producer:
        ids = producer.put_many(tube, [b""] * 3)  # the first waits for a connection
        bodies: list[Any] = [b"a", "bad", b"x" * 70_000]
        with pytest.raises(gstalk.PutManyError) as caught:
            producer.put_many(tube, bodies)
    told_of = [event.exception or event.job_id for event in told.of("put")]
    assert told_of == [*ids, caught.value.results[0], caught.value.results[2]]
    assert {event.uri for event in told.of("put")} == {server.uri}
    assert {event.attempt for event in told.of("put")} == {1}


def test_producer_put_many_tells_of_another_try_in_the_callers_context(play, told):
    with gstalk.Producer(play({"put": [CUT, None]}).uri, event_func=told, info_func=print) as producer:
        where.set("here")
        assert len(producer.put_many("default", [b""] * 3, timeout=10)) == 3
    retries = [place for event, place in zip(told.events, told.places, strict=True) if event.kind == "put_retry"]
    assert {name for _, name in retries} == {"here"}
    assert [event.attempt for event in told.of("put")] == [2] * len(retries) + [1] * (3 - len(retries))


def test_put_is_told_in_the_callers_greenlet_and_context(server, tube, told):
    with gstalk.Producer(server.uri, event_func=told) as producer:

        def put(name: str) -> None:
            where.set(name)
            producer.put(tube, b"")

        putters = {name: gevent.spawn(put, name) for name in ("one", "two", "three")}
        gevent.joinall(list(putters.values()), raise_error=True)
    places = [place for event, place in zip(told.events, told.places, strict=True) if event.kind == "put"]
    assert sorted(places, key=str) == sorted(((each, name) for name, each in putters.items()), key=str)


def test_connect_counts_reconnects(play, told):
    with gstalk.Producer(play({"put": [CUT, None]}).uri, event_func=told, info_func=print) as producer:
        producer.put("default", b"", timeout=10)
        wait_until(lambda: len(told.of("connect")) == 2)
    assert [event.attempt for event in told.of("connect")] == [1, 2]
    assert all(event.duration is not None and 0 < event.duration < 10 for event in told.of("connect"))
    assert [type(event.exception) for event in told.of("disconnect")] == [gstalk.ConnectionLostError]


# -- Consumer ----------------------------------------------------------------------------------------------------


def ended(told: Told, count: int) -> list[tuple[str, type[BaseException] | None]]:
    """Wait for so many `handled`, and return what was told of jobs, in order."""
    wait_until(lambda: len(told.of("handled")) == count)
    return [(event.kind, type(event.exception) if event.exception else None) for event in told.events if event.job_id]


def test_handler_that_deletes_is_told_from_beginning_to_end(work, conn, server, tube, told):
    job_id = conn.put(tube, b"")
    work(lambda job: job.delete())
    assert ended(told, 1) == [("handling", None), ("delete", None), ("handled", None)]
    of_job = [event for event in told.events if event.job_id]
    assert {(event.uri, event.tube, event.job_id) for event in of_job} == {(server.uri, tube, job_id)}
    assert of_job[0].attempt == 1  # one of the first after a connect, which are looked at
    assert of_job[0].duration is not None


def raising(error: BaseException) -> Callable[[gstalk.Job], None]:
    def handler(job: gstalk.Job) -> None:
        raise error

    return handler


@pytest.mark.parametrize(
    ("handler", "settled", "error"),
    [
        (raising(ValueError()), "release", ValueError),
        (raising(gstalk.Retry(delay=100)), "release", gstalk.Retry),
        (raising(gstalk.Bury()), "bury", gstalk.Bury),
        (lambda job: None, "release", gstalk.JobNotFinishedError),
        (lambda job: gevent.sleep(60), "release", gstalk.TimeLimitExceeded),
        (raising(gevent.GreenletExit()), "release", gevent.GreenletExit),
    ],
    ids=["raises", "retry", "bury", "forgets", "too long", "killed"],
)
def test_handler_that_fails_is_told_once_with_its_jobs_fate(work, conn, tube, told, handler, settled, error):
    conn.put(tube, b"")
    work(handler, retry=gstalk.RetryPolicy(first_delay=100), time_limit=0.2)
    assert ended(told, 1) == [("handling", None), (settled, None), ("handled", error)]
    assert told.of("handled")[0].attempt == 1


def test_handler_killed_by_stop_is_told_once(work, conn, tube, told):
    conn.put(tube, b"")
    receiver, consumer = work(lambda job: gevent.sleep(60))
    wait_until(lambda: told.of("handling"))
    consumer.stop(0)
    receiver.join(20)
    assert [type(event.exception) for event in told.of("handled")] == [gevent.GreenletExit]
    assert told.kinds.count("release") == 1


def test_handler_hit_by_ctrl_c_is_told_once(work, conn, tube, told):
    conn.put(tube, b"")
    receiver, _ = work(raising(KeyboardInterrupt()))
    assert isinstance(receiver.get(timeout=20), KeyboardInterrupt)
    assert [type(event.exception) for event in told.of("handled")] == [KeyboardInterrupt]


def test_handler_that_is_not_called_is_not_told(work, conn, tube, told):
    """A job that was lost with its worker too often: what is told is its end."""
    conn.put(tube, b"")
    for _ in range(3):
        with gstalk.dial(conn.uri) as dying:
            dying.watch(tube)
            dying.reserve()
    work(lambda job: job.delete(), retry=gstalk.RetryPolicy(max_attempts=2))
    wait_until(lambda: told.of("bury"))
    assert {"handling", "handled"}.isdisjoint(told.kinds)


def test_handler_and_settling_are_told_in_its_greenlet_and_context(work, conn, tube, told):
    """What a hook sets at `handling` is there for the handler and for all that is told after it."""
    seen = []

    class Setting(Told):
        def __call__(self, event: gstalk.Event) -> None:
            if event.kind == "handling":
                where.set(f"job {event.job_id}")
            super().__call__(event)

    told.__class__ = Setting
    conn.put_many(tube, [b""] * 5)

    def handler(job: gstalk.Job) -> None:
        seen.append((gevent.getcurrent(), where.get()))
        job.release(delay=100)

    work(handler, num_greenlets=2)
    ended(told, 5)
    for kind in ("handling", "release", "handled"):
        places = [place for event, place in zip(told.events, told.places, strict=True) if event.kind == kind]
        assert sorted(places, key=str) == sorted(seen, key=str)


def test_auto_delete_is_told_in_its_handlers_context(work, conn, tube, told):
    ids = conn.put_many(tube, [b""] * 50)
    work(lambda job: where.set(f"job {job.id}"), auto_delete=True)
    wait_until(lambda: len(told.of("delete")) == 50)
    ended(told, 50)
    assert sorted(event.job_id or 0 for event in told.of("delete")) == ids
    for event, (_, place) in zip(told.events, told.places, strict=True):
        if event.kind == "delete":
            assert place == f"job {event.job_id}"
            assert event.exception is None


def test_auto_delete_refused_is_told_with_its_error(play, told):
    reserved = [b"RESERVED 3 0\r\n\r\n", b"TIMED_OUT\r\n"]
    played: Played = play({"reserve-with-timeout": reserved, "delete": b"NOT_FOUND\r\n", "stats-job": b"NOT_FOUND\r\n"})
    retry = gstalk.RetryPolicy(max_attempts=None)  # no look at the job first
    consumer = gstalk.Consumer(
        played.uri, "default", event_func=told, auto_delete=True, retry=retry, error_func=lambda *_: None
    )
    receiver = gevent.spawn(consumer.receive, lambda job: None)
    wait_until(lambda: told.of("delete"))
    consumer.stop(0)
    receiver.join(20)
    assert [type(event.exception) for event in told.of("delete")] == [gstalk.JobLostError]


def test_wait_of_a_job_is_told_where_it_is_known(work, conn, tube, told):
    conn.put(tube, b"waits")
    wait_until(lambda: (conn.stats_tube(tube).current_jobs_ready, conn.peek_ready(tube).stats().age)[1] >= 2)
    conn.put(tube, b"delayed", delay=1)
    work(raising(gstalk.Retry(delay=0)), retry=AT_ONCE)
    wait_until(lambda: len(told.of("handling")) >= 6)
    first, *_ = told.of("handling")
    assert first.duration is not None
    assert 2 <= first.duration < 60
    assert all(event.duration is None for event in told.of("handling") if event.attempt != 1)


@pytest.mark.parametrize(
    ("name", "tell"),
    [
        ("info_func", lambda hooks: hooks.info("message")),
        ("error_func", lambda hooks: hooks.error(ValueError(), "message")),
        ("event_func", lambda hooks: hooks.event("put")),
        ("event_func", lambda hooks: hooks.event("put", passing=True)),
    ],
)
def test_hook_that_gives_back_a_coroutine_is_logged(caplog, name, tell):
    """It can't be seen before the call; the coroutine is closed, for a warning that it never ran is an error here."""

    async def told() -> None: ...

    hooks: dict[str, Any] = {name: lambda *what: told()}
    tell(Hooks(gstalk.Config(**hooks)))
    [record] = caplog.records
    assert record.getMessage().startswith("a hook of gstalk's Config raised: ")
    assert str(record.exc_info[1]) == (
        "a hook must run to its end when it is called; this one gave back an object that has yet to: coroutine"
    )


def test_hook_that_raises_harms_neither_puts_nor_handlers(server, tube, conn, caplog):
    def bad(event: gstalk.Event) -> None:
        raise RuntimeError("hook")

    handled = []
    with gstalk.Producer(server.uri, event_func=bad) as producer:
        ids = [producer.put(tube, b"") for _ in range(3)]
    consumer = gstalk.Consumer(server.uri, tube, event_func=bad, auto_delete=True)
    receiver = gevent.spawn(consumer.receive, lambda job: handled.append(job.id))
    wait_until(lambda: len(handled) == 3)
    consumer.stop()
    receiver.get(timeout=20)
    assert sorted(handled) == ids
    assert conn.peek_ready(tube) is None
    assert "RuntimeError" in caplog.text


def test_example_for_statsd_tells_of_counts_times_and_jobs_in_flight(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        runpy.run_path(str(PAGE.parent.parent / "examples" / "statsd.py"))["main"](server.uri, *sock.getsockname())
        sock.settimeout(0.1)
        lines: list[str] = []
        with suppress(TimeoutError):
            while True:
                lines += sock.recv(4096).decode().split("\n")
    assert {"gstalk.put:1|c", "gstalk.handled:1|c", "gstalk.delete:1|c"} < set(lines)
    assert lines.count("gstalk.in_flight:+1|g") == lines.count("gstalk.in_flight:-1|g") == 1
    assert sum(re.fullmatch(r"gstalk\.put:\d+\.\d{3}\|ms", line) is not None for line in lines) == 1
