"""gstalk.retry: the pauses between attempts, when there are no more, and what becomes of a job."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gstalk.errors import Bury, InvalidArgumentError, Retry
from gstalk.protocol.stats import JobStats
from gstalk.retry import Fate, RetryPolicy, judged


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


@pytest.mark.parametrize(
    ("most", "losses", "kicks", "exhausted"),
    [
        (1, 1, 0, False),
        (1, 2, 0, False),
        (1, 3, 0, True),
        (2, 3, 0, True),
        (4, 3, 0, False),
        (4, 4, 0, True),
        (1, 5, 1, False),  # each kick grants as many again
        (1, 6, 1, True),
    ],
)
def test_exhausted_by_losses_takes_three_of_them_however_few_the_attempts(most, losses, kicks, exhausted):
    """A stop that meets a job on its way looks like a loss; a job that kills its worker is lost each time."""
    assert RetryPolicy(max_attempts=most).is_exhausted_by_losses(losses + 1, 0, 0, 0, kicks) is exhausted


# -- the fate of a job -------------------------------------------------------------------------------------------

STATS = JobStats(pri=7, reserves=2, kicks=0, releases=1, timeouts=0, buries=0)
STEADY = RetryPolicy(max_attempts=3, first_delay=10, factor=2, jitter=False)


class MyRetry(Retry):
    """Its constructor forgets the fields."""

    def __init__(self) -> None:
        pass


class Priority(IntEnum):
    HIGH = 5


@pytest.mark.parametrize(
    ("error", "reserves", "fate"),
    [
        (ValueError("own"), 1, Fate("release", 7, 10)),
        (ValueError("own"), 2, Fate("release", 7, 20)),
        (ValueError("own"), 3, Fate("bury", 7, is_given_up=True)),
        (Retry(), 2, Fate("release", 7, 20)),
        (Retry(delay=0), 2, Fate("release", 7, 0)),
        (Retry(delay=1.2), 2, Fate("release", 7, 2)),
        (Retry(delay=timedelta(minutes=1)), 2, Fate("release", 7, 60)),
        (Retry(priority=0), 2, Fate("release", 0, 20)),
        (Retry(priority=Priority.HIGH), 2, Fate("release", 5, 20)),
        (Retry(delay=0, priority=3), 3, Fate("bury", 7, is_given_up=True)),  # it counts as an attempt
        (Bury(), 1, Fate("bury", 7)),
        (Bury(priority=0), 1, Fate("bury", 0)),
        (Bury(), 3, Fate("bury", 7)),
    ],
)
def test_fate_of_failed_job(error, reserves, fate):
    stats = dataclasses.replace(STATS, reserves=reserves)
    assert Fate.of_failed(STEADY, stats, judged(error), 0.5) == fate


WRONG: list[tuple[Retry | Bury, type[Exception]]] = [
    (Bury(-1), InvalidArgumentError),
    (Bury(2**32), InvalidArgumentError),
    (Bury(True), TypeError),
    (Bury(1.0), TypeError),
    (Bury("1"), TypeError),
    (Bury([]), TypeError),
    (Retry(delay=-1), InvalidArgumentError),
    (Retry(delay=timedelta(seconds=-1)), InvalidArgumentError),
    (Retry(delay=math.nan), InvalidArgumentError),
    (Retry(delay=math.inf), InvalidArgumentError),
    (Retry(delay=2**32), InvalidArgumentError),
    (Retry(delay=10**5000), InvalidArgumentError),
    (Retry(delay=True), TypeError),
    (Retry(delay="1"), TypeError),
    (Retry(delay=1, priority=-1), InvalidArgumentError),
    (Retry(priority="x"), TypeError),
    (MyRetry(), AttributeError),
]


@pytest.mark.parametrize(("error", "kind"), WRONG)
def test_fate_of_a_wrong_retry_or_bury_is_that_of_any_failure(error, kind):
    wrong = judged(error)
    assert type(wrong) is kind
    assert wrong.__cause__ is error
    fates = [Fate.of_failed(STEADY, dataclasses.replace(STATS, reserves=n), wrong, 0.5) for n in (1, 2, 3)]
    assert fates == [Fate("release", 7, 10), Fate("release", 7, 20), Fate("bury", 7, is_given_up=True)]


def test_fate_of_a_wrong_retry_without_a_limit_is_a_release_with_the_policys_delay():
    policy = dataclasses.replace(STEADY, max_attempts=None)
    assert Fate.of_failed(policy, STATS, judged(Retry(delay=-1)), 0.5) == Fate("release", 7, 20)


def test_judged_other_errors_are_themselves():
    error = InvalidArgumentError("the handler's own")
    assert judged(error) is error


def test_fate_delete_is_of_failed_jobs_only():
    """One that was lost may never have run: somebody should look."""
    policy = RetryPolicy(max_attempts=1, exhausted="delete")
    stats = JobStats(pri=7, reserves=4)  # a server that tells no more than this
    assert Fate.of_failed(policy, stats, ValueError(), 0.5) == Fate("delete", 7, is_given_up=True)
    assert Fate.of_failed(policy, stats, ValueError(), 0.5, has_run=False) == Fate("bury", 7, is_given_up=True)
    assert Fate.of_reserved(policy, stats) == Fate("bury", 7, is_given_up=True)
    assert Fate.of_reserved(policy, dataclasses.replace(stats, reserves=3)) is None


@pytest.mark.parametrize(
    ("fate", "words", "outcome"),
    [
        (Fate("release", 7, 0), "released, with a delay of 0 s", "released"),
        (Fate("bury", 7), "buried", "buried"),
        (Fate("bury", 7, is_given_up=True), "given up and buried", "buried"),
        (Fate("delete", 7, is_given_up=True), "given up and deleted", "deleted"),
    ],
)
def test_fate_in_words(fate, words, outcome):
    assert (str(fate), fate.outcome) == (words, outcome)


@pytest.mark.parametrize("exhausted", ["bury", "delete"])
@pytest.mark.parametrize(
    ("stats", "fate"),
    [
        (JobStats(pri=7, reserves=1), None),
        (JobStats(pri=7, reserves=3, releases=2, timeouts=0, buries=0, kicks=0), None),
        (JobStats(pri=7, reserves=3, releases=0, timeouts=0, buries=0, kicks=0), None),
        (JobStats(pri=7, reserves=4, releases=0, timeouts=0, buries=0, kicks=0), Fate("bury", 7, is_given_up=True)),
        (JobStats(pri=7, reserves=4), Fate("bury", 7, is_given_up=True)),  # what is not told counts as nothing
    ],
)
def test_fate_of_job_just_reserved(exhausted, stats, fate):
    """One that was lost with its worker too often is buried whatever the policy says: it may not have run at all."""
    assert Fate.of_reserved(RetryPolicy(max_attempts=3, exhausted=exhausted), stats) == fate


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
