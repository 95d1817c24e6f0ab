"""Any argument gives either exactly the right bytes, judged by an encoder written apart, or an error."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gstalk.config import PutParams, put_params
from gstalk.errors import InvalidArgumentError
from gstalk.protocol import commands

NAME = re.compile(r"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]{0,199}", re.ASCII)
UINT32 = 2**32 - 1

texts = st.text(max_size=8) | st.text(alphabet="abAZ09-+/;.$_()\r\n \0ä", max_size=205)
numbers = st.integers(-3, 3) | st.integers(UINT32 - 2, UINT32 + 2) | st.integers(2**64 - 2, 2**64 + 2)
durations = numbers | st.floats(allow_nan=True) | st.floats(0, 5) | st.timedeltas() | st.just(timedelta(seconds=0.5))
odd = st.none() | st.booleans() | st.text(max_size=3) | st.binary(max_size=3) | st.decimals() | st.lists(st.integers())
bodies: Any = (
    st.binary(max_size=50) | st.builds(bytearray, st.binary(max_size=9)) | st.builds(memoryview, st.binary(max_size=9))
)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(value: Any, least: int = 0) -> int | None:
    """The seconds that go on the wire; `None` where the value is to be refused."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if is_int(value) or (isinstance(value, float) and math.isfinite(value) and value >= 0):
        rounded = math.ceil(value)
        return rounded if least <= rounded <= UINT32 else None
    return None


def holds(build: Any, expected: bytes | None) -> None:
    if expected is None:
        with pytest.raises((TypeError, InvalidArgumentError)):
            build()
    else:
        assert build() == expected


@given(bodies | odd | texts, numbers | odd | st.floats(), durations | odd, durations | odd)
def test_put_is_exact_or_refused(body: Any, priority: Any, delay: Any, ttr: Any) -> None:
    good = isinstance(body, (bytes, bytearray, memoryview))
    good &= priority is None or (is_int(priority) and 0 <= priority <= UINT32)
    good &= delay is None or whole(delay) is not None
    good &= ttr is None or whole(ttr, 1) is not None
    expected = None
    if good:
        numbers = (1024 if priority is None else priority), whole(delay or 0), (60 if ttr is None else whole(ttr, 1))
        expected = b"put %d %d %d %d\r\n" % (*numbers, len(body)) + bytes(body) + b"\r\n"

    def build() -> bytes:
        return commands.put(body, put_params(None, priority, delay, ttr).head)

    holds(build, expected)


@given(texts | odd | numbers)
def test_tube_commands_are_exact_or_refused(tube: Any) -> None:
    good = isinstance(tube, str) and NAME.fullmatch(tube) is not None
    for command in (commands.USE, commands.WATCH, commands.IGNORE, commands.STATS_TUBE):
        expected = f"{command.name} {tube}\r\n".encode() if good else None
        assert expected is None or len(expected) <= 224
        holds(lambda command=command: commands.by_tube(command, tube), expected)


@given(numbers | odd | st.floats())
def test_id_commands_are_exact_or_refused(job_id: Any) -> None:
    good = is_int(job_id) and 1 <= job_id < 2**64
    for command in (commands.DELETE, commands.TOUCH, commands.KICK_JOB, commands.RESERVE_JOB, commands.PEEK):
        expected = f"{command.name} {job_id}\r\n".encode() if good else None
        holds(lambda command=command: commands.by_id(command, job_id), expected)


@given(numbers | odd, numbers | odd | st.floats(), durations | odd)
def test_release_and_bury_are_exact_or_refused(job_id: Any, priority: Any, delay: Any) -> None:
    good = is_int(job_id) and 1 <= job_id < 2**64 and is_int(priority) and 0 <= priority <= UINT32
    holds(lambda: commands.bury(job_id, priority), b"bury %d %d\r\n" % (job_id, priority) if good else None)
    good &= whole(delay) is not None
    expected = b"release %d %d %d\r\n" % (job_id, priority, whole(delay)) if good else None
    holds(lambda: commands.release(job_id, priority, delay), expected)


@given(numbers | odd | st.floats(), texts | odd, durations | odd)
def test_kick_and_pause_are_exact_or_refused(bound: Any, tube: Any, delay: Any) -> None:
    good = is_int(bound) and 0 <= bound <= UINT32
    holds(lambda: commands.kick(bound), b"kick %d\r\n" % bound if good else None)
    good = isinstance(tube, str) and NAME.fullmatch(tube) is not None and whole(delay) is not None
    expected = f"pause-tube {tube} {whole(delay)}\r\n".encode() if good else None
    holds(lambda: commands.pause_tube(tube, delay), expected)


def test_params_are_overridden_by_keywords() -> None:
    params = PutParams(priority=5, delay=1.2, ttr=9)
    assert put_params(params, None, None, None) is params
    assert put_params(params, 6, None, 0.1) == PutParams(priority=6, delay=2, ttr=1)
    with pytest.raises(TypeError):
        put_params({"priority": 5}, None, None, None)


def test_body_is_a_copy() -> None:
    body = bytearray(b"before")
    line = commands.put(body, commands.put_head(0, 0, 1))
    body[:] = b"after!"
    assert line == b"put 0 0 1 6\r\nbefore\r\n"


@pytest.mark.parametrize(
    ("made", "line"),
    [
        (commands.plain(commands.LIST_TUBES), b"list-tubes\r\n"),
        (commands.plain(commands.STATS), b"stats\r\n"),
        (commands.reserve(0), b"reserve-with-timeout 0\r\n"),
        (commands.reserve(86400), b"reserve-with-timeout 86400\r\n"),
    ],
)
def test_command_without_arguments_of_a_caller_is_exact(made: bytes, line: bytes) -> None:
    assert made == line
