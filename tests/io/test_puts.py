"""A put's tries, and the many of a `put_many`: how often one is tried, and whose result stands where."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

import gstalk
from gstalk.pool import put_queue, puts
from gstalk.pool.put_queue import NEVER, Member, Try
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real

INSERTED = None  # in a played server's replies: as beanstalkd would
QUIET: dict[str, Any] = {"error_func": lambda error, message: None, "info_func": lambda message: None}


@pytest.fixture
def produce() -> Iterator[Callable[..., gstalk.Producer]]:
    """Make a Producer that is connected to so many servers (all, if not said otherwise); stopped at the test's end."""
    with ExitStack() as stack:

        def start(*uris: str, connected: int | None = None, **options: Any) -> gstalk.Producer:
            producer = gstalk.Producer(uris, **QUIET, **options)
            stack.callback(producer.stop, 0)
            wait_until(lambda: len(producer._queue.pool.connections) == (len(uris) if connected is None else connected))
            return producer

        yield start


@pytest.fixture
def nobody() -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"beanstalk://127.0.0.1:{sock.getsockname()[1]}"


def at_rest(producer: gstalk.Producer) -> None:
    """Nothing is under way, and nothing was forgotten on the way."""
    queue = producer._queue
    assert queue.puts == 0
    assert not queue._line
    wait_until(lambda: not any(member.pipe.requests for member in queue._members.values()), 5)


# -- how often ---------------------------------------------------------------------------------------------------

AMBIGUOUS = [
    (CUT, gstalk.ConnectionLostError, 3),
    (b"INTERNAL_ERROR\r\n", gstalk.InternalError, 3),
    (b"rubbish\r\n", gstalk.ProtocolError, 1),  # a server that broke the protocol is not asked again
    (b"DELETED\r\n", gstalk.ProtocolError, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("reply", "kind", "tries"), AMBIGUOUS)
@pytest.mark.parametrize("timeout", [15, None])
def test_put_that_may_be_stored_is_tried_three_times_at_most(play, produce, reply, kind, tries, timeout):
    played = play({"put": reply})
    with pytest.raises(kind) as caught:
        produce(played.uri).put("default", b"", timeout=timeout)
    assert caught.value.sent == "maybe"
    gevent.sleep(0.1)
    assert played.count("put") == tries


@pytest.mark.slow
@pytest.mark.parametrize(("reply", "kind", "tries"), AMBIGUOUS)
def test_put_many_each_body_is_tried_three_times_at_most(play, produce, reply, kind, tries):
    played = play({"put": reply})
    with pytest.raises(gstalk.PutManyError) as caught:
        produce(played.uri).put_many("default", [b"x"], timeout=None)
    (result,) = caught.value.results
    assert isinstance(result, kind)
    assert result.sent == "maybe"
    assert played.count("put") == tries


@pytest.mark.parametrize("servers", [2, 3, 4])
def test_put_every_server_breaks_the_protocol_raises_the_last_error(play, produce, servers):
    """Each is asked once, and no more than three of them."""
    played = [play({"put": b"rubbish\r\n"}) for _ in range(servers)]
    with pytest.raises(gstalk.ProtocolError, match="got 'rubbish'"):
        produce(*(each.uri for each in played)).put("default", b"", timeout=None)
    counts = [each.count("put") for each in played]
    assert (sum(counts), max(counts)) == (min(servers, 3), 1)


def test_put_server_that_broke_the_protocol_is_not_asked_again_while_another_is_down(play, produce, nobody):
    played = play({"put": b"rubbish\r\n"})
    producer = produce(played.uri, nobody, connected=1)
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        producer.put("default", b"", timeout=1)
    assert played.count("put") == 1
    assert caught.value.sent == "maybe"
    assert {uri: type(cause) for uri, cause in caught.value.causes.items()} == {
        played.uri: gstalk.ProtocolError,
        nobody: gstalk.ConnectError,
    }


def test_put_server_that_broke_the_protocol_still_serves_other_puts(play, produce):
    played = play({"put": [b"rubbish\r\n", INSERTED]})
    producer = produce(played.uri)
    with pytest.raises(gstalk.ProtocolError):
        producer.put("default", b"")
    assert producer.put("default", b"", timeout=5) == 1


def test_put_in_line_remembers_which_servers_it_has_tried(play, produce):
    """While it waits for its turn; then it goes to the other server, whichever stands first in the queue."""
    tried, other = play(), play()
    producer = produce(tried.uri, other.uri)
    queue = producer._queue
    put = puts.Put(queue, "default", b"", NEVER, False, 0.0)
    put._tried = frozenset([tried.uri])
    before = Try(NEVER)
    queue.stand(before)
    for _ in range(2):
        assert put.choose(False) is None
    queue.done(before)
    for _ in range(3):
        member = put.choose(True)
        assert isinstance(member, Member)
        assert member.server.uri == other.uri
        assert member.in_queue


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(b"JOB_TOO_BIG\r\n", gstalk.JobTooBigError), (b"BAD_FORMAT\r\n", gstalk.BadFormatError)],
)
def test_put_final_error_after_a_try_that_may_have_stored_it_says_so(play, produce, reply, kind):
    played = play({"put": [CUT, reply]})
    with pytest.raises(kind) as caught:
        produce(played.uri).put("default", b"", timeout=5)
    assert caught.value.sent == "maybe"


def test_put_final_error_that_does_not_say_it_of_itself_says_it_in_words_and_holds_the_original(play, produce):
    played = play({"put": [CUT, b"JOB_TOO_BIG\r\n"]})
    with pytest.raises(gstalk.JobTooBigError, match="; an earlier try may have stored the job$") as caught:
        produce(played.uri).put("default", b"", timeout=5)
    cause = caught.value.__cause__
    assert isinstance(cause, gstalk.JobTooBigError)
    assert str(caught.value) == f"{cause}; an earlier try may have stored the job"


def test_put_waits_a_little_longer_after_each_internal_error_of_the_only_server(play, produce):
    played = play({"put": [b"INTERNAL_ERROR\r\n", b"INTERNAL_ERROR\r\n", b"INSERTED 7\r\n"]})
    producer = produce(played.uri)
    assert producer.wait_connected(5)
    began = time.monotonic()
    assert producer.put("default", b"", timeout=5) == 7
    assert time.monotonic() - began >= 0.3  # 0.1 s and 0.2 s


def test_put_stopped_after_a_try_that_may_have_stored_it_says_so(play, produce):
    """The last error says that it was not sent; an earlier try was."""
    played = play({"put": CUT})
    producer = produce(played.uri, reconnect_timeout=60)
    putting = gevent.spawn(producer.put, "default", b"")
    wait_until(lambda: played.count("put") == 1 and not producer.is_connected)
    producer.stop(0)
    with pytest.raises(gstalk.ConnectionClosedError) as caught:
        putting.get(timeout=5)
    assert caught.value.sent == "maybe"
    assert str(caught.value) == "put: this Producer is stopped"


# -- results stand where their bodies stood ----------------------------------------------------------------------


def stored(conn: gstalk.Conn) -> list[bytes]:
    bodies = []
    while (job := conn.reserve_with_timeout(0)) is not None:
        bodies.append(job.body)
        job.delete()
    return bodies


@pytest.mark.parametrize("after", [1, 700, 2000])
@pytest.mark.parametrize("wait", [0, 5])
def test_put_many_stopped_in_its_middle_has_each_result_beside_its_body(server, produce, conn, tube, after, wait):
    producer = produce(server.uri)
    taken: list[bytes] = []

    def bodies() -> Iterator[bytes]:
        for number in range(5000):
            if number == after:
                gevent.spawn(producer.stop, wait)
            if number > after:
                gevent.sleep(0)
            taken.append(b"%d" % number)
            yield taken[-1]

    try:
        results: list[Any] = producer.put_many(tube, bodies())
    except gstalk.PutManyError as error:
        results = error.results
    assert len(results) == len(taken)
    if wait == 0:
        assert isinstance(results[-1], gstalk.ConnectionClosedError)
        assert results[-1].sent == "no"
    for body, result in zip(taken, results, strict=True):
        if isinstance(result, int):
            job = conn.peek(result)
            assert job is not None
            assert job.body == body
    there = set(stored(conn))
    unsent = {body for body, result in zip(taken, results, strict=True) if getattr(result, "sent", "") == "no"}
    assert not unsent & there


def test_put_many_body_is_tried_again_while_the_iterable_waits(play, produce):
    played = play({"put": [CUT, INSERTED]})
    producer = produce(played.uri)

    def bodies() -> Iterator[bytes]:
        yield b"a"
        wait_until(lambda: played.count("put") == 2, 5)
        yield b"b"

    assert producer.put_many("default", bodies()) == [1, 2]
    at_rest(producer)


def test_put_many_body_has_its_own_time_while_the_iterable_waits(own_server, produce, connect):
    """The server is killed when it has the body, and is back when the body's time is over, but the iterable waits."""
    producer = produce(own_server.uri, reconnect_timeout=0.1)

    def bodies() -> Iterator[bytes]:
        own_server.pause()
        yield b"late"
        gevent.sleep(0)
        own_server.kill()
        gevent.sleep(0.8)
        own_server.start()
        assert producer.wait_connected(5)

    with pytest.raises(gstalk.PutManyError) as caught:
        producer.put_many("default", bodies(), timeout=0.4)
    (result,) = caught.value.results
    assert isinstance(result, gstalk.PutTimeoutError)
    assert result.sent == "maybe"
    assert stored(connect(own_server.uri)) == []
    at_rest(producer)


def test_put_many_body_in_flight_has_its_own_time_while_the_iterable_waits(play, produce):
    producer = produce(play({"put": b""}).uri, conn_timeout=30)
    ended: list[float] = []

    def bodies() -> Iterator[bytes]:
        began = time.monotonic()
        yield b"a"
        wait_until(lambda: producer._queue.puts == 0, 5)
        ended.append(time.monotonic() - began)

    with pytest.raises(gstalk.PutManyError) as caught:
        producer.put_many("default", bodies(), timeout=0.3)
    assert [type(result) for result in caught.value.results] == [gstalk.PutTimeoutError]
    assert 0.25 < ended[0] < 2


class Failing(bytes):
    def __len__(self) -> int:
        raise ZeroDivisionError("own")


def bad_bodies() -> list[Any]:
    released = memoryview(b"x")
    released.release()
    return ["text", released, Failing(b"x"), None, 5, object()]


@pytest.mark.parametrize("kind", ["producer", "conn"])
def test_put_many_bad_body_is_one_bad_result(server, produce, connect, conn, tube, kind):
    putter: Any = produce(server.uri) if kind == "producer" else connect(server.uri)
    bodies = bad_bodies()
    with pytest.raises(gstalk.PutManyError) as caught:
        putter.put_many(tube, [b"first", *bodies, b"last"])
    results = caught.value.results
    wrong = gstalk.InvalidArgumentError
    expected = [
        int,
        TypeError,
        wrong,
        int,
        TypeError,
        TypeError,
        TypeError,
        int,
    ]  # a subclass's own length counts for nothing
    assert [type(result) for result in results] == expected
    assert all(result.__traceback__ is None for result in results if isinstance(result, Exception))
    assert stored(conn) == [b"first", b"x", b"last"]


def test_put_many_iterable_raises_when_the_bodies_before_are_put(server, produce, conn, tube):
    def bodies() -> Iterator[bytes]:
        yield from (b"%d" % number for number in range(300))
        raise LookupError("own")

    with pytest.raises(LookupError, match="own"):
        produce(server.uri).put_many(tube, bodies())
    assert conn.stats_tube(tube).current_jobs_ready == 300


def test_put_many_iterable_raises_what_gstalk_raises_and_it_passes(play, produce):
    """By identity, never by class: also while bodies fail with errors of the same class."""
    own = gstalk.ConnectionLostError("own", "maybe")

    def bodies() -> Iterator[bytes]:
        yield b"a"
        raise own

    producer = produce(play({"put": CUT}).uri)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        producer.put_many("default", bodies())
    assert caught.value is own
    at_rest(producer)


def test_put_many_interrupted_tries_nothing_again(play, produce, nobody):
    """Killed while its iterable waits, with one body in flight and others that wait for a connection."""
    played = play({"put": [CUT, b""]})
    producer = produce(played.uri, nobody, connected=1, reconnect_timeout=0.1)
    here = Event()

    def bodies() -> Iterator[bytes]:
        for _ in range(10):
            yield b"x"
        here.set()
        gevent.sleep(60)

    before = played.count("put")
    putting = gevent.spawn(producer.put_many, "default", bodies())
    here.wait(5)
    putting.kill()
    assert producer._queue.puts == 0
    gevent.sleep(0.02)
    seen = played.count("put")
    gevent.sleep(0.5)
    assert before < played.count("put") <= max(seen, 1)
    at_rest(producer)


def test_put_many_interrupted_leaves_its_connection_as_free_as_it_was(play, produce, monkeypatch):
    """As soon as what it has sent is answered: the server works at that, whoever waits."""
    monkeypatch.setattr(put_queue, "FULL", 200)
    answer = Event()

    def late(_: bytes) -> bytes:
        answer.wait()
        return b"INSERTED 1\r\n"

    producer = produce(play({"put": late}).uri, conn_timeout=30)
    assert producer.wait_connected(5)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        producer.put_many("default", [b"x"] * 300)
    queue = producer._queue
    (member,) = queue._members.values()
    assert (queue.puts, member.in_queue, queue.has_line) == (0, False, False)
    answer.set()
    wait_until(lambda: member.in_queue, 5)  # though nobody puts
    assert producer.put("default", b"x", timeout=0) == 1


def test_put_many_iterable_may_put_and_stop(server, produce, conn, tube):
    producer = produce(server.uri)

    def bodies() -> Iterator[bytes]:
        yield b"a"
        producer.put(tube, b"inner")
        producer.put_many(tube, [b"inner", b"inner"])
        yield b"b"
        began = time.monotonic()
        producer.stop()
        assert time.monotonic() - began < 5
        yield b"c"
        raise AssertionError("taken after the end")

    with pytest.raises(gstalk.PutManyError) as caught:
        producer.put_many(tube, bodies())
    first, second, third = caught.value.results
    assert isinstance(first, int)
    assert isinstance(second, int)
    assert isinstance(third, gstalk.ConnectionClosedError)
    assert sorted(stored(conn)) == [b"a", b"b", b"inner", b"inner", b"inner"]


@pytest.mark.parametrize("kind", ["producer", "conn"])
def test_put_many_takes_nothing_ahead(play, connect, produce, kind):
    """No more is held than is in flight, however fast the iterable is."""
    played = play({"put": b""})
    putter: Any = produce(played.uri, conn_timeout=30) if kind == "producer" else connect(played.uri, conn_timeout=30)
    taken = itertools.count()
    most = puts.MOST if kind == "producer" else 1024
    with suppress(gevent.Timeout), gevent.Timeout(0.3):
        putter.put_many("default", (b"x" for _ in taken), timeout=60) if kind == "producer" else putter.put_many(
            "default", (b"x" for _ in taken)
        )
    assert next(taken) <= most + 2


def test_put_many_takes_a_body_when_there_is_room_for_it_and_not_before(server, produce, tube):
    """Its time begins when it is taken, and should not pass while others are waited for."""
    producer = produce(server.uri)

    def bodies() -> Iterator[bytes]:
        for _ in range(2000):
            (member,) = producer._queue._members.values()
            assert sum(isinstance(request, Try) for request in member.pipe.requests) < puts.MOST
            yield b"x"

    assert len(producer.put_many(tube, bodies())) == 2000


def test_put_many_failed_bodies_are_tried_again_side_by_side(play, produce):
    """Each waits for its own answer, and not for that of the one before it."""

    def slow(line: bytes) -> bytes:
        gevent.sleep(0.001)
        return b"INTERNAL_ERROR\r\n" if played.count("put") <= 200 else b"INSERTED %d\r\n" % played.count("put")

    played = play({"put": slow})
    began = time.monotonic()
    assert len(produce(played.uri).put_many("default", [b"x"] * 200, timeout=10)) == 200
    assert time.monotonic() - began < 5  # one after the other, each with its pause of a tenth of a second: 20


# -- an error for each -------------------------------------------------------------------------------------------


def depth(error: BaseException) -> int:
    count, trace = 0, error.__traceback__
    while trace is not None:
        count, trace = count + 1, trace.tb_next
    return count


def test_put_refused_again_and_again_raises_another_error_each_time(play, produce):
    producer = produce(play({"put": b"DRAINING\r\n"}).uri)
    depths, blocks = set(), []
    for _ in range(4):
        for _ in range(5000):
            try:
                producer.put("default", b"x" * 20_000)
            except gstalk.DrainingError as error:
                depths.add(depth(error))
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert len(depths) == 1
    assert blocks[3] - blocks[1] < 500
    errors = []
    for _ in range(2):
        with pytest.raises(gstalk.DrainingError) as caught:
            producer.put("default", b"")
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def left_to_the_collector(do: Callable[[], object]) -> int:
    """How many objects only the collector can free after this."""
    gc.collect()
    gc.disable()
    try:
        do()
        return gc.collect()
    finally:
        gc.enable()


def test_put_refused_while_left_alone_leaves_nothing_to_the_collector(play, produce):
    """The error's traceback has our frames, and none of them has the error."""
    producer = produce(play({"put": b"OUT_OF_MEMORY\r\n"}).uri)

    def refused(count: int) -> None:
        for _ in range(count):
            with suppress(gstalk.OutOfMemoryError):
                producer.put("default", b"x" * 1000)

    refused(10)
    assert left_to_the_collector(lambda: refused(200)) < 50


@pytest.mark.parametrize("reply", [b"JOB_TOO_BIG\r\n", b"BURIED 7\r\n", b""])
def test_put_that_fails_leaves_nothing_to_the_collector(play, produce, reply):
    producer = produce(play({"put": reply}).uri, conn_timeout=30)

    def failed(count: int) -> None:
        def one() -> None:
            with suppress(gstalk.GstalkError):
                producer.put("default", b"x" * 1000, timeout=0.1)

        gevent.joinall([gevent.spawn(one) for _ in range(count)])

    failed(10)
    assert left_to_the_collector(lambda: failed(100)) < 150  # what gevent's own greenlets leave when they end


def test_puts_behind_a_use_that_failed_have_an_error_each(play, connect):
    conn = connect(play({"use": b"OUT_OF_MEMORY\r\n"}).uri)
    errors: list[BaseException] = []

    def put() -> None:
        with pytest.raises(gstalk.OutOfMemoryError) as caught:
            conn.put("other", b"")
        errors.append(caught.value)

    gevent.joinall([gevent.spawn(put) for _ in range(3)], raise_error=True)
    assert len({id(error) for error in errors}) == 3
    assert len({depth(error) for error in errors}) == 1


@pytest.mark.parametrize("what", ["put", "put_many"])
def test_put_that_is_late_behind_a_use_that_failed_does_not_stay_in_the_wrong_tube(what, play, produce):
    late = Event()

    def refuse(line: bytes) -> bytes:
        late.wait()
        return b"OUT_OF_MEMORY\r\n"

    played = play({"use": refuse})
    producer = produce(played.uri)
    with pytest.raises(gstalk.PutTimeoutError if what == "put" else gstalk.PutManyError):
        producer.put("other", b"x", timeout=0.1) if what == "put" else producer.put_many("other", [b"x"], timeout=0.1)
    late.set()
    wait_until(lambda: played.count("delete") == 1, 5)
    assert b"delete 1" in played.lines


# -- the caller's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["put", "put_many", "put in line", "put_many in line"])
@pytest.mark.parametrize(
    "own",
    [
        gstalk.PutTimeoutError("own"),
        gstalk.ConnectionLostError("own", "maybe"),
        gstalk.DrainingError("own"),
        TypeError("own"),
        gevent.Timeout(60),
    ],
    ids=lambda own: type(own).__name__,
)
def test_put_callers_own_exception_passes_whatever_its_class(play, produce, nobody, what, own):
    in_line = what.endswith("in line")
    producer = produce(nobody if in_line else play({"put": b""}).uri, connected=int(not in_line), conn_timeout=30)
    raised: list[BaseException] = []

    def put() -> None:
        try:
            producer.put_many("default", [b"x"]) if "many" in what else producer.put("default", b"x")
        except BaseException as error:
            raised.append(error)

    putting = gevent.spawn(put)
    gevent.sleep(0.05)
    putting.kill(own)
    assert raised == [own]
    assert raised[0].__cause__ is None
    assert producer._queue.puts == 0
    assert not producer._queue._line


def test_conn_put_many_callers_own_exception_passes_though_the_connection_ends_as_well(play, connect):
    """Both in the same turn: the connection breaks, and the caller's own error of the same class hits his wait."""
    conn = connect(play({"put": b""}).uri, conn_timeout=30)
    own = gstalk.ConnectionLostError("own", "maybe")
    raised: list[BaseException] = []

    def put() -> None:
        try:
            conn.put_many("default", itertools.repeat(b"x"))
        except BaseException as error:
            raised.append(error)

    putting = gevent.spawn(put)
    wait_until(lambda: not conn._connection.pipe.clear)
    gevent.sleep(0.05)
    putting.kill(own, block=False)
    conn._connection.pipe.fail(gstalk.ConnectionLostError, "cut")
    putting.join()
    assert raised == [own]


@pytest.mark.parametrize("is_up", [False, True])
@pytest.mark.parametrize("end", [gevent.GreenletExit, gevent.Timeout])
def test_put_many_that_is_interrupted_leaves_nothing_to_the_collector(play, is_up, end):
    """Its bodies are in flight, or wait for a server."""
    uri = play({"put": b""}).uri if is_up else "127.0.0.1:1"

    def put() -> None:
        with suppress(end):
            producer.put_many("default", [b"x" * 1000] * 3, timeout=None)

    def interrupted(count: int) -> None:
        for _ in range(count):
            putting = gevent.spawn(put)
            gevent.sleep(0)
            gevent.sleep(0)
            putting.kill(end)

    with gstalk.Producer(uri, info_func=lambda message: None) as producer:
        assert producer.wait_connected(5 if is_up else 0) == is_up
        interrupted(5)
        left = left_to_the_collector(lambda: interrupted(50))
        producer.stop(0)
    assert left < 100  # it was 40 and more for each
