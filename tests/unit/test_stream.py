"""A stream of replies, from literal bytes: whole, byte by byte, with the next one following; and what is no reply."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gstalk import errors
from gstalk.protocol import commands as c
from gstalk.protocol.request import PENDING, Request
from gstalk.protocol.stream import Stream
from tests.unit.test_replies import BROKEN, REPLIES

# What no parser of a reply gets to see: the stream itself finds it wrong.
BROKEN_FRAMES: list[tuple[c.Command, Any, bytes]] = [
    (c.PUT, None, b"x" * 300),
    (c.PUT, None, b"\r\n"),
    (c.RESERVE, None, b"RESERVED 7 2\r\nabcd"),
    (c.DELETE, 7, b"DELETED \r\n"),
    (c.RESERVE, None, b"RESERVED +7 1\r\nx\r\n"),
    (c.RESERVE, None, b"RESERVED 07 1\r\nx\r\n"),
    (c.RESERVE, None, b"RESERVED 7 01\r\nx\r\n"),
    (c.RESERVE, None, b"RESERVED 7 +1\r\nx\r\n"),
    (c.RESERVE, None, b"RESERVER 7 1\r\nx\r\n"),
]


def opened(*what: tuple[c.Command, Any]) -> tuple[Stream, list[Request]]:
    stream = Stream("beanstalk://q:11300")
    requests = [Request(command, stream.uri, key) for command, key in what]
    stream.requests.extend(requests)
    return stream, requests


def check(request: Request, expected: Any) -> None:
    if isinstance(expected, type):
        assert type(request.error) is expected
        assert request.result is PENDING
        assert "beanstalk://q:11300" in str(request.error)
    else:
        assert request.error is None
        assert request.result == expected


@pytest.mark.parametrize(("command", "key", "data", "expected"), REPLIES)
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_reply_is_read_however_it_is_cut(command, key, data, expected, size):
    stream, (first, second) = opened((command, key), (c.PUT, None))
    sent = data + b"INSERTED 99\r\n"
    for start in range(0, len(sent), size):
        assert stream.receive(sent[start : start + size]) is None
    check(first, expected)
    check(second, 99)
    assert stream.done == [first, second]


@pytest.mark.parametrize(("command", "key", "data"), BROKEN + BROKEN_FRAMES)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_reply_of_this_command_breaks_the_protocol(command, key, data, size):
    stream, (first, second) = opened((command, key), (c.PUT, None))
    error = None
    for start in range(0, len(data), size):
        error = error or stream.receive(data[start : start + size])
    assert isinstance(error, errors.ProtocolError)
    assert second.result is PENDING
    cut = errors.ConnectionLostError("cut", "maybe")
    stream.fail(lambda request: cut)
    assert (first.error, second.error) == (error, cut)
    assert first.result is PENDING
    assert (stream.done, list(stream.requests)) == ([first, second], [])


def test_body_that_is_cut_behind_another_reply_is_read_as_soon_as_it_is_there():
    stream, (*_, last) = opened(*[(c.PUT, None)] * 30, (c.RESERVE, None))
    assert stream.receive(b"INSERTED 1\r\n" * 30 + b"RESERVED 7") is None
    assert last.result is PENDING
    stream.receive(b" 4\r\n")
    stream.receive(b"abcd\r\n")
    assert last.result == (7, b"abcd")
    stream, (*_, last) = opened((c.PUT, None), (c.RESERVE, None))
    stream.receive(b"INSERTED 1\r\nRESERVED 7 4\r\nab")
    stream.receive(b"cd\r\n")
    assert last.result == (7, b"abcd")


@pytest.mark.parametrize(
    ("command", "data", "job_id"),
    [
        (c.RESERVE, b"RESERVED 7 2\r\nabcd", 7),
        (c.PEEK_READY, b"FOUND 8 2\r\nabcd", 8),
        (c.STATS, b"OK 2\r\nabcd", None),
    ],
)
def test_body_that_does_not_end_where_it_should_breaks_the_protocol_and_names_its_job(command, data, job_id):
    stream, _ = opened((command, None))
    error = stream.receive(data)
    assert isinstance(error, errors.ProtocolError)
    assert error.job_id == job_id


def test_reply_that_nobody_asked_for_breaks_the_protocol():
    stream, _ = opened()
    assert isinstance(stream.receive(b"INSERTED 1\r\n"), errors.ProtocolError)
    stream, _ = opened()
    assert isinstance(stream.receive(b"I"), errors.ProtocolError)


def test_put_error_names_the_server_the_command_and_what_came():
    stream, (request,) = opened((c.PUT, None))
    stream.receive(b"WHATEVER 7\r\n")
    words = "INSERTED or BURIED or JOB_TOO_BIG or EXPECTED_CRLF"
    assert str(request.error) == (f"put at beanstalk://q:11300: expected {words}, got 'WHATEVER 7'; connection closed")


def test_line_without_an_end_is_shown_as_far_as_it_goes():
    stream, _ = opened((c.PUT, None), (c.DELETE, 7))
    error = stream.receive(b"INSERTED 1\r\n" + b"x" * 300)
    assert f"got '{'x' * 200}'" in str(error)


def test_big_announcement_takes_no_memory_before_it_arrives():
    stream, _ = opened((c.RESERVE, None))
    assert stream.receive(b"RESERVED 7 1073741824\r\n" + b"x" * 1000) is None
    assert len(stream._kept) < 2000


def test_progress_is_64_kib_of_an_unfinished_reply():
    stream, (first, _) = opened((c.RESERVE, None), (c.RESERVE, None))
    stream.receive(b"RESERVED 6 100000\r\n")
    stream.receive(b"x" * 70000)
    assert stream.progressed()
    stream.receive(b"x" * 30000 + b"\r\n")
    assert first.result[0] == 6
    stream.receive(b"RESERVED 7 1000000\r\n")
    assert not stream.progressed()
    stream.receive(b"x" * 65536)
    assert stream.progressed()
    assert not stream.progressed()
    stream.receive(b"x" * 65535)
    assert not stream.progressed()
    stream.receive(b"x")
    assert stream.progressed()


def gone(request: Request) -> errors.ConnectionLostError:
    return errors.ConnectionLostError("gone")


def noting(*requests: Request) -> list[Request]:
    """Note the requests whose `then` is called."""
    called: list[Request] = []
    for request in requests:
        request.then = called.append
    return called


def test_then_is_called_once_by_act_and_not_in_the_middle_of_a_parse():
    stream, (request, other) = opened((c.DELETE, 7), (c.DELETE, 8))
    called = noting(request)
    stream.receive(b"DELETED\r\nDELETED\r\n")
    assert (called, stream.done, stream.due) == ([], [request, other], [request])
    stream.act()
    stream.act()
    assert (called, stream.due) == ([request], [])


def test_then_of_what_was_settled_by_other_means_than_a_reply_is_left_alone_by_act():
    """Nobody waits any more for what was given up; its reply is still to come, and then it is acted on."""
    stream, (first, second) = opened((c.DELETE, 7), (c.DELETE, 8))
    called = noting(first, second)
    second.fail(errors.PutTimeoutError("late"))
    stream.done.append(second)
    stream.receive(b"DELETED\r\n")
    stream.act()
    assert called == [first]
    stream.receive(b"DELETED\r\n")
    stream.act()
    assert called == [first, second]


def test_then_is_called_once_where_no_reply_comes_or_nobody_has_acted_on_it():
    stream, requests = opened((c.DELETE, 7), (c.DELETE, 8))
    called = noting(*requests)
    stream.receive(b"DELETED\r\n")
    for _ in range(2):
        stream.fail(gone)
    assert (called, stream.due) == (requests, [])
    assert [str(request.error) for request in requests] == ["gone", "gone"]


def test_then_that_ends_the_connection_is_called_once_and_the_others_are_failed():
    stream, (first, second) = opened((c.DELETE, 7), (c.DELETE, 8))
    called = noting(second)

    def end(request: Request) -> None:
        called.append(request)
        stream.fail(gone)

    first.then = end
    stream.receive(b"DELETED\r\nDELETED\r\n")
    stream.act()
    assert called == [first, second]
    assert (first.error, str(second.error)) == (None, "gone")


def test_request_that_was_answered_and_acted_on_keeps_its_result_when_the_connection_fails():
    stream, (first, second) = opened((c.DELETE, 7), (c.DELETE, 8))
    called = noting(first)
    stream.receive(b"DELETED\r\n")
    stream.act()
    stream.fail(gone)
    assert (first.error, called) == (None, [first])
    assert second.error is not None


def test_then_that_an_exception_strikes_is_called_again_by_fail():
    stream, (request,) = opened((c.DELETE, 7))
    called = []

    def then(request: Request) -> None:
        called.append(request.error)
        if len(called) == 1:
            raise KeyboardInterrupt

    request.then = then
    stream.receive(b"DELETED\r\n")
    with pytest.raises(KeyboardInterrupt):
        stream.act()
    lost = errors.ConnectionLostError("gone")
    stream.fail(lambda request: lost)
    assert called == [None, lost]


def test_request_that_a_signal_has_left_on_both_sides_is_failed_once():
    for left in ([], [0]):  # the signal struck before it was due, or behind that
        stream, (request,) = opened((c.DELETE, 7))
        called = noting(request)
        stream.done.append(request)
        stream.due += [request for _ in left]
        stream.fail(gone)
        assert (called, list(stream.requests)) == ([request], [])


def test_request_that_a_signal_has_left_with_its_result_keeps_it_unless_somebody_acts_on_it():
    stream, (answered, acted) = opened((c.DELETE, 7), (c.DELETE, 8))
    answered.result = acted.result = None
    called = noting(acted)
    stream.fail(gone)
    assert (answered.error, str(acted.error), called) == (None, "gone", [acted])


def is_struck(number: int, function: Callable[[], object], code: Any) -> bool:
    """Call it, with a Ctrl-C at the line of this number that runs of this code; tell whether there is such a line."""
    lines = itertools.count(1)

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code is code and event == "line" and next(lines) == number:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("acts", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_fail_that_a_signal_strikes_at_any_line_tells_everybody_when_called_again(acts, count):
    for number in itertools.count(1):
        stream, requests = opened(*[(c.DELETE, job_id) for job_id in range(1, count + 2)])
        called = noting(*requests) if acts else []
        stream.receive(b"DELETED\r\n")
        if not is_struck(number, partial(stream.fail, gone), Stream.fail.__code__):
            break
        stream.fail(gone)
        assert [str(request.error) for request in requests[1:]] == ["gone"] * count
        assert all(request in stream.done for request in requests)
        assert not acts or list(dict.fromkeys(called)) == requests
    assert number > 5


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (b"INSERTED 1\r\nINSERTED 22\r\nINSERTED 333\r\n", [1, 22, 333]),
        (b"INSERTED 1\r\nINSERTED 22\r\nINSERTED 3", [1, 22]),
        (b"INSERTED 1\r\nINSERTED 22\r", [1]),
        (b"INSERTED 18446744073709551615\r\nINSERTED 2\r\n", [2**64 - 1, 2]),
        (b"INSERTED 1\r\nJOB_TOO_BIG\r\nINSERTED 3\r\n", [1, None, 3]),
        (b"BURIED 1234\r\nINSERTED 2\r\nINSERTED 3\r\n", [None, 2, 3]),
    ],
)
def test_ids_of_puts_in_a_row_are_read_as_far_as_they_are_there(data, ids):
    stream, requests = opened(*[(c.PUT, None)] * 4)
    assert stream.receive(data) is None
    assert [request.result if request.error is None else None for request in stream.done] == ids
    assert list(stream.requests) == requests[len(ids) :]


@pytest.mark.parametrize("text", [b"0", b"01", b"+1", b" 1", b"1 ", b"", b"x", b"18446744073709551616", b"1\r\n\r\n2"])
def test_what_is_no_id_in_a_row_breaks_the_protocol_there(text):
    stream, requests = opened(*[(c.PUT, None)] * 4)
    error = stream.receive(b"INSERTED 1\r\nINSERTED " + text + b"\r\nINSERTED 3\r\n")
    assert isinstance(error, errors.ProtocolError)
    assert [request.result for request in requests[:1]] == [1]
    assert stream.done[0] is requests[0]


def test_row_of_ids_ends_at_a_command_that_is_no_put_and_where_nobody_has_asked():
    stream, (put, other) = opened((c.PUT, None), (c.DELETE, 7))
    assert isinstance(stream.receive(b"INSERTED 1\r\nINSERTED 2\r\n"), errors.ProtocolError)
    assert (put.result, other.result, stream.done) == (1, PENDING, [put])
    for count in (1, 2):
        stream, puts = opened(*[(c.PUT, None)] * count)
        called = noting(*puts)
        assert isinstance(stream.receive(b"INSERTED 1\r\n" * (count + 1)), errors.ProtocolError)
        stream.act()
        assert called == puts


def test_receive_stops_behind_a_refusal_that_somebody_acts_on_and_goes_on_when_called_again():
    stream, (use, put) = opened((c.USE, b"mail"), (c.PUT, None))
    noting(use)
    stream.receive(b"OUT_OF_MEMORY\r\nINSERTED 7\r\n")
    assert (stream.is_held, stream.done, list(stream.requests)) == (True, [use], [put])
    stream.receive(b"")
    assert (stream.is_held, put.result) == (False, 7)


def test_receive_stopped_behind_a_refusal_takes_what_follows_for_no_line_that_is_too_long():
    stream, (use, *puts) = opened((c.USE, b"mail"), *[(c.PUT, None)] * 30)
    noting(use)
    assert stream.receive(b"OUT_OF_MEMORY\r\n" + b"INSERTED 7\r\n" * 30) is None
    assert stream.receive(b"") is None
    assert [put.result for put in puts] == [7] * 30


def test_receive_goes_on_behind_a_refusal_that_nobody_acts_on():
    stream, (first, second) = opened((c.PUT, None), (c.PUT, None))
    stream.receive(b"JOB_TOO_BIG\r\nINSERTED 7\r\n")
    assert (stream.is_held, stream.done, second.result) == (False, [first, second], 7)


@given(st.lists(st.binary(max_size=30) | st.sampled_from([data for _, _, data, _ in REPLIES]), max_size=8))
def test_garbage_raises_nothing_and_is_never_taken_for_more_than_it_is(parts):
    stream, requests = opened(*[(command, key) for command, key, _, _ in REPLIES[:6]])
    for part in parts:
        if stream.receive(part) is not None:
            break
    for request in requests:
        assert request.error is None or isinstance(request.error, errors.GstalkError)


class Thorough(Stream):
    """One that takes no reply for a usual one."""

    def _receive_usual(self, data: bytes) -> int:
        return 0


def _lines_near(line: bytes) -> list[bytes]:
    """A usual reply, and what differs from it in one place."""
    inside = [
        line[:place] + byte + line[place + 1 :] for place in range(len(line)) for byte in (b"", b"0", b" ", b"\r")
    ]
    return [line] * 40 + [line[:-1], line + b" ", b" " + line, line * 2] + inside


USUAL: list[tuple[c.Command, Any, list[bytes]]] = [
    (c.PUT, None, [b"INSERTED 12\r\n", b"INSERTED 9999999999999999999\r\n", b"INSERTED 18446744073709551616\r\n"]),
    (c.PUT, None, [b"DELETED\r\n", b"RESERVED 7 0\r\n\r\n", b"DRAINING\r\n", b"BURIED 5\r\n"]),
    (c.DELETE, 7, [b"DELETED\r\n", b"NOT_FOUND\r\n", b"INSERTED 12\r\n"]),
    (c.RESERVE, None, [b"RESERVED 7 4\r\na\r\nb\r\n", b"RESERVED 123456789 1\r\n\r\r\n", b"RESERVED 7 0\r\n\r\n"]),
    (
        c.RESERVE,
        None,
        [b"RESERVED 18446744073709551616 1\r\na\r\n", b"RESERVED 9999999999999999999 12\r\n%12d\r\n" % 5],
    ),
    (c.RESERVE, None, [b"TIMED_OUT\r\n", b"DEADLINE_SOON\r\n", b"DELETED\r\n"]),
    (c.RESERVE_JOB, 7, [b"RESERVED 7 1\r\nx\r\n", b"RESERVED 8 1\r\nx\r\n"]),
    (c.TOUCH, 7, [b"TOUCHED\r\n", b"DELETED\r\n"]),
]
EXCHANGES = st.sampled_from(USUAL).flatmap(
    lambda row: st.tuples(
        st.just(row[:2]), st.sampled_from([near for line in row[2] for near in _lines_near(line)]), st.booleans()
    )
)


@given(st.lists(EXCHANGES, max_size=8), st.lists(st.integers(1, 40), max_size=8))
def test_usual_reply_means_what_it_means_to_the_thorough_way(exchanges, sizes):
    ends = []
    for kind in (Stream, Thorough):
        stream = kind("beanstalk://q:11300")
        requests = [Request(command, stream.uri, key) for (command, key), _, _ in exchanges]
        stream.requests.extend(requests)
        called = noting(*[request for request, (_, _, acts) in zip(requests, exchanges, strict=True) if acts])
        sent = b"".join(data for _, data, _ in exchanges)
        broken: object = None
        said = []
        for size in [*sizes, len(sent)]:
            part, sent = sent[:size], sent[size:]
            if broken is None and (part or stream.is_held):
                broken = stream.receive(part)
                stream.act()
                said.append((stream.is_held, str(broken)))
        outcomes = [(str(request.result), str(request.error)) for request in requests]
        numbers = [[requests.index(each) for each in group] for group in (called, stream.done, stream.requests)]
        ends.append((said, outcomes, numbers))
    assert ends[0] == ends[1]
