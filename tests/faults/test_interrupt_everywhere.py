"""Every public operation, interrupted at each of its switches, by each kind of exception.

gevent delivers a Timeout or a kill only where a greenlet switches, so the ways to interrupt an operation can be
counted: run it once and count, then run it again for every switch and every exception, and look at what is left.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import greenlet
import pytest
from gevent.event import Event

import gstalk
from gstalk.testing import Beanstalkd

pytestmark = pytest.mark.real


class OwnError(Exception):
    """Somebody's own exception, thrown into a greenlet."""


class OwnTimeout(OSError):
    """A user's timeout class that looks like a network's error."""


_numbers = itertools.count()

EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: gevent.Timeout(60),
    lambda: gevent.GreenletExit(),
    lambda: KeyboardInterrupt(),
    lambda: OwnTimeout(),
    lambda: OwnError(),
    lambda: gstalk.ConnectionLostError("the user's own"),
]


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with Beanstalkd() as server:
        yield server.uri


class World:
    """One run's connections, tube and jobs; `other` is a connection that nobody interrupts."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.tube = f"t{next(_numbers)}"
        self.conn = gstalk.dial(uri)
        self.other = gstalk.dial(uri)
        self.conn.watch(self.tube)
        self.conn.ignore("default")
        self.extra: list[Any] = []
        self.late: list[Any] = []

    def held(self, priority: int = 7) -> gstalk.Job:
        self.other.put(self.tube, b"held", priority=priority)
        job = self.conn.reserve()
        self.extra.append(job)
        return job

    def close(self) -> None:
        gevent.joinall(self.late)
        self.conn.close()
        self.other.close()


def put(world: World) -> Callable[[], Any]:
    return lambda: world.conn.put("default", b"x", delay=1000)


def put_new_tube(world: World) -> Callable[[], Any]:
    return lambda: world.conn.put(world.tube, b"x", delay=1000)


def put_many(world: World) -> Callable[[], Any]:
    return lambda: world.conn.put_many(world.tube, [b"x"] * 1500, delay=1000)


def reserve_ready(world: World) -> Callable[[], Any]:
    world.other.put(world.tube, b"ready", priority=7)
    return lambda: world.conn.reserve()


def reserve_waits(world: World) -> Callable[[], Any]:
    world.late.append(gevent.spawn_later(0.05, world.other.put, world.tube, b"late", priority=7))
    return lambda: world.conn.reserve()


def reserve_beside_held(world: World) -> Callable[[], Any]:
    world.held()
    world.late.append(gevent.spawn_later(0.02, world.other.put, world.tube, b"late", priority=7))
    return lambda: world.conn.reserve()


def reserve_none(world: World) -> Callable[[], Any]:
    return lambda: world.conn.reserve_with_timeout(0.03)


def reserve_job(world: World) -> Callable[[], Any]:
    job_id = world.other.put(world.tube, b"x", priority=7)
    return lambda: world.conn.reserve_job(job_id)


def delete(world: World) -> Callable[[], Any]:
    return world.held().delete


def release(world: World) -> Callable[[], Any]:
    return world.held().release


def release_given(world: World) -> Callable[[], Any]:
    job = world.held()
    return lambda: job.release(9, 1000)


def bury(world: World) -> Callable[[], Any]:
    return world.held().bury


def touch(world: World) -> Callable[[], Any]:
    return world.held().touch


def job_stats(world: World) -> Callable[[], Any]:
    return world.held().stats


def time_left(world: World) -> Callable[[], Any]:
    return world.held().time_left


def kick(world: World) -> Callable[[], Any]:
    return lambda: world.conn.kick(world.tube, 10)


def peek(world: World) -> Callable[[], Any]:
    job_id = world.other.put(world.tube, b"x" * 60000, delay=1000)
    return lambda: world.conn.peek(job_id)


def peek_delayed(world: World) -> Callable[[], Any]:
    return lambda: world.conn.peek_delayed(world.tube)


def watch(world: World) -> Callable[[], Any]:
    return lambda: world.conn.watch("another")


def ignore(world: World) -> Callable[[], Any]:
    world.conn.watch("another")
    return lambda: world.conn.ignore("another")


def use(world: World) -> Callable[[], Any]:
    return lambda: world.conn.use("another")


def stats(world: World) -> Callable[[], Any]:
    return lambda: world.conn.stats()


def list_tubes(world: World) -> Callable[[], Any]:
    return lambda: world.conn.list_tubes()


def pause(world: World) -> Callable[[], Any]:
    return lambda: world.conn.pause_tube(world.tube, 0)


OPERATIONS = [
    put,
    put_new_tube,
    put_many,
    reserve_ready,
    reserve_waits,
    reserve_beside_held,
    reserve_none,
    reserve_job,
    delete,
    release,
    release_given,
    bury,
    touch,
    job_stats,
    time_left,
    kick,
    peek,
    peek_delayed,
    watch,
    ignore,
    use,
    stats,
    list_tubes,
    pause,
]
SETTLED = {"delete": None, "release": ("ready", 7), "release_given": ("delayed", 9), "bury": ("buried", 7)}


class Run:
    """Runs a function in a greenlet, counts its switches, and throws at the k-th."""

    def __init__(self, function: Callable[[], Any], error: BaseException | None = None, at: int = 0) -> None:
        self.switches = 0
        self.caught: BaseException | None = None
        self.result: Any = None
        self._function, self._error, self._at = function, error or OwnError(), at
        self._greenlet = gevent.spawn(self._call)
        before = greenlet.settrace(self._trace)
        try:
            with gevent.Timeout(10):
                self._greenlet.join()
        finally:
            greenlet.settrace(before)

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

    def _throw(self) -> None:
        if not self._greenlet.dead:
            self._greenlet.throw(self._error)


def moments(undisturbed: Run) -> list[int]:
    """Every switch of a run; of the many alike of a long stream, the first and the last ones."""
    every = list(range(1, undisturbed.switches + 1))
    return every if len(every) <= 12 else every[:6] + every[-6:]


def wait_until(check: Callable[[], bool], seconds: float = 1.0) -> bool:
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        gevent.sleep(0.005)
    return True


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_operation_interrupted_at_any_switch_harms_nobody(uri: str, operation: Callable[[World], Any]) -> None:
    world = World(uri)
    undisturbed = Run(operation(world))
    assert undisturbed.caught is None
    world.close()
    cases = 0
    for at in moments(undisturbed):
        for make in EXCEPTIONS:
            world = World(uri)
            sibling = world.held(priority=3)
            function = operation(world)
            error = make()
            run = Run(function, error, at)
            cases += 1
            if run.caught is not None:
                assert run.caught is error, f"{operation.__name__} at switch {at}: {run.caught!r} instead of {error!r}"
            # The next command gets its own reply, and nobody else's job was touched.
            assert world.conn.put("default", b"next", delay=1000) > sibling.id
            assert world.conn.stats_job(sibling).id == sibling.id
            assert world.conn.list_tube_used() == "default"
            sibling.delete()
            assert sibling.is_finished
            if operation.__name__ in SETTLED:
                job = world.extra[-1]
                assert wait_until(lambda job=job: job.is_finished)  # type: ignore[misc]
                expected = SETTLED[operation.__name__]
                found = world.other.peek(job.id)
                if expected is None:
                    assert found is None
                else:
                    seen = world.other.stats_job(job.id)
                    assert (seen.state, seen.pri) == expected
            elif operation.__name__.startswith("reserve_") and operation is not reserve_none:
                if isinstance(run.result, gstalk.Job):
                    run.result.delete()
                else:
                    # Nobody has the job: it is ready again, with its own priority.
                    assert wait_until(
                        lambda world=world: (
                            (job := world.other.peek_ready(world.tube)) is not None  # type: ignore[misc]
                            and job.stats().state == "ready"
                        )
                    ), f"at switch {at} {error!r}: {world.other.stats_tube(world.tube)}"
                    job = world.other.peek_ready(world.tube)
                    assert job is not None
                    assert job.stats().pri == 7
            world.close()
    print(f"{operation.__name__}: {undisturbed.switches} switches, {cases} interruptions")


def test_dial_interrupted_at_any_switch_leaves_nothing(uri: str) -> None:
    def dial() -> None:
        gstalk.dial(uri).close()

    undisturbed = Run(dial)
    with gstalk.dial(uri) as watcher:
        for at in moments(undisturbed):
            for make in EXCEPTIONS:
                error = make()
                run = Run(dial, error, at)
                assert run.caught is None or run.caught is error
        assert wait_until(lambda: watcher.stats().current_connections == 1)


def test_close_interrupted_closes_at_once(uri: str) -> None:
    for make in EXCEPTIONS:
        conn = gstalk.dial(uri)
        job_id = conn.put("default", b"x", delay=1000)
        gevent.spawn(conn.delete, job_id)
        gevent.sleep(0)
        error = make()
        run = Run(conn.close, error, 1)
        assert run.caught is None or run.caught is error
        assert not conn.is_connected


def test_producer_put_interrupted_at_any_switch_leaves_the_pool_whole(uri: str) -> None:
    with gstalk.Producer(uri, multiply=2) as producer:
        producer.wait_connected()
        for function in (
            lambda: producer.put("p", b"x", delay=1000),
            lambda: producer.put_many("p", [b"x"] * 1500, delay=1000),
        ):
            undisturbed = Run(function)
            assert undisturbed.caught is None
            for at in moments(undisturbed):
                for make in EXCEPTIONS:
                    error = make()
                    run = Run(function, error, at)
                    assert run.caught is None or run.caught is error
                    assert producer.put("p", b"next", delay=1000)
        gevent.sleep(0.05)
        assert producer._queue.qsize() == 2
        assert [lane.in_flight for lane in producer._lanes.values()] == [0, 0]


def test_producer_put_without_server_interrupted_passes_unchanged() -> None:
    with gstalk.Producer("127.0.0.1:1", error_func=lambda error, message: None) as producer:
        for make in EXCEPTIONS:
            error = make()
            run = Run(lambda: producer.put("p", b"x", timeout=5), error, 1)
            assert run.caught is error


def test_receive_interrupted_at_any_switch_lets_go_of_everything(uri: str) -> None:
    with gstalk.dial(uri) as other:

        def receive() -> None:
            done = Event()
            consumer = gstalk.Consumer(uri, "c", num_greenlets=3)

            def handler(job: gstalk.Job) -> None:
                gevent.sleep(0.002)
                job.delete()
                if other.peek_ready("c") is None:
                    consumer.stop()

            consumer.receive(handler)
            done.set()

        other.put_many("c", [b"x"] * 6)
        undisturbed = Run(receive)
        assert undisturbed.caught is None
        for at in moments(undisturbed):
            for make in EXCEPTIONS:
                other.put_many("c", [b"x"] * 6)
                error = make()
                run = Run(receive, error, at)
                assert run.caught is None or run.caught is error
                assert other.stats_tube("c").current_jobs_reserved == 0
                while (job := other.peek_ready("c")) is not None:
                    job.delete()
        assert wait_until(lambda: other.stats().current_connections == 1)


def test_nothing_is_left_behind(uri: str) -> None:
    """Descriptors and greenlets after all that: as many as before a further round."""

    def count() -> int:
        gc.collect()
        return sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())

    gevent.sleep(0.1)
    before = count()
    for make in EXCEPTIONS:
        world = World(uri)
        Run(reserve_waits(world), make(), 1)
        world.close()
    assert wait_until(lambda: count() <= before)
