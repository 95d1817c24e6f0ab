"""When a connection counts as stuck, as a table: what happened, when, and how many seconds are left then."""

from __future__ import annotations

import pytest

from gstalk.protocol.progress import LOOK, UNLIMITED, Progress

LIMIT = 5.0


def progress(limit: float | None = LIMIT) -> Progress:
    """A connection on which a reply is due since 100."""
    made = Progress(limit)
    made.replied_at = 100.0
    return made


@pytest.mark.parametrize(
    ("oldest_end", "patience", "sent", "now", "left"),
    [
        (None, 0, 10, 200, None),  # nothing is due
        (10, 0, 10, 100, 5),
        (10, 0, 10, 103, 2),
        (10, 0, 10, 106, -1),
        (10, 30, 10, 106, 29),  # a reserve may wait on the server
        (11, 30, 10, 106, -1),  # not sent whole yet, and nothing is in its way: it should have been
    ],
)
def test_time_left_counts_from_when_a_reply_is_due(oldest_end, patience, sent, now, left):
    assert progress().time_left(oldest_end, patience, sent, now) == left


def test_time_left_without_a_limit_is_looked_at_now_and_then():
    assert progress(None).time_left(10, 0, 10, 1000) == UNLIMITED
    assert progress(None).time_left(None, 0, 10, 1000) is None


def test_time_left_blocked_counts_from_the_last_byte_that_the_kernel_took():
    made = progress()
    made.blocked(1000, 102.0)
    assert made.time_left(None, 0, 1000, 104) == 3
    assert made.time_left(5000, 0, 1000, 104) == 3  # its reply isn't due before it is sent
    assert made.accepted(1001, 5000, 106.0)
    assert made.time_left(5000, 0, 1001, 107) == 4
    assert not made.accepted(1001, 5000, 110.0)
    assert made.time_left(5000, 0, 1001, 110) == 1


def test_time_left_blocked_behind_a_reply_that_is_due_the_earlier_one_counts():
    made = progress()
    made.blocked(1000, 104.0)
    assert made.time_left(10, 0, 1000, 104) == 1


@pytest.mark.parametrize(("oldest_end", "due"), [(1500, 106), (2000, 106), (1000, 100), (2001, 100), (None, 100)])
def test_accepted_reply_is_due_from_when_its_command_was_sent_whole(oldest_end, due):
    made = progress()
    made.blocked(1000, 102.0)
    assert made.accepted(2000, oldest_end, 106.0)
    assert made.replied_at == due


def test_large_write_leaving_the_kernel_is_progress_and_staying_in_it_is_none():
    made = progress()
    assert made.look_in(3.0) == 3.0
    made.large_write(1000)
    assert made.look_in(3.0) == LOOK
    made.looked(1000, 500, 102.0)  # as much had left it before that write
    assert made.time_left(10, 0, 10, 102) == 3
    made.looked(1001, 500, 104.0)
    assert made.time_left(10, 0, 10, 104) == 5
    made.looked(1001, 500, 108.0)
    assert made.time_left(10, 0, 10, 108) == 1
    made.looked(1001, 1, 108.0)
    assert made.is_draining
    made.looked(1501, 0, 108.5)
    assert not made.is_draining
    assert made.look_in(3.0) == 3.0
    assert made.time_left(10, 0, 10, 109) == 4.5


def test_look_in_is_no_longer_than_what_is_left():
    made = progress()
    made.large_write(0)
    assert made.look_in(0.05) == 0.05
