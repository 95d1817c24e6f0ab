"""gstalk.protocol.checks: the user's functions, tubes; `test_builtin_values` has names, numbers and bodies."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from gstalk.errors import InvalidArgumentError
from gstalk.protocol import checks


async def coroutine(job: object) -> None: ...


async def coroutine_of_two(job: object, more: object) -> None: ...


def generator(job: object) -> Iterator[None]:
    yield


async def async_generator(job: object) -> AsyncIterator[None]:
    yield


@types.coroutine
def old_coroutine(job: object) -> Iterator[None]:
    yield


class Many:
    """Every kind of method, each of which runs nothing when it is called."""

    async def __call__(self, job: object) -> None: ...

    async def method(self, job: object) -> None: ...

    @classmethod
    async def of_class(cls, job: object) -> None: ...

    @staticmethod
    async def static(job: object) -> None: ...

    def yielding(self, job: object) -> Iterator[None]:
        yield


class Heir(Many):
    pass


class CallsStatic:
    @staticmethod
    async def __call__(job: object) -> None: ...


class CallsOfClass:
    @classmethod
    async def __call__(cls, job: object) -> None: ...


class CallsYielding:
    def __call__(self, job: object) -> Iterator[None]:
        yield


ASYNC: list[Any] = [
    coroutine,
    async_generator,
    functools.partial(coroutine_of_two, 1),
    functools.partial(functools.partial(coroutine_of_two), more=1),
    functools.partial(Many()),
    functools.partial(Many().method),
    Many(),
    Heir(),
    Many().method,
    Many.of_class,
    Many().of_class,
    Many.static,
    Many.__dict__["static"],
    CallsStatic(),
    CallsOfClass(),
    types.MethodType(coroutine_of_two, 1),
    types.MethodType(Many(), 1),
]
GENERATORS: list[Any] = [
    generator,
    old_coroutine,
    functools.partial(generator),
    Many().yielding,
    CallsYielding(),
    types.MethodType(generator, 1),
]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(value, "async def") for value in ASYNC]
    + [(value, "a generator function (it has a yield)") for value in GENERATORS],
)
def test_callable_whose_call_would_run_nothing_is_refused(value, kind):
    with pytest.raises(TypeError) as caught:
        checks.check_callable("handler", value, 1)
    assert str(caught.value) == (
        "handler must be a plain function, which runs to its end when it is called; "
        f"this one is {kind}: a call of it would run nothing"
    )


@pytest.mark.parametrize("value", [None, 5, "handler", [print], property(print), Many.__dict__["of_class"]])
def test_callable_that_can_not_be_called_is_refused(value):
    with pytest.raises(TypeError, match=f"^handler must be callable, got {type(value).__name__}$"):
        checks.check_callable("handler", value, 1)


class Plain:
    def __init__(self, *arguments: object) -> None: ...

    def __call__(self, job: object) -> None: ...

    def method(self, job: object, *, more: object = None) -> None: ...

    @classmethod
    def of_class(cls, job: object) -> None: ...

    @staticmethod
    def static(job: object) -> None: ...

    def none(self) -> None: ...


class AsyncInstances:
    """To call the class makes an object, and runs its constructor to its end."""

    def __init__(self, job: object) -> None: ...

    async def __call__(self) -> None: ...


def two(job: object, more: object) -> None: ...


def runs(function: Callable[..., Awaitable[None]]) -> Callable[[object], None]:
    """A decorator that runs an `async def` to its end, and says whose name it bears."""

    @functools.wraps(function)
    def run(job: object) -> None:
        for _ in function(job).__await__():
            pass

    return run


def adds(function: Callable[[object, object], None]) -> Callable[[object], None]:
    """A decorator that gives one argument more than it gets."""

    @functools.wraps(function)
    def add(job: object) -> None:
        function(job, None)

    return add


class Proxy:
    """An object that pretends to be the function that it wraps, as `wrapt` makes them."""

    def __init__(self, function: object) -> None:
        self.function = function

    @property
    def __class__(self) -> Any:
        return types.FunctionType

    def __getattr__(self, name: str) -> object:
        return getattr(self.function, name)

    def __call__(self, *arguments: object) -> None: ...


def promising(*arguments: object) -> None: ...


promising.__signature__ = "of two"  # type: ignore[attr-defined]

PLAIN: list[Any] = [
    lambda job: None,
    lambda *jobs: None,
    lambda job, more=None: None,
    [].append,
    print,
    len,
    int,
    Plain,
    AsyncInstances,
    Plain(),
    Plain().method,
    Plain.of_class,
    Plain.static,
    Plain.__dict__["static"],
    functools.partial(two, 1),
    functools.partial(two, more=1),
    functools.partial(Plain()),
    functools.lru_cache(two),  # it has no code to look at: what it can't take shows at the call
    runs(coroutine),
    adds(two),
    Proxy(two),
    functools.partial(Proxy(two)),
    promising,
    mock.Mock(),
    mock.MagicMock(),
    mock.MagicMock(spec=two),  # its code's flags are a mock too, and so "true"
    mock.create_autospec(len),
]


@pytest.mark.parametrize("value", PLAIN)
def test_callable_that_runs_to_its_end_passes(value):
    checks.check_callable("handler", value, 1)


@pytest.mark.parametrize(
    ("value", "arguments", "told"),
    [
        (
            Plain().none,
            1,
            "handler is called with one argument, which this one can't be: too many positional arguments",
        ),
        (two, 1, "handler is called with one argument, which this one can't be: missing a required argument: 'more'"),
        ([].append, 2, "handler is called with 2 arguments, which this one can't be: too many positional arguments"),
        (lambda: None, 1, None),
        (Plain(), 2, None),
        (Plain.method, 1, None),
        (AsyncInstances, 2, None),
        (functools.partial(two, 1, 2), 1, None),
        (functools.partial(two, job=1), 1, None),
        (lambda job, *, must: None, 1, None),
        (adds(two), 2, None),
        (object(), 1, "handler must be callable, got object"),
    ],
)
def test_callable_with_other_arguments_is_refused(value, arguments, told):
    with pytest.raises(TypeError, match=r"^handler ") as caught:
        checks.check_callable("handler", value, arguments)
    if told is not None:
        assert str(caught.value) == told


def test_callable_that_is_its_own_call_ends():
    class Endless:
        def __call__(self) -> None: ...

    endless: Any = Endless()
    Endless.__call__ = types.MethodType(endless, 1)  # type: ignore[method-assign]
    checks.check_callable("handler", endless, 1)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (coroutine, "coroutine"),
        (generator, "generator"),
        (old_coroutine, "generator"),
        (async_generator, "async_generator"),
        (lambda job: coroutine(job).__await__(), "coroutine_wrapper"),
        (lambda job: Awaited(), "Awaited"),
    ],
)
def test_returned_object_that_has_yet_to_run_is_refused_and_closed(make, kind):
    with pytest.raises(TypeError) as caught:
        checks.check_returned(
            "a hook", make(None)
        )  # a coroutine that isn't closed is a warning, which is an error here
    assert str(caught.value) == (
        f"a hook must run to its end when it is called; this one gave back an object that has yet to: {kind}"
    )


class Awaited:
    """Something to wait for that isn't a coroutine, as asyncio's tasks are; it isn't ours to close."""

    def __await__(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        raise AssertionError("closed")


@pytest.mark.parametrize("result", [None, 0, "", [], iter([]), mock.MagicMock(), object(), coroutine, generator])
def test_returned_value_passes(result):
    checks.check_returned("a hook", result)


class Sign(str):
    """A str whose hash is its own: a dict takes it and an equal str for two keys."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize("byte", range(256))
def test_byte_may_be_in_a_tube_as_the_protocol_says(byte):
    """Anywhere, but a hyphen at the beginning."""
    letter = bytes([byte])
    allowed = re.fullmatch(rb"[A-Za-z0-9+/;.$_()-]", letter) is not None
    assert checks.is_tube(b"a" + letter) == checks.is_tube(b"a" * 199 + letter) == allowed
    assert checks.is_tube(letter) == checks.is_tube(letter * 200) == (allowed and letter != b"-")
    assert not checks.is_tube(letter * 201)


def test_no_tube_at_all_is_refused():
    with pytest.raises(InvalidArgumentError, match="^at least one tube is needed$"):
        checks.check_tubes([])


def test_two_handlers_for_a_tube_are_refused():
    with pytest.raises(InvalidArgumentError, match="^two handlers for tube 'a'$"):
        checks.by_tube({"a": 1, Sign("a"): 2})


def test_tubes_that_passed_are_forgotten_before_they_are_too_many(monkeypatch):
    monkeypatch.setattr(checks, "_KNOWN_MOST", 3)
    known: dict[str, bytes] = {}
    monkeypatch.setattr(checks, "known_tubes", known)
    for number in range(10):
        assert checks.tube_bytes(f"tube-{number}") == b"tube-%d" % number
        assert len(known) <= 3
