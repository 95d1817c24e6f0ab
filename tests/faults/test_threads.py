"""Threads: what belongs to one thread's hub refuses every other, and each thread may have its own.

A Producer belongs to none: `tests/io/test_hubs.py`.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from time import sleep
from typing import Any

import gevent
import pytest
from gevent import get_hub

import gstalk
from gstalk.testing import FaultProxy
from tests.faults.programs.running import Program
from tests.servers import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

WAY_OUT = "use it and its jobs there, or dial one in each thread; a Producer puts from any thread"
TRIES = 1000
THREADS = 4


class Thread:
    """A function in a native thread, whose hub goes with it; `errors` is what it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.errors: list[BaseException] = []
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self.errors.append(error)
        finally:
            get_hub().destroy(destroy_loop=True)

    def join(self, seconds: float = 50) -> None:
        """Wait for its end, while greenlets of this hub go on."""
        wait_until(lambda: not self._thread.is_alive(), seconds)
        self._thread.join()
        assert self.errors == []


# -- another thread's ---------------------------------------------------------------------------------------------

CONN: dict[str, tuple[Any, ...]] = {
    "put": ("wrong", b"x"),
    "put_many": ("wrong", [b"x"]),
    "reserve": (),
    "reserve_with_timeout": (0,),
    "reserve_job": (1,),
    "delete": (1,),
    "release": (1,),
    "bury": (1,),
    "touch": (1,),
    "kick": ("wrong", 1),
    "kick_job": (1,),
    "peek": (1,),
    "peek_ready": ("wrong",),
    "peek_delayed": ("wrong",),
    "peek_buried": ("wrong",),
    "use": ("wrong",),
    "watch": ("wrong",),
    "ignore": ("default",),
    "list_tubes": (),
    "list_tubes_watched": (),
    "list_tube_used": (),
    "stats": (),
    "stats_tube": ("wrong",),
    "stats_job": (1,),
    "pause_tube": ("wrong", 0),
    "close": (),
}
JOB: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ["delete", "release", "bury", "touch", "kick", "stats", "time_left"], ()
)


@pytest.mark.parametrize(("kind", "calls"), [(gstalk.Conn, CONN), (gstalk.Job, JOB)])
def test_all_public_methods_are_tried(kind, calls):
    public = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    assert set(calls) == public


def every_call(conn: gstalk.Conn, job: gstalk.Job) -> list[Callable[[], object]]:
    targets: list[tuple[object, dict[str, tuple[Any, ...]]]] = [(conn, CONN), (job, JOB)]
    calls = [partial(getattr(target, name), *args) for target, named in targets for name, args in named.items()]
    by_job = [partial(getattr(conn, name), job) for name in ("delete", "release", "bury", "touch", "stats_job")]
    return [*calls, *by_job, lambda: conn.__exit__(None, None, None)]


def refused(calls: list[Callable[[], object]], tries: int) -> None:
    """Call them in turn; each raises WrongHubError."""
    for call in itertools.islice(itertools.cycle(calls), tries):
        with pytest.raises(gstalk.WrongHubError, match=f"belongs to another thread's hub: {WAY_OUT}$"):
            call()


@pytest.fixture
def proxy(server: Any) -> Iterator[FaultProxy]:
    with FaultProxy(server.uri) as proxy:
        yield proxy


@pytest.mark.parametrize("state", ["idle", "reserving", "holding"])
def test_use_from_another_thread_raises_and_sends_nothing(proxy, connect, tube, state):
    conn = connect(proxy.uri)
    conn.watch(tube)
    conn.put(tube, b"x")
    job = conn.reserve()
    reserving = None
    if state != "holding":
        held, job = job, conn.peek(job.id)
        held.delete()
    if state == "reserving":
        reserving = gevent.spawn(conn.reserve)
        wait_until(lambda: not conn._connection.pipe.clear)  # it waits on the server
    with gstalk.Producer(proxy.uri) as producer:
        producer.wait_connected()
        before = proxy.bytes_up, proxy.connections
        Thread(partial(refused, every_call(conn, job), TRIES)).join()
        if state != "holding":  # one that holds jobs asks again and again by itself, once it is to reserve
            assert (proxy.bytes_up, proxy.connections) == before
        assert producer.put(tube, b"y") > 0
        if reserving is not None:
            assert reserving.get(timeout=5).body == b"y"
    assert conn.is_connected
    assert conn.list_tube_used() == tube
    assert conn.list_tubes_watched() == ["default", tube]
    if state == "holding":
        assert not job.is_lost
        job.delete()


def test_use_from_other_threads_under_load_harms_nobody(own_server, connect, figures):
    """Nothing of what four threads try reaches the server, and the owner's greenlets all get their own replies."""
    conn, other = connect(own_server.uri), connect(own_server.uri)
    conn.watch("held")
    conn.put("held", b"x")
    job = conn.reserve()
    done = tries = 0

    def echo(number: int) -> None:
        nonlocal done
        while tries < THREADS * TRIES:
            body = b"%d-%d" % (number, done)
            found = conn.peek(conn.put("echo", body))
            assert found is not None
            assert found.body == body
            producer.put("echo", body)
            found.delete()
            done += 1

    def disturb(calls: list[Callable[[], object]]) -> None:
        nonlocal tries
        for start in range(0, TRIES, 10):
            seen = done
            refused(calls[start % len(calls) :] + calls, 10)
            with lock:
                tries += 10
            while done == seen and owners_run():  # so that each ten are beside the owner's own work
                sleep(0.001)

    def owners_run() -> bool:
        return not all(owner.ready() for owner in owners)

    lock = threading.Lock()
    owners: list[gevent.Greenlet[..., Any]] = []
    with gstalk.Producer(own_server.uri) as producer:
        producer.wait_connected()
        owners += [gevent.spawn(echo, number) for number in range(8)]
        threads = [Thread(partial(disturb, every_call(conn, job))) for _ in range(THREADS)]
        gevent.joinall(owners, timeout=50, raise_error=True)
        for thread in threads:
            thread.join()
    figures |= {"tries": tries, "echoes": done}
    assert done >= TRIES // 10
    job.delete()
    stats = other.stats()
    assert stats.cmd_put == 2 * done + 1
    assert stats.cmd_delete == done + 1
    assert (stats.cmd_release, stats.cmd_bury, stats.cmd_touch, stats.cmd_kick) == (0, 0, 0, 0)
    assert "wrong" not in other.list_tubes()


# -- its own ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_each_thread_may_have_its_own(request, server, tube, figures, scheme):
    if scheme == "tcp":
        uri, options = f"beanstalk://localhost:{server.port}", {}
    else:
        terminator, trusting = request.getfixturevalue("terminator"), request.getfixturevalue("trusting")
        uri, options = terminator.uri("good"), {"tls_context": trusting}
    handled = [0] * THREADS

    def live(number: int) -> None:
        mine = f"{tube}-{number}"
        expected = {b"%d-%d" % (number, each) for each in range(400)}

        def handler(job: gstalk.Job) -> None:
            expected.remove(job.body)
            job.delete()
            handled[number] += 1
            if not expected:
                consumer.stop()

        def put(part: list[bytes]) -> None:
            for body in part:
                producer.put(mine, body)

        consumer = gstalk.Consumer(uri, mine, **options)
        with gstalk.Producer(uri, **options) as producer, gstalk.dial(uri, **options) as conn:
            bodies = sorted(expected)
            putters = [gevent.spawn(put, bodies[start::8]) for start in range(8)]
            for each in range(200):
                body = b"own-%d-%d" % (number, each)
                found = conn.peek(conn.put(f"{mine}-own", body))
                assert found is not None
                assert found.body == body
                found.delete()
            consumer.receive(handler)
            gevent.joinall(putters, raise_error=True)

    threads = [Thread(partial(live, number)) for number in range(THREADS)]
    for thread in threads:
        thread.join()
    figures["handled"] = handled
    assert handled == [400] * THREADS


def test_consumer_of_another_thread_is_stopped_from_here(server, tube):
    consumer = gstalk.Consumer(server.uri, tube)
    thread = Thread(partial(consumer.receive, print))
    wait_until(lambda: consumer.is_connected)
    consumer.stop()
    thread.join(10)


# -- what a thread leaves behind ----------------------------------------------------------------------------------


def test_conn_that_another_thread_drops_closes_its_socket(connect, server, tube):
    other = connect(server.uri)
    box = [gstalk.dial(server.uri)]
    box[0].watch(tube)
    gevent.sleep(0)  # the hub lets go of the last reply

    def drop() -> None:
        box.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed connection"):
        Thread(drop).join()
    wait_until(lambda: tube not in other.list_tubes())


def test_conn_of_a_thread_that_has_ended_is_let_go_when_it_is_dropped(server):
    """In a process of its own, since gevent can't close the descriptor of a loop that is gone."""
    with Program("exits", "thread_ended", server.uri, "unpatched", "", flags=("-Walways::ResourceWarning",)) as program:
        code, said, errors = program.end()
    assert (code, said) == (0, ["WrongHubError", 1, 0])
    assert errors.count("ResourceWarning: unclosed connection to") == 1


def test_thread_that_waits_for_a_consumer_elsewhere_leaves_no_descriptor(server):
    consumer = gstalk.Consumer(server.uri, "nothing")
    thread = threading.Thread(target=consumer.wait_connected, args=(0.001,))  # knows of no hub
    thread.start()
    wait_until(lambda: not thread.is_alive())
    thread.join()


def test_thread_that_ends_beside_a_receive_gives_its_jobs_back(server):
    with Program("exits", "thread_ended_beside_a_receive", server.uri, "unpatched", "") as program:
        assert program.end() == (0, [[0, 1]], "")


def test_conn_of_a_thread_that_has_ended_without_its_hub_ends_for_the_server_when_it_is_dropped(server):
    """That hub is its maker's, who should `destroy` it. Nobody has, and its loop never turns again."""
    with Program("exits", "thread_ended_without_its_hub", server.uri, "unpatched", "") as program:
        assert program.end() == (0, [1, 0], "")


def test_conn_of_a_thread_that_has_ended_keeps_no_other_from_learning_of_a_fork(server):
    with Program("exits", "thread_ended_then_forked", server.uri, "unpatched", "") as program:
        assert program.end() == (0, [20], "")
