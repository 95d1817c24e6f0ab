"""Producer: what a put does when it fails, when time is over, when servers drain, stall or vanish; stopping; hooks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

import gstalk
from gstalk.pool import schedule
from gstalk.pool.put_queue import FULL
from gstalk.protocol import commands
from gstalk.testing import Beanstalkd
from tests.io.calling import in_thread
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real

INSERTED = None  # in a played server's replies: as beanstalkd would


@pytest.fixture
def produce() -> Iterator[Callable[..., gstalk.Producer]]:
    """Make a Producer; stopped at the test's end. What its hooks are told is in `.told`, by their names."""
    with ExitStack() as stack:

        def start(uris: Any, **options: Any) -> gstalk.Producer:
            options.setdefault("error_func", lambda error, message: None)
            options.setdefault("info_func", lambda message: None)
            producer = gstalk.Producer(uris, **options)
            stack.callback(producer.stop, 0)
            return producer

        yield start


@pytest.fixture
def both() -> Iterator[list[Beanstalkd]]:
    with Beanstalkd() as one, Beanstalkd() as two:
        yield [one, two]


@pytest.fixture
def nobody() -> Iterator[str]:
    """The URI of a port that nobody else gets and nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"beanstalk://127.0.0.1:{sock.getsockname()[1]}"


def all_connected(producer: gstalk.Producer, count: int) -> None:
    wait_until(lambda: len(producer._queue.pool.connections) == count)


# -- making one --------------------------------------------------------------------------------------------------


def test_producer_constructor_does_not_wait_and_connects_in_the_background(server, produce):
    producer = produce(server.uri)
    assert not producer.is_connected
    assert producer.wait_connected(5)
    assert producer.is_connected


def test_producer_malformed_uri_is_refused_and_a_str_is_a_list_of_one(server, produce):
    for uris in ("redis://x", ["127.0.0.1", "a b"], [], "tls://u@x"):
        with pytest.raises(gstalk.InvalidArgumentError):
            gstalk.Producer(uris)
    with pytest.raises(TypeError):
        gstalk.Producer([5])  # type: ignore[list-item]
    assert produce(server.uri).put("t", b"") > 0


def test_producer_options_override_config_and_unknown_ones_are_refused(server, produce):
    producer = produce(server.uri, config=gstalk.Config(put_timeout=3, multiply=2), put_timeout=2)
    assert (producer._config.put_timeout, producer._config.multiply) == (2, 2)
    with pytest.raises(TypeError):
        gstalk.Producer(server.uri, multiplier=2)  # type: ignore[call-arg]  # misspelt on purpose


def test_producer_multiply_is_connections_per_uri(own_server, produce, connect):
    conn = connect(own_server.uri)
    producer = produce([own_server.uri], multiply=3)
    all_connected(producer, 3)
    assert conn.stats().current_connections == 4


def test_producer_name_that_does_not_resolve_is_an_outage(server, produce):
    producer = produce(["beanstalk://no-such-host.invalid", server.uri])
    assert producer.put("t", b"") > 0
    alone = produce("beanstalk://no-such-host.invalid")
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        alone.put("t", b"", timeout=1)
    assert caught.value.sent == "no"


def test_producer_wait_connected_in_vain_returns_false_in_time(nobody, produce):
    began = time.monotonic()
    assert produce(nobody).wait_connected(0.2) is False
    assert 0.19 < time.monotonic() - began < 2


@pytest.mark.parametrize("timeout", [None, 30])
def test_producer_wait_connected_while_it_is_stopped_returns_false(nobody, produce, timeout):
    producer = produce(nobody)
    waiting = [gevent.spawn(producer.wait_connected, timeout) for _ in range(3)]
    gevent.sleep(0.05)
    producer.stop()
    assert [each.get(timeout=2) for each in waiting] == [False] * 3


def test_producer_wait_connected_returns_false_when_stop_begins_though_puts_still_finish(play, produce):
    producer = produce(play({"put": b""}).uri, conn_timeout=30)
    assert producer.wait_connected(5)
    putting = gevent.spawn(producer.put, "default", b"", timeout=30)
    gevent.sleep(0)
    producer._queue.pool.servers[0].health.stall()
    waiting = gevent.spawn(producer.wait_connected)
    gevent.sleep(0)
    stopping = gevent.spawn(producer.stop, 1)
    assert waiting.get(timeout=0.5) is False
    assert not putting.ready()
    stopping.join()
    putting.join()


def test_producer_left_alone_or_stalled_is_not_connected(play, produce, monkeypatch):
    monkeypatch.setattr("gstalk.pool.put_queue.ALONE", 0.3)
    producer = produce(play({"put": b"DRAINING\r\n"}).uri, multiply=2)
    all_connected(producer, 2)
    assert producer.wait_connected(0)
    with pytest.raises(gstalk.DrainingError):
        producer.put("default", b"")
    assert not producer.is_connected
    assert not producer.wait_connected(0)
    assert not producer.wait_connected(0.05)
    assert producer.wait_connected(5)
    assert producer.is_connected


def test_producer_is_connected_while_one_of_its_servers_is_usable(play, produce):
    full, good = play({"put": b"OUT_OF_MEMORY\r\n"}), play()
    producer = produce([full.uri, good.uri])
    all_connected(producer, 2)
    for _ in range(2):
        assert producer.put("default", b"") > 0
    assert full.count("put") == 1
    assert producer.is_connected
    good.close()


@pytest.mark.slow
def test_producer_stalled_is_not_connected_though_a_connection_is_left(own_server, produce):
    """Its put's caller has left, so nobody else but the connection's end can tell of the stall."""
    producer = produce(own_server.uri, multiply=2, conn_timeout=0.3, reconnect_timeout=0.1)
    all_connected(producer, 2)
    own_server.pause()
    with gevent.Timeout(0.05, False):  # type: ignore[arg-type]  # the stubs lack False
        producer.put("t", b"x")
    wait_until(lambda: len(producer._queue.pool.connections) == 1)
    assert not producer.is_connected
    assert not producer.wait_connected(0)
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        producer.put("t", b"x", timeout=0)
    assert caught.value.sent == "no"
    assert [type(cause) for cause in caught.value.causes.values()] == [gstalk.CommandTimeoutError]
    own_server.resume()
    assert producer.wait_connected(5)
    assert producer.put("t", b"x", timeout=5)


def test_producer_in_a_with_block_is_stopped_at_its_end(server):
    with gstalk.Producer(server.uri) as producer:
        producer.put("t", b"")
    with pytest.raises(gstalk.ConnectionClosedError):
        producer.put("t", b"")


# -- put ---------------------------------------------------------------------------------------------------------


def test_put_params_and_keywords_are_those_of_conn(server, produce, conn, tube):
    params = gstalk.PutParams(priority=1, delay=100, ttr=30)
    stats = conn.stats_job(produce(server.uri).put(tube, b"x", params, priority=2, ttr=1.5))
    assert (stats.pri, stats.delay, stats.ttr) == (2, 100, 2)


@pytest.mark.parametrize("uris", ["nobody", "server"])
def test_put_wrong_argument_is_refused_at_once(server, nobody, produce, uris):
    producer = produce(server.uri if uris == "server" else nobody)
    for wrong in ({"tube": None}, {"body": "x"}, {"tube": 5}, {"priority": True}, {"timeout": "1"}, {"params": 1}):
        with pytest.raises(TypeError):
            producer.put(**{"tube": "t", "body": b"", **wrong})
    below, above = {"priority": -1}, {"priority": 2**32}
    for bad in ({"tube": ""}, {"tube": "a b"}, below, above, {"ttr": 0}, {"timeout": -1}, {"timeout": float("nan")}):
        with pytest.raises(gstalk.InvalidArgumentError):
            producer.put(**{"tube": "t", "body": b"", **bad})
    if uris == "server":  # they have done no harm
        assert producer.put("t", b"") > 0


def test_put_tube_is_checked_before_the_first_put_and_whenever_it_is_another_one(server, produce):
    """The last one is known by its identity, and no value that a caller may pass is it before that."""
    for wrong in ("", "-", None, 5, b"t"):
        with pytest.raises((TypeError, gstalk.InvalidArgumentError)):
            produce(server.uri).put(wrong, b"")
    producer, name = produce(server.uri), "twice"
    for tube in (name, name, "another", name):
        assert producer.put(tube, b"") > 0
        with pytest.raises(gstalk.InvalidArgumentError):
            producer.put(f"{tube} ", b"")


def test_put_many_greenlets_over_two_servers_use_both(both, produce):
    producer = produce([server.uri for server in both], multiply=2)
    all_connected(producer, 4)
    gevent.joinall([gevent.spawn(producer.put, "t", b"x") for _ in range(2000)], raise_error=True)
    counts = []
    for server in both:
        with gstalk.dial(server.uri) as conn:
            counts.append(int(conn.stats_tube("t").current_jobs_ready or 0))
    assert sum(counts) == 2000
    assert min(counts) > 200


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"JOB_TOO_BIG\r\n", gstalk.JobTooBigError),
        (b"BURIED 7\r\n", gstalk.BuriedError),
        (b"BAD_FORMAT\r\n", gstalk.BadFormatError),
        (b"UNKNOWN_COMMAND\r\n", gstalk.UnknownCommandError),
        (b"EXPECTED_CRLF\r\n", gstalk.ExpectedCrlfError),
    ],
)
def test_put_final_answer_is_raised_at_once_and_never_retried(play, produce, reply, kind):
    one, two = play({"put": reply}), play({"put": reply})
    producer = produce([one.uri, two.uri])
    all_connected(producer, 2)
    with pytest.raises(kind) as caught:
        producer.put("default", b"")
    assert one.count("put") + two.count("put") == 1
    if kind is gstalk.BuriedError:
        assert caught.value.job_id == 7
    if kind in (gstalk.JobTooBigError, gstalk.BuriedError):
        assert len(producer._queue.pool.connections) == 2


@pytest.mark.parametrize("reply", [CUT, b"INTERNAL_ERROR\r\n", b"rubbish\r\n", b"DELETED\r\n"])
def test_put_ambiguous_failure_is_tried_again_elsewhere(play, produce, reply):
    one, two = play({"put": [reply, INSERTED]}), play({"put": [reply, INSERTED]})
    producer = produce([one.uri, two.uri])
    all_connected(producer, 2)
    two.replies[b"put"] = [INSERTED]
    for _ in range(2):  # whichever comes first in the queue
        assert producer.put("default", b"", timeout=5) > 0
    assert (one.count("put"), two.count("put")) in ((1, 2), (2, 1), (2, 2))


def test_put_tried_again_elsewhere_leaves_no_connection_busy(play, produce):
    bad, good = play({"put": b"INTERNAL_ERROR\r\n"}), play()
    producer = produce([bad.uri, good.uri], multiply=3)
    all_connected(producer, 6)
    for _ in range(20):
        producer.put("default", b"", timeout=10)
    assert not any(member.pipe.requests for member in producer._queue._members.values())


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (CUT, gstalk.ConnectionLostError),
        (b"INTERNAL_ERROR\r\n", gstalk.InternalError),
        (b"rubbish\r\n", gstalk.ProtocolError),
    ],
)
def test_put_ambiguous_failure_is_raised_where_that_is_asked_for(play, produce, reply, kind):
    one, two = play({"put": reply}), play({"put": reply})
    producer = produce([one.uri, two.uri], retry_ambiguous=False)
    all_connected(producer, 2)
    with pytest.raises(kind) as caught:
        producer.put("default", b"")
    assert not isinstance(caught.value, gstalk.DisconnectedError) or caught.value.sent == "maybe"
    assert one.count("put") + two.count("put") == 1


def test_put_single_server_ambiguous_failure_is_tried_again_on_a_new_connection(play, produce):
    played = play({"put": [CUT, INSERTED]})
    assert produce(played.uri).put("default", b"", timeout=10) == 1
    assert played.count("put") == 2
    assert played.connections == 2


@pytest.mark.slow
def test_put_not_sent_whole_is_tried_again_whatever_retry_ambiguous_says(both, produce):
    """A server that stops reading, and is killed: the last byte never left."""
    producer = produce([server.uri for server in both], retry_ambiguous=False, conn_timeout=30)
    all_connected(producer, 2)
    both[0].pause()
    putters = [gevent.spawn(producer.put, "t", bytes([number]) * 2**22) for number in range(2)]
    gevent.sleep(0.2)
    both[0].kill()
    gevent.joinall(putters)
    assert [type(putter.exception) for putter in putters] == [gstalk.JobTooBigError] * 2  # what the other one says


# -- refusals ----------------------------------------------------------------------------------------------------


def test_put_one_server_draining_goes_to_the_other_and_leaves_it_alone(both, produce):
    producer = produce([server.uri for server in both])
    all_connected(producer, 2)
    both[0].drain()
    for _ in range(20):
        producer.put("t", b"")
    with gstalk.dial(both[0].uri) as drained, gstalk.dial(both[1].uri) as other:
        assert drained.stats().draining
        assert drained.stats().cmd_put in (0, 1)
        assert other.stats_tube("t").current_jobs_ready == 20


def test_put_all_servers_draining_raises_draining_at_once_and_again_without_asking(both, produce):
    producer = produce([server.uri for server in both])
    all_connected(producer, 2)
    for server in both:
        server.drain()
    with gstalk.dial(both[0].uri) as one, gstalk.dial(both[1].uri) as two:
        wait_until(lambda: one.stats().draining and two.stats().draining)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(gstalk.DrainingError):
                producer.put("t", b"")
        assert time.monotonic() - began < 2
        assert one.stats().cmd_put == two.stats().cmd_put == 1


@pytest.mark.parametrize("timeout", [0, None, 5])
def test_put_the_only_server_out_of_memory_raises_out_of_memory(play, produce, timeout):
    played = play({"put": b"OUT_OF_MEMORY\r\n"})
    producer = produce(played.uri)
    assert producer.wait_connected(5)
    with pytest.raises(gstalk.OutOfMemoryError):
        producer.put("default", b"", timeout=timeout)
    assert played.count("put") == 1


def test_put_refused_after_a_try_that_may_have_stored_it_says_so(play, produce):
    played = play({"put": [CUT, b"DRAINING\r\n"]})
    producer = produce(played.uri)
    with pytest.raises(gstalk.DrainingError, match="an earlier try may have stored the job") as caught:
        producer.put("default", b"x")
    assert caught.value.sent == "maybe"
    with pytest.raises(gstalk.DrainingError) as caught:
        producer.put("default", b"y")
    assert caught.value.sent == "no"


def test_put_waiters_learn_at_once_that_every_server_refuses(play, produce):
    played = play({"put": b"DRAINING\r\n"})
    producer = produce(played.uri)
    putters = [gevent.spawn(producer.put, "default", b"", timeout=20) for _ in range(10)]
    gevent.joinall(putters, timeout=5)
    assert [type(putter.exception) for putter in putters] == [gstalk.DrainingError] * 10


def test_put_waiters_in_line_learn_at_once_that_every_server_refuses(play, produce):
    """More puts than fit on the only connection."""
    producer = produce(play({"put": b"DRAINING\r\n"}).uri)
    assert producer.wait_connected(5)
    refused = []

    def put():
        try:
            producer.put("default", b"", timeout=20)
        except gstalk.DrainingError:
            refused.append(time.monotonic())

    began = time.monotonic()
    gevent.joinall([gevent.spawn(put) for _ in range(700)], raise_error=True)
    assert len(refused) == 700
    assert max(refused) - began < 3


@pytest.mark.slow
def test_put_a_server_left_alone_is_asked_again_after_its_time(play, produce, monkeypatch):
    assert schedule.ALONE == 5  # seconds
    monkeypatch.setattr("gstalk.pool.put_queue.ALONE", 0.5)
    played = play({"put": [b"OUT_OF_MEMORY\r\n", INSERTED]})
    producer = produce(played.uri)
    assert producer.wait_connected(5)
    began = time.monotonic()
    with pytest.raises(gstalk.OutOfMemoryError):
        producer.put("default", b"")
    while True:
        try:
            assert producer.put("default", b"") == 1
            break
        except gstalk.OutOfMemoryError:
            gevent.sleep(0.05)
    assert 0.45 < time.monotonic() - began < 3.5


def test_put_one_draining_and_one_down_times_out_with_both_causes(play, produce, nobody):
    played = play({"put": b"DRAINING\r\n"})
    producer = produce([played.uri, nobody])
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        producer.put("default", b"", timeout=1)
    assert {uri: type(cause) for uri, cause in caught.value.causes.items()} == {
        played.uri: gstalk.DrainingError,
        nobody: gstalk.ConnectError,
    }
    assert caught.value.sent == "no"


# -- time --------------------------------------------------------------------------------------------------------


def test_put_nobody_there_times_out_with_causes_and_sent_no(nobody, produce):
    errors: list[BaseException] = []
    producer = produce(nobody, put_timeout=0.3, error_func=lambda error, message: errors.append(error))
    began = time.monotonic()
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        producer.put("t", b"")
    assert 0.25 < time.monotonic() - began < 3
    assert caught.value.sent == "no"
    assert {uri: type(cause) for uri, cause in caught.value.causes.items()} == {nobody: gstalk.ConnectError}
    assert isinstance(caught.value, TimeoutError)
    assert len(errors) == 1  # one an outage, not one a try


@pytest.mark.parametrize("method", ["put", "put_many"])
def test_put_server_that_has_just_gone_is_a_cause(own_server, produce, method):
    """Its connection is lost, and it was not dialed again yet."""
    producer = produce(own_server.uri, reconnect_timeout=60)
    assert producer.wait_connected(5)
    own_server.kill()
    wait_until(lambda: not producer.is_connected)
    if method == "put":
        with pytest.raises(gstalk.PutTimeoutError) as caught:
            producer.put("t", b"", timeout=0)
        error: Any = caught.value
    else:
        with pytest.raises(gstalk.PutManyError) as many:
            producer.put_many("t", [b""], timeout=0)
        (error,) = many.value.results
    assert {uri: type(cause) for uri, cause in error.causes.items()} == {own_server.uri: gstalk.ConnectionLostError}
    assert "busy" not in str(error)
    lost = f"lost connection to {own_server.uri}: the server closed the connection"
    assert str(error) == f"put to 't': no success with any of 1 server in time; last error: {lost}"


def test_put_before_the_first_connection_has_a_cause(nobody, produce):
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        produce(nobody).put("t", b"", timeout=0)
    assert [str(cause) for cause in caught.value.causes.values()] == [f"no connection to {nobody} yet"]


@pytest.mark.slow
def test_put_connections_that_are_merely_busy_are_no_cause(play, produce):
    played = play({"put": b""})
    producer = produce(played.uri, conn_timeout=60)
    assert producer.wait_connected(5)
    busy = [gevent.spawn(producer.put, "default", b"") for _ in range(FULL)]
    wait_until(lambda: sum(line.startswith(b"put") for line in played.lines) == FULL)
    for timeout in (0, 0.2):
        with pytest.raises(gstalk.PutTimeoutError, match="all connections were busy") as caught:
            producer.put("default", b"", timeout=timeout)
        assert (caught.value.causes, caught.value.sent) == ({}, "no")
    gevent.killall(busy)


def test_put_timeout_zero_takes_only_what_is_usable_now(server, produce, nobody):
    producer = produce(server.uri)
    with pytest.raises(gstalk.PutTimeoutError):
        producer.put("t", b"", timeout=0)
    assert producer.wait_connected(5)
    assert producer.put("t", b"", timeout=0) > 0


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (CUT, gstalk.ConnectionLostError),
        (b"INTERNAL_ERROR\r\n", gstalk.InternalError),
        (b"DRAINING\r\n", gstalk.DrainingError),
        (b"rubbish\r\n", gstalk.ProtocolError),
    ],
)
def test_put_timeout_zero_makes_no_second_try(play, produce, reply, kind):
    one, two = play({"put": reply}), play({"put": reply})
    producer = produce([one.uri, two.uri])
    all_connected(producer, 2)
    with pytest.raises(kind):
        producer.put("default", b"", timeout=0)
    assert one.count("put") + two.count("put") == 1


@pytest.mark.slow
def test_put_silent_server_times_out_with_sent_maybe(play, produce):
    played = play({"put": b""})
    producer = produce(played.uri, conn_timeout=30)
    began = time.monotonic()
    with pytest.raises(gstalk.PutTimeoutError) as caught:
        producer.put("default", b"", timeout=0.5)
    assert 0.4 < time.monotonic() - began < 3
    assert caught.value.sent == "maybe"
    assert played.uri in caught.value.causes
    assert "the job may have been stored" in str(caught.value)


@pytest.mark.slow
@pytest.mark.timing
def test_put_silent_server_then_another_within_the_same_time(play, produce):
    silent, good = play({"put": b""}), play()
    producer = produce([silent.uri, good.uri], conn_timeout=0.3)
    all_connected(producer, 2)
    longest = []
    for _ in range(4):
        began = time.monotonic()
        assert producer.put("default", b"", timeout=10) > 0
        longest.append(time.monotonic() - began)
    assert silent.count("put") == 1
    longest.sort()
    assert longest[-1] < 1
    assert longest[-2] < 0.3  # one put finds out; those begun after it are quick


@pytest.mark.slow
def test_put_late_reply_goes_to_nobody(play, produce):
    def late(line):
        gevent.sleep(0.6)
        return b"INSERTED 41\r\n"

    played = play({"put": [late, b"INSERTED 42\r\n"]})
    producer = produce(played.uri)
    with pytest.raises(gstalk.PutTimeoutError):
        producer.put("default", b"", timeout=0.2)
    assert producer.put("default", b"", timeout=10) == 42


def test_put_without_a_limit_waits_and_can_be_interrupted(nobody, produce):
    producer = produce(nobody)
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.2):
            producer.put("t", b"", timeout=None)
    assert producer._queue.puts == 0


def test_put_interrupted_passes_the_exception_unchanged_and_loses_no_connection(server, produce, tube):
    producer = produce(server.uri)
    assert producer.wait_connected(5)
    for error in (gevent.Timeout(60), ValueError("own"), gstalk.ConnectionLostError("own"), gevent.GreenletExit()):
        raised: list[BaseException] = []

        def put(raised=raised):
            try:
                producer.put(tube, b"x")
            except BaseException as caught:
                raised.append(caught)

        putter = gevent.spawn(put)
        gevent.sleep(0)
        putter.kill(error)
        assert raised == [error]
    assert producer.put(tube, b"x") > 0
    assert producer._queue.puts == 0
    assert not any(member.pipe.requests for member in producer._queue._members.values())


# -- outages -----------------------------------------------------------------------------------------------------


def test_put_after_a_restart_while_idle_succeeds_without_an_ambiguous_try(own_server, produce):
    retries: list[gstalk.Event] = []
    producer = produce(own_server.uri, event_func=lambda event: retries.append(event), reconnect_timeout=0.2)
    producer.put("t", b"")
    own_server.kill()
    wait_until(lambda: not producer.is_connected)
    own_server.start()
    assert producer.put("t", b"", timeout=10) == 1
    assert [event for event in retries if event.kind == "put_retry"] == []


@pytest.mark.slow
def test_outage_is_told_once_and_so_is_its_end(own_server, produce):
    errors: list[str] = []
    infos: list[str] = []
    producer = produce(
        own_server.uri,
        multiply=3,
        reconnect_timeout=0.1,
        error_func=lambda error, message: errors.append(f"{message}: {error}"),
        info_func=infos.append,
    )
    all_connected(producer, 3)
    own_server.kill()
    gevent.sleep(1.5)
    assert len(errors) == 1
    assert own_server.uri in errors[0]
    own_server.start()
    all_connected(producer, 3)
    assert len([message for message in infos if "again" in message and "connected to" in message]) == 1


def test_put_waiting_in_an_outage_is_done_when_the_server_is_back(own_server, produce):
    producer = produce(own_server.uri, reconnect_timeout=0.2)
    assert producer.wait_connected(5)
    own_server.kill()
    putters = [gevent.spawn(producer.put, "t", b"%d" % number) for number in range(20)]
    gevent.sleep(0.1)
    own_server.start()
    gevent.joinall(putters, raise_error=True, timeout=10)
    assert sorted(putter.get() for putter in putters) == list(range(1, 21))


@pytest.mark.slow
def test_put_under_load_while_a_server_is_killed_acknowledged_jobs_are_all_there(both, produce):
    producer = produce([server.uri for server in both], reconnect_timeout=0.2)
    all_connected(producer, 2)
    ids: list[int] = []

    def put():
        for _ in range(500):
            ids.append(producer.put("t", b"x", timeout=20))

    putters = [gevent.spawn(put) for _ in range(20)]
    wait_until(lambda: len(ids) > 200)
    before = len(ids)
    both[1].kill()
    gevent.joinall(putters, raise_error=True)
    assert before < len(ids) == 10_000
    with gstalk.dial(both[0].uri) as conn:  # all but those that the other one may have acknowledged before its end
        assert 10_000 - before <= int(conn.stats_tube("t").current_jobs_ready or 0) <= 10_000


def test_hooks_that_raise_harm_nothing(own_server, produce):
    def bad(*_):
        raise RuntimeError("hook")

    producer = produce(own_server.uri, error_func=bad, info_func=bad, event_func=bad, reconnect_timeout=0.1)
    producer.put("t", b"")
    own_server.kill()
    wait_until(lambda: not producer.is_connected)
    own_server.start()
    assert producer.put("t", b"", timeout=10) == 1


@pytest.mark.parametrize("raised", [gevent.Timeout(1), gevent.GreenletExit()])
def test_hooks_that_raise_a_timeout_or_exit_harm_nothing(own_server, produce, raised):
    """A hook that sends its message somewhere, under a Timeout of its own."""

    def bad(*_):
        raise raised

    producer = produce(own_server.uri, error_func=bad, info_func=bad, reconnect_timeout=0.1)
    producer.put("t", b"")
    own_server.kill()
    wait_until(lambda: not producer.is_connected)
    own_server.start()
    assert producer.put("t", b"", timeout=5) == 1


@pytest.mark.parametrize("call", ["put", "put_many", "wait_connected"])
def test_hook_that_waits_for_the_connection_that_its_own_greenlet_makes_is_refused(own_server, produce, call):
    """A log handler that puts each record: in vain it would wait until its time is over, and nobody would connect."""
    refused: list[BaseException] = []
    arguments: Any = {"put": ("log", b"x"), "put_many": ("log", [b"x"]), "wait_connected": (15,)}

    def hook(error: BaseException, message: str) -> None:
        try:
            getattr(producer, call)(*arguments[call])
        except BlockingSwitchOutError as raised:
            refused.append(raised)

    producer: gstalk.Producer = produce(own_server.uri, error_func=hook, reconnect_timeout=0.1)
    producer.put("t", b"")
    own_server.kill()
    wait_until(lambda: bool(refused))
    own_server.start()
    assert producer.put("t", b"", timeout=5) == 1  # the hook has left nothing behind


def test_put_of_a_hook_that_may_have_been_stored_and_finds_no_other_connection_ends_at_once(play, produce):
    outcomes: list[Any] = []

    def hook(event: gstalk.Event) -> None:
        if event.kind == "connect" and not outcomes:
            try:
                outcomes.append(producer.put("default", b""))
            except gstalk.GstalkError as error:
                outcomes.append(error)

    played = play({"put": CUT})
    producer: gstalk.Producer = produce(played.uri, event_func=hook)
    wait_until(lambda: bool(outcomes), 5)
    (error,) = outcomes
    assert isinstance(error, gstalk.PutTimeoutError)
    assert error.sent == "maybe"


def test_hook_that_puts_where_another_connection_is_usable_works(both, produce):
    ids: list[int] = []

    def hook(message: str) -> None:
        ids.append(producer.put("log", message.encode(), timeout=5))

    producer: gstalk.Producer = produce([server.uri for server in both], info_func=hook)
    all_connected(producer, 2)
    both[0].kill()
    wait_until(lambda: bool(ids))
    with gstalk.dial(both[1].uri) as conn:
        assert conn.stats_tube("log").current_jobs_ready == len(ids)


def test_put_waits_its_time_though_all_that_connect_are_held_up_by_a_hook(nobody):
    """In a hub where nothing else would wake it: gevent would say that this waits for ever."""

    def run() -> None:
        held = Event()
        producer = gstalk.Producer(nobody, error_func=lambda error, message: held.wait())
        gevent.sleep(0.1)
        try:
            producer.put("t", b"", timeout=0.2)
        except gstalk.PutTimeoutError:
            outcomes.append("in time")
        held.set()
        producer.stop(0)

    outcomes: list[str] = []
    assert in_thread(run) == [None]
    assert outcomes == ["in time"]


def test_events_are_frozen_and_tell_of_connects_disconnects_and_retries(play, produce):
    events: list[gstalk.Event] = []
    played = play({"put": [CUT, INSERTED]})
    produce(played.uri, event_func=events.append).put("default", b"", timeout=10)
    kinds = [event.kind for event in events]
    assert kinds.count("connect") == 2
    assert kinds.count("disconnect") == 1
    (retry,) = [event for event in events if event.kind == "put_retry"]
    assert (retry.uri, retry.tube, retry.attempt) == (played.uri, "default", 1)
    assert isinstance(retry.exception, gstalk.ConnectionLostError)
    with pytest.raises(AttributeError):
        retry.kind = "x"  # type: ignore[misc]


# -- put_many ----------------------------------------------------------------------------------------------------


def test_put_many_over_two_servers_gives_ids_in_order_of_the_bodies(both, produce):
    producer = produce([server.uri for server in both])
    all_connected(producer, 2)
    ids = producer.put_many("t", [b"%d" % number for number in range(3000)])
    assert len(ids) == 3000
    with gstalk.dial(both[0].uri) as one, gstalk.dial(both[1].uri) as two:
        total = (one.stats_tube("t").current_jobs_ready or 0) + (two.stats_tube("t").current_jobs_ready or 0)
        assert total == 3000
        for number in (0, 1, 1500, 2999):
            found = [peeked.body for conn in (one, two) if (peeked := conn.peek(ids[number])) is not None]
            assert b"%d" % number in found


def test_put_many_bad_and_refused_bodies_do_not_stop_the_others(server, produce, conn, tube):
    too_big = b"x" * (conn.stats().max_job_size + 1)
    with pytest.raises(gstalk.PutManyError) as caught:
        produce(server.uri).put_many(tube, [b"a", "text", b"b", too_big, b"c"])
    results = caught.value.results
    assert [type(result) for result in results] == [int, TypeError, int, gstalk.JobTooBigError, int]
    assert [conn.peek(results[n]).body for n in (0, 2, 4)] == [b"a", b"b", b"c"]


def test_put_many_bodies_whose_connection_is_cut_are_tried_again(play, produce):
    played = play({"put": [INSERTED, INSERTED, CUT, INSERTED]})
    ids = produce(played.uri).put_many("default", [b"x"] * 10, timeout=20)
    assert len(ids) == 10


def test_put_many_bodies_whose_connection_is_cut_are_tried_again_without_a_pause_for_each(play, produce):
    """With a pause of 0.1 s after each of them, as after a server's no, most of these would have been too late."""
    played = play({"put": [CUT, INSERTED]})
    with produce(played.uri) as producer:
        producer.wait_connected()
        assert len(producer.put_many("default", [b"x"] * 200, timeout=5)) == 200
    assert played.count("put") > 200


@pytest.mark.slow
def test_put_many_timeout_counts_for_each_body_from_when_it_is_taken(server, produce, tube):
    def bodies():
        for number in range(4):
            gevent.sleep(0.3)
            yield b"%d" % number

    assert len(produce(server.uri).put_many(tube, bodies(), timeout=0.9)) == 4


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_put_many_nobody_there_fails_each_body_after_a_timeout_of_its_own(nobody, produce, timeout):
    """One after the other, as docs/delivery.md says: the timeout doesn't bound the whole call, but 0 is at once."""
    producer = produce(nobody)
    began = time.monotonic()
    with pytest.raises(gstalk.PutManyError) as caught:
        producer.put_many("t", [b"a", b"b"], timeout=timeout)
    assert [type(result) for result in caught.value.results] == [gstalk.PutTimeoutError] * 2
    assert 2 * timeout <= time.monotonic() - began < 2 * timeout + 2


def test_put_many_iterable_raises_it_passes_unchanged_and_taken_bodies_are_put(server, produce, conn, tube):
    own = gstalk.ConnectionLostError("the iterable's own")

    def bodies():
        yield b"a"
        yield b"b"
        raise own

    producer = produce(server.uri)
    with pytest.raises(gstalk.ConnectionLostError) as caught:
        producer.put_many(tube, bodies())
    assert caught.value is own
    wait_until(lambda: conn.stats_tube(tube).current_jobs_ready == 2)
    assert producer._queue.puts == 0
    assert not any(member.pipe.requests for member in producer._queue._members.values())


def test_put_many_wrong_arguments_take_nothing(server, produce, tube):
    producer = produce(server.uri)
    for bodies in ("text", b"bytes", 5):
        with pytest.raises(TypeError):
            producer.put_many(tube, bodies)
    taken = iter([b"x"])
    with pytest.raises(gstalk.InvalidArgumentError):
        producer.put_many("a b", taken)
    assert list(taken) == [b"x"]
    assert producer.put_many(tube, []) == []


# -- stop --------------------------------------------------------------------------------------------------------


def test_stop_is_idempotent_and_closes_all_connections(own_server, produce, connect):
    conn = connect(own_server.uri)
    producer = produce(own_server.uri, multiply=3)
    all_connected(producer, 3)
    producer.stop()
    producer.stop()
    assert not producer.is_connected
    wait_until(lambda: conn.stats().current_connections == 1)
    for call in (lambda: producer.put("t", b""), lambda: producer.put_many("t", [b""]), producer.wait_connected):
        with pytest.raises(gstalk.ConnectionClosedError):
            call()


def test_stop_lets_puts_under_way_finish(play, produce):
    def slow(line):
        gevent.sleep(0.3)
        return b"INSERTED 5\r\n"

    producer = produce(play({"put": slow}).uri)
    assert producer.wait_connected(5)
    putter = gevent.spawn(producer.put, "default", b"")
    gevent.sleep(0)
    stopper = gevent.spawn(producer.stop)
    gevent.sleep(0)
    with pytest.raises(gstalk.ConnectionClosedError, match=r"^put: this Producer is stopped$"):
        producer.put("default", b"late")
    stopper.get(timeout=5)
    assert putter.ready()
    assert putter.get() == 5


@pytest.mark.slow
def test_stop_waits_no_longer_than_its_timeout_and_then_puts_fail(play, produce):
    producer = produce(play({"put": b""}).uri, conn_timeout=30)
    assert producer.wait_connected(5)
    putter = gevent.spawn(producer.put, "default", b"")
    gevent.sleep(0)
    began = time.monotonic()
    producer.stop(0.3)
    assert 0.25 < time.monotonic() - began < 3
    with pytest.raises(gstalk.DisconnectedError) as caught:
        putter.get(timeout=5)
    assert caught.value.sent == "maybe"


@pytest.mark.parametrize("timeout", [0, 0.2])
def test_stop_while_puts_wait_for_a_connection_ends_them(nobody, produce, timeout):
    producer = produce(nobody)
    putters = [gevent.spawn(producer.put, "t", b"") for _ in range(3)]
    gevent.sleep(0.05)
    producer.stop(timeout)
    gevent.joinall(putters, timeout=5)
    gevent.killall([putter for putter in putters if not putter.ready()])
    assert [type(putter.exception) for putter in putters] == [gstalk.ConnectionClosedError] * 3


def test_stop_interrupted_while_one_connection_closes_closes_all(play, produce):
    producer = produce(play({"delete": b"", "list-tube-used": b""}).uri, multiply=3, conn_timeout=1)
    all_connected(producer, 3)
    pipes = [connection.pipe for connection in producer._queue.pool.connections]
    for pipe in pipes:  # as for a put in the wrong tube
        pipe.append(commands.by_id(commands.DELETE, 1), pipe.request(commands.DELETE, 1))
    stopper = gevent.spawn(producer.stop)
    gevent.sleep(0.05)
    for _ in pipes:
        stopper.kill()
    assert all(pipe.failure is not None for pipe in pipes)


# -- processes ------------------------------------------------------------------------------------------


def test_put_in_a_forked_child_goes_on_with_connections_of_its_own(server, produce, conn, tube):
    producer = produce(server.uri)
    producer.put(tube, b"parent")
    child = gevent.os.fork()
    if not child:
        try:
            producer.put(tube, b"child")
            producer.put_many(tube, [b"child", b"child"])
            producer.stop()
        finally:
            os._exit(0)
    gevent.os.waitpid(child, 0)
    producer.put(tube, b"parent")
    assert conn.stats_tube(tube).current_jobs_ready == 5
