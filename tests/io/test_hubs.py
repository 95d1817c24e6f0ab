"""A Producer in several threads: each has connections of its own, which end with it, and `stop` ends all."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event
from gevent.hub import Hub
from gevent.threadpool import ThreadPool

import gstalk
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.threads import get_hub_if_exists
from gstalk.pool import hubs
from gstalk.pool.hubs import Hubs
from gstalk.pool.keeper import Pool
from gstalk.pool.put_queue import PutQueue
from gstalk.testing import Beanstalkd
from tests.servers import Terminator, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUIET: dict[str, Any] = {"error_func": lambda error, message: None, "info_func": lambda message: None}


class Thread:
    """A function in a native thread, which leaves its hub as it is: most programs don't know that there is one."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.returned: Any = None
        self.raised: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.returned = self._function()
        except BaseException as error:
            self.raised = error

    def join(self, seconds: float = 30) -> Any:
        """Wait for its end, while this hub goes on; what the function returned or raised."""
        wait_until(lambda: not self._thread.is_alive(), seconds)
        self._thread.join()
        if self.raised is not None:
            try:
                raise self.raised
            finally:
                self.raised = None  # its traceback holds the frames of the thread
        return self.returned


class Waiting(Thread):
    """A thread that puts once, and then waits for something that isn't gevent's: its loop stands still."""

    def __init__(self, function: Callable[[], object], then: Callable[[], object] = int) -> None:
        self.has_put = threading.Event()
        self._go_on = threading.Event()

        def run() -> object:
            try:
                function()
            finally:
                self.has_put.set()
            self._go_on.wait()
            return then()

        super().__init__(run)
        wait_until(self.has_put.is_set)

    def go_on(self) -> Any:
        self._go_on.set()
        return self.join()


def connections(conn: gstalk.Conn) -> int:
    """How many the server has beside this one."""
    return (conn.stats().current_connections or 0) - 1


# -- each thread's own --------------------------------------------------------------------------------------------


def test_put_in_many_threads_stores_each_job_once(own_server, connect):
    def put(number: int) -> list[int]:
        mine = [producer.put("t", b"%d-%d" % (number, each)) for each in range(20)]
        return mine + producer.put_many("t", [b"%d-many-%d" % (number, each) for each in range(20)])

    with gstalk.Producer(own_server.uri) as producer:
        threads = [Thread(partial(put, number)) for number in range(8)]
        producer.put("t", b"first")
        ids = [job_id for thread in threads for job_id in thread.join()]
        conn = connect(own_server.uri)
        assert len(set(ids)) == len(ids) == 8 * 40
        assert conn.stats_tube("t").current_jobs_ready == 8 * 40 + 1


def test_thread_connects_at_its_first_put_and_is_let_go_at_its_end(own_server, connect):
    conn = connect(own_server.uri)
    with gstalk.Producer(own_server.uri, multiply=2) as producer:
        assert producer.wait_connected(5)
        wait_until(lambda: connections(conn) == 2)
        seen: list[tuple[bool, Any]] = []

        def begin() -> None:
            seen.append((producer.is_connected, get_hub_if_exists()))
            producer.put("t", b"x")
            seen.append((producer.is_connected, producer.wait_connected(0)))

        thread = Waiting(begin)
        assert seen == [(False, None), (True, True)]
        wait_until(lambda: connections(conn) >= 3)  # the second of two may still be dialed
        thread.go_on()
        wait_until(lambda: connections(conn) == 2)
        assert producer.is_connected
        gc.collect()
        assert sum(isinstance(each, PutQueue) for each in gc.get_objects()) == 1


def test_wait_connected_in_a_new_thread_connects(server):
    with gstalk.Producer(server.uri) as producer:
        assert Thread(lambda: (producer.wait_connected(5), producer.is_connected)).join() == (True, True)


def test_wait_connected_without_a_server_ends_in_time(play):
    played = play()
    played.close()
    with gstalk.Producer(played.uri, **QUIET) as producer:
        assert Thread(partial(producer.wait_connected, 0.05)).join() is False


def test_producer_outlives_the_thread_that_made_it(own_server, connect):
    def make() -> gstalk.Producer:
        producer = gstalk.Producer(own_server.uri)
        producer.put("t", b"made")
        return producer

    conn = connect(own_server.uri)
    producer = Thread(make).join()
    wait_until(lambda: connections(conn) == 0)
    assert not producer.is_connected
    assert producer.put("t", b"here") > 0
    assert Thread(partial(producer.put, "t", b"there")).join() > 0
    producer.stop()
    wait_until(lambda: connections(conn) == 0)


@pytest.mark.parametrize("kind", ["executor", "gevent's pool"])
def test_put_in_pools_of_threads(server, connect, kind):
    with gstalk.Producer(server.uri) as producer:
        if kind == "executor":
            with ThreadPoolExecutor(4) as executor:
                ids = list(executor.map(lambda number: producer.put("pools", b"%d" % number), range(200)))
        else:
            pool = ThreadPool(4)
            ids = pool.map(lambda number: producer.put("pools", b"%d" % number), range(200))
            pool.kill()
    assert len(set(ids)) == 200


def test_thread_with_greenlets_of_its_own_shares_its_connections(own_server, connect):
    conn = connect(own_server.uri)

    def run() -> int:
        with gstalk.dial(own_server.uri) as here:
            puts = [gevent.spawn(producer.put, "t", b"%d" % number) for number in range(200)]
            gevent.joinall(puts, raise_error=True)
            return connections(here)

    with gstalk.Producer(own_server.uri) as producer:
        assert producer.wait_connected(5)
        assert Thread(run).join() == 3  # `conn`, the main thread's and this one's
        assert conn.stats_tube("t").current_jobs_ready == 200


def test_thread_that_destroys_its_hub_goes_on_with_another(own_server, connect):
    conn = connect(own_server.uri)

    def run() -> list[int]:
        ids = []
        for _ in range(3):
            ids.append(producer.put("t", b"x"))
            get_hub().destroy(destroy_loop=True)
        return ids

    with gstalk.Producer(own_server.uri) as producer:
        assert len(Thread(run).join()) == 3
        assert producer.put("t", b"x") > 0
        wait_until(lambda: connections(conn) == 1)


def test_hub_that_was_there_before_stays_its_owners(own_server, connect):
    conn = connect(own_server.uri)

    def run() -> Hub:
        hub = get_hub()
        producer.put("t", b"x")
        return hub

    with gstalk.Producer(own_server.uri) as producer:
        hub = Thread(run).join()
        assert hub.loop is not None
        hub.destroy(destroy_loop=True)  # as gevent says, by whoever made it
        producer.put("t", b"x")
        wait_until(lambda: connections(conn) == 1)


def test_error_of_a_thread_is_its_callers_own(play):
    with gstalk.Producer(play({"put": b"JOB_TOO_BIG\r\n"}).uri) as producer:
        with pytest.raises(gstalk.JobTooBigError):
            Thread(partial(producer.put, "t", b"x")).join()
        with pytest.raises(gstalk.InvalidArgumentError):
            Thread(partial(producer.put, "-t", b"x")).join()


# -- a loop that stands still -------------------------------------------------------------------------------------


class Told:
    """What a Producer tells of its puts."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.lines: list[str] = []

    def options(self) -> dict[str, Any]:
        return {
            "event_func": lambda event: self.kinds.update([event.kind]),
            "info_func": self.lines.append,
            "error_func": lambda error, message: self.lines.append(message),
        }


@pytest.mark.parametrize("maker", ["this thread", "another"])
@pytest.mark.parametrize("how", ["tcp", "unix", "tls"])
def test_restart_while_the_loop_stands_still_costs_no_ambiguous_try(request, how, maker):
    """The put after it finds the end of the old connection before it sends anything."""
    told = Told()
    with Beanstalkd(unix=how == "unix") as server:
        uri, options, restart = server.uri, told.options(), server.restart
        if how == "tls":
            terminator = Terminator(request.getfixturevalue("certificates"), server.port)
            terminator.start()
            request.addfinalizer(terminator.kill)
            uri, options["tls_context"] = terminator.uri("good"), request.getfixturevalue("trusting")

            def restart() -> None:
                terminator.kill()
                terminator.start()

        def make() -> gstalk.Producer:
            return gstalk.Producer(uri, retry_ambiguous=False, **options)

        box = [make()] if maker == "another" else []

        def begin() -> None:
            if not box:
                box.append(make())
            box[0].put("t", b"before")

        def end() -> int:
            job_id = box[0].put("t", b"after")
            box[0].stop()
            return job_id

        thread = Waiting(begin, end)
        restart()
        assert thread.go_on() > 0
    assert told.kinds["put"] == 2
    assert told.kinds["put_retry"] == 0


def test_is_connected_sees_the_end_that_the_loop_has_not(own_server):
    with gstalk.Producer(own_server.uri, **QUIET) as producer:
        thread = Waiting(
            partial(producer.put, "t", b"x"), lambda: (producer.is_connected, producer.wait_connected(0.01))
        )
        own_server.kill()
        assert thread.go_on() == (False, False)


def test_is_connected_in_a_signal_handler_amid_a_read_leaves_the_replies_in_order(conn, server, monkeypatch):
    """The hub has read one reply, and the next is there."""
    with gstalk.Producer(server.uri) as producer:
        assert producer.wait_connected(5)
        (connection,) = producer._queue.pool.connections
        asked: list[bool] = []
        take = Pipeline._take

        def struck(pipe: Pipeline, data: bytes) -> None:
            if pipe is connection.pipe and not asked:
                asked.append(producer.is_connected)
            take(pipe, data)

        for name in ("CHUNK", "MUCH"):
            monkeypatch.setattr(f"gstalk.connection.transport.{name}", 5)
        monkeypatch.setattr(connection.pipe._transport, "_chunk", 5)
        monkeypatch.setattr(Pipeline, "_take", struck)
        bodies = [b"1", b"2", b"3"]
        puts = [gevent.spawn(producer.put, "default", body) for body in bodies]
        ids = [put.get(timeout=5) for put in puts]
        assert asked == [True]
    jobs = [conn.peek(job_id) for job_id in ids]
    assert [job.body for job in jobs] == bodies
    for job in jobs:
        conn.delete(job.id)


def test_put_with_timeout_0_after_a_restart_is_refused_unsent(own_server):
    with gstalk.Producer(own_server.uri, **QUIET) as producer:
        thread = Waiting(partial(producer.put, "t", b"x"), partial(producer.put, "t", b"x", timeout=0))
        own_server.restart()
        with pytest.raises(gstalk.PutTimeoutError) as caught:
            thread.go_on()
    assert caught.value.sent == "no"


def test_answer_that_came_while_the_loop_stood_still_is_read_before_the_next_put(play):
    """It is that of a put whose time was over: the next one gets its own."""
    late = Event()

    def answer(line: bytes) -> bytes:
        late.wait()
        return b"INSERTED 7\r\n"

    with gstalk.Producer(play({"put": [b"INSERTED 1\r\n", answer, b"INSERTED 8\r\n"]}).uri) as producer:

        def begin() -> None:
            producer.put("t", b"x")
            with pytest.raises(gstalk.PutTimeoutError):
                producer.put("t", b"x", timeout=0.05)

        thread = Waiting(begin, partial(producer.put, "t", b"x"))
        late.set()
        gevent.sleep(0.05)
        assert thread.go_on() == 8


# -- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopper", ["main", "thread", "new thread"])
def test_stop_from_any_thread_ends_all(own_server, connect, stopper):
    """Also those of threads whose loops stand still: the server has let go when it returns."""
    conn = connect(own_server.uri)
    producer = gstalk.Producer(own_server.uri)
    producer.put("t", b"x")
    refused: Any = partial(producer.put, "t", b"late")
    threads = [Waiting(partial(producer.put, "t", b"x"), refused) for _ in range(3)]
    assert connections(conn) == 4
    if stopper == "main":
        producer.stop()
    elif stopper == "new thread":
        Thread(producer.stop).join()
    else:
        stopping = Waiting(partial(producer.put, "t", b"x"), producer.stop)
        stopping.go_on()
    wait_until(lambda: connections(conn) == 0)
    for thread in threads:
        with pytest.raises(gstalk.ConnectionClosedError, match=r"^put: this Producer is stopped$"):
            thread.go_on()
    with pytest.raises(gstalk.ConnectionClosedError):
        producer.put("t", b"late")
    with pytest.raises(gstalk.ConnectionClosedError):
        Thread(refused).join()
    assert not producer.is_connected
    producer.stop()
    assert conn.stats_tube("t").current_jobs_ready == 4 + (stopper == "thread")


def slow(seconds: float) -> Callable[[bytes], bytes]:
    def answer(line: bytes) -> bytes:
        gevent.sleep(seconds)
        return b"INSERTED 5\r\n"

    return answer


def test_stop_waits_for_puts_of_other_threads(play):
    played = play({"put": slow(0.2)})
    producer = gstalk.Producer(played.uri)
    thread = Thread(partial(producer.put, "t", b"x"))
    wait_until(lambda: played.count("put"))
    producer.stop()
    assert thread.join() == 5


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_stop_ends_puts_of_other_threads_when_its_time_is_over(play, timeout):
    played = play({"put": b""})
    producer = gstalk.Producer(played.uri)
    thread = Thread(partial(producer.put, "t", b"x"))
    wait_until(lambda: played.count("put"))
    producer.stop(timeout)
    with pytest.raises(gstalk.ConnectionClosedError) as caught:
        thread.join()
    assert caught.value.sent == "maybe"


def test_stop_ends_puts_that_wait_for_a_connection_in_other_threads(play):
    played = play()
    played.close()
    producer = gstalk.Producer(played.uri, **QUIET)
    thread = Thread(partial(producer.put, "t", b"x"))
    wait_until(lambda: any(queue.puts for queue in producer._hubs._queues.values()))
    producer.stop(0.05)
    with pytest.raises(gstalk.ConnectionClosedError, match=r"^put: this Producer is stopped$") as caught:
        thread.join()
    assert caught.value.sent == "no"


def test_stop_in_the_hub_refuses_while_another_thread_puts(play):
    played = play({"put": slow(0.2)})
    producer = gstalk.Producer(played.uri)
    thread = Thread(partial(producer.put, "t", b"x"))
    wait_until(lambda: played.count("put"))
    raised: list[BaseException] = []

    def stop() -> None:
        try:
            producer.stop()
        except BaseException as error:
            raised.append(error)

    get_hub().loop.run_callback(stop)
    wait_until(lambda: raised)
    assert [type(error).__name__ for error in raised] == ["BlockingSwitchOutError"]
    assert thread.join() == 5
    producer.stop()


@pytest.mark.parametrize(("puts", "timeout"), [(False, None), (False, 1), (True, 0)])
def test_stop_in_the_hub_is_done_where_it_has_nothing_to_wait_for(play, puts, timeout):
    played = play({"put": [b"INSERTED 1\r\n", b""]})
    producer = gstalk.Producer(played.uri)
    idle = Waiting(partial(producer.put, "t", b"x"))
    played.lines.clear()
    thread = Thread(partial(producer.put, "t", b"x")) if puts else None
    wait_until(lambda: played.count("put") == puts)
    stopped: list[bool] = []

    def stop() -> None:
        producer.stop(timeout)
        stopped.append(True)

    get_hub().loop.run_callback(stop)
    wait_until(lambda: stopped)
    with pytest.raises(gstalk.ConnectionClosedError):
        producer.put("t", b"x")
    idle.go_on()
    if thread is not None:
        with pytest.raises(gstalk.ConnectionClosedError):
            thread.join()


def test_put_while_stop_waits_for_another_thread_is_refused_though_its_loop_stands_still(play):
    answer = Event()

    def late(line: bytes) -> bytes:
        answer.wait()
        return b"INSERTED 5\r\n"

    played = play({"put": [b"INSERTED 1\r\n", late]})
    made: list[gstalk.Producer] = []

    def make() -> None:
        made.append(gstalk.Producer(played.uri))
        made[0].put("t", b"x")

    still = Waiting(make, lambda: made[0].put("t", b"y"))
    producer = made[0]
    waiting = Thread(partial(producer.put, "t", b"z"))
    wait_until(lambda: played.count("put") == 2)
    stopping = gevent.spawn(producer.stop)
    gevent.sleep(0)
    with pytest.raises(gstalk.ConnectionClosedError, match="this Producer is stopped") as caught:
        still.go_on()
    assert caught.value.sent == "no"
    answer.set()
    assert waiting.join() == 5
    stopping.get(timeout=5)
    assert played.count("put") == 2


def test_stop_waits_for_no_thread_but_those_that_have_put(server, monkeypatch):
    monkeypatch.setattr(hubs, "LOOK", 1000.0)
    producer = gstalk.Producer(server.uri)
    producer.put("t", b"x")
    with gevent.Timeout(10):
        producer.stop()


def test_stop_beside_first_puts_of_new_threads_leaves_no_connection(own_server, connect, many):
    """A thread that is about to make its connections when the others are ended closes them itself."""
    conn = connect(own_server.uri)
    for _ in range(many(20, 500)):
        producer = gstalk.Producer(own_server.uri)

        def put(producer: gstalk.Producer = producer) -> str:
            try:
                producer.put("t", b"x")
            except gstalk.ConnectionClosedError:
                return "closed"
            return "id"

        threads = [Thread(put) for _ in range(4)]
        producer.stop()
        assert {thread.join() for thread in threads} <= {"closed", "id"}
    wait_until(lambda: connections(conn) == 0)


@pytest.mark.filterwarnings("ignore:a Producer of:ResourceWarning")
def test_producer_that_is_dropped_in_the_middle_of_a_read_lets_go_when_that_is_over(own_server, connect):
    """The collector may come by anywhere, for instance where an answer comes that nobody waits for any more."""
    conn, hub = connect(own_server.uri), gevent.get_hub()
    producer = gstalk.Producer(own_server.uri)
    assert producer.wait_connected(5)
    (connection,) = producer._queue.pool.connections
    seen: list[object] = []

    def read() -> None:
        producer._hubs.drop()
        seen.append(connection.pipe.failure)

    hub.loop.run_callback(connection.pipe.run, read)
    wait_until(lambda: conn.stats().current_connections == 1)
    assert seen == [None]
    assert connection.pipe.failure is not None


def test_producer_that_is_dropped_lets_go_of_connections_of_other_threads(own_server, connect, monkeypatch):
    conn = connect(own_server.uri)
    cut_in: list[int] = []
    cut = Pool.cut

    def cut_noted(pool: Pool) -> None:
        cut_in.append(threading.get_ident())
        cut(pool)

    monkeypatch.setattr(Pool, "cut", cut_noted)
    box = [gstalk.Producer(own_server.uri)]
    box[0].put("t", b"x")
    thread = Waiting(lambda: box[0].put("t", b"x"))
    assert connections(conn) == 2
    gevent.sleep(0)
    with pytest.warns(ResourceWarning, match="was not stopped") as warned:
        box.clear()
        gc.collect()
    assert len(warned) == 1
    wait_until(lambda: connections(conn) == 0)  # while the thread is still there
    assert cut_in == [threading.get_ident()]  # those of this thread alone: nobody cuts another hub's
    thread.go_on()


def test_thread_that_ends_while_its_put_is_in_flight(play):
    played = play({"put": b""})
    producer = gstalk.Producer(played.uri)
    assert producer.wait_connected(5)

    def run() -> gevent.Greenlet[..., Any]:
        assert producer.wait_connected(5)
        putting = gevent.spawn(producer.put, "t", b"x")
        while not played.count("put"):
            gevent.sleep(0.001)
        return putting

    Thread(run).join()
    wait_until(lambda: played.open == 1)
    gc.collect()
    producer.stop()


def test_thread_that_ends_while_it_dials(play):
    """Its connection is not a connection yet: nothing was answered."""
    played = play({"stats": b""})
    producer = gstalk.Producer(played.uri)
    with pytest.raises(gstalk.PutTimeoutError):
        Thread(partial(producer.put, "t", b"x", timeout=0.1)).join()
    wait_until(lambda: played.connections == 2 and played.open == 1)
    producer.stop(0)


def test_thread_that_ends_while_a_server_is_left_alone(play):
    played = play({"put": b"DRAINING\r\n"})
    producer = gstalk.Producer(played.uri)
    assert producer.wait_connected(5)
    with pytest.raises(gstalk.DrainingError):
        Thread(partial(producer.put, "t", b"x")).join()
    wait_until(lambda: played.open == 1)
    producer.stop()


def test_stop_does_not_wait_for_puts_of_a_thread_that_ends_meanwhile(play):
    """Nobody goes on with them, and nobody counts them any more: also where the hub is another's."""
    played = play({"put": b""})
    producer = gstalk.Producer(played.uri)
    assert producer.wait_connected(5)
    go_on = threading.Event()

    def run() -> Hub:
        hub = get_hub()
        gevent.spawn(producer.put, "t", b"x")
        while not played.count("put"):
            gevent.sleep(0.001)
        go_on.wait()
        return hub

    thread = Thread(run)
    wait_until(lambda: played.count("put"))
    stopping = gevent.spawn(producer.stop)
    gevent.sleep(0.05)
    assert not stopping.ready()
    go_on.set()
    hub = thread.join()
    stopping.get(timeout=2)
    hub.destroy(destroy_loop=True)


def test_call_that_meets_the_stop_of_another_thread_leaves_puts_under_way_to_finish(play, monkeypatch):
    """It has looked whether the Producer is stopped, and looks again when it has its connections."""
    producer = gstalk.Producer(play({"put": slow(0.2)}).uri)
    assert producer.wait_connected(5)
    put = gevent.spawn(producer.put, "t", b"x")
    gevent.sleep(0.05)
    stopping: list[Thread] = []
    enter = Hubs.enter

    def enter_late(hubs: Hubs) -> PutQueue:
        queue = enter(hubs)
        if not stopping:
            stopping.append(Thread(producer.stop))
            while not hubs.is_over:
                time.sleep(0.001)
        return queue

    monkeypatch.setattr(Hubs, "enter", enter_late)
    with pytest.raises(gstalk.ConnectionClosedError, match="this Producer is stopped"):
        producer.put_many("t", [b"late"])
    assert put.get(timeout=5) > 0
    stopping[0].join()


class Emptied(dict[Any, Any]):
    """Another thread comes in between."""

    def items(self) -> Any:
        items = list(super().items())
        self.clear()
        return items

    def get(self, key: object, default: Any = None) -> Any:
        found = super().get(key, default)
        self.clear()
        return found


def test_threads_that_let_go_of_the_same_connections_do_not_meet(play):
    """Of their parent's in a child, and of those of a thread that ends during a `stop`."""
    producer = gstalk.Producer(play().uri)
    assert producer.wait_connected(5)
    hubs, queue = producer._hubs, producer._queue
    queue.is_ready = False  # as in a child
    hubs._queues = Emptied(hubs._queues)
    assert producer.put("t", b"x") == 1
    queue.is_ready = True
    hubs._queues = Emptied({queue.hub: queue})
    assert len(hubs._thread_ended(queue)) == 1
    queue.pool.cut()
    producer._queue.pool.cut()


def test_put_of_a_signal_handler_while_connections_are_made_shares_them(play, monkeypatch):
    """What was made beside them is let go."""
    played = play()
    producer = gstalk.Producer(played.uri)
    assert producer.wait_connected(5)
    made: list[PutQueue] = []

    def make(*args: Any) -> PutQueue:
        queue = PutQueue(*args)
        made.append(queue)
        if len(made) == 1:
            producer.put("t", b"signal's")
        return queue

    monkeypatch.setattr("gstalk.pool.hubs.PutQueue", make)
    assert Thread(partial(producer.put, "t", b"x")).join() == 2
    assert [queue.pool.is_stopped for queue in made] == [True, True]
    wait_until(lambda: played.open == 1)
    made.clear()
    producer.stop()


# -- outages ------------------------------------------------------------------------------------------------------


def test_outage_is_told_once_for_all_threads():
    told = Told()
    with Beanstalkd() as server:
        server.kill()
        with gstalk.Producer(server.uri, **told.options()) as producer:

            def put() -> str:
                try:
                    producer.put("t", b"x", timeout=0.2)
                except gstalk.PutTimeoutError:
                    return "out of time"
                return "id"

            for _ in range(2):
                assert {thread.join() for thread in [Thread(put) for _ in range(4)]} == {"out of time"}
            assert told.lines == [f"no connection to {server.uri}; trying again until there is one"]
            told.lines.clear()
            server.start()
            assert {thread.join() for thread in [Thread(partial(producer.put, "t", b"x")) for _ in range(4)]} != set()
            assert told.lines == [f"connected to {server.uri} again"]
