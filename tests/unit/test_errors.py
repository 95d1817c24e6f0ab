"""gstalk.errors: the tree as the interface has it, and that every error survives pickling and copying."""

from __future__ import annotations

import copy
import pickle

import gevent
import pytest

import gstalk
from gstalk import errors

PARENTS = {
    "GstalkError": Exception,
    "InvalidArgumentError": (errors.GstalkError, ValueError),
    "ServerError": errors.GstalkError,
    "NotFoundError": errors.ServerError,
    "BuriedError": errors.ServerError,
    "NotIgnoredError": errors.ServerError,
    "DeadlineSoonError": errors.ServerError,
    "JobTooBigError": errors.ServerError,
    "DrainingError": errors.ServerError,
    "OutOfMemoryError": errors.ServerError,
    "InternalError": errors.ServerError,
    "ProtocolError": errors.GstalkError,
    "BadFormatError": errors.ProtocolError,
    "UnknownCommandError": errors.ProtocolError,
    "ExpectedCrlfError": errors.ProtocolError,
    "DisconnectedError": (errors.GstalkError, ConnectionError),
    "ConnectError": errors.DisconnectedError,
    "ConnectionLostError": errors.DisconnectedError,
    "ConnectionClosedError": errors.DisconnectedError,
    "CommandTimeoutError": (errors.DisconnectedError, TimeoutError),
    "PutTimeoutError": (errors.DisconnectedError, TimeoutError),
    "WrongHubError": (errors.GstalkError, RuntimeError),
    "PutManyError": errors.GstalkError,
    "JobFinishedError": errors.GstalkError,
    "JobNotFinishedError": errors.GstalkError,
    "RetriesExhaustedError": errors.GstalkError,
    "JobLostError": errors.GstalkError,
    "Retry": Exception,
    "Bury": Exception,
}
CLASSES = [getattr(errors, name) for name in PARENTS]
DISCONNECTED = [kind for kind in CLASSES if issubclass(kind, errors.DisconnectedError)]

SPECIMENS = [
    *(kind("what happened") for kind in CLASSES if kind not in (errors.Retry, errors.Bury)),
    *(kind("what happened", "maybe") for kind in DISCONNECTED),
    errors.BuriedError("buried", 7),
    errors.PutTimeoutError("too late", "maybe", {"beanstalk://q:1": errors.ConnectError("refused")}),
    errors.PutManyError("one failed", [1, errors.JobTooBigError("too big")]),
    errors.RetriesExhaustedError("given up", job_id=3, attempts=25),
    errors.Retry(),
    errors.Retry(delay=1.5, priority=9),
    errors.Bury(),
    errors.Bury(priority=9),
    *(kind() for kind in CLASSES),
]


def test_tree_every_exception_is_listed():
    assert {name for name in errors.__all__ if name != "Sent"} == set(PARENTS)


@pytest.mark.parametrize("name", PARENTS)
def test_tree_class_has_its_parents(name):
    parents = PARENTS[name]
    for parent in parents if isinstance(parents, tuple) else (parents,):
        assert issubclass(getattr(errors, name), parent)


@pytest.mark.parametrize("kind", [errors.Retry, errors.Bury])
def test_tree_what_handlers_raise_is_outside(kind):
    assert not issubclass(kind, errors.GstalkError)


def test_tree_time_limit_is_a_gevent_timeout_outside():
    assert issubclass(gstalk.TimeLimitExceeded, gevent.Timeout)
    assert not issubclass(gstalk.TimeLimitExceeded, Exception)


def test_tree_server_and_protocol_errors_are_apart():
    """After the one the connection is in step, after the other it is closed."""
    assert not any(issubclass(kind, errors.ServerError) and issubclass(kind, errors.ProtocolError) for kind in CLASSES)


def fields(error: BaseException) -> object:
    return type(error), str(error), repr(error.args), {name: repr(value) for name, value in vars(error).items()}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", SPECIMENS, ids=repr)
def test_error_pickled_keeps_everything(error, protocol):
    assert fields(pickle.loads(pickle.dumps(error, protocol))) == fields(error)


@pytest.mark.parametrize("error", SPECIMENS, ids=repr)
def test_error_copied_keeps_everything(error):
    assert fields(copy.copy(error)) == fields(error)
    assert fields(copy.deepcopy(error)) == fields(error)


def test_time_limit_pickled_keeps_its_seconds():
    error = gstalk.TimeLimitExceeded(2, ref=False)
    try:
        assert pickle.loads(pickle.dumps(error)).seconds == 2
    finally:
        error.close()


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in (errors.Retry, errors.Bury)])
def test_error_sentence_is_what_it_was_given(kind):
    sentence = "put to beanstalk://q1:11300: lost"
    assert str(kind(sentence)) == sentence


@pytest.mark.parametrize("kind", DISCONNECTED)
def test_disconnected_sent_is_kept_and_no_by_default(kind):
    assert kind("lost").sent == "no"
    assert kind("lost", "maybe").sent == "maybe"
    assert str(kind("lost", "maybe")) == "lost"


def test_subclass_with_its_own_constructor_pickles():
    error = Own(7)
    assert fields(pickle.loads(pickle.dumps(error))) == fields(error)


class Own(errors.ConnectError):
    """A user's subclass."""

    def __init__(self, number: int) -> None:
        super().__init__(f"number {number}", "no")
        self.number = number


def test_fields_defaults():
    assert errors.BuriedError("x").job_id is None
    assert errors.PutTimeoutError("x").causes == {}
    assert errors.PutManyError("x").results == []


def test_put_timeout_causes_are_a_copy():
    causes = {"beanstalk://q:1": errors.ConnectError("refused")}
    error = errors.PutTimeoutError("x", "no", causes)
    causes.clear()
    assert list(error.causes) == ["beanstalk://q:1"]


def test_retry_and_bury_keep_what_they_were_given():
    assert (errors.Retry().delay, errors.Retry().priority, errors.Bury().priority) == (None, None, None)
    assert (errors.Retry(3, 9).delay, errors.Retry(3, 9).priority, errors.Bury(9).priority) == (3, 9, 9)
