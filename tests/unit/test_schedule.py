"""What pools decide, without a clock."""

from __future__ import annotations

import pytest

from gstalk import errors
from gstalk.pool.schedule import Backoff, Health, Judgement, WatchList, judge


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_backoff_begins_at_random_grows_and_is_bounded(chance):
    backoff = Backoff(3)
    pauses = [backoff.pause(chance) for _ in range(8)]
    assert 0 <= pauses[0] < 0.5
    ceilings = [0.5, 1, 2, 3, 3, 3, 3]
    assert pauses[1:] == pytest.approx([ceiling * (0.1 + 0.9 * chance) for ceiling in ceilings])
    backoff.reset()
    assert backoff.pause(chance) < 0.5


def test_health_may_be_bad_in_two_ways_at_once():
    health, refusal = Health(), errors.DrainingError("no")
    assert health.is_usable
    for bad, good in ((health.stall, health.answer), (lambda: health.refuse(refusal), health.rest)):
        bad()
        assert not health.is_usable
        good()
        assert health.is_usable
    health.stall()
    health.refuse(refusal)
    health.answer()
    assert (health.is_usable, health.refusal) == (False, refusal)
    health.stall()
    health.rest()
    assert (health.is_usable, health.refusal) == (False, None)
    health.answer()
    assert health.is_usable


LOST = errors.ConnectionLostError("cut", "maybe")
UNSENT = errors.ConnectionLostError("cut", "no")
STALLED = errors.CommandTimeoutError("no progress", "maybe")
INTERNAL = errors.InternalError("bug")
BROKEN = errors.ProtocolError("garbage")
DRAINING = errors.DrainingError("no")
FULL = errors.OutOfMemoryError("no")


@pytest.mark.parametrize(
    ("error", "maybes", "others", "options", "judgement"),
    [
        # not sent: again, however often and whatever was before
        (UNSENT, 0, 1, {}, Judgement(True, False)),
        (UNSENT, 2, 0, {"retry_ambiguous": False}, Judgement(True, False)),
        (UNSENT, 0, 1, {"once": True}, Judgement(False, False)),
        (errors.ConnectError("refused"), 0, 0, {}, Judgement(True, False)),
        # sent, no reply: three such tries at most
        (LOST, 0, 0, {}, Judgement(True, True)),
        (LOST, 1, 0, {}, Judgement(True, True)),
        (LOST, 2, 5, {}, Judgement(False, True)),
        (STALLED, 1, 1, {}, Judgement(True, True)),
        (STALLED, 2, 1, {}, Judgement(False, True)),
        (INTERNAL, 0, 0, {}, Judgement(True, True)),
        (INTERNAL, 2, 1, {}, Judgement(False, True)),
        (LOST, 0, 1, {"once": True}, Judgement(False, True)),
        (LOST, 0, 1, {"retry_ambiguous": False}, Judgement(False, True)),
        (INTERNAL, 0, 1, {"retry_ambiguous": False}, Judgement(False, True)),
        # the protocol broken: another server, if there is one
        (BROKEN, 0, 1, {}, Judgement(True, True, "broken")),
        (BROKEN, 0, 0, {}, Judgement(False, True, "broken")),
        (BROKEN, 2, 1, {}, Judgement(False, True, "broken")),
        (BROKEN, 0, 1, {"retry_ambiguous": False}, Judgement(False, True, "broken")),
        # no jobs now: stored nothing
        (DRAINING, 0, 0, {}, Judgement(True, False, "refuses")),
        (FULL, 2, 0, {"retry_ambiguous": False}, Judgement(True, False, "refuses")),
        (FULL, 0, 1, {"once": True}, Judgement(False, False, "refuses")),
        # the end
        (errors.PutTimeoutError("late", "maybe"), 0, 1, {}, Judgement(False, True)),
        (errors.JobTooBigError("big"), 0, 1, {}, Judgement(False, False)),
        (errors.BuriedError("buried", 7), 0, 1, {}, Judgement(False, False)),
        (errors.BadFormatError("bad"), 0, 1, {}, Judgement(False, False)),
        (errors.UnknownCommandError("what"), 0, 1, {}, Judgement(False, False)),
        (errors.ExpectedCrlfError("where"), 0, 1, {}, Judgement(False, False)),
    ],
)
def test_judge_put_that_failed(error, maybes, others, options, judgement):
    assert judge(error, maybes, others, **{"once": False, "retry_ambiguous": True, **options}) == judgement


def test_watch_list_is_another_tuple_only_where_something_has_changed():
    tubes = WatchList(["a", "b"])
    before = tubes.tubes
    tubes.watch("a")
    tubes.ignore("c")
    assert tubes.tubes is before
    tubes.watch("c")
    tubes.ignore("a")
    assert (tubes.tubes, before) == (("b", "c"), ("a", "b"))


def test_watch_list_keeps_its_last_tube():
    tubes = WatchList(["a"])
    tubes.ignore("b")
    with pytest.raises(errors.NotIgnoredError):
        tubes.ignore("a")
    assert tubes.tubes == ("a",)


@pytest.mark.parametrize(
    ("was", "watch", "ignore"),
    [
        ((), ["b", "c"], []),
        (("a",), ["b", "c"], ["a"]),
        (("c", "b"), [], []),
        (("d", "b", "a"), ["c"], ["d", "a"]),
    ],
)
def test_watch_list_says_what_a_connection_must_watch_and_then_ignore(was, watch, ignore):
    assert WatchList(["b", "c"]).since(was) == (watch, ignore)
