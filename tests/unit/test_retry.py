"""gstalk.retry: the pauses between attempts, and when there are no more."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gstalk.errors import InvalidArgumentError
from gstalk.retry import RetryPolicy


def test_policy_defaults_are_the_documented_ones():
    assert dataclasses.astuple(RetryPolicy()) == (25, 1, 2, 300, True, "bury")
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().factor = 3


def test_delay_without_jitter_grows_to_its_bound():
    policy = RetryPolicy(first_delay=1, factor=2, max_delay=10, jitter=False)
    assert [policy.delay(attempt, 0.5) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_delay_with_jitter_is_between_half_and_the_whole():
    policy = RetryPolicy(first_delay=4, factor=3, max_delay=100)
    assert [policy.delay(2, chance) for chance in (0.0, 0.5, 0.75)] == [6, 9, 10.5]


def test_delay_takes_timedeltas():
    policy = RetryPolicy(first_delay=timedelta(seconds=2), max_delay=timedelta(seconds=3), jitter=False)
    assert [policy.delay(1, 0), policy.delay(2, 0)] == [2, 3]


def test_delay_zero_stays_zero():
    assert RetryPolicy(first_delay=0).delay(2**40, 0.9) == 0


@given(
    first=st.floats(0, 2**32 - 1),
    factor=st.floats(1, 1e300),
    most=st.floats(0, 2**32 - 1),
    attempt=st.integers(1, 2**64),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_delay_any_attempt_gives_a_number_within_bounds(first, factor, most, attempt, chance):
    delay = RetryPolicy(first_delay=first, factor=factor, max_delay=most).delay(attempt, chance)
    assert 0 <= delay <= most


@pytest.mark.parametrize(
    ("reserves", "kicks", "exhausted"),
    [
        (1, 0, False),
        (2, 0, False),
        (3, 0, True),
        (4, 0, True),
        (3, 1, False),
        (5, 1, False),
        (6, 1, True),
        (9, 2, True),
    ],
)
def test_exhausted_each_kick_grants_a_fresh_set(reserves, kicks, exhausted):
    assert RetryPolicy(max_attempts=3).is_exhausted(reserves, kicks) is exhausted


@pytest.mark.parametrize(
    ("reserves", "releases", "timeouts", "buries", "kicks", "exhausted"),
    [
        (1, 0, 0, 0, 0, False),  # the first attempt is under way
        (3, 0, 0, 0, 0, False),  # two were lost
        (4, 0, 0, 0, 0, True),  # three were
        (9, 8, 0, 0, 0, False),  # released every time: its handler repeats it
        (9, 0, 8, 0, 0, False),  # timed out every time: its handler is slow
        (9, 2, 2, 1, 1, False),  # three lost, and kicked once
        (12, 2, 2, 1, 1, True),  # six lost
    ],
)
def test_exhausted_by_losses_counts_nothing_else(reserves, releases, timeouts, buries, kicks, exhausted):
    policy = RetryPolicy(max_attempts=3)
    assert policy.is_exhausted_by_losses(reserves, releases, timeouts, buries, kicks) is exhausted


def test_exhausted_never_without_a_limit():
    policy = RetryPolicy(max_attempts=None)
    assert not policy.is_exhausted(2**64, 0)
    assert not policy.is_exhausted_by_losses(2**64, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_attempts", value) for value in (0, -1)),
        *((name, value) for name in ("first_delay", "max_delay") for value in (-1, math.nan, math.inf, 2**32)),
        *(("factor", value) for value in (0.5, 0, -2, math.nan, math.inf)),
        *(("exhausted", value) for value in ("", "drop", "BURY")),
    ],
)
def test_policy_out_of_range_is_refused(name, value):
    with pytest.raises(InvalidArgumentError, match=f"^{name} "):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_attempts", value) for value in (1.0, "3", True)),
        *((name, value) for name in ("first_delay", "max_delay", "factor") for value in ("1", None, True)),
        ("factor", timedelta(seconds=2)),  # it is no duration
        *(("exhausted", value) for value in (None, 1, b"bury")),
        *(("jitter", value) for value in (1, None, "yes")),
    ],
)
def test_policy_wrong_type_is_a_type_error(name, value):
    with pytest.raises(TypeError, match=f"^{name} must be"):
        RetryPolicy(**{name: value})
