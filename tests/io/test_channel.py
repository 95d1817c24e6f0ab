"""A connection and its state on the server: the tube in use, those watched, room, refusals, recall, and its end."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event
from gevent.exceptions import BlockingSwitchOutError

import gstalk
from gstalk.config import Config
from gstalk.connection import channel as room
from gstalk.connection import pipeline
from gstalk.connection.channel import Channel
from gstalk.connection.critical import critical
from gstalk.protocol import commands
from gstalk.protocol.request import Request
from gstalk.uri import parse_uri
from tests.io.calling import call, in_thread, interrupt
from tests.io.striking import Strike
from tests.servers import CUT, wait_until

pytestmark = pytest.mark.real

SILENCE = b""


def peek(line: Any, tube: str | None) -> Any:
    """Send a command that acts on the tube in use, and return its request."""
    request = Request(commands.PEEK_READY, line.connection.uri)
    line.connection.send(commands.plain(commands.PEEK_READY), request, tube)
    return request


# -- the dial ----------------------------------------------------------------------------------------------------------


def test_channel_watches_what_it_is_told_when_it_dials(play):
    played = play()
    channel = Channel(parse_uri(played.uri), Config(), ("a", "b"))
    assert (channel.used, channel.watched, channel.server.id) == ("default", ["a", "b"], "4a")
    assert played.lines == [b"stats", b"watch a", b"watch b", b"ignore default"]
    assert (channel.is_connected, channel.pipe.clear) == (True, True)
    channel.cut()
    plain = Channel(parse_uri(played.uri), Config())
    assert (plain.watched, played.lines[4:]) == (["default"], [b"stats"])
    plain.cut()


def test_channel_that_gets_no_answer_is_none(play):
    with pytest.raises(gstalk.ConnectError):
        Channel(parse_uri(play({"stats": CUT}).uri), Config())


def test_channel_is_not_dialed_in_the_hub(play):
    played, caught = play(), []

    def dial() -> None:
        try:
            Channel(parse_uri(played.uri), Config())
        except BaseException as error:
            caught.append(type(error))

    get_hub().loop.run_callback(dial)
    gevent.sleep(0.01)
    assert (caught, played.connections) == ([BlockingSwitchOutError], 0)


# -- who is refused ----------------------------------------------------------------------------------------------------


def test_command_that_comes_too_late_is_refused_in_the_words_of_its_end(line):
    connection = line().connection
    connection.check("put")
    connection.pipe.fail(gstalk.ConnectionLostError, "gone")
    with pytest.raises(gstalk.ConnectionLostError) as lost:
        connection.check("put")
    assert str(lost.value) == f"put at {connection.uri}: gone; it was not sent"
    connection.close()
    with pytest.raises(gstalk.ConnectionClosedError) as closed:
        connection.check("put")
    assert str(closed.value) == f"put at {connection.uri}: the connection is closed; it was not sent"
    assert (lost.value.sent, closed.value.sent) == ("no", "no")


def test_other_threads_are_refused_unless_the_connection_is_over(line):
    connection = line().connection
    asked, closed = in_thread(partial(connection.check, "put"), connection.close)
    assert str(asked).startswith(f"put at {connection.uri}: this connection belongs to another thread's hub: ")
    assert str(closed).startswith(f"close of {connection.uri}: this connection belongs to another thread's hub: ")
    assert connection.is_connected
    connection.cut()
    asked, closed = in_thread(partial(connection.check, "put"), connection.close)
    assert (type(asked), type(closed)) == (gstalk.ConnectionClosedError, gstalk.WrongHubError)


def test_call_in_the_hub_is_refused_and_sends_nothing(play, connect):
    played = play()
    conn = connect(played.uri)
    caught = []

    def in_hub():
        for name, args in (("put", ("a", b"")), ("reserve", ()), ("delete", (1,)), ("stats", ())):
            try:
                getattr(conn, name)(*args)
            except BaseException as error:
                caught.append(type(error))

    get_hub().loop.run_callback(in_hub)
    gevent.sleep(0.01)
    assert caught == [gevent.exceptions.BlockingSwitchOutError] * 4
    conn.list_tube_used()
    assert not any(line.startswith((b"put", b"reserve", b"delete")) for line in played.lines)


@critical
def inside(connection: Channel, call: Callable[[], object]) -> object:
    """A step in whose middle something else runs."""
    with connection.section:
        return call()


def test_call_in_the_middle_of_a_step_is_refused_and_one_of_another_greenlet_waits(line):
    talk, go_on = line(), Event()
    with pytest.raises(BlockingSwitchOutError):
        inside(talk.connection, lambda: talk.connection.check("put"))
    sleeper = gevent.spawn(inside, talk.connection, go_on.wait)
    gevent.sleep(0)
    waiting: list[Any] = [gevent.spawn(talk.connection.check, "put"), gevent.spawn(talk.connection.close)]
    gevent.sleep(0.01)
    assert [each.ready() for each in waiting] == [False, False]
    go_on.set()
    gevent.joinall([sleeper, *waiting])
    assert waiting[1].successful()
    assert not talk.connection.is_connected


def test_greenlet_that_recalls_is_refused(line, monkeypatch):
    """A signal handler in it would wait for what only that greenlet can bring about."""
    talk = line({"reserve-with-timeout": SILENCE})
    refused: list[BaseException] = []
    dial = Channel._dial

    def handler(self: Channel, used: str = "default") -> Any:
        with pytest.raises(BlockingSwitchOutError) as caught:
            self.check("put")
        refused.append(caught.value)
        return dial(self, used)

    monkeypatch.setattr(Channel, "_dial", handler)
    talk.connection.begin_wait(60, lambda request: None, talk.connection.recall)
    talk.connection.watch("mail")
    assert len(refused) == 1


# -- room --------------------------------------------------------------------------------------------------------------


def test_command_waits_for_room_and_whoever_is_interrupted_has_sent_nothing(line, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_REQUESTS", 2)
    answer = Event()

    def late(_: bytes) -> bytes:
        answer.wait()
        return b"TOUCHED\r\n"

    talk = line({"touch": late})
    touchers = [call(talk.connection.touch, 6), call(talk.connection.touch, 7)]
    deleter = call(talk.connection.delete, 8)
    error = gevent.Timeout(60)
    assert interrupt(lambda: talk.connection.delete(9), error) is error
    assert (talk.connection.pipe.clear, deleter.ready()) == (False, False)
    answer.set()
    gevent.joinall([*touchers, deleter], timeout=5, raise_error=True)
    assert talk.settle() == [b"touch 6", b"touch 7", b"delete 8"]


def test_command_that_waits_for_room_when_the_connection_ends_is_refused(line, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_REQUESTS", 1)
    talk = line({"touch": SILENCE})
    toucher, deleter = call(talk.connection.touch, 7), call(talk.connection.delete, 8)
    talk.connection.cut()
    gevent.joinall([toucher, deleter])
    assert str(deleter.exception) == f"delete at {talk.connection.uri}: the connection is closed; it was not sent"
    assert toucher.exception.sent == "maybe"
    talk.connection.wait_room()  # there is none to wait for


# -- the tube in use ---------------------------------------------------------------------------------------------------


def test_peek_ready_of_another_tube_than_the_used_one(conn, tube):
    conn.put(tube, b"x")
    conn.use("default")
    assert conn.peek_ready(tube).body == b"x"
    assert conn.list_tube_used() == tube


def test_use_sets_the_used_tube(conn, tube):
    assert conn.use(tube) is None
    assert conn.list_tube_used() == tube


def test_use_stands_before_a_command_in_one_write_where_the_tube_is_another_one(line):
    talk = line({"peek-ready": b"NOT_FOUND\r\n"})
    talk.played.reads.clear()
    found = [talk.connection.pipe.wait(peek(talk, tube)) for tube in ("default", "a", "a", None, "b")]
    assert found == [None] * 5
    word = b"peek-ready\r\n"
    assert talk.played.reads == [word, b"use a\r\n" + word, word, word, b"use b\r\n" + word]
    assert talk.connection.used == "b"


def test_use_is_said_again_behind_one_that_failed(line):
    talk = line({"use": [b"OUT_OF_MEMORY\r\n", None], "peek-ready": b"NOT_FOUND\r\n"})
    request = peek(talk, "a")
    assert talk.connection.used == "a"  # what the next command will find, if all goes well
    with pytest.raises(gstalk.OutOfMemoryError):
        talk.connection.pipe.wait(request)
    assert talk.connection.used is None
    assert talk.connection.pipe.wait(peek(talk, "a")) is None
    assert talk.settle() == [b"use a", b"peek-ready"] * 2


def test_use_by_itself_sets_the_tube_or_leaves_it_unknown(line):
    talk = line({"use": [None, b"INTERNAL_ERROR\r\n", None], "peek-ready": b"NOT_FOUND\r\n"})
    talk.connection.use("a")
    assert talk.connection.used == "a"
    with pytest.raises(gstalk.InternalError):
        talk.connection.use("b")
    assert talk.connection.used is None
    talk.connection.pipe.wait(peek(talk, "a"))
    assert talk.settle() == [b"use a", b"use b", b"use a", b"peek-ready"]


@pytest.mark.parametrize("command", ["use", "peek-ready"])
def test_tube_in_use_is_unknown_where_a_signal_strikes_as_it_is_told(line, monkeypatch, command):
    """Else the next command would go without a `use`, to a tube that the server doesn't know of."""
    talk = line({"peek-ready": b"NOT_FOUND\r\n"})

    def struck(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.Pipeline, "append", struck)
        talk.connection.use("a") if command == "use" else peek(talk, "a")
    assert talk.connection.used is None
    talk.connection.pipe.wait(peek(talk, "a"))
    assert talk.settle() == [b"use a", b"peek-ready"]


def test_two_commands_that_belong_together_go_out_in_one_write(line):
    talk = line()
    first, second = Request(commands.DELETE, talk.connection.uri, 7), Request(commands.TOUCH, talk.connection.uri, 8)
    first.end = 10
    talk.played.reads.clear()
    start = talk.connection.pipe.sent
    talk.connection.send(b"delete 7\r\ntouch 8\r\n", second, before=(first,)).wait(second)
    assert (talk.played.reads, first.is_settled) == ([b"delete 7\r\ntouch 8\r\n"], True)
    assert (first.end - start, second.end - start) == (10, 19)


def test_command_of_ours_is_appended_whether_there_is_room_or_not(line, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_REQUESTS", 1)
    talk = line()
    requests = [Request(commands.TOUCH, talk.connection.uri, job_id) for job_id in (7, 8)]
    for request in requests:
        talk.connection.append(b"touch %d\r\n" % request.key, request)
    assert talk.connection.section.owner is None
    talk.connection.pipe.wait(requests[1])
    assert talk.sent == [b"touch 7", b"touch 8"]


# -- tubes watched -----------------------------------------------------------------------------------------------------


def test_watch_and_ignore_return_how_many_are_watched(conn, tube):
    assert conn.watch("another") == 2
    assert conn.watch("another") == 2
    assert sorted(conn.list_tubes_watched()) == sorted([tube, "another"])
    assert conn.ignore("another") == 1
    assert conn.ignore("never-watched") == 1


def test_ignore_the_last_tube_raises_not_ignored(conn, tube):
    with pytest.raises(gstalk.NotIgnoredError):
        conn.ignore(tube)
    assert conn.list_tubes_watched() == [tube]


def test_tubes_watched_are_those_that_the_server_has_confirmed(line):
    talk = line({"watch": [None, None, None, b"OUT_OF_MEMORY\r\n"], "ignore": [None, None, b"NOT_IGNORED\r\n"]})
    connection = talk.connection
    assert [connection.watch(tube) for tube in ("a", "a", "b")] == [2, 2, 3]
    assert connection.watched == ["default", "a", "b"]
    with pytest.raises(gstalk.OutOfMemoryError):
        connection.watch("c")
    assert [connection.ignore(tube) for tube in ("default", "never")] == [2, 2]
    with pytest.raises(gstalk.NotIgnoredError):
        connection.ignore("a")
    assert connection.watched == ["a", "b"]


def test_tube_whose_watch_may_have_been_carried_out_counts_as_watched(line):
    """A job may be of it, so that of no job the tube is known without asking."""
    talk = line({"watch": b"INTERNAL_ERROR\r\n"})
    connection = talk.connection
    with pytest.raises(gstalk.InternalError):
        connection.watch("a")
    assert connection.watched == ["default", "a"]
    assert connection.hold(7, b"x").tube is None


# -- recall ------------------------------------------------------------------------------------------------------------


def test_recall_brings_a_pipe_on_which_commands_gather_and_the_same_state(line):
    talk = line({"reserve-with-timeout": SILENCE}, ("a",))
    talk.connection.use("mail")
    told: list[bool] = []
    talk.connection.on_failure = lambda: told.append(True)
    old = talk.connection.pipe
    talk.connection.begin_wait(60, lambda request: None, talk.connection.recall)
    talk.connection.recall()
    assert talk.connection.pipe is not old
    assert (talk.connection.pipe.clear, talk.connection._end_wait, old.on_failure) == (False, None, None)
    waiting = [call(talk.connection.delete, 7), call(talk.connection.delete, 8)]
    gevent.joinall(waiting, raise_error=True)
    assert talk.sent[2:6] == [b"stats", b"use mail", b"watch a", b"ignore default"]
    assert sorted(talk.sent[6:]) == [b"delete 7", b"delete 8"]
    assert (told, talk.connection.is_connected, talk.played.open) == ([], True, 1)


def test_recall_of_a_connection_that_has_ended_leaves_it_ended(line):
    """Its wait may have failed as it was sent, before whoever asked for it had the request."""
    talk = line({})
    pipe = talk.connection.pipe
    pipe.fail(gstalk.ConnectionLostError, "gone")
    talk.connection.recall()
    assert talk.connection.pipe is pipe
    with pytest.raises(gstalk.ConnectionLostError, match="gone"):
        talk.settle()


def test_recall_that_a_signal_strikes_ends_the_connection(line, monkeypatch):
    talk = line({"reserve-with-timeout": SILENCE})
    told: list[object] = []
    talk.connection.on_failure = lambda: told.append(talk.connection.pipe.failure[1])
    requests: list[Request] = []
    talk.connection.begin_wait(60, requests.append, talk.connection.recall)

    def strike(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(room, "Recall", strike)
        talk.connection.recall()
    assert told == ["KeyboardInterrupt hit in the middle"]
    assert not talk.connection.is_connected
    assert type(requests[0].error) is gstalk.ConnectionLostError


# -- the end -----------------------------------------------------------------------------------------------------------


def test_end_is_told_once_and_whoever_was_told_is_let_go(line):
    connection = line().connection
    told: list[str] = []
    connection.on_failure = lambda: told.append("over")
    connection.on_closing = connection.reserved.on_settled = connection._end_wait = lambda: None
    job = connection.hold(7, b"x")
    connection.pipe.fail(gstalk.ConnectionLostError, "gone")
    connection.cut()
    assert (told, job.is_lost, connection.is_connected) == (["over"], True, False)
    handed = (connection.on_failure, connection.on_closing, connection.reserved.on_settled, connection._end_wait)
    assert handed == (None, None, None, None)
    assert not connection._finalizer.alive  # nor does anybody remember it until it is dropped


def test_connection_that_nobody_refers_to_is_not_kept_by_its_pipe(play):
    gc.disable()
    try:
        channel = Channel(parse_uri(play().uri), Config())
        gone, pipe = weakref.ref(channel), channel.pipe
        with pytest.warns(ResourceWarning, match="^unclosed connection to "):
            del channel
        assert (gone() is None, pipe.failure is None) == (True, False)
    finally:
        gc.enable()


def test_close_lets_what_settles_jobs_finish_and_gives_up_the_rest(line):
    answer, closing = Event(), []

    def late(_: bytes) -> bytes:
        answer.wait()
        return b"DELETED\r\n"

    talk = line({"delete": late, "touch": SILENCE})
    deleter = call(talk.connection.delete, 7)
    toucher = call(talk.connection.touch, 8)
    talk.connection.on_closing = lambda: closing.append(deleter.ready())
    closer = call(talk.connection.close)
    assert (closing, talk.connection.is_connected) == ([False], False)
    toucher.join(5)
    assert str(toucher.exception) == f"touch 8 at {talk.connection.uri}: you closed it; the server may have acted"
    with pytest.raises(gstalk.ConnectionClosedError):
        talk.connection.check("put")
    talk.played.replies[b"touch"] = [b"TOUCHED\r\n"]
    answer.set()
    gevent.joinall([deleter, closer], timeout=5)
    assert (closer.ready(), closing) == (True, [False])


def test_close_that_a_signal_strikes_at_any_line_closes_or_may_be_called_again(line):
    left_open = 0
    for number in range(1, 30):
        connection, strike = line().connection, Strike(Channel.close, number)
        sys.settrace(strike.trace)
        with suppress(Strike):
            connection.close()
        sys.settrace(None)
        if strike.lines_left > 0:
            break
        connection.close()
        left_open += connection.pipe.failure is None
        connection.cut()
    assert 5 < number < 30
    assert left_open == 1  # where it was about to be cut: then it is closed by whoever drops it


def test_close_without_anything_that_settles_waits_for_nothing(line):
    talk = line({"touch": SILENCE})
    toucher = call(talk.connection.touch, 7)
    switched: list[bool] = []
    get_hub().loop.run_callback(switched.append, True)
    talk.connection.close()
    talk.connection.close()
    assert switched == []
    toucher.join(5)
    assert type(toucher.exception) is gstalk.ConnectionClosedError
    assert b"list-tube-used" not in talk.sent


def test_close_waits_for_both_steps_of_a_release(line):
    talk = line()
    job = talk.connection.hold(7, b"x")
    releaser = call(talk.connection.release, job)
    talk.connection.close()
    releaser.get(timeout=5)
    assert job.is_finished
    assert [each for each in talk.sent if each != b"list-tube-used"] == [b"stats-job 7", b"release 7 9 0"]


@pytest.mark.parametrize("name", ["close", "leave"])
def test_close_waits_no_longer_than_conn_timeout(line, name):
    talk = line({"delete": SILENCE, "list-tube-used": SILENCE}, conn_timeout=0.1)
    deleter = call(talk.connection.delete, 7)
    with gevent.Timeout(5):
        getattr(talk.connection, name)()
    deleter.join(5)
    assert isinstance(deleter.exception, gstalk.DisconnectedError)


def test_close_in_the_hub_is_at_once(line):
    talk = line({"delete": SILENCE})
    deleter = call(talk.connection.delete, 7)
    seen: list[object] = []

    def close() -> None:
        talk.connection.close()
        seen.append(talk.connection.pipe.failure[1])

    get_hub().loop.run_callback(close)
    deleter.join(5)
    assert seen == ["you closed it"]


def test_close_in_the_middle_of_a_callback_is_put_off(line):
    connection = line().connection
    seen: list[object] = []

    def close() -> None:
        connection.close()
        seen.append(connection.pipe.failure)

    connection.pipe.soon(close)
    wait_until(lambda: connection.pipe.failure is not None, 5)
    assert (seen, connection.pipe.failure[1]) == ([None], "you closed it")


def test_close_that_is_put_off_comes_although_a_signal_strikes_it(connect, monkeypatch):
    """In the middle of a callback in the hub, as by a signal handler."""
    conn = connect()
    connection = conn._connection
    cut = Channel.cut
    strikes = [KeyboardInterrupt()]

    def struck(self: Channel) -> None:
        if strikes:
            raise strikes.pop()
        cut(self)

    monkeypatch.setattr(Channel, "cut", struck)
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *error: None)
    connection.pipe.soon(conn.close)
    wait_until(lambda: connection.pipe.failure is not None, 1)
    assert strikes == []


# -- taking leave ------------------------------------------------------------------------------------------------------


def test_leave_settles_and_returns_when_the_server_has_let_go(line):
    talk = line()
    deleter = call(talk.connection.delete, 7)
    talk.connection.leave()
    assert deleter.successful()
    wait_until(lambda: talk.played.open == 0, 5)
    assert (talk.connection.is_connected, talk.connection.pipe.failure is None) == (False, False)


def test_leave_of_a_wait_refuses_commands_and_ends_it(line):
    talk, requests = line({"reserve-with-timeout": SILENCE}), list[Request]()
    talk.connection.begin_wait(60, requests.append, talk.connection.recall)
    talk.connection.leave_wait()
    with pytest.raises(gstalk.ConnectionClosedError):
        talk.connection.check("put")
    wait_until(lambda: requests, 5)
    assert isinstance(requests[0].error, gstalk.DisconnectedError)
    talk.connection.leave()
    wait_until(lambda: talk.played.open == 0, 5)


@pytest.mark.parametrize("settles", [True, False])
def test_leave_while_a_reserve_is_recalled_goes_on_with_that_if_there_is_something_to_settle(line, settles):
    talk = line({"reserve-with-timeout": SILENCE})
    talk.connection.begin_wait(60, lambda request: None, talk.connection.recall)
    talk.connection.recall()
    waiting = call(talk.connection.delete if settles else talk.connection.touch, 7)
    if settles:
        job = talk.connection.hold(8, b"x")
        talk.connection.delete_unwaited(job)
    talk.connection.leave()
    waiting.join(5)
    assert (b"delete 8" in talk.sent) == settles
    assert not talk.connection.is_connected
    wait_until(lambda: talk.played.open == 0, 5)


def test_cut_while_a_reserve_is_recalled_ends_the_recall_too(line):
    talk = line({"reserve-with-timeout": SILENCE})
    talk.connection.begin_wait(60, lambda request: None, talk.connection.recall)
    old = talk.connection.pipe
    talk.connection.recall()
    recall = talk.connection._recall
    talk.connection.cut()
    assert [pipe.failure[1] for pipe in (old, talk.connection.pipe)] == ["you closed it", "you closed it"]
    recall.greenlet.join(5)
    assert recall.greenlet.ready()
