"""Nothing that gstalk makes waits for the garbage collector: no operation leaves a cycle, whatever its outcome.

A dropped Conn that waits for the collector keeps its socket open and its jobs reserved, and an error in a cycle keeps
the bodies that stood in its frames. So the collector is off here, and counts in the end what it would have had to do.
"""

from __future__ import annotations

import gc
import tracemalloc
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import gevent
import pytest

import gstalk
from gstalk.connection import forks
from tests.servers import CUT, Played, dial_in_time, ok, wait_until

TUBE = "t"


def is_ours(thing: object) -> bool:
    """Tell whether a thing is gstalk's own: every cycle of ours has one."""
    name = type(thing).__module__
    if isinstance(thing, types.FrameType):
        name = str(thing.f_globals.get("__name__"))
    elif isinstance(thing, types.FunctionType):
        name = str(thing.__module__)
    elif isinstance(thing, types.MethodType):
        return is_ours(thing.__self__)
    elif isinstance(thing, gevent.Greenlet):
        name = "gstalk" if thing.name.startswith("gstalk") else ""
    return name.startswith("gstalk") and not name.startswith("gstalk.testing")


def turn() -> None:
    """Let the event loop come to an end of what it is at."""
    for _ in range(3):
        gevent.sleep(0)


@contextmanager
def nothing_left(what: str) -> Iterator[None]:
    """Fail if what happens inside leaves anything of ours to the collector."""
    turn()
    gc.collect()
    gc.disable()
    before = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        turn()
        gc.collect()
        left = [f"{type(thing).__name__} {thing!r}"[:150] for thing in gc.garbage if is_ours(thing)]
    finally:
        gc.set_debug(before)
        gc.garbage.clear()
        gc.enable()
        gc.collect()
    assert left == [], what


RESERVED = b"RESERVED 7 1\r\nx\r\n"
FOUND = b"FOUND 7 1\r\nx\r\n"
STATS_TUBE = ok("---\nname: t\n")


class Operation(NamedTuple):
    """What is called: a method of a Conn, or with `on_job` of a Job that it has reserved."""

    word: str  # the command whose reply decides
    well: bytes | None  # what the server says to it if all is well; `None`: what it says by itself
    name: str
    args: tuple[Any, ...] = ()
    on_job: bool = False


BODIES = [b"x", "bad", b"y", memoryview(b"z")]
OPERATIONS = {
    "put": Operation("put", None, "put", ("default", b"x")),
    "put to another tube": Operation("put", None, "put", (TUBE, b"x")),
    "put behind a use": Operation("use", None, "put", (TUBE, b"x")),
    "put, bad": Operation("put", None, "put", (TUBE, "bad")),
    "put_many": Operation("put", None, "put_many", (TUBE, BODIES)),
    "reserve": Operation("reserve-with-timeout", RESERVED, "reserve"),
    "reserve_with_timeout": Operation("reserve-with-timeout", RESERVED, "reserve_with_timeout", (0,)),
    "reserve_with_timeout, none": Operation("reserve-with-timeout", None, "reserve_with_timeout", (0.02,)),
    "reserve_job": Operation("reserve-job", RESERVED, "reserve_job", (7,)),
    "delete": Operation("delete", None, "delete", (7,)),
    "release": Operation("release", None, "release", (7,)),
    "release, given": Operation("release", None, "release", (7, 5)),
    "release, asked": Operation("stats-job", None, "release", (7,)),
    "bury": Operation("bury", None, "bury", (7,)),
    "touch": Operation("touch", None, "touch", (7,)),
    "kick": Operation("kick", b"KICKED 1\r\n", "kick", (TUBE, 1)),
    "kick_job": Operation("kick-job", b"KICKED\r\n", "kick_job", (7,)),
    "peek": Operation("peek", FOUND, "peek", (7,)),
    "peek_ready": Operation("peek-ready", FOUND, "peek_ready", (TUBE,)),
    "peek_delayed": Operation("peek-delayed", FOUND, "peek_delayed", (TUBE,)),
    "peek_buried": Operation("peek-buried", FOUND, "peek_buried", (TUBE,)),
    "use": Operation("use", None, "use", (TUBE,)),
    "watch": Operation("watch", None, "watch", (TUBE,)),
    "ignore": Operation("ignore", None, "ignore", (TUBE,)),
    "list_tubes": Operation("list-tubes", ok("---\n- default\n"), "list_tubes"),
    "list_tubes_watched": Operation("list-tubes-watched", ok("---\n- default\n"), "list_tubes_watched"),
    "list_tube_used": Operation("list-tube-used", None, "list_tube_used"),
    "stats": Operation("stats", None, "stats"),
    "stats_tube": Operation("stats-tube", STATS_TUBE, "stats_tube", (TUBE,)),
    "stats_job": Operation("stats-job", None, "stats_job", (7,)),
    "pause_tube": Operation("pause-tube", b"PAUSED\r\n", "pause_tube", (TUBE, 1)),
    "Job.delete": Operation("delete", None, "delete", on_job=True),
    "Job.release": Operation("release", None, "release", on_job=True),
    "Job.release, asked": Operation("stats-job", None, "release", on_job=True),
    "Job.release, given": Operation("release", None, "release", (5,), on_job=True),
    "Job.bury": Operation("bury", None, "bury", on_job=True),
    "Job.bury, given": Operation("bury", None, "bury", (5,), on_job=True),
    "Job.touch": Operation("touch", None, "touch", on_job=True),
    "Job.kick": Operation("kick-job", b"KICKED\r\n", "kick", on_job=True),
    "Job.stats": Operation("stats-job", None, "stats", on_job=True),
    "Job.time_left": Operation("stats-job", None, "time_left", on_job=True),
}
SILENCE = b""
OUTCOMES: dict[str, Any] = {
    "all well": None,
    "not found": b"NOT_FOUND\r\n",
    "not ignored": b"NOT_IGNORED\r\n",
    "deadline soon": b"DEADLINE_SOON\r\n",
    "buried": b"BURIED 7\r\n",
    "buried, without an id": b"BURIED\r\n",
    "too big": b"JOB_TOO_BIG\r\n",
    "draining": b"DRAINING\r\n",
    "out of memory": b"OUT_OF_MEMORY\r\n",
    "internal error": b"INTERNAL_ERROR\r\n",
    "bad format": b"BAD_FORMAT\r\n",
    "unknown command": b"UNKNOWN_COMMAND\r\n",
    "garbage": b"WHATEVER 7\r\n",
    "lost": CUT,
    "too late": SILENCE,
    "interrupted": SILENCE,
}
ENDS: dict[str, Callable[[gstalk.Conn], object]] = {"closed": lambda conn: conn.close(), "dropped": lambda conn: None}


@pytest.fixture(autouse=True)
def _dropped_conns_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


class Trial:
    """An operation and an outcome, tried on a connection of its own."""

    def __init__(self, play: Callable[..., Played], operation: Operation, outcome: str) -> None:
        self.operation, self.outcome = operation, outcome
        self.played = play({"reserve-job": RESERVED})

    def dial(self) -> gstalk.Conn:
        return dial_in_time(self.played.uri, 0.05 if self.outcome == "too late" else 5)

    def act(self, conn: gstalk.Conn) -> BaseException | None:
        """Do it, and return what it raises; then this frame, which is the caller's, refers to the Conn no more."""
        subject: Any = conn
        replies = self.played.replies
        try:
            if self.operation.on_job:
                subject = conn.reserve_job(7)
            reply = self.operation.well if OUTCOMES[self.outcome] is None else OUTCOMES[self.outcome]
            if reply is not None:
                replies[self.operation.word.encode()] = [reply]
            waits = self.outcome == "interrupted" or self.operation.name == "reserve"
            with gevent.Timeout(0.02 if waits else 5):
                getattr(subject, self.operation.name)(*self.operation.args)
        except BaseException as error:
            return error
        finally:
            del conn, subject
            replies.pop(self.operation.word.encode(), None)
            replies[b"reserve-job"] = [RESERVED]
        return None


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_leaves_nothing_to_the_collector(play, name, end):
    trials = [Trial(play, OPERATIONS[name], outcome) for outcome in OUTCOMES]

    def once(trial: Trial) -> None:
        conn = trial.dial()
        trial.act(conn)
        ENDS[end](conn)

    once(trials[0])
    for trial in trials:
        with nothing_left(trial.outcome):
            once(trial)


@pytest.mark.parametrize("name", OPERATIONS)
def test_dropped_conn_goes_at_once_and_whoever_keeps_its_error_does_not_keep_it(play, name):
    gc.collect()
    gc.disable()
    try:
        for outcome in OUTCOMES:
            trial = Trial(play, OPERATIONS[name], outcome)
            conn = trial.dial()
            pipes = [conn._connection.pipe]
            kept = trial.act(conn)
            pipes.append(conn._connection.pipe)
            gone = weakref.ref(conn), weakref.ref(conn._connection)
            del conn
            turn()
            assert gone[0]() is None, outcome
            if OUTCOMES[outcome] == SILENCE:  # what was called is carried out first, to its end
                trial.played.close()
                wait_until(lambda pipe=pipes[-1]: pipe.failure is not None)  # type: ignore[misc]
                turn()
            assert gone[1]() is None, outcome
            assert all(pipe.failure is not None for pipe in pipes), outcome
            del kept
    finally:
        gc.enable()


# -- dial, reserves that wait, memory ------------------------------------------------------------------------------

DIALS: dict[str, Any] = {
    "connected": None,
    "garbage": b"WHATEVER\r\n",
    "unknown command": b"UNKNOWN_COMMAND\r\n",
    "closed at once": CUT,
    "out of memory": b"OUT_OF_MEMORY\r\n",
    "silent": SILENCE,
}


def try_dial(uri: str, **options: Any) -> BaseException | None:
    try:
        gstalk.dial(uri, **options)
    except BaseException as error:
        return error
    return None


@pytest.mark.parametrize("outcome", DIALS)
def test_dial_leaves_nothing_to_the_collector(play, outcome):
    played = play({} if DIALS[outcome] is None else {"stats": DIALS[outcome]})
    limit = 0.05 if outcome == "silent" else 5
    try_dial(played.uri, conn_timeout=limit)
    with nothing_left(outcome):
        failed = try_dial(played.uri, conn_timeout=limit)
        assert (failed is None) == (outcome == "connected")
        del failed


@pytest.mark.parametrize("uri", ["127.0.0.1:1", "localhost:1", "no-such-name.invalid:1", "unix:///no/such/path"])
def test_dial_without_a_server_leaves_nothing_to_the_collector(uri):
    try_dial(uri)
    with nothing_left(uri):
        assert type(try_dial(uri)) is gstalk.ConnectError


def test_dial_interrupted_leaves_nothing_to_the_collector(play):
    played = play({"stats": SILENCE})

    def once() -> None:
        try:
            with gevent.Timeout(0.02):
                gstalk.dial(played.uri)
        except gevent.Timeout:
            pass

    once()
    with nothing_left("interrupted"):
        once()


@pytest.mark.parametrize("then", ["stats", "drop", "close", "killed server"])
def test_reserve_that_is_called_back_leaves_nothing_to_the_collector(play, then):
    def once() -> None:
        played = play({"reserve-with-timeout": [SILENCE, RESERVED]})
        conn = gstalk.dial(played.uri)
        try:
            with gevent.Timeout(0.02):
                conn.reserve()
        except gevent.Timeout:
            pass
        if then == "stats":
            conn.stats()
        elif then == "close":
            conn.close()
        elif then == "killed server":
            played.close()
        pipe = conn._connection.pipe
        del conn
        wait_until(lambda: pipe.failure is not None)

    once()
    with nothing_left(then):
        once()


def test_put_beside_a_reserve_that_waits_leaves_nothing_to_the_collector(play):
    def once() -> None:
        conn = gstalk.dial(play({"reserve-with-timeout": [SILENCE, RESERVED]}).uri)
        reserver = gevent.spawn(conn.reserve)
        wait_until(lambda: conn._line.is_waiting)
        conn.put("default", b"x")
        assert reserver.get().id == 7

    once()
    with nothing_left("put"):
        once()


def grown(act: Callable[[], object]) -> int:
    """By how many bytes what Python has allocated has grown while something was done, with the collector off."""
    tracemalloc.start()
    gc.collect()
    gc.disable()
    try:
        before = tracemalloc.get_traced_memory()[0]
        act()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        gc.enable()
        tracemalloc.stop()


def refused_puts_take_no_memory(mail: gstalk.Conn | gstalk.Producer, played: Played) -> None:
    def put() -> None:
        for _ in range(50):
            with pytest.raises(gstalk.ServerError):
                mail.put("default", bytes(1 << 20))
            played.reads.clear()

    put()
    assert grown(put) < 3 << 20


@pytest.mark.parametrize("reply", [b"DRAINING\r\n", b"JOB_TOO_BIG\r\n", b"OUT_OF_MEMORY\r\n"])
def test_refused_puts_of_large_bodies_take_no_memory(play, reply):
    played = play({"put": reply})
    with gstalk.dial(played.uri) as conn:
        refused_puts_take_no_memory(conn, played)


# -- Producer ------------------------------------------------------------------------------------------------------

PUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # what the server says, and the Producer's options
    "all well": ({}, {}),
    "draining": ({"put": b"DRAINING\r\n"}, {}),
    "out of memory": ({"put": b"OUT_OF_MEMORY\r\n"}, {}),
    "too big": ({"put": b"JOB_TOO_BIG\r\n"}, {}),
    "buried": ({"put": b"BURIED 7\r\n"}, {}),
    "internal error": ({"put": b"INTERNAL_ERROR\r\n"}, {"put_timeout": 0.1}),
    "garbage": ({"put": b"WHATEVER\r\n"}, {"put_timeout": 0.1, "retry_ambiguous": False}),
    "lost": ({"put": CUT}, {"put_timeout": 0.1}),
    "silent": ({"put": SILENCE}, {"put_timeout": 0.1}),
    "never connected": ({"stats": SILENCE}, {"put_timeout": 0.1, "conn_timeout": 0.05}),
}


def try_put(producer: gstalk.Producer, many: bool) -> BaseException | None:
    try:
        if many:
            producer.put_many(TUBE, BODIES)  # type: ignore[arg-type]
        else:
            producer.put(TUBE, b"x")
    except BaseException as error:
        return error
    finally:
        del producer
    return None


def living_pools() -> list[Any]:
    return list(forks._living["pool"])


def wait_gone(uri: str) -> None:
    """Wait until the keepers have ended and nobody is connected."""
    wait_until(lambda: not any(pool.keepers for pool in living_pools() if pool.servers[0].uri == uri))
    turn()


@pytest.mark.parametrize("many", [False, True], ids=["put", "put_many"])
@pytest.mark.parametrize("end", ["stopped", "dropped"])
@pytest.mark.parametrize("outcome", PUTS)
def test_producer_leaves_nothing_to_the_collector(play, outcome, end, many):
    replies, options = PUTS[outcome]
    played = play(replies)

    def once() -> None:
        producer = gstalk.Producer(played.uri, **options, error_func=lambda *_: None, info_func=lambda _: None)
        try_put(producer, many)
        if end == "stopped":
            producer.stop(0)
        del producer
        wait_gone(played.uri)

    once()
    with nothing_left(outcome):
        once()


@pytest.mark.parametrize("outcome", PUTS)
def test_dropped_producer_closes_at_once_and_whoever_keeps_its_error_does_not_keep_it(play, outcome):
    replies, options = PUTS[outcome]
    played = play(replies)
    gc.collect()
    gc.disable()
    try:
        producer = gstalk.Producer(played.uri, **options, error_func=lambda *_: None, info_func=lambda _: None)
        kept = try_put(producer, False)
        assert (kept is None) == (outcome == "all well")
        pool = producer._queue.pool
        gone = weakref.ref(producer)
        del producer
        assert gone() is None
        assert pool.connections == []
        wait_until(lambda: not pool.keepers)
        del kept
    finally:
        gc.enable()


def test_dropped_producer_warns(server):
    producer = gstalk.Producer(server.uri)
    assert producer.wait_connected()
    pool = producer._queue.pool
    with pytest.warns(ResourceWarning, match=f"Producer of {server.uri} was not stopped"):
        del producer
    wait_until(lambda: not pool.keepers)


def test_producer_refused_puts_of_large_bodies_take_no_memory(play):
    played = play({"put": b"JOB_TOO_BIG\r\n"})
    with gstalk.Producer(played.uri) as producer:
        refused_puts_take_no_memory(producer, played)


# -- Consumer ------------------------------------------------------------------------------------------------------


def finish(job: gstalk.Job) -> None:
    job.delete()


def fail(job: gstalk.Job) -> None:
    raise ValueError("x")


def forget_it(job: gstalk.Job) -> None:
    """Return without having finished it."""


def retry(job: gstalk.Job) -> None:
    raise gstalk.Retry(delay=1000)


def late(job: gstalk.Job) -> None:
    gevent.sleep(60)


ONCE = gstalk.RetryPolicy(max_attempts=1)
CONSUMERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "auto_touch": {"auto_touch": True},
    "auto_delete": {"auto_delete": True},
    "time_limit": {"time_limit": 0.02},
    "given up": {"retry": ONCE, "given_up_func": lambda job, error: None},
    "given up, finished": {"retry": ONCE, "given_up_func": lambda job, error: job.delete()},
    "given up, raises": {"retry": ONCE, "given_up_func": lambda job, error: fail(job)},
    "given up, too late": {"retry": ONCE, "given_up_func": lambda job, error: late(job)},
}


@pytest.mark.parametrize("options", CONSUMERS.values(), ids=CONSUMERS)
@pytest.mark.parametrize("handler", [finish, fail, forget_it, retry, late])
def test_consumer_leaves_nothing_to_the_collector(server, connect, tube, handler, options):
    other = connect()

    def once() -> None:
        job_id = other.put(tube, b"x")
        consumer = gstalk.Consumer(
            server.uri, tube, num_greenlets=2, error_func=lambda *_: None, info_func=lambda _: None, **options
        )

        def handle(job: gstalk.Job) -> None:
            consumer.stop(0.02)
            handler(job)

        consumer.receive(handle)
        try:
            other.delete(job_id)
        except gstalk.NotFoundError:
            pass
        wait_gone(server.uri)

    once()
    with nothing_left(str(options)):
        once()


def test_consumer_interrupted_leaves_nothing_to_the_collector(server, tube):
    def once() -> None:
        with gevent.Timeout(0.1, False):  # type: ignore[arg-type]
            gstalk.Consumer(server.uri, tube).receive(finish)
        wait_gone(server.uri)

    once()
    with nothing_left("interrupted"):
        once()


def test_consumer_failing_handlers_with_large_bodies_take_no_memory(server, connect, tube):
    other = connect()
    told = []
    consumer = gstalk.Consumer(
        server.uri, tube, error_func=lambda error, _: told.append(str(error)), retry=gstalk.RetryPolicy(max_attempts=1)
    )
    receiver = gevent.spawn(consumer.receive, fail)
    before = 0

    def run() -> None:
        for _ in range(300):
            other.put(tube, bytes(65000))
        wait_until(lambda: len(told) == before + 300)

    run()
    before = 300
    assert grown(run) < 3 << 20
    consumer.stop()
    receiver.get()
