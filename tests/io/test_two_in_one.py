"""Two commands in one write: what is sent, which answer counts for what, and what an interruption or a cut leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from gevent import get_hub, getcurrent

import gstalk
from gstalk.conn import connection_of
from gstalk.connection.two_in_one import act_and_peek, look_and_reserve
from gstalk.protocol import commands
from tests.io.calling import call
from tests.servers import CUT, Played, wait_until

FOUND = [b"FOUND %d 1\r\nx\r\n" % number for number in (7, 8)]
NONE = b"NOT_FOUND\r\n"
SILENCE = b""


class Talk:
    """A connection to a played server, the job 7 that it has peeked at, and what was told of."""

    def __init__(self, played: Played, conn: gstalk.Conn) -> None:
        self.played, self.conn = played, conn
        self.connection = connection_of(conn)
        self.acted = 0
        self.reserved: list[tuple[gstalk.Job, Any]] = []
        self.in_hub: list[bool] = []

    def act(self, command: commands.Command = commands.KICK_JOB) -> gstalk.Job | None:
        return act_and_peek(self.connection, command, self.job, commands.PEEK_BURIED, self._acted)

    def peek(self) -> None:
        job = self.conn.peek_buried("mail")
        assert job is not None
        self.job = job

    def _acted(self) -> None:
        self.acted += 1

    def reserve(self) -> None:
        look_and_reserve(self.connection, 7, self._reserved)

    def _reserved(self, job: gstalk.Job, stats: Any) -> None:
        self.in_hub.append(getcurrent() is get_hub())
        self.reserved.append((job, stats))


@pytest.fixture
def start(play: Callable[..., Played]) -> Iterator[Callable[..., Talk]]:
    """Connect to a server that says this."""
    with ExitStack() as stack:

        def connect(replies: dict[str, Any]) -> Talk:
            played = play(replies)
            return Talk(played, stack.enter_context(gstalk.dial(played.uri)))

        yield connect


@pytest.fixture
def peeked(start: Callable[..., Talk]) -> Callable[..., Talk]:
    """The same, and have it peek at job 7 first; `peek` is what the next one finds."""

    def connect(act: Any, peek: Any) -> Talk:
        talk = start({"kick-job": act, "delete": act, "peek-buried": [FOUND[0], peek]})
        talk.peek()
        return talk

    return connect


# -- act and peek ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "sent", "said"),
    [
        (commands.KICK_JOB, b"kick-job 7\r\npeek-buried\r\n", b"KICKED\r\n"),
        (commands.DELETE, b"delete 7\r\npeek-buried\r\n", b"DELETED\r\n"),
    ],
)
def test_deed_and_peek_go_out_in_one_write_and_the_next_job_is_returned(peeked, command, sent, said):
    talk = peeked(said, FOUND[1])
    job = talk.act(command)
    assert talk.played.reads[-1] == sent
    assert (job.id, job.body, job.tube, job.reserved_at) == (8, b"x", "mail", None)
    assert talk.acted == 1


@pytest.mark.parametrize(("said", "acted"), [(b"KICKED\r\n", 1), (NONE, 0)])
def test_job_that_somebody_else_has_taken_is_let_go_and_the_next_one_returned(peeked, said, acted):
    talk = peeked(said, FOUND[1])
    assert talk.act().id == 8
    assert talk.acted == acted


def test_last_job_is_followed_by_none(peeked):
    talk = peeked(b"KICKED\r\n", NONE)
    assert talk.act() is None
    assert talk.acted == 1


@pytest.mark.parametrize("peek", [FOUND[1], NONE])
def test_deed_that_the_server_refuses_is_raised_once_and_the_connection_goes_on(peeked, peek):
    talk = peeked(b"INTERNAL_ERROR\r\n", peek)
    with pytest.raises(gstalk.InternalError) as caught:
        talk.act()
    assert str(caught.value) == f"kick-job 7 at {talk.played.uri}: a bug in the server; it may have acted"
    assert talk.acted == 0
    assert talk.conn.list_tube_used() == "mail"


def test_peek_that_the_server_refuses_is_raised_and_the_deed_is_told(peeked):
    talk = peeked(b"KICKED\r\n", b"OUT_OF_MEMORY\r\n")
    with pytest.raises(gstalk.OutOfMemoryError, match=r"^peek-buried at "):
        talk.act()
    assert talk.acted == 1


@pytest.mark.parametrize(
    ("said", "peek", "acted", "of"),
    [
        (b"KICKED\r\n", CUT, 1, "peek-buried"),
        (CUT, NONE, 0, "kick-job 7"),
        (NONE, CUT, 0, "peek-buried"),
    ],
)
def test_connection_that_ends_between_the_two_has_the_deed_told_if_it_was_answered(peeked, said, peek, acted, of):
    talk = peeked(said, peek)
    with pytest.raises(gstalk.ConnectionLostError, match=f"^{of} at "):
        talk.act()
    assert talk.acted == acted


class Full:
    """A socket that takes so many bytes more."""

    def __init__(self, sock: Any, room: int) -> None:
        self._sock, self._room = sock, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        taken = self._sock.send(data[: self._room]) if self._room else 0
        self._room -= taken
        return int(taken)


def test_deed_that_the_kernel_took_and_not_the_look_behind_it_may_have_been_done(peeked):
    talk = peeked(SILENCE, SILENCE)
    transport: Any = talk.connection.pipe._transport
    transport._sock = Full(transport._sock, len(b"kick-job 7\r\n"))
    acting = call(talk.act)
    wait_until(lambda: talk.played.count("kick-job") == 1)
    talk.connection.cut()
    acting.join()
    assert (str(acting.exception).partition(" at ")[0], acting.exception.sent) == ("kick-job 7", "maybe")


@pytest.mark.parametrize(("said", "acted"), [(b"KICKED\r\n", 1), (NONE, 0), (SILENCE, 0)])
def test_caller_who_is_interrupted_is_told_of_the_deed_if_it_was_answered(peeked, said, acted):
    talk = peeked(said, SILENCE)
    acting = call(talk.act)
    wait_until(lambda: talk.played.count("peek-buried") == 2)
    wait_until(lambda: len(talk.connection.pipe.requests) == (2 if said is SILENCE else 1))
    assert talk.acted == 0  # it is told when the wait is over
    acting.kill()
    assert talk.acted == acted


# -- look and reserve --------------------------------------------------------------------------------------------------


def test_look_and_reserve_go_out_in_one_write_and_nobody_waits(start):
    talk = start({"reserve-job": b"RESERVED 7 2\r\nab\r\n"})
    talk.reserve()
    assert talk.reserved == []
    wait_until(lambda: talk.reserved)
    ((job, stats),) = talk.reserved
    assert talk.played.reads[-1] == b"stats-job 7\r\nreserve-job 7\r\n"
    assert (job.id, job.body, job.is_finished, stats.id, stats.pri) == (7, b"ab", False, 7, 9)
    assert talk.in_hub == [True]
    assert talk.connection.reserved.holds(job)
    job.delete()
    assert talk.played.lines[-1] == b"delete 7"


def test_job_without_statistics_is_reserved_all_the_same(start):
    """It was there again when it was reserved, or the server had no memory for them."""
    talk = start({"stats-job": NONE, "reserve-job": b"RESERVED 7 0\r\n\r\n"})
    talk.reserve()
    wait_until(lambda: talk.reserved)
    assert [(job.id, stats) for job, stats in talk.reserved] == [(7, None)]


@pytest.mark.parametrize("said", [NONE, CUT, b"INTERNAL_ERROR\r\n"])
def test_job_that_could_not_be_reserved_is_not_told_of(start, said):
    talk = start({"reserve-job": said})
    talk.reserve()
    if said is CUT:
        wait_until(lambda: not talk.conn.is_connected)
    else:
        talk.conn.list_tube_used()  # answered behind both
    assert talk.reserved == []
    assert not talk.connection.reserved.by_id


def test_commands_of_a_closed_connection_are_sent_no_more(peeked):
    talk = peeked(b"KICKED\r\n", NONE)
    talk.conn.close()
    lines = list(talk.played.lines)
    for method in (talk.act, partial(talk.act, commands.DELETE), talk.reserve):
        with pytest.raises(gstalk.ConnectionClosedError):
            method()
    assert (talk.played.lines, talk.acted, talk.reserved) == (lines, 0, [])
