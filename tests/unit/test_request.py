"""A command in flight: its outcome, what it is called in messages, and its error when the connection ends first."""

from __future__ import annotations

import pytest

from gstalk import errors
from gstalk.protocol import commands as c
from gstalk.protocol.request import PENDING, Outcome, PutRequest, Request, ReserveRequest, TwoStepRequest, lost

URI = "beanstalk://q:11300"


def nothing(request: Request) -> None:
    pass


def test_outcome_is_settled_by_a_result_or_an_error_and_hands_its_error_over():
    open_, done, failed = Outcome(), Outcome(), Outcome()
    done.succeed()
    failed.succeed(7)
    error = ValueError()
    failed.fail(error)
    assert [each.is_settled for each in (open_, done, failed)] == [False, True, True]
    assert done.result is None
    assert failed.take_error() is error
    assert (failed.result, failed.error) == (None, None)  # kept, it would hold its frames


@pytest.mark.parametrize(
    ("command", "key", "name"), [(c.PUT, None, "put"), (c.DELETE, 7, "delete 7"), (c.USE, b"mail", "use mail")]
)
@pytest.mark.parametrize(("end", "sent", "what"), [(10, 9, "it was not sent"), (10, 10, "the server may have acted")])
def test_lost_request_may_have_been_acted_on_if_the_kernel_took_all_of_it(command, key, name, end, sent, what):
    request = Request(command, URI, key)
    request.end = end
    error = lost(request, errors.ConnectionLostError, "gone", sent)
    assert type(error) is errors.ConnectionLostError
    assert str(error) == f"{name} at {URI}: gone; {what}"
    assert error.sent == ("maybe" if sent >= end else "no")


@pytest.mark.parametrize("kind", [errors.ConnectionLostError, errors.ConnectionClosedError, errors.CommandTimeoutError])
def test_lost_request_gets_an_error_of_its_own_of_the_kind_that_is_asked_for(kind):
    request = Request(c.PUT, URI)
    first, second = (lost(request, kind, "gone", 0) for _ in range(2))
    assert (type(first), first.sent) == (kind, "maybe")  # it ends where the stream begins: nothing of it is to be sent
    assert first is not second


def test_outcome_is_pending_until_it_is_settled_and_then_has_what_came_last():
    outcome = Outcome()
    assert (outcome.result, outcome.error, outcome.waiter) == (PENDING, None, None)
    assert (repr(PENDING), outcome.is_settled) == ("PENDING", False)
    outcome.succeed(7)
    assert (outcome.result, outcome.is_settled) == (7, True)
    first, second = ValueError(), ValueError()
    outcome.fail(first)
    outcome.fail(second)
    assert (outcome.error, outcome.result) == (second, 7)  # whoever waits is told of the error


def test_outcome_that_has_no_error_hands_none_over():
    with pytest.raises(AssertionError):
        Outcome().take_error()


@pytest.mark.parametrize(
    ("command", "key", "text"),
    [
        (c.PUT, None, f"put at {URI}"),
        (c.DELETE, 7, f"delete 7 at {URI}"),
        (c.WATCH, b"mail", f"watch mail at {URI}"),
        (c.KICK, 0, f"kick 0 at {URI}"),
    ],
)
def test_request_is_called_by_its_command_its_key_and_its_server(command, key, text):
    assert str(Request(command, URI, key)) == text


def test_request_begins_pending_with_what_it_was_made_of():
    request = Request(c.DELETE, URI, 7, nothing, "subject")
    assert (request.command, request.uri, request.key, request.then) == (c.DELETE, URI, 7, nothing)
    assert (request.subject, request.end, request.waiter) == ("subject", 0, None)
    assert (request.is_settled, request.patience, request.deadline, request.second) == (False, 0, None, None)
    plain = Request(c.DELETE, URI)
    assert (plain.key, plain.then, plain.subject) == (None, None, None)


COMMON = ("command", "uri", "key", "then", "subject", "end", "waiter", "result", "error", "second")


def test_put_request_is_as_any_other_with_a_deadline_and_a_beginning():
    put, plain = PutRequest(c.PUT, URI, nothing, 12.5, 3.5), Request(c.PUT, URI, None, nothing)
    assert (put.deadline, put.began) == (12.5, 3.5)
    for name in (*COMMON, "patience"):
        assert getattr(put, name) == getattr(plain, name), name
    assert str(put) == str(plain)


def test_reserve_request_is_as_any_other_with_patience_and_whom_to_tell():
    told: list[Request] = []
    reserve, plain = ReserveRequest(c.RESERVE, URI, None, nothing), Request(c.RESERVE, URI, None, nothing)
    reserve.got, reserve.patience = told.append, 30
    assert (reserve.got, reserve.patience) == (told.append, 30)
    for name in (*COMMON, "deadline"):
        assert getattr(reserve, name) == getattr(plain, name), name
    assert str(reserve) == str(plain)


def test_fields_that_few_requests_need_are_those_requests_own():
    release = TwoStepRequest(c.RELEASE, URI, 7)
    release.second = Request(c.RELEASE, URI, 7)
    assert (Request.patience, Request.deadline, Request.second) == (0, None, None)
    for name in ("patience", "deadline", "second"):
        with pytest.raises(AttributeError):
            setattr(Request(c.PUT, URI), name, 1)


def test_request_has_no_dictionary_of_its_own():
    """There is one for each command in flight."""
    puts = PutRequest(c.PUT, URI, None, None, 0.0)
    for request in (
        Outcome(),
        Request(c.PUT, URI),
        puts,
        ReserveRequest(c.RESERVE, URI),
        TwoStepRequest(c.BURY, URI),
    ):
        assert not hasattr(request, "__dict__"), type(request)
