"""Every argument of every public call, given in disguise: what is sent, kept and found is the builtin that it holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import pytest

import gstalk
from gstalk.connection.transport import Transport
from gstalk.protocol import checks
from gstalk.testing import Server
from tests.disguises import BODIES, DURATIONS, NUMBERS, TEXTS, hostile

BODY = b"12345678"


class Disguise(NamedTuple):
    """One way to give each kind of value."""

    text: Callable[[str], Any]
    number: Callable[[int], Any]
    duration: Callable[[int], Any]
    body: Callable[[bytes], Any]


def _disguises() -> Iterator[Any]:
    kinds: list[dict[str, Callable[[Any], Any]]] = [TEXTS, NUMBERS, DURATIONS, BODIES]
    cycles = [itertools.cycle(kind.items()) for kind in kinds]
    for chosen in itertools.islice(zip(*cycles, strict=True), max(map(len, kinds))):
        yield pytest.param(Disguise(*(make for _, make in chosen)), id=", ".join(name for name, _ in chosen))


disguised = pytest.mark.parametrize("as_", list(_disguises()))


@pytest.fixture
def server() -> Iterator[Server]:
    """Job 1 is ready in the tube mail, 2 delayed, 3 buried."""
    with Server() as server, gstalk.dial(server.uri) as conn:
        conn.put("mail", b"ready", priority=3)
        conn.put("mail", b"delayed", delay=1000)
        conn.put("mail", b"buried", priority=0)
        conn.watch("mail")
        conn.reserve_job(3).bury()
        yield server


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> bytearray:
    """What has been sent, by whatever connection."""
    seen = bytearray()
    send = Transport._send

    def noting_send(self: Transport, data: bytes | memoryview) -> int:
        taken = send(self, data)
        seen.extend(data[:taken])
        return taken

    monkeypatch.setattr(Transport, "_send", noting_send)
    return seen


def is_builtin(value: object) -> bool:
    return type(value) in (str, int, float, bool, bytes, type(None))


# -- Conn and Job ------------------------------------------------------------------------------------------------

PUT = b"use mail\r\nput 5 6 7 8\r\n12345678\r\n"
Step = Callable[[gstalk.Conn, Disguise], object]


def held(conn: gstalk.Conn, as_: Disguise) -> gstalk.Job:
    return conn.reserve_job(1)


def watched(conn: gstalk.Conn, as_: Disguise) -> int:
    return conn.watch("mail")


#: What is called, in which steps, and what is sent.
CONN: dict[str, tuple[list[Step], bytes]] = {
    "put": ([lambda c, a: c.put(a.text("mail"), a.body(BODY), gstalk.PutParams(5, 6, 7))], PUT),
    "put, params": (
        [lambda c, a: c.put("mail", BODY, gstalk.PutParams(a.number(5), a.duration(6), a.duration(7)))],
        PUT,
    ),
    "put, keywords": (
        [lambda c, a: c.put("mail", BODY, priority=a.number(5), delay=a.duration(6), ttr=a.duration(7))],
        PUT,
    ),
    "put, tube in use": (
        [lambda c, a: c.put("mail", b""), lambda c, a: c.put(a.text("mail"), b""), lambda c, a: c.put("mail", b"")],
        b"use mail\r\n" + b"put 1024 0 60 0\r\n\r\n" * 3,
    ),
    "put_many": (
        [
            lambda c, a: c.put_many(
                a.text("mail"), [a.body(BODY)], priority=a.number(5), delay=a.duration(6), ttr=a.duration(7)
            )
        ],
        PUT,
    ),
    "reserve_job": ([lambda c, a: c.reserve_job(a.number(2))], b"reserve-job 2\r\n"),
    "reserve_with_timeout": (
        [watched, lambda c, a: c.reserve_with_timeout(a.duration(5))],
        b"watch mail\r\nreserve-with-timeout 4\r\n",  # what is left of it is the client's to wait
    ),
    "reserve_with_timeout, at once": (
        [lambda c, a: c.reserve_with_timeout(a.number(0))],
        b"reserve-with-timeout 0\r\n",
    ),
    "delete": ([lambda c, a: c.delete(a.number(1))], b"delete 1\r\n"),
    "delete, held": ([held, lambda c, a: c.delete(a.number(1))], b"reserve-job 1\r\ndelete 1\r\n"),
    "touch": ([held, lambda c, a: c.touch(a.number(1))], b"reserve-job 1\r\ntouch 1\r\n"),
    "release": (
        [held, lambda c, a: c.release(a.number(1), a.number(4), a.duration(5))],
        b"reserve-job 1\r\nrelease 1 4 5\r\n",
    ),
    "release, its own priority": (
        [held, lambda c, a: c.release(a.number(1), delay=a.duration(5))],
        b"reserve-job 1\r\nstats-job 1\r\nrelease 1 3 5\r\n",
    ),
    "release, a Job": (
        [lambda c, a: held(c, a).release(a.number(4), a.duration(5))],
        b"reserve-job 1\r\nrelease 1 4 5\r\n",
    ),
    "release, a Job, its own priority": (
        [lambda c, a: held(c, a).release(delay=a.duration(5))],
        b"reserve-job 1\r\nstats-job 1\r\nrelease 1 3 5\r\n",
    ),
    "bury": ([held, lambda c, a: c.bury(a.number(1), a.number(4))], b"reserve-job 1\r\nbury 1 4\r\n"),
    "bury, its own priority": (
        [held, lambda c, a: c.bury(a.number(1))],
        b"reserve-job 1\r\nstats-job 1\r\nbury 1 3\r\n",
    ),
    "bury, a Job": ([lambda c, a: held(c, a).bury(a.number(4))], b"reserve-job 1\r\nbury 1 4\r\n"),
    "kick": ([lambda c, a: c.kick(a.text("mail"), a.number(2))], b"use mail\r\nkick 2\r\n"),
    "kick_job": ([lambda c, a: c.kick_job(a.number(3))], b"kick-job 3\r\n"),
    "peek": ([lambda c, a: c.peek(a.number(3))], b"peek 3\r\n"),
    "peek_ready": ([lambda c, a: c.peek_ready(a.text("mail"))], b"use mail\r\npeek-ready\r\n"),
    "peek_delayed": ([lambda c, a: c.peek_delayed(a.text("mail"))], b"use mail\r\npeek-delayed\r\n"),
    "peek_buried": ([lambda c, a: c.peek_buried(a.text("mail"))], b"use mail\r\npeek-buried\r\n"),
    "use": ([lambda c, a: c.use(a.text("mail")), lambda c, a: c.kick("mail", 1)], b"use mail\r\nkick 1\r\n"),
    "watch": ([lambda c, a: c.watch(a.text("mail"))], b"watch mail\r\n"),
    "ignore": ([watched, lambda c, a: c.ignore(a.text("mail"))], b"watch mail\r\nignore mail\r\n"),
    "stats_tube": ([lambda c, a: c.stats_tube(a.text("mail"))], b"stats-tube mail\r\n"),
    "stats_job": ([lambda c, a: c.stats_job(a.number(1))], b"stats-job 1\r\n"),
    "pause_tube": ([lambda c, a: c.pause_tube(a.text("mail"), a.duration(5))], b"pause-tube mail 5\r\n"),
}


@disguised
@pytest.mark.parametrize(("steps", "expected"), CONN.values(), ids=CONN)
def test_conn_argument_in_disguise_is_what_it_holds(server, sent, as_, steps, expected):
    checks.known_tubes.clear()
    with gstalk.dial(server.uri) as conn:
        sent.clear()
        for step in steps:
            result = step(conn, as_)
        assert bytes(sent) == expected
        connection = conn._connection
        assert is_builtin(connection.used)
        assert all(map(is_builtin, connection.watched))
        assert all(map(is_builtin, connection.reserved.by_id))
        assert all(map(is_builtin, checks.known_tubes))
        if isinstance(result, gstalk.Job):
            assert is_builtin(result.id)
            assert is_builtin(result.tube)
        assert conn.list_tube_used() == connection.used
        assert conn.list_tubes_watched() == connection.watched


def test_conn_id_in_disguise_finishes_the_job_that_is_held(server):
    """The connection finds its Job by what is held, not by the hash that a subclass tells."""
    with gstalk.dial(server.uri) as conn:
        job = conn.reserve_job(1)
        conn.delete(NUMBERS["lying"](1))
        assert job.is_finished


def test_conn_table_names_every_method():
    names = {name for name in vars(gstalk.Conn) if not name.startswith("_")}
    without = {"uri", "is_connected", "close", "reserve", "list_tubes", "list_tubes_watched", "list_tube_used", "stats"}
    assert {name.split(",")[0] for name in CONN} == names - without


@disguised
def test_dial_takes_a_uri_and_options_in_disguise(server, sent, as_):
    options = {"conn_timeout": as_.duration(5), "reserve_timeout": as_.duration(6), "put_timeout": as_.duration(7)}
    with gstalk.dial(as_.text(server.uri), multiply=as_.number(2), **options) as conn:
        assert conn.uri == server.uri
        assert is_builtin(conn.uri)
        assert conn.put("mail", b"") > 3
        config = conn._connection.config
        assert (config.conn_timeout, config.reserve_timeout, config.put_timeout, config.multiply) == (5, 6, 7, 2)


# -- Producer ----------------------------------------------------------------------------------------------------


@disguised
def test_producer_arguments_in_disguise_are_what_they_hold(server, sent, as_):
    checks.known_tubes.clear()
    with gstalk.Producer([as_.text(server.uri)], multiply=as_.number(1), stop_timeout=as_.duration(5)) as producer:
        assert producer.wait_connected(as_.duration(5))
        sent.clear()
        keywords: Any = {"priority": as_.number(5), "delay": as_.duration(6), "ttr": as_.duration(7)}
        tube = as_.text("mail")
        ids = [producer.put(tube, as_.body(BODY), timeout=as_.duration(5), **keywords)]
        ids += [producer.put("mail", BODY, gstalk.PutParams(as_.number(5), as_.duration(6), as_.duration(7)))]
        ids += producer.put_many(tube, [as_.body(BODY)], timeout=as_.duration(5), **keywords)
        assert bytes(sent) == b"use mail\r\n" + b"put 5 6 7 8\r\n12345678\r\n" * 3
        assert ids == [4, 5, 6]
        assert all(map(is_builtin, checks.known_tubes))
        producer.stop(as_.duration(5))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_producer_error_names_the_tube_that_is_held(text):
    with gstalk.Producer("127.0.0.1:1") as producer:
        with pytest.raises(gstalk.PutTimeoutError, match="^put to 'mail': "):
            producer.put(text("mail"), b"", timeout=0)
        with pytest.raises(gstalk.PutManyError, match="^put_many to 'mail': "):
            producer.put_many(text("mail"), [b""], timeout=0)


# -- Consumer ----------------------------------------------------------------------------------------------------


class Pairs(Mapping[str, Any]):
    """A mapping that asks no key for its hash, as a dict would."""

    def __init__(self, *pairs: tuple[str, Any]) -> None:
        self.pairs = pairs

    def __getitem__(self, name: str) -> Any:
        raise AssertionError("by its key only the builtin can be found")

    def __iter__(self) -> Iterator[str]:
        return iter([key for key, _ in self.pairs])

    def __len__(self) -> int:
        return len(self.pairs)

    def items(self) -> Any:
        return self.pairs


@disguised
@pytest.mark.parametrize("by_tube", [False, True])
def test_consumer_arguments_in_disguise_are_what_they_hold(server, as_, by_tube):
    consumer = gstalk.Consumer(
        as_.text(server.uri),
        [as_.text("mail"), as_.text("post")],
        num_greenlets=as_.number(1),
        time_limit=as_.duration(20),
        retry=gstalk.RetryPolicy(
            as_.number(2), as_.duration(5), as_.number(2), as_.duration(9), True, as_.text("bury")
        ),
    )
    seen = []

    def handler(job: gstalk.Job) -> None:
        seen.append((job.id, job.body))
        job.delete()
        consumer.stop(as_.duration(5))

    consumer.receive(Pairs((as_.text("mail"), handler), (as_.text("post"), handler)) if by_tube else handler)
    assert seen == [(1, b"ready")]
    assert consumer.wait_connected(as_.number(0)) is False


@disguised
@pytest.mark.parametrize("what", ["retry", "bury"])
def test_consumer_fate_in_disguise_is_what_it_holds(server, as_, what):
    def handler(job: gstalk.Job) -> None:
        consumer.stop()
        if what == "retry":
            raise gstalk.Retry(as_.duration(100), as_.number(5))
        raise gstalk.Bury(as_.number(5))

    wrong: list[object] = []
    consumer = gstalk.Consumer(server.uri, "mail", error_func=lambda *told: wrong.append(told))
    consumer.receive(handler)
    assert wrong == []
    with gstalk.dial(server.uri) as conn:
        stats = conn.stats_job(1)
    assert (stats.pri, stats.state) == (5, "delayed" if what == "retry" else "buried")
    assert what == "bury" or stats.delay == 100


def test_consumer_dict_of_str_enums_names_the_tubes_that_are_held(server):
    """Each member has another hash than its tube's name: no handler was found, and every job was buried."""
    tube = TEXTS["str Enum"]("mail")
    seen = []

    def handler(job: gstalk.Job) -> None:
        seen.append(job.id)
        consumer.stop()

    consumer = gstalk.Consumer(server.uri, tube, auto_delete=True)
    consumer.receive({tube: handler})
    assert seen == [1]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_consumer_two_handlers_for_one_tube_are_refused(text):
    """To a dict they are two keys, for each may have a hash of its own."""
    handlers: Any = {TEXTS["lying"]("mail"): print, "mail": print}
    with pytest.raises(gstalk.InvalidArgumentError, match="^two handlers for tube 'mail'$"):
        gstalk.Consumer("127.0.0.1:1", text("mail")).receive(handlers)


def test_consumer_handler_for_what_is_no_tube_is_refused():
    consumer = gstalk.Consumer("127.0.0.1:1", "mail")
    wrong: Any = {"mail": print, 5: print}
    with pytest.raises(TypeError, match="^tube must be a str, got int$"):
        consumer.receive(wrong)
    with pytest.raises(gstalk.InvalidArgumentError, match="^tube name is empty$"):
        consumer.receive({"mail": print, "": print})
    with pytest.raises(gstalk.InvalidArgumentError, match="^no handler for tube 'mail'$"):
        consumer.receive({"post": print})


# -- what is no value at all -------------------------------------------------------------------------------------

MAKERS: list[Any] = [
    partial(gstalk.dial, "127.0.0.1:1"),
    partial(gstalk.Producer, "127.0.0.1:1"),
    partial(gstalk.Consumer, "127.0.0.1:1", "mail"),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("config", [{}, {"multiply": 2}, "config", 5, gstalk.RetryPolicy(), gstalk.Config])
def test_config_of_another_type_is_a_type_error(make, config):
    with pytest.raises(TypeError) as caught:
        make(config)
    assert str(caught.value) == (
        f"config must be a gstalk.Config, got {type(config).__name__}; fields of one may be given as keywords"
    )


@pytest.mark.parametrize("make", MAKERS)
def test_option_that_is_unknown_is_a_type_error(make):
    for config in (None, gstalk.Config()):
        with pytest.raises(TypeError, match="num_greenlet"):
            make(config, num_greenlet=5)


@pytest.mark.parametrize("make", [gstalk.Producer, lambda uris: gstalk.Consumer(uris, "mail")])
@pytest.mark.parametrize("uris", [None, 5, b"localhost", object()])
def test_uris_of_another_type_are_a_type_error(make, uris):
    with pytest.raises(TypeError, match=f"^uris must be a str or an iterable of str, got {type(uris).__name__}$"):
        make(uris)
    with pytest.raises(TypeError, match=f"^each of uris must be a str, got {type(uris).__name__}$"):
        make([uris])


@pytest.mark.parametrize("uri", [None, 5, b"localhost", ["localhost"]])
def test_uri_of_another_type_is_a_type_error(uri):
    with pytest.raises(TypeError, match=f"^a server URI must be a str, got {type(uri).__name__}$"):
        gstalk.dial(uri)


@pytest.mark.parametrize("tubes", [None, 5, b"mail", object()])
def test_tubes_of_another_type_are_a_type_error(tubes):
    with pytest.raises(TypeError, match=f"^tubes must be a str or an iterable of str, got {type(tubes).__name__}$"):
        gstalk.Consumer("127.0.0.1:1", tubes)


@pytest.mark.parametrize("bodies", [None, 5, b"mail", "mail"])
def test_bodies_of_another_type_are_a_type_error(server, bodies):
    with gstalk.dial(server.uri) as conn, gstalk.Producer(server.uri) as producer:
        for each in (conn, producer):
            with pytest.raises(TypeError, match=f"^bodies must be an iterable of bytes, got {type(bodies).__name__}$"):
                each.put_many("mail", bodies)


def test_body_that_was_released_is_refused_and_nothing_is_sent(server, sent):
    view = memoryview(b"12345678")
    view.release()
    with gstalk.dial(server.uri) as conn, gstalk.Producer(server.uri) as producer:
        producer.wait_connected()
        sent.clear()
        for each in (conn, producer):
            with pytest.raises(gstalk.InvalidArgumentError, match="^body is a memoryview that was released$"):
                each.put("mail", view)
            with pytest.raises(gstalk.PutManyError) as caught:
                each.put_many("mail", [view, b"x"])
            bad, good = caught.value.results
            assert str(bad) == "body is a memoryview that was released"
            assert type(good) is int
        assert sent.count(b"put ") == 2


WRONG_IDS: list[Any] = [None, "1", b"1", 1.0, True, timedelta(1)]


@pytest.mark.parametrize("name", ["reserve_job", "delete", "touch", "release", "bury", "kick_job", "peek", "stats_job"])
def test_job_id_that_is_none_is_refused_and_nothing_is_sent(server, sent, name):
    with gstalk.dial(server.uri) as conn:
        sent.clear()
        for wrong in WRONG_IDS:
            with pytest.raises(TypeError, match=f"^job id must be an int, got {type(wrong).__name__}$"):
                getattr(conn, name)(wrong)
        for wrong in (0, -1, 2**64, hostile(int)(0)):
            with pytest.raises(gstalk.InvalidArgumentError, match="^job id must be from 1 to 18446744073709551615"):
                getattr(conn, name)(wrong)
        assert not sent
