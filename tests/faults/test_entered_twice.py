"""A signal handler that uses gstalk may run between any two lines of gstalk: it works, or is refused with nothing sent.

A trace function calls it where Python would: before a line, in whichever greenlet is at work, or in the hub. `__del__`
methods, callbacks of weak references and hooks of a collector come in the same way.
"""

from __future__ import annotations

import itertools
import linecache
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

import gstalk
from gstalk.connection.critical import section_of
from gstalk.pool import put_queue
from gstalk.testing import Beanstalkd, FaultProxy
from tests.faults.test_signal_everywhere import in_hub
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]


class Handler:
    """Calls `call` once: before the line of that number, among those that gstalk runs in traced greenlets."""

    def __init__(self, number: int, call: Callable[[], object]) -> None:
        self.number = number
        self.call = call
        self.lines = 0
        self.where = ""
        self.result: Any = None

    def trace(self, frame: Any, event: str, _: object) -> Any:
        path = frame.f_code.co_filename or ""
        if "/gstalk/" not in path or "/testing/" in path or "/tests/" in path:
            return None
        # Between such a line's start and its call Python runs no signal handler, and here that would lose a switch.
        switches = linecache.getline(path, frame.f_lineno).strip() in ("switch()", "waiter.switch()")
        if event == "line" and not self.where and not switches:
            self.lines += 1
            if self.lines == self.number:
                self.where = f"{path.rpartition('/gstalk/')[2]}:{frame.f_lineno} in {frame.f_code.co_name}"
                try:
                    self.result = self.call()
                except (BlockingSwitchOutError, gstalk.GstalkError) as error:
                    self.result = error
        return self.trace

    def run(self, call: Callable[[], object], hub: bool = False) -> Any:
        """What `call` comes to in a greenlet that is traced; with `hub` the hub is traced instead."""
        greenlet = gevent.spawn(call if hub else partial(self._traced, call))
        if hub:
            in_hub(sys.settrace, self.trace)
        try:
            with gevent.Timeout(5, AssertionError(f"stuck after {self.where}")):
                return greenlet.get()
        finally:
            if hub:
                in_hub(sys.settrace, None)

    def _traced(self, call: Callable[[], object]) -> object:
        sys.settrace(self.trace)
        try:
            return call()
        except gstalk.GstalkError as error:
            return error
        finally:
            sys.settrace(None)


class World(NamedTuple):
    """What the operations and the handlers work with. `jobs`: reserved, the first one is what both may settle."""

    server: Beanstalkd
    conn: gstalk.Conn
    producer: gstalk.Producer
    tube: str
    jobs: list[gstalk.Job]


@pytest.fixture
def worlds(server, tube) -> Iterator[Callable[[], World]]:
    """Start a world; its connections are used again until one is broken."""
    producer = gstalk.Producer(server.uri)
    conns: list[gstalk.Conn] = []

    def start() -> World:
        if not conns or not conns[-1].is_connected:
            conns.append(gstalk.dial(server.uri))
            conns[-1].watch(f"{tube}-work")
            conns[-1].ignore("default")
        conn = conns[-1]
        for _ in range(2):
            conn.put(f"{tube}-work", b"work")
        jobs = [conn.reserve() for _ in range(2)]
        conn.use("default")
        return World(server, conn, producer, tube, jobs)

    yield start
    for conn in conns:
        conn.close()
    producer.stop()


OPERATIONS: dict[str, Callable[[World], Any]] = {
    "put": lambda world: world.conn.put(world.tube, b"outer"),
    "put_many": lambda world: world.conn.put_many(world.tube, [b"outer", b"outer"]),
    "peek_ready": lambda world: world.conn.peek_ready(f"{world.tube}-work"),
    "delete": lambda world: world.jobs[0].delete(),
    "release": lambda world: world.jobs[0].release(delay=1000),
    "bury": lambda world: world.jobs[0].bury(5),
    "touch": lambda world: world.jobs[0].touch(),
    "reserve": lambda world: world.conn.reserve_with_timeout(0),
    "stats": lambda world: world.conn.stats(),
    "producer.put": lambda world: world.producer.put(world.tube, b"outer"),
    "producer.put_many": lambda world: world.producer.put_many(world.tube, [b"outer", b"outer"]),
}
HANDLERS: dict[str, Callable[[World], Any]] = {
    "puts": lambda world: world.conn.put(f"{world.tube}-2", b"handler"),
    "deletes the same job": lambda world: world.jobs[0].delete(),
    "reserves": lambda world: world.conn.reserve_with_timeout(0),
    "producer puts": lambda world: world.producer.put(f"{world.tube}-2", b"handler"),
}


def check_ids(other: gstalk.Conn, result: Any, tube: str, body: bytes, where: str) -> None:
    """The ids are those of the bodies that were put for them."""
    for job_id in result if isinstance(result, list) else [result]:
        job = other.peek(job_id)
        assert job is not None, where
        assert (job.body, other.stats_job(job_id).tube) == (body, tube), where
        other.delete(job_id)


@pytest.mark.soak
@pytest.mark.limit(600)
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_handler_at_any_line_of_a_call_works_or_is_refused(operation, handler, worlds, other, many, rng):
    """Each gets what is his own; what was refused has sent nothing; and the connection goes on."""
    outcomes: Counter[str] = Counter()
    number = 0
    while True:
        number += many(rng.randrange(1, 12), 1)
        world = worlds()
        struck = Handler(number, partial(HANDLERS[handler], world))
        result = struck.run(partial(OPERATIONS[operation], world))
        where = struck.where
        outcomes[type(struck.result).__name__] += bool(where)
        if "put" in operation:
            check_ids(other, result, world.tube, b"outer", where)
        if "put" in handler and isinstance(struck.result, (int, list)):
            check_ids(other, struck.result, f"{world.tube}-2", b"handler", where)
        for told in (result, struck.result):
            fine = (gstalk.JobFinishedError, BlockingSwitchOutError, gstalk.NotIgnoredError)
            assert not isinstance(told, Exception) or isinstance(told, fine), (told, where)
        settles = {"delete", "release", "bury"} & {operation}
        if settles or (handler == "deletes the same job" and struck.result is None and where):
            assert world.jobs[0].is_finished, where
            assert not world.jobs[0].is_lost, where
        assert world.conn.is_connected, where
        assert world.producer._queue.puts == 0, where
        for job in world.jobs:
            if not job.is_finished:
                job.delete()
        other.kick(f"{world.tube}-work", 9)
        while job_left := other.peek_delayed(f"{world.tube}-work") or other.peek_ready(f"{world.tube}-work"):
            other.delete(job_left)
        assert other.peek_ready(world.tube) is None, where
        assert other.peek_ready(f"{world.tube}-2") is None, where
        if not where:
            break
    assert outcomes.total() > many(2, 20)
    assert BlockingSwitchOutError.__name__ in outcomes or not many(0, 1)


@pytest.mark.parametrize("handler", HANDLERS)
def test_handler_in_the_hub_is_refused(handler, worlds, other, tube, many, rng):
    """It strikes there while a reply is read, for instance, and nothing can wait there."""
    number = 0
    while True:
        number += many(rng.randrange(1, 12), 1)
        world = worlds()
        struck = Handler(number, partial(HANDLERS[handler], world))
        check_ids(other, struck.run(partial(world.conn.put, tube, b"outer"), hub=True), tube, b"outer", struck.where)
        assert isinstance(struck.result, BlockingSwitchOutError) or not struck.where
        for job in world.jobs:
            job.delete()
        if not struck.where:
            break


class InBatch(Handler):
    """Strikes in one method alone of what a `put_many` has under way, and not in the hub."""

    def __init__(self, method: str, number: int, call: Callable[[], object]) -> None:
        super().__init__(number, call)
        self.place = (method, "pool/puts.py")

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if (frame.f_code.co_name, frame.f_code.co_filename.rpartition("/gstalk/")[2]) == self.place:
            return super().trace(frame, event, _)
        return self.trace if event == "call" else None


@contextmanager
def answering_later(play: Any) -> Iterator[tuple[gstalk.Producer, Event]]:
    """A connected Producer, and what has its server answer puts, which it doesn't until then."""
    answer = Event()
    with gstalk.Producer(play({"put": lambda _: answer.wait() and None}).uri) as producer:
        assert producer.wait_connected(5)
        yield producer, answer


def let_answer(answer: Event) -> None:
    """In a signal handler: have the server answer, and wait until it has."""
    answer.set()
    gevent.sleep(0.02)


def test_put_many_whose_handler_waits_while_bodies_are_answered_leaves_none_under_way(server, conn, tube):
    """A `stop` would wait for it in vain."""

    def wait() -> None:
        for _ in range(3):  # the server has answered what was sent before by then
            conn.put(tube, b"handler")

    with gstalk.Producer(server.uri) as producer:
        for number in itertools.count(1):
            struck = InBatch("add", number, wait)
            assert len(struck.run(partial(producer.put_many, tube, [b"x"] * 3))) == 3
            assert producer._queue.puts == 0, struck.where
            if not struck.where:
                break
        assert number > 10
        producer.stop(0)


def test_put_many_whose_handler_waits_while_the_last_body_is_answered_is_under_way_once(play, monkeypatch):
    """The first body is in flight, and the second one is refused, since there is no room for it."""
    monkeypatch.setattr(put_queue, "FULL", 1)
    for number in itertools.count(1):
        with answering_later(play) as (producer, answer):
            struck = InBatch("_settle", number, partial(let_answer, answer))
            later = gevent.spawn_later(0.1, answer.set)
            told = struck.run(partial(producer.put_many, "default", [b"sent", b"refused"], timeout=0))
            later.kill()
            assert [type(result) for result in told.results] == [int, gstalk.PutTimeoutError], struck.where
            assert producer._queue.puts == 0, struck.where
        if not struck.where:
            break
    assert number > 4


def test_put_many_whose_handler_waits_while_it_is_left_is_under_way_once(play):
    """It was interrupted, and its body is answered just then."""
    for number in itertools.count(1):
        with answering_later(play) as (producer, answer):

            def put(producer: gstalk.Producer = producer) -> None:
                with gevent.Timeout(0.02, False):  # type: ignore[arg-type]  # the stubs lack False
                    producer.put_many("default", [b"x"])

            struck = InBatch("leave", number, partial(let_answer, answer))
            struck.run(put)
            answer.set()
            assert producer._queue.puts == 0, struck.where
        if not struck.where:
            break
    assert number > 4


def test_close_by_a_handler_at_any_line_of_the_hub_ends_everybodys_wait_without_a_fault(
    connect, tube, many, rng, capfd
):
    """The hub goes on with the read, or the send, that was interrupted."""
    number = closed = 0
    while True:
        number += many(rng.randrange(1, 6), 1)
        conn = connect()
        struck = Handler(number, conn.close)
        told = struck.run(partial(run_puts, conn, tube), hub=True)
        if not struck.where:
            break
        if isinstance(struck.result, BlockingSwitchOutError):  # greenlets that the hub starts are traced, too
            continue
        closed += 1
        assert struck.result is None, struck.where
        assert not conn.is_connected
        assert all(isinstance(each, (int, gstalk.ConnectionClosedError)) for each in told), (told, struck.where)
        assert capfd.readouterr().err == "", struck.where
    assert closed > many(5, 30)


def run_puts(conn: gstalk.Conn, tube: str) -> list[Any]:
    """What eight puts at once come to."""

    def put() -> object:
        try:
            return conn.put(tube, b"x")
        except gstalk.GstalkError as error:
            return error

    return [greenlet.value for greenlet in gevent.joinall([gevent.spawn(put) for _ in range(8)])]


REFUSED: dict[str, Callable[[World], object]] = {
    "put_many": lambda world: world.conn.put_many(world.tube, [b"handler"]),
    "use": lambda world: world.conn.use(world.tube),
    "watch": lambda world: world.conn.watch(world.tube),
    "ignore": lambda world: world.conn.ignore(world.tube),
    "reserve_job": lambda world: world.conn.reserve_job(1),
    "delete by id": lambda world: world.conn.delete(2**60),
    "delete a job": lambda world: world.conn.delete(world.jobs[0]),
    "release": lambda world: world.jobs[0].release(),
    "bury": lambda world: world.jobs[0].bury(1),
    "touch": lambda world: world.jobs[0].touch(),
    "job's stats": lambda world: world.jobs[0].stats(),
    "kick": lambda world: world.conn.kick(world.tube, 1),
    "kick_job": lambda world: world.conn.kick_job(2**60),
    "peek": lambda world: world.conn.peek(2**60),
    "peek_ready": lambda world: world.conn.peek_ready(f"{world.tube}-2"),
    "stats": lambda world: world.conn.stats(),
    "stats_tube": lambda world: world.conn.stats_tube("default"),
    "list_tubes": lambda world: world.conn.list_tubes(),
    "pause_tube": lambda world: world.conn.pause_tube("default", 0),
    "close": lambda world: world.conn.close(),
    "producer.put_many": lambda world: world.producer.put_many(f"{world.tube}-2", [b"handler"]),
    "producer.stop": lambda world: world.producer.stop(),
    "producer.wait_connected": lambda world: world.producer.wait_connected(),
}


@pytest.mark.parametrize("operation", ["put", "producer.put"])
@pytest.mark.parametrize("handler", REFUSED)
def test_every_call_in_the_middle_of_a_put_is_refused(handler, operation, worlds, other):
    """Whichever it is: none may take the lines that were interrupted for its own, and go in."""
    section = section_of(gevent.get_hub())
    world = worlds()
    refused = 0

    def call_inside() -> object:
        return REFUSED[handler](world) if section.owner is gevent.getcurrent() else None

    for number in itertools.count(1):
        struck = Handler(number, call_inside)
        result = struck.run(partial(OPERATIONS[operation], world))
        check_ids(other, result, world.tube, b"outer", struck.where)
        assert struck.result is None or isinstance(struck.result, BlockingSwitchOutError), struck.where
        refused += struck.result is not None
        if not struck.where:
            break
    assert refused > 5
    for job in world.jobs:
        job.delete()


def test_greenlet_that_comes_while_a_handler_sleeps_in_the_middle_of_a_put_waits(conn, other, tube):
    """And so does the hub: what stands half done there may not be looked at."""
    section = section_of(gevent.get_hub())
    seen: list[object] = []

    def sleep_inside() -> None:
        if section.owner is not gevent.getcurrent():
            raise BlockingSwitchOutError  # nothing was half done yet: try the next line
        beside = gevent.spawn(conn.put, tube, b"beside")
        gevent.sleep(0.05)
        seen.append(beside.ready())
        inside.append(beside)

    inside: list[Any] = []
    for number in itertools.count(1):
        struck = Handler(number, sleep_inside)
        check_ids(other, struck.run(partial(conn.put, tube, b"outer")), tube, b"outer", struck.where)
        for beside in inside:
            check_ids(other, beside.get(timeout=5), tube, b"beside", struck.where)
        inside.clear()
        if not struck.where:
            break
    assert len(seen) > 10
    assert set(seen) == {False}


def test_put_that_is_killed_while_a_handler_sleeps_in_the_middle_of_another_lets_nobody_in(server, conn, other, tube):
    """It gives its connection back, and leaves the section to the one who is inside."""
    section = section_of(gevent.get_hub())
    with FaultProxy(server.uri) as proxy, gstalk.Producer(proxy.uri, put_timeout=60, conn_timeout=60) as producer:
        assert producer.wait_connected(5)
        proxy.stall()
        beside: list[Any] = []

        def sleep_inside() -> object:
            if section.owner is not gevent.getcurrent():
                return None
            waiting.kill(block=False)
            gevent.sleep(0.01)
            beside.append(gevent.spawn(conn.put, tube, b"beside"))
            gevent.sleep(0.01)
            return waiting.ready() and section.owner is gevent.getcurrent()

        for number in itertools.count(1):
            waiting = gevent.spawn(producer.put, tube, b"never answered")
            gevent.sleep(0.005)
            struck = Handler(number, sleep_inside)
            check_ids(other, struck.run(partial(conn.put, tube, b"outer")), tube, b"outer", struck.where)
            for each in beside:
                check_ids(other, each.get(timeout=5), tube, b"beside", struck.where)
            assert struck.result in (None, True), struck.where
            waiting.kill()
            if not struck.where:
                break
            beside.clear()
        producer.stop(0)
    assert number > 10


def test_automatic_touch_while_a_handler_sleeps_in_the_middle_of_a_call_is_put_off(server, conn, tube):
    """Its timer runs in the hub, where what stands half done may not be added to."""
    conn.put(tube, b"x", ttr=1)
    slept: list[str] = []
    results: list[Any] = []
    touches: list[int] = []

    def sleep_between() -> None:
        path, _, line = struck[-1].where.partition(" ")[0].partition(":")
        if linecache.getline(f"{gstalk.__path__[0]}/{path}", int(line)).strip() == "self._out.append(data)":
            slept.append(struck[-1].where)
            gevent.sleep(0.4)  # the timer strikes

    def handler(job: gstalk.Job) -> None:
        for number in itertools.count(1):
            struck.append(Handler(number, sleep_between))
            results.append(struck[-1].run(job.stats))
            if slept:
                break
        touches.append(conn.stats().cmd_touch)
        wait_until(lambda: conn.stats().cmd_touch > touches[0], 5)  # it goes on
        job.delete()
        consumer.stop()

    struck: list[Handler] = []
    consumer = gstalk.Consumer(server.uri, tube, auto_touch=True)
    consumer.receive(handler)
    assert {type(result).__name__ for result in results} == {"JobStats"}


@pytest.mark.limit(180)  # a Producer for each line of a put
def test_put_whose_handler_sleeps_in_line_is_not_wakened_out_of_that_sleep(server, tube):
    """Its turn comes meanwhile; it takes that when the handler has returned."""
    slept = 0

    def sleep_in_line() -> None:
        nonlocal slept
        # Not in `join`, which says why, nor in the keepers' greenlets.
        if producer._queue.has_line and struck.where.startswith(("producer.py", "pool/put_queue.py")):
            gevent.sleep(0.05)
            slept += 1

    for number in itertools.count(1):
        with gstalk.Producer(server.uri) as producer:
            struck = Handler(number, sleep_in_line)
            check = struck.run(partial(producer.put, tube, b"x"))
        assert isinstance(check, int), struck.where
        if not struck.where:
            break
    assert slept > 5


def test_connection_that_is_cut_while_a_handler_sleeps_in_the_middle_of_a_put_leaves_nobody_waiting(connect, tube):
    conn = connect()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        if section.owner is gevent.getcurrent():
            gevent.spawn(conn._connection.cut)
            gevent.sleep(0.001)
            cuts += 1

    section = section_of(gevent.get_hub())
    for tube_in_use in (True, False):
        for number in itertools.count(1):
            if not conn.is_connected:
                conn = connect()
            conn.use(tube if tube_in_use else "default")
            struck = Handler(number, cut)
            result = struck.run(partial(conn.put, tube, b"x"))
            assert isinstance(result, (int, gstalk.ConnectionClosedError)), struck.where
            if not struck.where:
                break
    assert cuts > 10


def test_exception_on_the_line_that_leaves_the_section_keeps_nobody_out(conn, other, tube):
    """A greenlet that was struck there has left: it is found out when the next one comes."""
    section = section_of(gevent.get_hub())
    dead = gevent.spawn(lambda: None)
    dead.join()
    for owner in (dead, gevent.getcurrent(), gevent.spawn(gevent.sleep, 0)):
        section.owner = owner
        check_ids(other, conn.put(tube, b"x"), tube, b"x", "")
        assert section.owner is None


@pytest.mark.soak
@pytest.mark.limit(1200)
def test_real_signals_at_random_moments_of_many_puts_swap_no_reply(server, other, tube, many, figures):
    """A timer of the process strikes some thousand times while greenlets put, and its handler puts on the same Conn."""
    conn = gstalk.dial(server.uri)
    outcomes: Counter[str] = Counter()
    stored: list[int] = []

    def on_alarm(*_: object) -> None:
        try:
            stored.append(conn.put(f"{tube}-2", b"handler"))
            outcomes["worked"] += 1
        except BlockingSwitchOutError:
            outcomes["refused"] += 1

    def put_some(name: int) -> list[tuple[int, bytes]]:
        found = []
        for n in range(many(300, 20_000)):
            body = b"%d %d" % (name, n)
            found.append((conn.put(f"{tube}-{name % 2}", body), body))
        return found

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        putting = [gevent.spawn(put_some, name) for name in range(16)]
        wait_until(lambda: all(each.ready() for each in putting), many(50, 1000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for each in putting:
        for job_id, body in each.get():
            job = other.peek(job_id)
            assert job is not None
            assert job.body == body
    for job_id in stored:
        job = other.peek(job_id)
        assert job is not None
        assert job.body == b"handler"
    assert sum(outcomes.values()) > 100
    figures |= {**outcomes}
    conn.close()


class InRecall(Handler):
    """Strikes the greenlet that ends a wait alone."""

    def trace(self, frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename.endswith("gstalk/connection/recall.py"):
            return super().trace(frame, event, _)
        return self.trace if event == "call" else None


@pytest.mark.parametrize("what", ["put", "stats", "delete", "reserve"])
def test_handler_in_the_greenlet_that_ends_a_wait_is_refused_with_nothing_sent(connect, tube, what):
    """It would wait for what only the interrupted lines can bring about."""

    def strike(number: int) -> InRecall:
        conn = connect()
        conn.watch("nobody-puts-here")
        conn.ignore(tube)
        calls = {"put": lambda: conn.put(tube, b"x"), "delete": lambda: conn.delete(1)}
        waiting = gevent.spawn(conn.reserve)
        wait_until(lambda: not conn._connection.pipe.clear)
        handler = InRecall(number, calls.get(what) or getattr(conn, what))
        assert handler.run(lambda: conn.put(f"{tube}-other", b"")) > 0
        waiting.kill()
        conn.close()
        return handler

    results = {each.where: each.result for each in map(strike, range(1, 40))}
    refused = [where for where, result in results.items() if isinstance(result, BlockingSwitchOutError)]
    assert len([where for where in refused if " in _run" in where or " in _end_wait" in where]) > 5
    stored = [result for result in results.values() if isinstance(result, int)]  # when the new connection was there
    assert connect().stats_tube(tube).current_jobs_ready == len(stored)
