"""gstalk.protocol.checks and what is made with it: the builtin value counts, whatever a subclass says about itself."""

from __future__ import annotations

import dataclasses
from array import array
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest

from gstalk.config import Config, PutParams, configure, put_params
from gstalk.errors import InvalidArgumentError
from gstalk.protocol import checks, commands
from gstalk.retry import RetryPolicy
from gstalk.uri import parse_uri, validate_uris
from tests.disguises import BODIES, DURATIONS, NUMBERS, TEXTS, hostile

texts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
numbers = pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
durations = pytest.mark.parametrize("duration", DURATIONS.values(), ids=DURATIONS)

BODY = b"12345678"
HEAD = commands.put_head(1, 2, 3)


def same(value: Any, expected: Any) -> None:
    """Not by `==` alone, which a subclass may answer."""
    assert type(value) is type(expected)
    assert value == expected


@pytest.fixture(autouse=True)
def forgotten() -> None:
    checks.known_tubes.clear()


# -- texts -------------------------------------------------------------------------------------------------------


@texts
def test_tube_is_the_str_that_is_held(text):
    same(checks.check_tube(text("mail")), "mail")
    same(checks.tube_bytes(text("mail")), b"mail")
    same(commands.by_tube(commands.USE, text("mail")), b"use mail\r\n")
    same(commands.pause_tube(text("mail"), 1), b"pause-tube mail 1\r\n")


@texts
def test_tube_that_passed_is_remembered_by_what_is_held(text):
    checks.check_tube(text("mail"))
    [(name, wire)] = checks.known_tubes.items()
    same(name, "mail")
    same(wire, b"mail")


@texts
def test_tube_that_is_held_is_what_must_be_right(text):
    with pytest.raises(InvalidArgumentError, match=r"^tube name may hold .* only: 'a b'$"):
        checks.check_tube(text("a b"))
    with pytest.raises(InvalidArgumentError, match="^tube name has 201 bytes"):
        checks.check_tube(text("a" * 201))


def test_tube_name_of_a_str_enum_is_another_tube():
    """The name was taken for the tube that the member holds, in the whole process."""
    checks.check_tube(TEXTS["str Enum"]("mail"))
    assert checks.tube_bytes("Tube.MEMBER") == b"Tube.MEMBER"


@texts
def test_tubes_are_the_str_that_are_held_and_each_counts_once(text):
    same(checks.check_tubes(text("mail")), ["mail"])
    for names in ([text("mail"), "mail", text("post")], (text(name) for name in ("mail", "mail", "post"))):
        tubes = checks.check_tubes(names)
        assert [type(tube) for tube in tubes] == [str, str]
        assert tubes == ["mail", "post"]


@texts
def test_mapping_is_by_the_str_that_are_held(text):
    class Items(dict[str, int]):
        def items(self) -> Any:
            return [(text("mail"), 1), (text("post"), 2)]

    found = checks.by_tube(Items())
    assert [type(tube) for tube in found] == [str, str]
    assert found == {"mail": 1, "post": 2}


@texts
def test_uri_is_the_str_that_is_held(text):
    for address in [
        parse_uri(text("TLS://Host:5")),
        *validate_uris(text("TLS://Host:5")),
        *validate_uris([text("TLS://Host:5")]),
    ]:
        assert dataclasses.astuple(address) == ("tls", "Host", 5, None)
        assert [type(field) for field in dataclasses.astuple(address)[:3]] == [str, str, int]
    same(parse_uri(text("unix:///a/b")).path, "/a/b")
    with pytest.raises(InvalidArgumentError, match=r"^invalid server URI 'http://x': scheme must be"):
        parse_uri(text("http://x"))


@pytest.mark.parametrize("check", [checks.check_tube, checks.check_tubes, parse_uri, validate_uris])
def test_text_that_only_pretends_to_be_one_is_a_type_error(check):
    """By its `__class__`, as mocks and proxies do: it holds no str."""
    with pytest.raises(TypeError, match="must be a str, got Mock$"):
        check(mock.Mock(spec=str))


@pytest.mark.parametrize("values", [None, 5, b"mail", bytearray(b"mail"), object()])
def test_list_of_texts_that_is_none_is_a_type_error(values):
    kind = type(values).__name__
    with pytest.raises(TypeError, match=f"^tubes must be a str or an iterable of str, got {kind}$"):
        checks.check_tubes(values)
    with pytest.raises(TypeError, match=f"^uris must be a str or an iterable of str, got {kind}$"):
        validate_uris(values)


@pytest.mark.parametrize("value", [None, 5, b"mail", ["mail"]])
def test_list_of_texts_with_another_value_in_it_is_a_type_error(value):
    kind = type(value).__name__
    with pytest.raises(TypeError, match=f"^each of tubes must be a str, got {kind}$"):
        checks.check_tubes(["mail", value])
    with pytest.raises(TypeError, match=f"^each of uris must be a str, got {kind}$"):
        validate_uris(["host", value])


def test_list_of_texts_may_be_anything_that_can_be_gone_through():
    class Old:
        def __getitem__(self, index: int) -> str:
            return ["mail", "post"][index]

    for many in (("mail", "post"), {"mail": 1, "post": 2}, iter(["mail", "post"]), Old()):
        assert checks.check_tubes(many) == ["mail", "post"]


def test_list_of_texts_that_raises_raises_that():
    class Raising:
        def __iter__(self) -> Any:
            raise TypeError("mine")

    with pytest.raises(TypeError, match="^mine$"):
        checks.check_tubes(Raising())


# -- numbers and durations ---------------------------------------------------------------------------------------


@numbers
def test_number_is_the_int_that_is_held(number):
    same(checks.whole_number("n", number(5), 5, 5), 5)
    same(checks.check_priority(number(5)), 5)
    same(checks.check_job_id(number(5)), 5)
    same(checks.check_bound(number(5)), 5)
    same(checks.number("n", number(5)), 5.0)
    same(commands.by_id(commands.PEEK, number(5)), b"peek 5\r\n")
    same(commands.release(number(5), number(6), number(8)), b"release 5 6 8\r\n")
    same(commands.bury(number(5), number(6)), b"bury 5 6\r\n")
    same(commands.kick(number(5)), b"kick 5\r\n")


@numbers
def test_number_that_is_held_is_what_must_be_in_range(number):
    with pytest.raises(InvalidArgumentError, match="^n must be from 1 to 4, got 5$"):
        checks.whole_number("n", number(5), 1, 4)
    with pytest.raises(InvalidArgumentError, match="^n must be from 1 to 4, got a number of 301 bits$"):
        checks.whole_number("n", number(2**300), 1, 4)


@durations
def test_duration_is_what_is_held(duration):
    same(checks.seconds("s", duration(5)), 5.0)
    same(checks.whole_seconds("s", duration(5)), 5)
    same(checks.check_delay(duration(5)), 5)
    same(checks.check_ttr(duration(5)), 5)


@pytest.mark.parametrize("kind", [float, timedelta])
def test_duration_that_is_held_is_rounded_up(kind):
    half = hostile(kind)(0.5) if kind is float else hostile(kind)(seconds=0.5)
    same(checks.seconds("s", half), 0.5)
    same(checks.check_delay(half), 1)


@pytest.mark.parametrize(("kind", "given"), [(float, "nan"), (float, "inf"), (float, -1.0), (timedelta, -1), (int, -1)])
def test_duration_that_is_held_is_what_must_be_in_range(kind, given):
    with pytest.raises(InvalidArgumentError, match="^s must"):
        checks.seconds("s", hostile(kind)(given))


def test_duration_that_no_float_holds_is_out_of_range():
    with pytest.raises(InvalidArgumentError, match="^s is too large: a number of 2001 bits$"):
        checks.seconds("s", hostile(int)(2**2000))


@pytest.mark.parametrize("kind", [int, float, timedelta])
def test_number_that_only_pretends_to_be_one_is_a_type_error(kind):
    for check in (checks.check_priority, checks.check_delay, checks.check_ttr, checks.check_job_id):
        with pytest.raises(TypeError, match="must be .*, got Mock$"):
            check(mock.Mock(spec=kind))


# -- bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_body_is_the_bytes_that_are_held(body):
    same(checks.check_body(body(BODY)), BODY)
    same(commands.put(body(BODY), HEAD), b"put 1 2 3 8\r\n12345678\r\n")


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_body_size_is_that_of_its_bytes(body, monkeypatch):
    monkeypatch.setattr(checks, "MAX_BODY", 7)
    with pytest.raises(InvalidArgumentError, match="^body has 8 bytes, more than beanstalkd can hold: 7$"):
        commands.put(body(BODY), HEAD)


@pytest.mark.parametrize("data", [b"x", bytearray(b"x"), array("I", [1])])
def test_body_that_was_released_is_refused(data):
    view = memoryview(data)
    view.release()
    with pytest.raises(InvalidArgumentError, match="^body is a memoryview that was released$"):
        commands.put(view, HEAD)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_body_that_only_pretends_to_be_one_is_a_type_error(kind):
    with pytest.raises(TypeError, match="^body must be bytes, bytearray or memoryview, got NonCallableMagicMock$"):
        commands.put(mock.NonCallableMagicMock(spec=kind), HEAD)


@texts
def test_body_that_is_a_str_is_told_how_to_encode_it(text):
    with pytest.raises(TypeError, match=r"^body must be bytes, got str; encode it first"):
        commands.put(text("x"), HEAD)


@pytest.mark.parametrize("bodies", [None, 5, b"x", "x", bytearray(b"x"), memoryview(b"x")])
def test_bodies_that_are_not_many_are_a_type_error(bodies):
    with pytest.raises(TypeError, match=f"^bodies must be an iterable of bytes, got {type(bodies).__name__}$"):
        checks.check_bodies(bodies)


# -- settings ----------------------------------------------------------------------------------------------------


@numbers
@durations
def test_put_params_hold_builtin_numbers(number, duration):
    params = PutParams(number(5), duration(8), duration(9))
    for value, expected in zip(dataclasses.astuple(params), (5, 8, 9), strict=True):
        same(value, expected)
    same(dataclasses.astuple(put_params(None, number(5), duration(8), duration(9))), (5, 8, 9))


def test_put_params_of_a_subclass_are_checked_again():
    """Its own `__post_init__` may have forgotten to."""

    class Unchecked(PutParams):
        def __post_init__(self) -> None: ...

    assert dataclasses.astuple(put_params(Unchecked(delay=0.5), None, None, None)) == (1024, 1, 60)
    with pytest.raises(InvalidArgumentError, match="^priority must"):
        put_params(Unchecked(priority=-1), None, None, None)


DURATION_FIELDS = ("conn_timeout", "put_timeout", "reserve_timeout", "reconnect_timeout", "stop_timeout", "time_limit")


@durations
def test_config_holds_builtin_durations(duration):
    config = Config(**{name: duration(5) for name in DURATION_FIELDS})
    for name in DURATION_FIELDS:
        same(getattr(config, name), 5.0)
        same(getattr(Config().replace(**{name: duration(5)}), name), 5.0)


@numbers
def test_config_holds_builtin_numbers(number):
    config = Config(multiply=number(5), num_greenlets=number(6))
    same(config.multiply, 5)
    same(config.num_greenlets, 6)


@numbers
@texts
def test_retry_policy_holds_builtin_values(number, text):
    policy = RetryPolicy(number(5), number(6), number(8), number(9), True, text("delete"))
    for value, expected in zip(dataclasses.astuple(policy), (5, 6.0, 8.0, 9.0, True, "delete"), strict=True):
        same(value, expected)
    with pytest.raises(InvalidArgumentError, match="^exhausted must be 'bury' or 'delete', got 'no'$"):
        RetryPolicy(exhausted=text("no"))


@durations
def test_retry_policy_holds_builtin_durations(duration):
    policy = RetryPolicy(first_delay=duration(5), max_delay=duration(6), jitter=False)
    same((policy.first_delay, policy.max_delay), (5.0, 6.0))
    same(policy.delay(1, 0), 5.0)


@pytest.mark.parametrize("config", [{}, {"multiply": 2}, "config", [], RetryPolicy(), Config])
def test_config_of_another_type_is_a_type_error(config):
    with pytest.raises(TypeError) as caught:
        configure(config, {})
    assert str(caught.value) == (
        f"config must be a gstalk.Config, got {type(config).__name__}; fields of one may be given as keywords"
    )


def test_config_and_fields_are_put_together():
    assert configure(None, {}) == Config()
    assert configure(None, {"multiply": 2}) == Config(multiply=2)
    assert configure(Config(multiply=2), {}) == Config(multiply=2)
    assert configure(Config(multiply=2), {"num_greenlets": 3}) == Config(multiply=2, num_greenlets=3)
    with pytest.raises(TypeError, match="num_greenlet"):
        configure(None, {"num_greenlet": 3})  # type: ignore[typeddict-unknown-key]
