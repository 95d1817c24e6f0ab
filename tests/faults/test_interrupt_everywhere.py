"""Every public operation, interrupted at each of its switches, by each kind of exception.

gevent delivers a Timeout or a kill only where a greenlet switches, so the ways to interrupt an operation can be
counted: run it once and count, then run it again for every switch and every exception, and look at what is left.
"""

from __future__ import annotations

import gc
import inspect
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import greenlet
import pytest

import gstalk
from gstalk.testing import Beanstalkd
from tests.conftest import SOAK
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.limit(1800 if SOAK else 120)]


class OwnError(Exception):
    """Somebody's own exception, thrown into a greenlet."""


class OwnTimeout(OSError):
    """A user's timeout class that looks like a network's error."""


EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: gevent.Timeout(60),
    lambda: gevent.GreenletExit(),
    lambda: KeyboardInterrupt(),
    lambda: OwnTimeout(),
    lambda: OwnError(),
    lambda: gstalk.ConnectionLostError("the user's own"),
]

TURNS = (0, 1, 3)

_numbers = itertools.count()


class World:
    """One run's connection, tube and jobs; `other` is a connection that nobody interrupts."""

    def __init__(self, conn: gstalk.Conn, other: gstalk.Conn) -> None:
        self.conn, self.other = conn, other
        self.tube = f"t{next(_numbers)}"
        conn.watch(self.tube)
        conn.ignore("default")
        self.job: gstalk.Job | None = None
        self.held = 0  # jobs that the interrupted operation has nothing to do with
        self.late: list[Any] = []

    def put(self, body: bytes = b"x") -> int:
        return self.other.put(self.tube, body, priority=7)

    def put_late(self) -> None:
        self.late.append(gevent.spawn_later(0.02, self.put))

    def hold(self) -> gstalk.Job:
        self.put()
        self.job = self.conn.reserve()
        return self.job

    def close(self) -> None:
        gevent.joinall(self.late)
        self.conn.close()


# -- what is interrupted: from a name to a function that prepares a world, and returns what is called in it ----------

Operation = Callable[[World], Callable[[], Any]]


def on_conn(name: str, *args: Any, **options: Any) -> Operation:
    return lambda world: lambda: getattr(world.conn, name)(*args, **options)


def on_tube(name: str, *args: Any, **options: Any) -> Operation:
    return lambda world: lambda: getattr(world.conn, name)(world.tube, *args, **options)


def on_id(name: str, *args: Any, **options: Any) -> Operation:
    return lambda world: partial(getattr(world.conn, name), world.hold().id, *args, **options)


def on_job(name: str, *args: Any, **options: Any) -> Operation:
    return lambda world: partial(getattr(world.hold(), name), *args, **options)


def reserve_ready(world: World) -> Callable[[], Any]:
    world.put()
    return world.conn.reserve


def reserve_waits(world: World) -> Callable[[], Any]:
    world.put_late()
    return world.conn.reserve


def reserve_holding(world: World) -> Callable[[], Any]:
    world.hold()
    world.held = 1
    return reserve_waits(world)


def reserve_with_timeout(world: World) -> Callable[[], Any]:
    world.put_late()
    return lambda: world.conn.reserve_with_timeout(5)


def reserve_job(world: World) -> Callable[[], Any]:
    return partial(world.conn.reserve_job, world.put())


def peek(world: World) -> Callable[[], Any]:
    return partial(world.conn.peek, world.put(b"x" * 60000))


def kick_buried(world: World) -> Callable[[], Any]:
    job = world.hold()
    job.bury()
    return job.kick


def kick_job(world: World) -> Callable[[], Any]:
    job = world.hold()
    job.bury()
    return partial(world.conn.kick_job, job.id)


def ignore(world: World) -> Callable[[], Any]:
    world.conn.watch("another")
    return partial(world.conn.ignore, "another")


OPERATIONS: dict[str, Operation] = {
    "Conn.put": on_conn("put", "default", b"x", delay=1000),
    "Conn.put, another tube": on_tube("put", b"x", delay=1000),
    "Conn.put_many": on_conn("put_many", "default", [b"x"] * 1500, delay=1000),
    "Conn.reserve, ready": reserve_ready,
    "Conn.reserve, waiting": reserve_waits,
    "Conn.reserve, holding": reserve_holding,
    "Conn.reserve_with_timeout": reserve_with_timeout,
    "Conn.reserve_with_timeout, none": on_conn("reserve_with_timeout", 0.03),
    "Conn.reserve_job": reserve_job,
    "Conn.delete": on_id("delete"),
    "Conn.release": on_id("release"),
    "Conn.bury": on_id("bury"),
    "Conn.touch": on_id("touch"),
    "Conn.kick": on_tube("kick", 10),
    "Conn.kick_job": kick_job,
    "Conn.peek": peek,
    "Conn.peek_ready": on_tube("peek_ready"),
    "Conn.peek_delayed": on_tube("peek_delayed"),
    "Conn.peek_buried": on_tube("peek_buried"),
    "Conn.use": on_conn("use", "another"),
    "Conn.watch": on_conn("watch", "another"),
    "Conn.ignore": ignore,
    "Conn.list_tubes": on_conn("list_tubes"),
    "Conn.list_tubes_watched": on_conn("list_tubes_watched"),
    "Conn.list_tube_used": on_conn("list_tube_used"),
    "Conn.stats": on_conn("stats"),
    "Conn.stats_tube": on_conn("stats_tube", "default"),
    "Conn.stats_job": on_id("stats_job"),
    "Conn.pause_tube": on_conn("pause_tube", "default", 0),
    "Job.delete": on_job("delete"),
    "Job.release": on_job("release"),
    "Job.release, given": on_job("release", 9, 1000),
    "Job.bury": on_job("bury"),
    "Job.bury, given": on_job("bury", 9),
    "Job.touch": on_job("touch"),
    "Job.kick": kick_buried,
    "Job.stats": on_job("stats"),
    "Job.time_left": on_job("time_left"),
}
SETTLED = {
    "Conn.delete": None,
    "Conn.release": ("ready", 7),
    "Conn.bury": ("buried", 7),
    "Job.delete": None,
    "Job.release": ("ready", 7),
    "Job.release, given": ("delayed", 9),
    "Job.bury": ("buried", 7),
    "Job.bury, given": ("buried", 9),
}
ELSEWHERE = {"Conn.close", "Conn.uri", "Conn.is_connected", "Job.uri", "Job.is_finished", "Job.is_lost"}


def test_all_public_operations_are_interrupted() -> None:
    public = {
        f"{kind.__name__}.{name}"
        for kind in (gstalk.Conn, gstalk.Job)
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }
    assert {name.partition(",")[0] for name in OPERATIONS} == public - ELSEWHERE


# -- how ------------------------------------------------------------------------------------------------------------


class Run:
    """Runs a function in a greenlet, counts its switches, and throws at the k-th, at once or some turns later."""

    def __init__(
        self, function: Callable[[], Any], error: BaseException | None = None, at: int = 0, turns: int = 0
    ) -> None:
        self.switches = 0
        self.caught: BaseException | None = None
        self.result: Any = None
        self._function, self._error, self._at, self._turns = function, error or OwnError(), at, turns
        self._greenlet = gevent.spawn(self._call)
        before = greenlet.settrace(self._trace)
        try:
            with gevent.Timeout(10):
                self._greenlet.join()
        finally:
            greenlet.settrace(before)
        assert self.caught is None or self.caught is error, f"{self.caught!r} instead of {error!r} at switch {at}"

    def _call(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self.caught = error

    def _trace(self, event: str, args: tuple[Any, Any]) -> None:
        if event in ("switch", "throw") and args[0] is self._greenlet and not self._greenlet.dead:
            self.switches += 1
            if self.switches == self._at:
                gevent.get_hub().loop.run_callback(self._throw)

    def _throw_after(self, timer: Any) -> None:
        timer.close()
        self._throw()

    def _throw(self) -> None:
        if self._turns:
            self._turns -= 1
            timer: Any = gevent.get_hub().loop.timer(0)
            timer.start(self._throw_after, timer)
        elif not self._greenlet.dead:
            self._greenlet.throw(self._error)


def interruptions(undisturbed: Run) -> Iterator[tuple[BaseException, int, int]]:
    """Every exception at every switch, at once and some turns of the loop later.

    Of the many switches alike of a long stream, `make soak` takes all, the normal run the first and the last ones.
    """
    every = list(range(1, undisturbed.switches + 1))
    moments = every if SOAK or len(every) <= 12 else every[:6] + every[-6:]
    for at, turns, make in itertools.product(moments, TURNS, EXCEPTIONS):
        yield make(), at, turns
    print(f"{undisturbed.switches} switches, {len(moments) * len(TURNS) * len(EXCEPTIONS)} interruptions")


def timers() -> int:
    gevent.sleep(0.02)  # a throw that comes too late has a timer of its own
    kind: Any = type(gevent.get_hub().loop.timer(1))
    return sum(isinstance(each, kind) and each.active for each in gc.get_objects())


@pytest.fixture
def other(server: Beanstalkd, connect: Callable[..., gstalk.Conn]) -> gstalk.Conn:
    """A connection that nobody interrupts."""
    conn = connect(server.uri, conn_timeout=3600)
    conn.stats()  # its timer stands, before and after
    return conn


@pytest.fixture(params=["tcp", "tls"])
def dial(request: pytest.FixtureRequest, server: Beanstalkd) -> Callable[[], gstalk.Conn]:
    if request.param == "tcp":
        return partial(gstalk.dial, server.uri)
    terminator, trusting = request.getfixturevalue("terminator"), request.getfixturevalue("trusting")
    return partial(gstalk.dial, terminator.uri("good"), tls_context=trusting)


# -- Conn and Job ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_interrupted_at_any_switch_harms_nobody(server, other, name):
    interrupt_everywhere(name, partial(gstalk.dial, server.uri), other)


@pytest.mark.parametrize("name", ["Conn.put_many", "Conn.reserve, waiting", "Conn.peek", "Job.release"])
def test_operation_interrupted_over_tls_harms_nobody(terminator, trusting, other, name):
    interrupt_everywhere(name, partial(gstalk.dial, terminator.uri("good"), tls_context=trusting), other)


def interrupt_everywhere(name: str, dial: Callable[[], gstalk.Conn], other: gstalk.Conn) -> None:
    world = World(dial(), other)
    undisturbed = Run(OPERATIONS[name](world))
    world.close()
    before = timers()
    for blow in interruptions(undisturbed):
        world = World(dial(), other)
        sibling = world.hold()
        run = Run(OPERATIONS[name](world), *blow)
        # The next command gets its own reply, and nobody else's job was touched.
        assert world.conn.put("default", b"next", delay=1000) > sibling.id
        assert world.conn.stats_job(sibling).id == sibling.id
        assert world.conn.list_tube_used() == "default"
        sibling.delete()
        assert sibling.is_finished
        if name in SETTLED:
            check_settled(world, SETTLED[name])
        elif ".reserve" in name:
            check_reserved(world, run.result)
        pipe = world.conn._connection.pipe
        wait_until(lambda pipe=pipe: pipe.clear and not pipe.requests and not pipe._room, 1)  # type: ignore[misc]
        world.close()
    assert timers() <= before


def check_settled(world: World, expected: tuple[str, int] | None) -> None:
    """What was called was carried out."""
    job = world.job
    assert job is not None
    wait_until(lambda: job.is_finished, 1)
    assert not job.is_lost
    if expected is None:
        assert world.other.peek(job.id) is None
    else:
        stats = world.other.stats_job(job.id)
        assert (stats.state, stats.pri) == expected


def check_reserved(world: World, result: object) -> None:
    """What nobody got is ready again, with its own priority, at once."""
    gevent.joinall(world.late)
    held = world.held + isinstance(result, gstalk.Job)

    def goes_back() -> bool:
        try:
            stats = world.other.stats_tube(world.tube)
        except gstalk.NotFoundError:
            return True
        return stats.current_jobs_reserved is not None and stats.current_jobs_reserved <= held

    wait_until(goes_back, 1)
    if isinstance(result, gstalk.Job):
        result.delete()
    while (job := world.other.peek_ready(world.tube)) is not None:
        assert job.stats().pri == 7
        job.delete()


def test_dial_interrupted_at_any_switch_leaves_nothing(dial, other):
    def run() -> None:
        dial().close()

    connections, before = other.stats().current_connections, timers()
    for blow in interruptions(Run(run)):
        Run(run, *blow)
    assert timers() <= before
    wait_until(lambda: other.stats().current_connections <= connections)


def test_close_interrupted_closes_at_once(dial):
    for make in EXCEPTIONS:
        conn = dial()
        job_id = conn.put("default", b"x", delay=1000)
        gevent.spawn(conn.delete, job_id)
        gevent.sleep(0)
        Run(conn.close, make(), 1)
        assert not conn.is_connected


# -- Producer and Consumer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["put", "put_many"])
def test_producer_interrupted_at_any_switch_keeps_its_pool_whole(server, method):
    with gstalk.Producer(server.uri, multiply=2) as producer:
        producer.wait_connected()
        what = b"x" if method == "put" else [b"x"] * 1500
        function = partial(getattr(producer, method), "p", what, delay=1000)
        for blow in interruptions(Run(function)):
            Run(function, *blow)
            assert producer.put("p", b"next", delay=1000)
        wait_until(lambda: producer._queue._queue.qsize() == 2)
        wait_until(lambda: not any(member.pipe.requests for member in producer._queue._members.values()))


def test_producer_stop_and_wait_connected_interrupted_at_any_switch_leave_nothing(server, other):
    def run() -> None:
        producer = gstalk.Producer(server.uri)
        try:
            assert producer.wait_connected()
        finally:
            producer.stop()

    before = other.stats().current_connections
    for blow in interruptions(Run(run)):
        Run(run, *blow)
    wait_until(lambda: other.stats().current_connections <= before)


def test_producer_put_without_server_interrupted_passes_unchanged():
    with gstalk.Producer("127.0.0.1:1", error_func=lambda error, message: None) as producer:
        for make in EXCEPTIONS:
            error = make()
            assert Run(partial(producer.put, "p", b"x", timeout=5), error, 1).caught is error


def test_receive_interrupted_at_any_switch_lets_go_of_everything(server, other, tube):
    def handler(job: gstalk.Job) -> None:
        gevent.sleep(0.002)
        job.delete()
        if other.peek_ready(tube) is None:
            consumer.stop()

    before = other.stats().current_connections
    consumer = gstalk.Consumer(server.uri, tube, num_greenlets=3)
    other.put_many(tube, [b"x"] * 6)
    for blow in interruptions(Run(partial(consumer.receive, handler))):
        other.put_many(tube, [b"x"] * 6)
        consumer = gstalk.Consumer(server.uri, tube, num_greenlets=3)
        Run(partial(consumer.receive, handler), *blow)
        assert other.stats_tube(tube).current_jobs_reserved == 0
        while (job := other.peek_ready(tube)) is not None:
            job.delete()
    wait_until(lambda: other.stats().current_connections <= before)


def test_consumer_wait_connected_interrupted_passes_unchanged(server):
    consumer = gstalk.Consumer(server.uri, "default")
    for make in EXCEPTIONS:
        error = make()
        assert Run(consumer.wait_connected, error, 1).caught is error
