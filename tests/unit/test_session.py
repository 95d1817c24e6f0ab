"""Replies, from literal bytes: whole, byte by byte, with the next one following, and everything that is no reply."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gstalk import errors
from gstalk.protocol import commands as c
from gstalk.protocol.session import PENDING, Session, Slot

STATS = b"---\nid: 7\ntube: null\nstate: ready\npri: 3\n"

# The command, what its slot knows, the reply as doc/protocol.txt gives it, and what comes of it.
REPLIES: list[tuple[c.Command, Any, bytes, Any]] = [
    (c.PUT, None, b"INSERTED 1\r\n", 1),
    (c.PUT, None, b"INSERTED 18446744073709551615\r\n", 2**64 - 1),
    (c.PUT, None, b"BURIED 5\r\n", errors.BuriedError),
    (c.PUT, None, b"JOB_TOO_BIG\r\n", errors.JobTooBigError),
    (c.PUT, None, b"DRAINING\r\n", errors.DrainingError),
    (c.PUT, None, b"OUT_OF_MEMORY\r\n", errors.OutOfMemoryError),
    (c.PUT, None, b"INTERNAL_ERROR\r\n", errors.InternalError),
    (c.USE, b"t", b"USING t\r\n", "t"),
    (c.LIST_TUBE_USED, None, b"USING $anything\r\n", "$anything"),
    (c.RESERVE, None, b"RESERVED 7 2\r\nab\r\n", (7, b"ab")),
    (c.RESERVE, None, b"RESERVED 7 4\r\n\r\n\r\n\r\n", (7, b"\r\n\r\n")),
    (c.RESERVE, None, b"TIMED_OUT\r\n", None),
    (c.RESERVE, None, b"DEADLINE_SOON\r\n", errors.DeadlineSoonError),
    (c.RESERVE_JOB, 7, b"RESERVED 7 0\r\n\r\n", (7, b"")),
    (c.RESERVE_JOB, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.DELETE, 7, b"DELETED\r\n", None),
    (c.DELETE, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.RELEASE, 7, b"RELEASED\r\n", None),
    (c.RELEASE, 7, b"BURIED\r\n", errors.BuriedError),
    (c.BURY, 7, b"BURIED\r\n", None),
    (c.TOUCH, 7, b"TOUCHED\r\n", None),
    (c.WATCH, None, b"WATCHING 2\r\n", 2),
    (c.IGNORE, None, b"WATCHING 1\r\n", 1),
    (c.IGNORE, None, b"NOT_IGNORED\r\n", errors.NotIgnoredError),
    (c.PEEK, 7, b"FOUND 7 1\r\nx\r\n", (7, b"x")),
    (c.PEEK, 7, b"NOT_FOUND\r\n", None),
    (c.PEEK_READY, None, b"FOUND 9 1\r\nx\r\n", (9, b"x")),
    (c.PEEK_DELAYED, None, b"NOT_FOUND\r\n", None),
    (c.PEEK_BURIED, None, b"NOT_FOUND\r\n", None),
    (c.KICK, None, b"KICKED 0\r\n", 0),
    (c.KICK_JOB, 7, b"KICKED\r\n", None),
    (c.PAUSE_TUBE, b"t", b"PAUSED\r\n", None),
    (c.LIST_TUBES, None, b"OK 21\r\n---\n- default\n- null\n\r\n", ["default", "null"]),
    (c.LIST_TUBES_WATCHED, None, b"OK 14\r\n---\n- default\n\r\n", ["default"]),
    (c.STATS_TUBE, b"t", b"NOT_FOUND\r\n", errors.NotFoundError),
    (c.STATS_JOB, 7, b"NOT_FOUND\r\n", errors.NotFoundError),
]
# What must end the connection, for this command.
BROKEN: list[tuple[c.Command, Any, bytes]] = [
    (c.PUT, None, b"DELETED\r\n"),
    (c.PUT, None, b"INSERTED\r\n"),
    (c.PUT, None, b"INSERTED 0\r\n"),
    (c.PUT, None, b"INSERTED 01\r\n"),
    (c.PUT, None, b"INSERTED +1\r\n"),
    (c.PUT, None, b"INSERTED 1_0\r\n"),
    (c.PUT, None, b"INSERTED -1\r\n"),
    (c.PUT, None, b"INSERTED 1 \r\n"),
    (c.PUT, None, b"INSERTED 18446744073709551616\r\n"),
    (c.PUT, None, b"INSERTED " + b"1" * 240 + b"\r\n"),
    (c.PUT, None, b"JOB_TOO_BIG x\r\n"),
    (c.PUT, None, b"BAD_FORMAT\r\n"),
    (c.PUT, None, b"EXPECTED_CRLF\r\n"),
    (c.PUT, None, b"UNKNOWN_COMMAND\r\n"),
    (c.PUT, None, b"\r\n"),
    (c.PUT, None, b"x" * 300),
    (c.USE, b"t", b"USING u\r\n"),
    (c.USE, b"t", b"USING\r\n"),
    (c.RESERVE, None, b"RESERVED 7\r\n"),
    (c.RESERVE, None, b"RESERVED 7 -1\r\n"),
    (c.RESERVE, None, b"RESERVED 7 1073741825\r\n"),
    (c.RESERVE, None, b"RESERVED 7 9223372036854775808\r\n"),
    (c.RESERVE, None, b"RESERVED 7 x 2\r\nab\r\n"),
    (c.RESERVE, None, b"RESERVED 7 2\r\nabcd"),
    (c.RESERVE, None, b"FOUND 7 2\r\nab\r\n"),
    (c.RESERVE_JOB, 7, b"RESERVED 8 0\r\n\r\n"),
    (c.PEEK, 7, b"FOUND 8 0\r\n\r\n"),
    (c.DELETE, 7, b"RELEASED\r\n"),
    (c.STATS_JOB, 7, b"OK 4\r\nabcd\r\n"),
    (c.STATS_JOB, 7, b"OK x 4\r\n---\n\r\n"),
    (c.LIST_TUBES, None, b"OK 7\r\n---\n\xff\xff\n\r\n"),
]


def opened(*what: tuple[c.Command, Any]) -> tuple[Session, list[Slot]]:
    session = Session("beanstalk://q:11300")
    slots = [Slot(command, session, key) for command, key in what]
    session.slots.extend(slots)
    return session, slots


def check(slot: Slot, expected: Any) -> None:
    if isinstance(expected, type):
        assert type(slot.error) is expected
        assert slot.result is PENDING
        assert "beanstalk://q:11300" in str(slot.error)
    else:
        assert slot.error is None
        assert slot.result == expected


@pytest.mark.parametrize(("command", "key", "data", "expected"), REPLIES)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_reply_is_read_however_it_is_cut(command, key, data, expected, size):
    session, (first, second) = opened((command, key), (c.PUT, None))
    stream = data + b"INSERTED 99\r\n"
    for start in range(0, len(stream), size):
        assert session.receive(stream[start : start + size]) is None
    check(first, expected)
    check(second, 99)
    assert session.done == [first, second]


@pytest.mark.parametrize(("command", "key", "data"), BROKEN)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_reply_of_this_command_breaks_the_protocol(command, key, data, size):
    session, (first, second) = opened((command, key), (c.PUT, None))
    error = None
    for start in range(0, len(data), size):
        error = error or session.receive(data[start : start + size])
    assert isinstance(error, errors.ProtocolError)
    assert second.result is PENDING
    cut = errors.ConnectionLostError("cut", "maybe")
    session.fail(lambda slot: cut)
    assert (first.error, second.error) == (error, cut)
    assert first.result is PENDING
    assert (session.done, list(session.slots)) == ([first, second], [])


def test_reply_that_nobody_asked_for_breaks_the_protocol():
    session, _ = opened()
    assert isinstance(session.receive(b"INSERTED 1\r\n"), errors.ProtocolError)
    session, _ = opened()
    assert isinstance(session.receive(b"I"), errors.ProtocolError)


def test_put_error_names_the_server_the_command_and_what_came():
    session, (slot,) = opened((c.PUT, None))
    session.receive(b"WHATEVER 7\r\n")
    words = "INSERTED or BURIED or JOB_TOO_BIG or EXPECTED_CRLF"
    assert str(slot.error) == (f"put at beanstalk://q:11300: expected {words}, got 'WHATEVER 7'; connection closed")


def test_big_announcement_takes_no_memory_before_it_arrives():
    session, _ = opened((c.RESERVE, None))
    assert session.receive(b"RESERVED 7 1073741824\r\n" + b"x" * 1000) is None
    assert len(session._kept) < 2000


def test_progress_is_64_kib_of_an_unfinished_reply():
    session, _ = opened((c.RESERVE, None))
    session.receive(b"RESERVED 7 1000000\r\n")
    assert not session.progressed()
    session.receive(b"x" * 65536)
    assert session.progressed()
    assert not session.progressed()


def test_duty_is_done_when_the_reply_is_read_and_when_it_never_comes():
    for end in ("reply", "failure"):
        session, (slot,) = opened((c.DELETE, 7))
        done: list[Slot] = []
        slot.duty = done.append
        if end == "reply":
            session.receive(b"DELETED\r\n")
        else:
            session.fail(lambda slot: errors.ConnectionLostError("gone"))
        assert done == [slot]


@given(st.lists(st.binary(max_size=30) | st.sampled_from([data for _, _, data, _ in REPLIES]), max_size=8))
def test_garbage_raises_nothing_and_is_never_taken_for_more_than_it_is(parts):
    session, slots = opened(*[(command, key) for command, key, _, _ in REPLIES[:6]])
    for part in parts:
        if session.receive(part) is not None:
            break
    for slot in slots:
        assert slot.error is None or isinstance(slot.error, errors.GstalkError)
