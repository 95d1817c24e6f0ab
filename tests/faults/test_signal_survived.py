"""A program may catch KeyboardInterrupt and go on: whatever line Ctrl-C has hit, what it uses of gstalk still works.

Or it is broken and says so. The lines that are struck are those by which a Conn's reserve line, a Producer and a
Consumer know what to do next.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial, wraps
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.pool import put_queue, puts
from gstalk.pool.keeper import Pool
from tests.faults.test_signal_everywhere import Signal, in_hub
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

LOST = (KeyboardInterrupt, gstalk.DisconnectedError, gstalk.JobLostError, gstalk.PutManyError)


class Strike(Signal):
    """One at a line of these functions that none has struck yet.

    Args:
        names: The functions.
        struck: Which runs of which lines have been struck, by all of these; this one adds its own.
        runs: How many runs of each line are to be struck.
    """

    rooms = (".py",)

    def __init__(self, names: tuple[str, ...], struck: set[tuple[object, int, int]], runs: float) -> None:
        super().__init__(0)
        self.names, self.struck, self.runs = names, struck, runs
        self.run_of: Counter[tuple[object, int]] = Counter()

    def trace(self, frame: Any, event: str, argument: object) -> Any:
        return super().trace(frame, event, argument) if frame.f_code.co_name in self.names else None

    def is_due(self, frame: Any) -> bool:
        line = (frame.f_code, frame.f_lineno)
        self.run_of[line] += 1
        due = not self.where and self.run_of[line] <= self.runs and (*line, self.run_of[line]) not in self.struck
        if due:
            self.struck.add((*line, self.run_of[line]))
        return due

    def call(self, function: Callable[..., object], *args: Any) -> object:
        """Call a function in a greenlet that is traced; errors that a strike explains are results."""
        sys.settrace(self.trace)
        try:
            return function(*args)
        except LOST as error:
            return error


@pytest.fixture
def strikes(monkeypatch, many) -> Callable[..., Iterator[Strike]]:
    """Each line of some functions, one after the other, each of its runs in `make soak`.

    gevent's reports of what hit the hub are kept from the log.
    """
    told: list[BaseException] = []
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda context, kind, value, trace: told.append(value))

    def each(*names: str) -> Iterator[Strike]:
        struck: set[tuple[object, int, int]] = set()
        vain = 0
        while True:
            strike = Strike(names, struck, runs=many(1, 1000))
            yield strike
            in_hub(sys.settrace, None)
            sys.settrace(None)
            wrong = [error for error in told if not isinstance(error, LOST)]
            assert not wrong, f"{wrong} after {strike.where}"
            told.clear()
            if not strike.where:
                if struck:
                    return
                vain += 1  # on a busy machine an answer may have come before the timer
                assert vain < 20, "no line of these was ever run"

    return each


STUCK = 10  # seconds: what isn't stuck is done in a hundredth, but perhaps not beside other programs


def within(done: Callable[[], object], strike: Strike) -> None:
    try:
        wait_until(done, STUCK)
    except AssertionError as error:
        raise AssertionError(f"stuck after {strike.where}") from error


def outliving(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a greenlet of its own: gevent throws what hits the hub into the main one, which goes on here."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        testing = gevent.spawn(test, *args, **kwargs)
        ticker = gevent.get_hub().loop.timer(0.005, 0.005)  # gevent runs the hub's next callbacks at the next event
        ticker.start(lambda: None)
        try:
            while not testing.ready():
                with suppress(KeyboardInterrupt):
                    testing.join()
        finally:
            ticker.close()
            sys.settrace(None)
        testing.get()

    return run


@pytest.mark.soak
@pytest.mark.parametrize("what", ["_expire", "_on_timer", "leave"])
@outliving
def test_reserve_line_goes_on_or_is_broken(strikes, server, tube, what):
    def reserve(conn: gstalk.Conn) -> object:
        if what == "leave":
            with gevent.Timeout(0.02, False):  # type: ignore[arg-type]  # the stubs lack False
                return conn.reserve()
        return conn.reserve_with_timeout(0.05)

    for strike in strikes(what):
        with gstalk.dial(server.uri, conn_timeout=None) as conn:
            conn.watch(tube)
            conn.ignore("default")
            conn._line._may_wait = False  # as after its first wait
            in_hub(sys.settrace, strike.trace)
            reserving = gevent.spawn(strike.call, reserve, conn)
            within(reserving.ready, strike)
            in_hub(sys.settrace, None)
            if conn.is_connected:
                conn.put(tube, b"next")
                with gevent.Timeout(STUCK, AssertionError(f"no job after {strike.where}")):
                    job = conn.reserve()
                assert job.body == b"next"
                job.delete()


@pytest.mark.soak
@pytest.mark.limit(300)
@outliving
def test_wait_that_is_called_back_leaves_nobody_waiting(strikes, server, other, tube):
    """Another command comes while the server waits for a job: the wait is ended, or the connection is."""
    names = (
        "recall",
        "recall",
        "_run",
        "_end_wait",
        "end",
        "half_close",
        "clear",
        "_ask",
        "ask",
        "hold_back",
        "attach",
    )
    for number, strike in enumerate(strikes(*names)):
        mine = f"{tube}-{number}"
        conn = gstalk.dial(server.uri, conn_timeout=None)
        conn.watch(mine)
        conn.ignore("default")
        reserving = gevent.spawn(strike.call, conn.reserve)
        gevent.sleep(0.005)  # it waits at the server
        in_hub(sys.settrace, strike.trace)
        for _ in range(2):
            putting = gevent.spawn(strike.call, conn.put, f"{mine}-x", b"x")
            within(putting.ready, strike)
        in_hub(sys.settrace, None)
        job_id = other.put(mine, b"job", ttr=60)
        within(reserving.ready, strike)
        conn.close()
        conn._connection.cut()  # a close may be what was struck
        within(lambda: other.stats_job(job_id).state == "ready", strike)  # noqa: B023
        other.delete(job_id)


@pytest.mark.soak
@outliving
def test_producer_goes_on(strikes, server, other, tube):
    names = ("send", "stand", "done", "wait", "enqueue", "_serve", "_serve_one", "_tick", "put", "run", "failed")
    for strike in strikes(*names, "_down"):
        with gstalk.Producer(server.uri, reconnect_timeout=0.1, info_func=lambda message: None) as producer:
            producer.wait_connected(5)
            in_hub(sys.settrace, strike.trace)
            putting = [gevent.spawn(strike.call, producer.put, tube, b"x") for _ in range(3)]
            gevent.joinall(putting, timeout=5)
            in_hub(sys.settrace, None)
            assert all(each.ready() for each in putting), strike.where
            assert producer.put(tube, b"next", timeout=3), strike.where
            producer.stop(0.2)  # it may wait for a put that was struck on its way out


@pytest.mark.soak
@pytest.mark.limit(300)
@outliving
def test_put_many_ends_and_its_producer_goes_on(strikes, play, monkeypatch):
    """Some bodies are refused, and tried again in greenlets of their own."""
    monkeypatch.setattr(puts, "LOST", 0.1)
    for room in (put_queue, puts):
        monkeypatch.setattr(room, "TICK", 0.01)  # a refused body's pauses are multiples of it
    names = (
        "_answered", "_settle", "_failed", "failed", "_tried", "_try_again", "add", "send", "stand", "wait",
        "end", "leave", "_serve", "_serve_one", "_tick", "enqueue",
    )  # fmt: skip
    for strike in strikes(*names):
        played = play({"put": [None, b"INTERNAL_ERROR\r\n", b"INTERNAL_ERROR\r\n", None]})
        with gstalk.Producer(played.uri, reconnect_timeout=0.1, info_func=lambda message: None) as producer:
            producer.wait_connected(5)
            in_hub(sys.settrace, strike.trace)
            putting = gevent.spawn(strike.call, partial(producer.put_many, "default", [b"x"] * 4, timeout=0.5))
            within(putting.ready, strike)
            in_hub(sys.settrace, None)
            assert putting.value is None or not isinstance(putting.value, list) or len(putting.value) == 4
            assert producer.put("default", b"next", timeout=3), strike.where
            producer.stop(0)
        played.close()


@pytest.mark.soak
@pytest.mark.limit(300)
@pytest.mark.parametrize("what", ["_got", "_look", "look_soon", "_on_timer", "down", "answered"])
@outliving
def test_consumer_goes_on(strikes, server, own_server, other, tube, what):
    uris = [server.uri, own_server.uri] if what == "_on_timer" else [server.uri]
    for number, strike in enumerate(strikes(what)):
        mine = f"{tube}-{number}"
        seen: list[bytes] = []
        options: dict[str, Any] = {"reconnect_timeout": 0.1, "info_func": lambda message: None, "stop_timeout": 5}
        options["error_func"] = lambda error, message: None  # a job that was lost with its connection
        consumer = gstalk.Consumer(uris, mine, num_greenlets=2 if len(uris) == 1 else 1, auto_delete=True, **options)
        receiving = gevent.spawn(consumer.receive, lambda job: seen.append(job.body))  # noqa: B023
        consumer.wait_connected(5)
        in_hub(sys.settrace, strike.trace)
        other.put(mine, b"1")
        other.put(mine, b"2")
        gevent.sleep(0.06)
        if what == "down":
            for connection in consumer._run.pool.connections:  # type: ignore[union-attr]
                connection.pipe._transport._sock.shutdown(2)  # type: ignore[union-attr]
        gevent.sleep(0.03)
        in_hub(sys.settrace, None)
        other.put(mine, b"3")
        other.put(mine, b"4")
        within(lambda: {b"1", b"2", b"3", b"4"} <= set(seen), strike)  # noqa: B023
        consumer.stop(1)
        within(receiving.ready, strike)


def test_keeper_that_is_struck_has_a_successor(server, tube):
    with gstalk.Producer(server.uri, info_func=lambda message: None) as producer:
        producer.wait_connected(5)
        (pool,) = [each for each in _pools() if each.is_connected and not each.is_stopped]
        connection = pool.connections[0]
        for _ in range(3):
            (keeper,) = pool.keepers
            keeper.kill(block=True)
            assert producer.put(tube, b"x", delay=1000, timeout=3)
        assert not connection.is_connected
        assert len(pool.connections) == len(pool.keepers) == 1
    wait_until(lambda: not pool.keepers)


def _pools() -> list[Pool]:
    from gstalk.connection import forks

    return [each for each in forks._living["pool"] if isinstance(each, Pool)]


def test_timeout_that_a_connect_hook_left_behind_costs_no_connection(server, other, tube):
    """It hits the keeper later, which has nothing half done: the connection and its jobs stay."""
    kinds: list[str] = []
    told: list[str] = []

    def hook(event: gstalk.Event) -> None:
        if event.kind == "connect":
            gevent.Timeout(0.1).start()  # and forgotten
            kinds.append(event.kind)

    runs: list[int] = []

    def handler(job: gstalk.Job) -> None:
        runs.append(job.id)
        gevent.sleep(0.3)
        job.delete()
        consumer.stop()

    other.put(tube, b"x")
    options: dict[str, Any] = {"error_func": lambda error, message: told.append(message)}
    consumer = gstalk.Consumer(server.uri, tube, event_func=hook, **options)
    consumer.receive(handler)
    assert (len(runs), kinds) == (1, ["connect"])
    assert told == ["a hook left this behind; it hit a greenlet that keeps a connection"]


def attended_to(job: gstalk.Job) -> bool:
    return job.is_finished or job._state == "held"


@pytest.mark.parametrize("settle", ["delete", "release", "bury"])
def test_job_whose_settling_is_struck_is_held_or_settled_or_its_connection_is_over(settle, server, tube, strikes):
    """Never marked as being finished with nothing sent: nobody could finish it then, nor would the server get it."""
    marks = "delete", "_settle", "_settle_keeping", "_settle_later", "settle"
    for strike in strikes(*marks):
        conn = gstalk.dial(server.uri)
        conn.watch(tube)
        conn.put(tube, b"x")
        job = conn.reserve()
        gevent.spawn(strike.call, getattr(job, settle)).join()
        in_hub(sys.settrace, None)  # what follows is not to be struck
        sys.settrace(None)
        if conn.is_connected:
            within(partial(attended_to, job), strike)
            if not job.is_finished:
                job.delete()
        else:
            assert job.is_lost, strike.where
        conn.close()
        with gstalk.dial(server.uri) as other:
            while left := other.peek_ready(tube) or other.peek_buried(tube):
                other.delete(left)
