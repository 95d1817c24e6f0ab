"""A Consumer whose tubes change while it runs: on connections that wait, hold jobs, are dialed, or come back later."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable
from random import Random
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

import gstalk
from gstalk.connection.hooks import Hooks
from gstalk.pool.handling import Handling
from gstalk.testing import Beanstalkd, FaultProxy
from tests.conftest import SOAK
from tests.faults.test_entered_twice import Handler
from tests.faults.test_signal_everywhere import Signal
from tests.io.working import NEVER, ONE_JOB, Worker, state
from tests.servers import Played, wait_until

pytestmark = pytest.mark.real

NEVER_IN_TIME = 3600.0


def watching(conn: gstalk.Conn, tube: str) -> int | None:
    """How many connections watch a tube."""
    try:
        return conn.stats_tube(tube).current_watching
    except gstalk.NotFoundError:
        return 0


def wait_for_watching(conn: gstalk.Conn, tube: str, count: int, seconds: float = 10) -> None:
    wait_until(lambda: watching(conn, tube) == count, seconds)


class Jobs:
    """A handler that deletes its jobs, and remembers their tubes and bodies."""

    def __init__(self) -> None:
        self.got: list[tuple[str | None, bytes]] = []

    def __call__(self, job: gstalk.Job) -> None:
        tube = job.tube or job.stats().tube
        self.got.append((tube, job.body))
        job.delete()


@pytest.fixture
def looker(connect: Callable[..., gstalk.Conn], own_server: Beanstalkd) -> gstalk.Conn:
    """A connection to the test's own server that watches nothing of interest."""
    return connect(own_server.uri)


# -- what it watches ---------------------------------------------------------------------------------------------


def test_tubes_are_those_given_and_cannot_be_changed_through_the_list():
    consumer = gstalk.Consumer("localhost", ["a", "b", "a"])
    assert consumer.tubes == ["a", "b"]
    consumer.tubes.append("c")
    assert consumer.tubes == ["a", "b"]


def test_watch_and_ignore_before_a_receive_say_what_it_watches(own_server, looker, work):
    consumer = gstalk.Consumer(own_server.uri, "a")
    consumer.watch("b")
    consumer.watch("b")
    consumer.ignore("a")
    consumer.ignore("never-watched")
    assert consumer.tubes == ["b"]
    receiver = gevent.spawn(consumer.receive, Jobs())
    assert consumer.wait_connected(5)
    assert (watching(looker, "a"), watching(looker, "b")) == (0, 1)
    consumer.stop()
    receiver.get(timeout=5)


def test_what_was_watched_last_is_watched_by_the_next_receive(own_server, looker):
    consumer = gstalk.Consumer(own_server.uri, "a")
    for turn in range(2):
        receiver = gevent.spawn(consumer.receive, Jobs())
        assert consumer.wait_connected(5)
        if turn == 0:
            consumer.watch("b")
            consumer.ignore("a")
        assert (watching(looker, "a"), watching(looker, "b")) == (0, 1)
        consumer.stop()
        receiver.get(timeout=5)
    assert consumer.tubes == ["b"]


@pytest.mark.parametrize("during", [False, True])
def test_ignore_of_the_last_tube_is_refused_and_changes_nothing(own_server, looker, work, during):
    worker = work(Jobs(), own_server.uri, ["a", "b"]) if during else None
    consumer = worker.consumer if worker else gstalk.Consumer(own_server.uri, ["a", "b"])
    assert not during or consumer.wait_connected(5)
    consumer.ignore("b")
    with pytest.raises(gstalk.NotIgnoredError) as refused:
        consumer.ignore("a")
    assert str(refused.value) == "ignore 'a': the last tube watched can't be ignored"
    assert consumer.tubes == ["a"]
    assert not during or watching(looker, "a") == 1


def test_watch_and_ignore_with_wrong_arguments_are_refused(server):
    consumer = gstalk.Consumer(server.uri, "a")
    for call in (consumer.watch, consumer.ignore):
        with pytest.raises(gstalk.InvalidArgumentError):
            call("a b")
        with pytest.raises(TypeError):
            call(b"a")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        consumer.watch("b", 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        consumer.watch("b", lambda: None)  # type: ignore[misc,arg-type]
    assert consumer.tubes == ["a"]


# -- connections in every state ----------------------------------------------------------------------------------


def wait_for_a_wait(conn: gstalk.Conn) -> None:
    wait_until(lambda: conn.stats().current_waiting == 1)


def test_watch_reaches_a_connection_that_waits_in_a_reserve(own_server, looker, work):
    jobs = Jobs()
    worker = work(jobs, own_server.uri, "a", reserve_timeout=NEVER_IN_TIME)
    wait_for_a_wait(looker)
    worker.consumer.watch("b")
    assert worker.consumer.tubes == ["a", "b"]
    assert (watching(looker, "a"), watching(looker, "b")) == (1, 1)
    looker.put("b", b"1")
    looker.put("a", b"2")
    wait_until(lambda: sorted(jobs.got) == [("a", b"2"), ("b", b"1")])
    assert worker.errors == []
    wait_for_a_wait(looker)  # it isn't asked in turn from now on


def test_ignore_reaches_a_connection_that_waits_in_a_reserve(own_server, looker, work):
    jobs = Jobs()
    worker = work(jobs, own_server.uri, ["a", "b"], reserve_timeout=NEVER_IN_TIME)
    wait_for_a_wait(looker)
    worker.consumer.ignore("b")
    left = looker.put("b", b"1")
    looker.put("a", b"2")
    wait_until(lambda: jobs.got == [("a", b"2")])
    assert state(looker, left) == "ready"
    assert looker.stats_job(left).reserves == 0
    wait_for_a_wait(looker)


def test_watch_and_ignore_reach_connections_that_hold_jobs_which_are_not_touched(own_server, looker, work):
    go, started = Event(), []
    ended: list[bytes] = []

    def handler(job):
        started.append(job)
        if job.body == b"slow":
            go.wait()
        job.delete()
        ended.append(job.body)

    worker = work(handler, own_server.uri, ["a", "b"], num_greenlets=3)
    looker.put("a", b"slow")
    wait_until(lambda: len(started) == 1)
    worker.consumer.ignore("a")
    worker.consumer.watch("c")
    left = looker.put("a", b"left")
    looker.put("b", b"b")
    looker.put("c", b"c")
    wait_until(lambda: sorted(ended) == [b"b", b"c"])
    assert state(looker, left) == "ready"
    assert not started[0].is_lost
    go.set()
    wait_until(lambda: b"slow" in ended)
    assert worker.errors == []


def check_that_c_came_for_a(looker, jobs, left):
    """The connection watches b and c; the job of a was left alone."""
    wait_until(lambda: jobs.got == [("c", b"c")])
    assert (watching(looker, "a"), watching(looker, "b"), watching(looker, "c")) == (0, 1, 1)
    assert looker.stats_job(left).reserves == 0


def test_watch_and_ignore_count_for_a_connection_that_is_being_dialed(own_server, looker, work):
    jobs = Jobs()
    with FaultProxy(own_server.uri) as proxy:
        proxy.stall("down")  # it has said what it watches, and waits for the answers
        worker = work(jobs, proxy.uri, ["a", "b"])
        wait_until(lambda: watching(looker, "b") == 1)
        worker.consumer.ignore("a")
        worker.consumer.watch("c")
        left = looker.put("a", b"left")
        looker.put("c", b"c")
        proxy.resume()
        check_that_c_came_for_a(looker, jobs, left)
        worker.stop()


def test_ignore_counts_for_a_connection_that_is_dialed_anew_after_its_wait(own_server, looker, work):
    """Two changes, the second one while the first one's dial is under way."""
    jobs = Jobs()
    with FaultProxy(own_server.uri) as proxy:
        worker = work(jobs, proxy.uri, ["a", "b"], reserve_timeout=NEVER_IN_TIME)
        wait_for_a_wait(looker)
        proxy.hold()
        changes = [gevent.spawn(worker.consumer.watch, "c"), gevent.spawn(worker.consumer.ignore, "a")]
        wait_until(lambda: worker.consumer.tubes == ["b", "c"] and proxy.connections == 2)
        assert not any(change.ready() for change in changes)
        changes.append(gevent.spawn(worker.consumer.ignore, "b"))
        gevent.sleep(0)
        proxy.accept()
        gevent.joinall(changes, raise_error=True, timeout=5)
        assert all(change.ready() for change in changes)
        left = looker.put("a", b"left"), looker.put("b", b"left")
        looker.put("c", b"c")
        wait_until(lambda: jobs.got == [("c", b"c")])
        assert [looker.stats_job(each).reserves for each in left] == [0, 0]
        worker.stop()


def test_watch_and_ignore_count_for_connections_that_come_back_later(own_server, looker, work):
    jobs = Jobs()
    with FaultProxy(own_server.uri) as proxy:
        worker = work(jobs, proxy.uri, ["a", "b"], reconnect_timeout=0.1)
        assert worker.consumer.wait_connected(5)
        proxy.refuse()
        proxy.close_all()
        wait_until(lambda: not worker.consumer.is_connected)
        with gevent.Timeout(1):  # nobody is waited for
            worker.consumer.watch("c")
            worker.consumer.ignore("a")
        left = looker.put("a", b"left")
        looker.put("c", b"c")
        proxy.accept()
        check_that_c_came_for_a(looker, jobs, left)
        worker.stop()


def test_watch_and_ignore_count_for_all_connections_of_all_servers(own_server, looker, server, conn, tube, work):
    worker = work(Jobs(), [own_server.uri, server.uri], f"{tube}-a", multiply=3)
    for each in (looker, conn):
        wait_for_watching(each, f"{tube}-a", 3)
    worker.consumer.watch(f"{tube}-b")
    worker.consumer.ignore(f"{tube}-a")
    for each in (looker, conn):
        assert (watching(each, f"{tube}-a"), watching(each, f"{tube}-b")) == (0, 3)


def test_watch_that_the_server_refuses_ends_the_connection_and_the_next_one_watches_it(play, work):
    def watch(line: bytes) -> bytes | None:
        return b"OUT_OF_MEMORY\r\n" if line == b"watch b" and played.lines.count(line) == 1 else None

    def reserve(line: bytes) -> bytes:
        return b"TIMED_OUT\r\n" if line.endswith(b" 0") else b""  # it waits

    played: Played = play({"watch": watch, "reserve-with-timeout": reserve})
    told: list[str] = []
    worker = work(Jobs(), played.uri, "a", info_func=told.append, reconnect_timeout=0.1)
    wait_until(lambda: played.count("reserve-with-timeout"))
    worker.consumer.watch("b")
    wait_until(lambda: told)
    wait_until(lambda: worker.consumer.is_connected)
    assert [line for line in played.lines if line.startswith((b"watch", b"ignore"))][-3:] == [
        b"watch a",
        b"watch b",
        b"ignore default",
    ]
    why = f"watch b at {played.uri}: the server has no room for it"
    assert told == [f"lost connection to {played.uri}: {why}; connecting again"]


# -- handlers ----------------------------------------------------------------------------------------------------


def test_watch_with_a_mapping_needs_a_handler_and_takes_it(own_server, looker, work):
    one, two, three = Jobs(), Jobs(), Jobs()
    worker = work({"a": one, "named": two}, own_server.uri, "a")
    assert worker.consumer.wait_connected(5)
    with pytest.raises(gstalk.InvalidArgumentError) as refused:
        worker.consumer.watch("b")
    assert str(refused.value) == "no handler for tube 'b'"
    assert worker.consumer.tubes == ["a"]
    worker.consumer.watch("named")  # the mapping has one
    worker.consumer.watch("b", three)
    for tube in ("a", "named", "b"):
        looker.put(tube, tube.encode())
    wait_until(lambda: one.got and two.got and three.got)
    assert (one.got, two.got, three.got) == ([("a", b"a")], [("named", b"named")], [("b", b"b")])


def test_watch_of_a_tube_that_is_watched_changes_its_handler(own_server, looker, work):
    one, two = Jobs(), Jobs()
    worker = work({"a": one}, own_server.uri, "a")
    looker.put("a", b"1")
    wait_until(lambda: one.got)
    worker.consumer.watch("a", two)
    worker.consumer.watch("a")
    looker.put("a", b"2")
    wait_until(lambda: two.got)
    assert (one.got, two.got) == ([("a", b"1")], [("a", b"2")])


def test_handler_of_an_ignored_tube_is_forgotten_unless_the_mapping_names_it(own_server, looker, work):
    one = Jobs()
    worker = work({"a": one, "b": one}, own_server.uri, ["a", "b"])
    assert worker.consumer.wait_connected(5)
    worker.consumer.watch("c", one)
    for tube in ("b", "c"):
        worker.consumer.ignore(tube)
    worker.consumer.watch("b")
    with pytest.raises(gstalk.InvalidArgumentError):
        worker.consumer.watch("c")
    assert worker.consumer.tubes == ["a", "b"]


def test_job_in_hand_whose_tube_is_ignored_meanwhile_still_finds_its_handler(conn, tube):
    """Its tube is being asked for when the handler is forgotten."""
    got = Jobs()
    config = gstalk.Config()
    handling = Handling({tube: got}, [tube, "b"], {"b": got}, config, Hooks(config))
    conn.watch(f"{tube}-b")
    handling.watch(f"{tube}-b", got)
    conn.put(f"{tube}-b", b"1")
    job = conn.reserve()
    assert job.tube is None
    work = gevent.spawn(handling.handle, job._owner, job, False)
    gevent.sleep(0)
    handling.forget(f"{tube}-b")
    work.get(timeout=5)
    assert got.got == [(f"{tube}-b", b"1")]


def test_handler_beside_one_for_all_tubes_is_refused(server, work, tube):
    why = "a handler for tube 'b' alone, and one for all tubes: give receive a mapping from tube to handler"
    worker = work(Jobs())
    assert worker.consumer.wait_connected(5)
    with pytest.raises(gstalk.InvalidArgumentError) as refused:
        worker.consumer.watch("b", Jobs())
    assert str(refused.value) == why
    assert worker.consumer.tubes == [tube]
    consumer = gstalk.Consumer(server.uri, tube)
    consumer.watch("b", Jobs())
    with pytest.raises(gstalk.InvalidArgumentError) as refused:
        consumer.receive(Jobs())
    assert str(refused.value) == why


def test_handler_given_before_a_receive_counts_unless_its_mapping_names_the_tube(own_server, looker):
    one, two, three = Jobs(), Jobs(), Jobs()
    consumer = gstalk.Consumer(own_server.uri, "a")
    consumer.watch("b", one)
    consumer.watch("c", one)
    receiver = gevent.spawn(consumer.receive, {"a": three, "c": two})
    for tube in ("b", "c"):
        looker.put(tube, b"")
    wait_until(lambda: one.got and two.got)
    assert (one.got, two.got) == ([("b", b"")], [("c", b"")])
    consumer.stop()
    receiver.get(timeout=5)


# -- who may call it, and how it ends ----------------------------------------------------------------------------


def test_handlers_may_change_the_tubes(own_server, looker, work):
    got = []

    def handler(job):
        got.append(job.body)
        job.delete()
        worker.consumer.watch("b")
        worker.consumer.ignore("a")

    worker = work(handler, own_server.uri, "a", num_greenlets=1)
    looker.put("a", b"1")
    wait_until(lambda: worker.consumer.tubes == ["b"])
    looker.put("b", b"2")
    wait_until(lambda: got == [b"1", b"2"])
    assert watching(looker, "a") == 0
    assert [error for error, _ in worker.errors] == []


@pytest.mark.parametrize("how", ["timeout", "kill"])
def test_change_that_is_interrupted_is_made_all_the_same_as_tubes_tells(own_server, looker, work, how):
    jobs = Jobs()
    with FaultProxy(own_server.uri) as proxy:
        worker = work(jobs, proxy.uri, ["a", "b"])
        assert worker.consumer.wait_connected(5)
        proxy.stall()
        for call, tube in ((worker.consumer.watch, "c"), (worker.consumer.ignore, "a")):
            if how == "timeout":
                with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                    call(tube)
            else:
                change = gevent.spawn(call, tube)
                gevent.sleep(0.05)
                assert not change.ready()
                change.kill()
        assert worker.consumer.tubes == ["b", "c"]
        again = gevent.spawn(worker.consumer.ignore, "a")  # to be sure that it is done
        gevent.sleep(0.05)
        assert not again.ready()
        proxy.resume()
        again.get(timeout=5)
        assert (watching(looker, "a"), watching(looker, "b"), watching(looker, "c")) == (0, 1, 1)
        left = looker.put("a", b"left")
        looker.put("c", b"c")
        wait_until(lambda: jobs.got == [("c", b"c")])
        assert looker.stats_job(left).reserves == 0
        assert worker.errors == []
        worker.stop()


@pytest.mark.parametrize("seconds", [None, 0])
def test_change_that_waits_for_a_stalled_server_ends_with_the_receive(own_server, looker, work, seconds):
    with FaultProxy(own_server.uri) as proxy:
        worker = work(Jobs(), proxy.uri, "a")
        assert worker.consumer.wait_connected(5)
        proxy.stall()
        change = gevent.spawn(worker.consumer.watch, "b")
        gevent.sleep(0.05)
        assert not change.ready()
        worker.consumer.stop(seconds)
        change.get(timeout=1)
        proxy.resume()
        worker.receiver.get(timeout=5)
        worker.consumer.ignore("a")
        assert worker.consumer.tubes == ["b"]


def test_change_that_a_stop_meets_leaves_the_deletes_behind_it_their_answers(play, work):
    """The server is slow: it answers the `ignore` when the connection is being closed already, and then the delete."""

    def ignore(line: bytes) -> bytes | None:
        gevent.sleep(0.1 * (line == b"ignore b"))
        return None

    def delete(_: bytes) -> bytes:
        gevent.sleep(0.1)
        return b"DELETED\r\n"

    def handle(_: gstalk.Job) -> None:
        gevent.spawn(worker.consumer.ignore, "b")
        wait_until(lambda: server.count("ignore") == 2)
        worker.consumer.stop()

    server = play({"reserve-with-timeout": ONE_JOB, "ignore": ignore, "delete": delete})
    worker = work(handle, server.uri, ["a", "b"], auto_delete=True, retry=NEVER)
    worker.receiver.get(timeout=10)
    assert server.lines[-2:] == [b"delete 7", b"list-tube-used"]  # the latter: it has waited for the former
    assert worker.errors == []


def test_change_that_a_stalled_server_does_not_answer_ends_with_the_connection(own_server, work):
    with FaultProxy(own_server.uri) as proxy:
        worker = work(Jobs(), proxy.uri, "a", conn_timeout=0.3)
        assert worker.consumer.wait_connected(5)
        proxy.stall()
        began = monotonic()
        worker.consumer.watch("b")
        assert 0.2 < monotonic() - began < 5
        worker.stop(0)


def test_change_where_nothing_can_wait_is_refused_and_changes_nothing(work, tube):
    worker = work(Jobs())
    assert worker.consumer.wait_connected(5)
    raised: list[BaseException] = []
    done = Event()

    def call() -> None:
        try:
            worker.consumer.watch("b")
        except BaseException as error:
            raised.append(error)
        done.set()

    gevent.get_hub().loop.run_callback(call)
    done.wait(5)
    assert [type(error) for error in raised] == [BlockingSwitchOutError]
    assert worker.consumer.tubes == [tube]


def test_change_from_another_thread_is_refused_during_a_receive_alone(work, server, tube):
    worker = work(Jobs())
    assert worker.consumer.wait_connected(5)
    idle = gstalk.Consumer(server.uri, tube)
    raised: list[BaseException] = []

    def run() -> None:
        idle.watch("b")
        try:
            worker.consumer.watch("b")
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    assert idle.tubes == [tube, "b"]
    assert worker.consumer.tubes == [tube]
    assert [str(error) for error in raised] == [
        "watch: this Consumer's receive runs in another thread; call it there, in a handler for instance"
    ]
    assert isinstance(raised[0], gstalk.WrongHubError)


# -- at random ---------------------------------------------------------------------------------------------------


class Record:
    """When each tube was surely ignored: from the return of `ignore` until the next call of `watch`."""

    def __init__(self, tubes: list[str], watched: list[str]) -> None:
        self.ignored_since = dict.fromkeys(set(tubes) - set(watched), 0.0)
        self.spans: list[tuple[str, float, float]] = []
        self.jobs: list[tuple[str, float]] = []  # tube, and when it was reserved

    def watch(self, tube: str) -> None:
        if tube in self.ignored_since:
            self.spans.append((tube, self.ignored_since.pop(tube), monotonic()))

    def faults(self) -> list[tuple[str, float, float, float]]:
        spans = self.spans + [(tube, since, float("inf")) for tube, since in self.ignored_since.items()]
        return [
            (tube, at, since, until)
            for tube, since, until in spans
            for name, at in self.jobs
            if name == tube and since < at < until
        ]


@pytest.mark.slow
@pytest.mark.parametrize("line", ["quick", "slow", "cut"])
def test_random_changes_under_load_reserve_nothing_ignored_and_forget_nothing_watched(
    own_server, looker, work, rng, many, figures, line
):
    """`make soak` makes a thousand changes and more, with other choices each time."""
    tubes = [f"t{number}" for number in range(6)]
    record = Record(tubes, tubes[:2])
    handled: Counter[bytes] = Counter()
    put: set[bytes] = set()
    going = True

    def handler(job: gstalk.Job) -> None:
        tube, _, _ = job.body.decode().partition(" ")
        assert job.tube in (None, tube)
        assert job.reserved_at is not None
        record.jobs.append((tube, job.reserved_at))
        handled[job.body] += 1
        if rng.random() < 0.2:
            gevent.sleep(rng.random() * 0.02)
        job.delete()

    def load() -> None:
        number = 0
        while going:
            for tube in rng.sample(tubes, 3):
                body = b"%b %d" % (tube.encode(), number)
                looker.put(tube, body)
                put.add(body)
                number += 1
            gevent.sleep(rng.choice([0, 0, 0.001, 0.03]))

    def change(chance: Random, count: int, mine: list[str]) -> None:
        """Change tubes that nobody else changes, so that their spans are known."""
        for _ in range(count):
            tube = chance.choice(mine)
            if chance.random() < 0.5:
                record.watch(tube)
                worker.consumer.watch(tube)
            else:
                began = tube not in record.ignored_since
                worker.consumer.ignore(tube)
                if began:
                    record.ignored_since[tube] = monotonic()
            gevent.sleep(chance.choice([0, 0, 0.001, 0.01, 0.06]))

    with FaultProxy(own_server.uri) as proxy:
        worker: Worker = work(
            handler, [proxy.uri, own_server.uri], tubes[:2], multiply=2, num_greenlets=5, reconnect_timeout=0.05
        )
        proxy.delay(0.005 if line == "slow" else 0, "down")
        feeder = gevent.spawn(load)
        each = many(25, 500)
        changers = [gevent.spawn(change, Random(rng.random()), each, [tubes[n + 1], tubes[n + 3]]) for n in range(2)]
        while not all(changer.ready() for changer in changers):
            gevent.sleep(rng.random() * 0.1)
            if line == "cut":
                proxy.close_all()
        gevent.joinall(changers, raise_error=True)
        going = False
        feeder.get(timeout=5)
        for tube in tubes:
            wait_for_watching(looker, tube, 4 if tube in worker.consumer.tubes else 0, 5 if line == "cut" else 0.5)
        for tube in tubes:
            record.watch(tube)
            worker.consumer.watch(tube)
        wait_until(lambda: put <= handled.keys(), 20)
        worker.stop()
    assert record.faults() == []
    assert not record.ignored_since
    if line != "cut":
        assert worker.errors == []
        assert set(handled.values()) == {1}
    figures.update(changes=2 * each, spans=len(record.spans), jobs=len(handled))


class SignalInCaller(Signal):
    """Strikes in the greenlet that has called alone, not in the hub, where others wait for it."""

    rooms = ("consumer.py", "asking.py", "schedule.py", "connection.py", "recall.py", "pipeline.py")

    def trace(self, frame: Any, event: str, _: object) -> Any:
        return super().trace(frame, event, _) if gevent.getcurrent() is self.caller else None

    def strike(self, call: Callable[[str], None], tube: str) -> None:
        self.caller = gevent.spawn(self.watch, call, tube)
        try:
            self.caller.get(timeout=5)
        finally:
            sys.settrace(None)


@pytest.mark.slow
@pytest.mark.soak
def test_change_that_a_signal_strikes_at_any_line_leaves_all_connections_as_tubes_tells(own_server, looker, work, rng):
    """Some lines in `make test`, all of them in `make soak`; one connection waits, the other one may hold a job."""
    go, held = Event(), set()

    def handler(job: gstalk.Job) -> None:
        held.add(job)
        go.wait()
        held.discard(job)
        job.delete()

    worker = work(handler, own_server.uri, ["a", "b"], multiply=2, reconnect_timeout=0.02)
    consumer = worker.consumer
    step = 1 if SOAK else 11
    for number in range(rng.randint(1, step), 100000, step):
        wait_until(lambda: looker.stats().current_waiting == 1)
        if number % 2:
            looker.put("b", b"")
            wait_until(lambda: held)
        change, tube = (consumer.ignore, "a") if "a" in consumer.tubes else (consumer.watch, "a")
        signal = SignalInCaller(number)
        signal.strike(change, tube)
        print(f"line {number}: {signal.where}")
        for name in ("a", "b"):
            wait_for_watching(looker, name, 2 if name in consumer.tubes else 0)
        go.set()
        wait_until(lambda: not held and looker.stats_tube("b").current_jobs_reserved == 0)
        go.clear()
        if not signal.where:
            break
    assert number > 100


@pytest.mark.slow
@pytest.mark.soak
def test_change_in_a_signal_handler_amid_another_change_is_made_or_refused(own_server, looker, work, rng):
    """At some lines: of the caller's greenlet, of the hub, or of the greenlet that ends a wait."""
    worker = work(Jobs(), own_server.uri, ["a", "b", "c"], multiply=2)
    consumer = worker.consumer

    def toggle(tube: str) -> None:
        (consumer.ignore if tube in consumer.tubes else consumer.watch)(tube)

    step = 2 if SOAK else 37
    for number in range(rng.randint(1, step), 700, step):
        wait_until(lambda: looker.stats().current_waiting == 1)
        before = consumer.tubes
        handler = Handler(number, lambda: toggle("b"))
        handler.run(lambda: toggle("a"))
        assert ("a" in consumer.tubes) != ("a" in before)
        if not handler.where:
            break
        assert ("b" in consumer.tubes) != ("b" in before) or isinstance(handler.result, BlockingSwitchOutError)
        for name in ("a", "b", "c"):
            wait_for_watching(looker, name, 2 if name in consumer.tubes else 0)
    assert worker.errors == []
