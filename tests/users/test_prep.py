"""What prep/beanstalk's own tests ask of that package, asked of gstalk; and where the two differ on purpose.

Their cases are named as theirs are. As there, a server plays the other side, so each says what is sent, too. What both
send differs in three things: a dial ends with `stats`, no reserve or peek is followed by `stats-job`, and a reserve's
time is asked for in slices, the last of which the client's clock keeps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import gevent
import pytest

import gstalk
from gstalk.testing.beanstalkd import free_port
from tests.servers import ok, wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text("utf-8")
STATS = {
    "tube": "default", "state": "reserved", "pri": 512, "age": 23, "delay": 15, "ttr": 30, "time_left": 25, "file": 6,
    "reserves": 1, "timeouts": 4, "releases": 5, "buries": 2, "kicks": 7,
}  # fmt: skip
YAML = "---\n" + "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in {"id": 12, **STATS}.items())
HELLO = gstalk.PutParams(priority=1024, delay=10, ttr=60)

# -- URIs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "uris"),
    {"unix socket": ["unix:///tmp/beanstalk.sock"], "tcp socket": ["tls://localhost:12345"]}.items(),
)
def test_valid_uris_are_valid(theirs, uris):
    assert len(gstalk.validate_uris(uris)) == 1


@pytest.mark.parametrize(("theirs", "uris"), {"no address": [], "WithInvalidScheme": ["foo://localhost:12345"]}.items())
def test_invalid_uris_are_refused(theirs, uris):
    with pytest.raises(gstalk.InvalidArgumentError):
        gstalk.validate_uris(uris)


@pytest.mark.parametrize(
    ("uri", "is_tls", "where"),
    [
        ("beanstalk://localhost:12345", False, ("localhost", 12345)),
        ("beanstalks://localhost:12345", True, ("localhost", 12345)),
        ("tls://localhost:12345", True, ("localhost", 12345)),
        ("unix:///tmp/beanstalkd.sock", False, "/tmp/beanstalkd.sock"),
        ("localhost:11300", False, ("localhost", 11300)),  # WithMissingScheme
        ("beanstalk://localhost", False, ("localhost", 11300)),  # WithMissingPort
        ("beanstalks://localhost", True, ("localhost", 11400)),  # WithMissingTLSPort
    ],
)
def test_uri_is_parsed_as_there(uri, is_tls, where):
    found = gstalk.parse_uri(uri)
    assert (found.is_tls, found.path or (found.host, found.port)) == (is_tls, where)


# -- Conn --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    theirs: str
    replies: dict[str, Any]
    call: Callable[[gstalk.Conn], Any]
    sent: list[bytes]
    result: Any = None  # what the call gives, or the class of what it raises


def reserved(conn: gstalk.Conn) -> Any:
    """A reserved job with its statistics, which theirs brings along, and ours gets when it is asked."""
    job = conn.reserve_with_timeout(1)
    assert job is not None
    assert job.reserved_at is not None
    stats = job.stats()
    return job.id, job.body, {name: getattr(stats, name) for name in STATS}


def peeked(conn: gstalk.Conn) -> Any:
    job = conn.peek_delayed("events")
    assert job is not None
    stats = job.stats()
    return job.id, job.body, {name: getattr(stats, name) for name in STATS}


def put_twice(conn: gstalk.Conn) -> list[int]:
    return [conn.put("foobar", b"Hello World", HELLO) for _ in range(2)]


def put_elsewhere(conn: gstalk.Conn) -> list[int]:
    first = conn.put("foobar", b"Hello World", HELLO)
    return [first, conn.put("zoink", b"Hello Narf", priority=512, delay=15, ttr=30)]


def kick_twice(conn: gstalk.Conn) -> list[int]:
    return [conn.kick("events", 10) for _ in range(2)]


PUT, USE = b"put 1024 10 60 11", b"use foobar"
CASES = [
    Case("Dial", {}, lambda conn: conn.is_connected, [], True),
    Case("bury", {"bury": b"BURIED\r\n"}, lambda conn: conn.bury(1, 10), [b"bury 1 10"]),
    Case(
        "bury/NotFound", {"bury": b"NOT_FOUND\r\n"}, lambda conn: conn.bury(2, 11), [b"bury 2 11"], gstalk.NotFoundError
    ),
    Case("Delete", {"delete": b"DELETED\r\n"}, lambda conn: conn.delete(3), [b"delete 3"]),
    Case(
        "Delete/NotFound",
        {"delete": b"NOT_FOUND\r\n"},
        lambda conn: conn.delete(4),
        [b"delete 4"],
        gstalk.NotFoundError,
    ),
    Case("Ignore", {"ignore": b"WATCHING 1\r\n"}, lambda conn: conn.ignore("foo"), [b"ignore foo"], 1),
    Case(
        "Ignore/NotIgnored",
        {"ignore": b"NOT_IGNORED\r\n"},
        lambda conn: conn.ignore("bar"),
        [b"ignore bar"],
        gstalk.NotIgnoredError,
    ),
    Case("Put", {"put": b"INSERTED 5\r\n"}, lambda conn: conn.put("foobar", b"Hello World", HELLO), [USE, PUT], 5),
    Case("Put/OnSameTube", {}, put_twice, [USE, PUT, PUT], [1, 2]),
    Case("Put/OnDifferentTube", {}, put_elsewhere, [USE, PUT, b"use zoink", b"put 512 15 30 10"], [1, 2]),
    Case("release", {}, lambda conn: conn.release(8, 12, 20), [b"release 8 12 20"]),
    Case(
        "release/Buried",
        {"release": b"BURIED\r\n"},
        lambda conn: conn.release(9, 13, 21),
        [b"release 9 13 21"],
        gstalk.BuriedError,
    ),
    Case(
        "release/NotFound",
        {"release": b"NOT_FOUND\r\n"},
        lambda conn: conn.release(10, 14, 22),
        [b"release 10 14 22"],
        gstalk.NotFoundError,
    ),
    Case(
        "ReserveWithTimeout",
        {"reserve-with-timeout": b"RESERVED 12 11\r\nHello World\r\n", "stats-job": ok(YAML)},
        reserved,
        [b"stats-job 12"],
        (12, b"Hello World", STATS),
    ),
    Case(
        "ReserveWithTimeout/WithTimeout",
        {"reserve-with-timeout": b"TIMED_OUT\r\n"},
        lambda conn: conn.reserve_with_timeout(0.1),
        [],
        None,
    ),
    Case("touch", {"touch": b"TOUCHED\r\n"}, lambda conn: conn.touch(13), [b"touch 13"]),
    Case(
        "touch/NotFound", {"touch": b"NOT_FOUND\r\n"}, lambda conn: conn.touch(14), [b"touch 14"], gstalk.NotFoundError
    ),
    Case("Watch", {"watch": b"WATCHING 2\r\n"}, lambda conn: conn.watch("events"), [b"watch events"], 2),
    Case("Watch/ErrTubeTooLong", {}, lambda conn: conn.watch("x" * 201), [], gstalk.InvalidArgumentError),
    Case(
        "Kick and Kick/NoBuriedJobs",
        {"kick": [b"KICKED 10\r\n", b"KICKED 0\r\n"]},
        kick_twice,
        [b"use events", b"kick 10", b"kick 10"],
        [10, 0],
    ),
    Case("kick", {"kick-job": b"KICKED\r\n"}, lambda conn: conn.kick_job(1), [b"kick-job 1"]),
    Case(
        "kick/JobNotFound",
        {"kick-job": b"NOT_FOUND\r\n"},
        lambda conn: conn.kick_job(1),
        [b"kick-job 1"],
        gstalk.NotFoundError,
    ),
    Case(
        "PeekDelayed",
        {"peek-delayed": b"FOUND 12 11\r\nHello world\r\n", "stats-job": ok(YAML)},
        peeked,
        [b"use events", b"peek-delayed", b"stats-job 12"],
        (12, b"Hello world", STATS),
    ),
    Case(
        "PeekDelayed/JobNotFound",
        {"peek-delayed": b"NOT_FOUND\r\n"},
        lambda conn: conn.peek_delayed("events"),
        [b"use events", b"peek-delayed"],
        None,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.theirs)
def test_conn_case_holds(case, play, connect):
    server = play(case.replies)
    conn = connect(server.uri)
    if isinstance(case.result, type):
        with pytest.raises(case.result):
            case.call(conn)
    else:
        assert case.call(conn) == case.result
    assert [line for line in server.lines if not line.startswith(b"reserve")] == [b"stats", *case.sent]


# -- Producer ----------------------------------------------------------------------------------------------------


@pytest.fixture
def produce(request: pytest.FixtureRequest) -> Callable[..., gstalk.Producer]:
    def make(*uris: str, **options: Any) -> gstalk.Producer:
        producer = gstalk.Producer(uris, **options)
        request.addfinalizer(producer.stop)
        return producer

    return make


def nobody() -> str:
    return f"127.0.0.1:{free_port()}"


def test_new_producer_is_connected_until_it_is_stopped(play, produce):
    producer = produce(play().uri)
    assert producer.wait_connected(5)
    producer.stop()
    assert not producer.is_connected


def test_new_producer_with_invalid_socket_is_not_connected(produce):
    assert not produce(nobody()).wait_connected(0.05)


def test_new_producer_with_degraded_connections_is_connected(play, produce):
    assert produce(play().uri, nobody()).wait_connected(5)


def test_new_producer_looks_no_name_up(produce):
    assert not produce("test-uri-1", "test-uri-2").is_connected  # theirs: with IgnoreURIValidation


def test_producer_put_sends_what_theirs_does(play, produce):
    server = play({"put": b"INSERTED 5\r\n"})
    assert produce(server.uri).put("foobar", b"Hello World", HELLO) == 5
    assert server.lines == [b"stats", USE, PUT]


def test_producer_put_too_big_raises_and_stays_connected(play, produce):
    producer = produce(play({"put": b"JOB_TOO_BIG\r\n"}).uri)
    with pytest.raises(gstalk.JobTooBigError):
        producer.put("foobar", b"Hello World", HELLO)
    assert producer.is_connected


def test_multiply_makes_as_many_connections_of_each(play, produce):
    servers = [play() for _ in range(3)]
    producer = produce(*(server.uri for server in servers), multiply=3)
    wait_until(lambda: [server.connections for server in servers] == [3, 3, 3])
    assert producer.wait_connected(5)


def test_producer_pool_goes_on_until_the_last_server_is_gone(play, produce):
    servers = [play() for _ in range(3)]
    up: list[str | None] = []
    producer = produce(
        *(server.uri for server in servers),
        event_func=lambda event: up.append(event.uri) if event.kind == "connect" else None,
    )
    wait_until(lambda: len(up) == 3)
    for _ in servers:
        producer.put("foobar", b"Hello World", HELLO)
    assert [server.count("put") for server in servers] == [1, 1, 1]
    for server in servers[:2]:
        server.close()
        assert producer.put("foobar", b"Hello World", HELLO) > 0
        assert producer.is_connected
    servers[2].close()
    with pytest.raises(gstalk.DisconnectedError):
        producer.put("foobar", b"Hello World", HELLO, timeout=0.2)
    assert not producer.is_connected


# -- where they differ -------------------------------------------------------------------------------------------


def differing() -> dict[str, tuple[str, str]]:
    """The rows of the page's table of differences."""
    (table,) = re.findall(r"^\| where they differ \| .*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    return {what: (theirs, ours) for what, theirs, ours in rows}


TESTED = {
    "a reply of `stats` never comes": "dial_unanswered_raises_connect_error",
    "a Consumer without tubes": "consumer_without_tubes_is_refused",
    "DEADLINE_SOON": "reserve_deadline_soon_raises",
    "a reserved job's statistics": "reserve_asks_no_statistics_so_a_job_that_is_gone_shows_itself_later",
    "after a touch": "touch_leaves_the_job_as_it_is",
    "a handler leaves its job unfinished": "unfinished_job_comes_back_with_a_delay_and_is_buried_in_the_end",
    "a reply that is none of the protocol's": "put_answered_with_nonsense_raises_protocol_error",
    "all servers are down": "put_waits_for_a_server_unless_told_otherwise",
}


def test_differences_are_all_on_the_page():
    assert list(differing()) == list(TESTED)
    assert {f"test_{name}" for name in TESTED.values()} <= globals().keys()


def test_dial_unanswered_raises_connect_error(play):
    with pytest.raises(gstalk.ConnectError):
        gstalk.dial(play({"stats": b""}).uri, conn_timeout=0.05)


@pytest.mark.parametrize("tubes", [[], (), iter(())], ids=["list", "tuple", "iterator"])
def test_consumer_without_tubes_is_refused(tubes):
    with pytest.raises(gstalk.InvalidArgumentError, match="tube"):
        gstalk.Consumer("localhost:11300", tubes)


def test_reserve_deadline_soon_raises(play, connect):  # ReserveWithTimeout/WithDeadline
    conn = connect(play({"reserve-with-timeout": b"DEADLINE_SOON\r\n"}).uri)
    with pytest.raises(gstalk.DeadlineSoonError):
        conn.reserve_with_timeout(3)


@pytest.mark.real
def test_consumer_sees_to_deadline_soon_itself(server, tube, conn):
    """The error is nobody's, and the next job comes as soon as there is one."""
    errors: list[BaseException] = []
    consumer = gstalk.Consumer(
        server.uri, tube, num_greenlets=2, error_func=lambda error, message: errors.append(error)
    )
    done: list[bytes] = []

    def handler(job: gstalk.Job) -> None:
        if job.body == b"slow":  # a ttr of 1 is due soon from the start
            wait_until(lambda: b"quick" in done)
            consumer.stop()
        done.append(job.body)
        job.delete()

    conn.put(tube, b"slow", ttr=1)
    receiving = gevent.spawn(consumer.receive, handler)
    wait_until(lambda: conn.stats_tube(tube).current_jobs_reserved == 1)
    conn.put(tube, b"quick")
    receiving.get()
    assert (done, errors) == ([b"quick", b"slow"], [])


def test_reserve_asks_no_statistics_so_a_job_that_is_gone_shows_itself_later(play, connect):
    """ReserveWithTimeout/WithNotFound: there, such a reserve gives nothing."""
    server = play({
        "reserve-with-timeout": b"RESERVED 13 11\r\nHello World\r\n",
        "stats-job": b"NOT_FOUND\r\n",
    })  # fmt: skip
    job = connect(server.uri).reserve_with_timeout(4)
    assert (job.id, job.body) == (13, b"Hello World")
    assert server.count("stats-job") == 0
    for method in (job.stats, job.delete):
        with pytest.raises(gstalk.JobLostError):
            method()
    assert server.count("delete") == 0


@pytest.mark.real
def test_touch_leaves_the_job_as_it_is(conn, tube):
    """touch: there, it sets the job's time left and when it was reserved; here the server is asked for the one."""
    conn.put(tube, b"", ttr=60)
    job = conn.reserve()
    reserved_at = job.reserved_at
    job.touch()
    assert job.reserved_at == reserved_at
    assert 58 <= job.time_left() <= 60
    job.delete()


@pytest.mark.real
@pytest.mark.parametrize("policy", [{}, {"max_attempts": None, "first_delay": 0}], ids=["as it comes", "as there"])
def test_unfinished_job_comes_back_with_a_delay_and_is_buried_in_the_end(policy, server, tube, conn):
    job_id = conn.put(tube, b"")
    errors: list[BaseException] = []
    attempts = 1 if not policy else 4
    consumer = gstalk.Consumer(
        server.uri, tube, retry=gstalk.RetryPolicy(jitter=False, **policy), error_func=lambda e, text: errors.append(e)
    )
    calls: list[int] = []

    def handler(job: gstalk.Job) -> None:
        calls.append(job.id)
        if len(calls) == attempts:
            consumer.stop()

    consumer.receive(handler)
    stats = conn.stats_job(job_id)
    assert [type(error) for error in errors] == [gstalk.JobNotFinishedError] * attempts
    assert (stats.state, stats.delay) == (("ready", 0) if policy else ("delayed", 1))
    assert gstalk.RetryPolicy().max_attempts == 25


@pytest.mark.real
def test_unfinished_job_is_buried_after_its_attempts(server, tube, conn):
    job_id = conn.put(tube, b"")
    policy = gstalk.RetryPolicy(max_attempts=2, first_delay=0)
    consumer = gstalk.Consumer(server.uri, tube, retry=policy, error_func=lambda error, message: None)
    receiving = gevent.spawn(consumer.receive, lambda job: None)
    wait_until(lambda: conn.stats_job(job_id).state == "buried")
    consumer.stop()
    receiving.get()
    assert conn.stats_job(job_id).reserves == 2


def test_put_answered_with_nonsense_raises_protocol_error(play, produce):
    """Put/WithError: there it is ErrDisconnected. Here, too, another server is tried first."""
    wrong, right = play({"put": b"FOOBAR\r\n"}), play()
    producer = produce(wrong.uri)
    with pytest.raises(gstalk.ProtocolError, match="FOOBAR"):
        producer.put("foobar", b"Hello World", HELLO)
    assert wrong.count("put") == 1
    both = produce(wrong.uri, right.uri)
    assert [both.put("foobar", b"Hello World", HELLO) for _ in range(2)] == [1, 2]


def test_put_waits_for_a_server_unless_told_otherwise(play, produce):
    """PutWithAllServersDisconnected: there it is ErrDisconnected, at once."""
    producer = produce(nobody(), put_timeout=0.2)
    for timeout, least in ((0, 0), (0.1, 0.1), (None, 0.2)):
        began = monotonic()
        with pytest.raises(gstalk.PutTimeoutError) as caught:
            producer.put("foobar", b"", HELLO, **({} if timeout is None else {"timeout": timeout}))
        assert monotonic() - began >= least
        assert isinstance(caught.value, gstalk.DisconnectedError)
        assert caught.value.sent == "no"
