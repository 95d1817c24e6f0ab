"""What pools decide, without a clock."""

from __future__ import annotations

import pytest

from gstalk import errors
from gstalk.pool.schedule import Asking, Backoff, Decision, Health, Judgement, Source, WatchList, judge


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


NOW, NEVER = 10.0, float("inf")


def source(server: str, **fields: object) -> Source:
    found = Source(server)
    for name, value in fields.items():
        assert hasattr(found, name)
        setattr(found, name, value)
    return found


def waiting(server: str, **fields: object) -> Source:
    return source(server, asks=1, waiting=True, **fields)


def holding(server: str, **fields: object) -> Source:
    return source(server, held=True, **fields)


def hot(server: str) -> Source:
    return holding(server, hot=True, asks=1, since=NOW - 0.5)


@pytest.mark.parametrize(
    ("sources", "free", "actions", "again"),
    [
        # a wait where a permit is there for each server, those lent to waits counted
        ([], 1, [], NEVER),
        ([source("a")], 1, [("wait", 0, 1)], NEVER),
        ([source("a"), source("a")], 2, [("wait", 0, 1)], NEVER),
        ([waiting("a"), source("b")], 1, [("wait", 1, 1)], NEVER),
        ([waiting("a")], 5, [], NEVER),
        # who may not wait asks: it holds jobs, has something in flight, or was recalled a moment ago
        ([holding("a")], 2, [("ask", 0, 1)], NEVER),
        ([holding("a"), source("a", next_ask=NOW + 1)], 2, [("wait", 1, 1)], NEVER),
        ([source("a", busy=True)], 2, [("ask", 0, 1)], NEVER),
        ([source("a", recalled_at=NOW - 0.01)], 2, [("ask", 0, 1)], NEVER),
        ([source("a", recalled_at=NOW - 0.06)], 2, [("wait", 0, 1)], NEVER),
        # fewer permits than servers: in turn, the longest neglected one first
        ([source("a", asked_at=9), source("b", asked_at=8)], 1, [("ask", 1, 1)], 1.0),
        ([source("a", next_ask=NOW + 0.02), source("b", next_ask=NOW + 0.01)], 1, [], 0.01),
        ([source("a"), source("b")], 0, [], NEVER),
        # a source that finds jobs gets all that is left, two share it
        ([holding("a", hot=True)], 5, [("ask", 0, 1), ("ask", 0, 4)], 1.0),
        ([holding("a", hot=True, asks=2, since=9.5)], 3, [("ask", 0, 3)], 0.5),
        ([hot("a"), hot("b")], 3, [("ask", 0, 2), ("ask", 1, 1)], 0.5),
        ([hot("a"), waiting("b", hot=True)], 3, [("ask", 0, 3)], 0.03),
        ([holding("a", hot=True, asks=2, overdue=2), source("b")], 1, [("ask", 1, 1)], 1.0),
        # one that finds no permit takes that of another server's wait: after 30 ms, once a second, one for all
        ([holding("a"), waiting("b")], 0, [], 0.03),
        ([holding("a", starved_since=NOW - 0.02), waiting("b")], 0, [], 0.01),
        ([holding("a", starved_since=NOW - 0.04), waiting("b")], 0, [("recall", 1, 1)], 0.03),
        ([holding("a", starved_since=NOW - 0.04), waiting("b", recalled_at=NOW - 0.4)], 0, [], 0.6),
        (
            [holding("a", starved_since=9), waiting("b", recalled_at=8.5), waiting("c", recalled_at=8)],
            0,
            [("recall", 2, 1)],
            0.03,
        ),
        ([holding("a", starved_since=9), holding("b", starved_since=9), waiting("c")], 0, [("recall", 2, 1)], 0.03),
        ([holding("a", starved_since=9), waiting("a")], 0, [], NEVER),
    ],
)
def test_decision_is_made_of_the_sources_the_free_permits_and_the_time(sources, free, actions, again):
    before = [dict(vars(each)) for each in sources]
    decision = Decision(sources, free, NOW)
    assert [(what, sources.index(which), times) for what, which, times in decision.actions] == actions
    assert decision.again == pytest.approx(again)
    assert [vars(each) for each in sources] == before


def test_decision_names_who_starves_and_who_has_enough():
    starving, one, two, lending = holding("a"), hot("a"), hot("a"), waiting("b")
    assert Decision([starving, lending], 0, NOW).starved == [starving]
    assert Decision([one, lending], 0, NOW).starved == [one]
    assert Decision([starving], 0, NOW).starved == []  # nobody has a permit to lend
    assert Decision([one, two], 2, NOW).satisfied == [one]
    resting = Decision([holding("a", hot=True, next_ask=NOW + 1)], 2, NOW)
    assert (resting.starved, resting.satisfied) == ([], [])


def asking(permits: int, *servers: str) -> tuple[Asking, list[Source]]:
    asking = Asking(permits)
    asking.sources = [Source(server) for server in servers]
    return asking, asking.sources


def carry_out(asking: Asking, now: float) -> list[tuple[str, int, int]]:
    """Decide, and note what was decided as the Consumer does."""
    actions = asking.decide(now).actions
    for action in actions:
        if action.what == "recall":
            asking.recalled(action.source, now)
        else:
            asking.began(action, now)
    return [(what, asking.sources.index(source), times) for what, source, times in actions]


def test_each_server_has_one_wait_while_there_are_permits_for_all():
    schedule, _ = asking(3, "a", "a", "b", "c")
    assert carry_out(schedule, 10) == [("wait", 0, 1), ("wait", 2, 1), ("wait", 3, 1)]
    assert carry_out(schedule, 11) == []


def test_servers_are_asked_in_turn_where_permits_are_few():
    schedule, sources = asking(1, "a", "b")
    assert carry_out(schedule, 10) == [("ask", 0, 1)]
    schedule.answered(sources[0], False, 10.001)
    assert carry_out(schedule, 10.002) == [("ask", 1, 1)]
    schedule.answered(sources[1], False, 10.003)
    assert carry_out(schedule, 10.06) == [("ask", 0, 1)]


def test_connection_that_finds_jobs_gets_all_permits():
    schedule, sources = asking(10, "a")
    assert carry_out(schedule, 10) == [("wait", 0, 1)]
    schedule.answered(sources[0], True, 10)
    schedule.running, sources[0].held = 1, True
    assert sum(times for _, _, times in carry_out(schedule, 10)) == 9
    assert carry_out(schedule, 10) == []


def test_permits_are_never_exceeded():
    schedule, sources = asking(4, "a", "b", "c")
    for step in range(200):
        carry_out(schedule, step / 100)
        assert schedule.running + sum(source.asks for source in sources) <= 4
        source = sources[step % 3]
        if source.asks:
            found = step % 2 == 0
            schedule.answered(source, found, step / 100)
            schedule.running += found
            source.held = schedule.running > 0
        elif schedule.running:
            schedule.running -= 1


def test_starved_connection_takes_a_permit_from_anothers_wait_after_30_ms_but_not_too_often():
    schedule, sources = asking(2, "a", "b")
    carry_out(schedule, 10)
    schedule.answered(sources[0], True, 10)
    schedule.running, sources[0].held = 1, True
    assert carry_out(schedule, 10) == []
    assert carry_out(schedule, 10.02) == []
    assert ("recall", 1, 1) in carry_out(schedule, 10.031)
    assert ("ask", 0, 1) in carry_out(schedule, 10.032)


def test_deadline_soon_keeps_a_connection_quiet_for_a_quarter_of_a_second():
    schedule, sources = asking(5, "a")
    sources[0].held = True
    assert carry_out(schedule, 10) == [("ask", 0, 1)]
    schedule.deadline_soon(sources[0], 10)
    assert carry_out(schedule, 10.2) == []
    assert carry_out(schedule, 10.26) == [("ask", 0, 1)]


def test_starved_connection_takes_nothing_from_its_own_server():
    """That would cost a dial, and the wait is for the same jobs."""
    schedule, sources = asking(2, "a", "a", "b")
    schedule.running, sources[0].held, sources[0].hot = 1, True, True
    sources[1].asks, sources[1].waiting = 1, True
    sources[2].next_ask = 100.0  # was found empty
    for now in (10.0, 10.031, 10.1, 12.0):
        assert carry_out(schedule, now) == []


def test_connection_that_was_called_back_asks_nothing_for_50_ms():
    """The permit is for the one that starves, and the connection is being dialed anew."""
    schedule, sources = asking(2, "a", "b")
    carry_out(schedule, 10)
    schedule.recalled(sources[1], 10)
    schedule.answered(sources[0], False, 10)
    sources[0].next_ask = 100.0
    for now in (10.0, 10.001, 10.049):
        assert [source for _, source, _ in carry_out(schedule, now) if source == 1] == []
    assert ("wait", 1, 1) in carry_out(schedule, 10.051)


def owing(permits: int, held: bool) -> tuple[Asking, list[Source]]:
    """Servers a and b; a finds nothing now and then, and b owes an answer since 10."""
    schedule, sources = asking(permits, "a", "b")
    sources[0].next_ask = 20.0
    sources[1].held = held
    schedule.running = permits - 1
    assert carry_out(schedule, 10) == [("ask", 1, 1)]
    sources[0].next_ask = 0.0
    return schedule, sources


@pytest.mark.parametrize("permits", [1, 2, 5])
@pytest.mark.parametrize("held", [False, True])
def test_permit_of_an_ask_without_an_answer_is_used_elsewhere_after_a_second(permits, held):
    schedule, sources = owing(permits, held)
    assert asking(1, "a", "b")[0].decide(10).again == 1.0  # when an ask of now will be late
    decision = schedule.decide(10.25)
    assert (decision.actions, decision.again) == ([], 0.75)  # when it will be time
    assert carry_out(schedule, 10.999) == []
    assert carry_out(schedule, 11) == [("ask", 0, 1)]
    assert not schedule.has_room()
    schedule.answered(sources[0], False, 11.001)
    assert schedule.has_room()
    sources[1].hot = True
    assert carry_out(schedule, 11.0015) == []  # the other is asked no more, though there is a permit
    assert carry_out(schedule, 11.06) == [("ask", 0, 1)]


def test_ask_behind_others_is_overdue_a_second_after_the_last_answer():
    schedule, sources = asking(3, "a")
    sources[0].hot, sources[0].held = True, True
    assert carry_out(schedule, 10) == [("ask", 0, 1), ("ask", 0, 2)]
    schedule.answered(sources[0], False, 10.9)
    assert not sources[0].is_late(11.5)
    assert sources[0].is_late(11.9)


def test_connection_that_owes_an_answer_is_late_however_often_it_is_asked_and_for_all_of_it():
    schedule, sources = asking(4, "a")
    sources[0].hot, sources[0].held, schedule.running = True, True, 3
    carry_out(schedule, 10)
    schedule.running = 1
    carry_out(schedule, 10.5)
    assert (sources[0].asks, schedule.has_room()) == (3, False)
    assert carry_out(schedule, 11) == []
    schedule.running = 3
    assert schedule.has_room()


def test_wait_on_the_server_is_never_overdue():
    schedule, sources = asking(2, "a", "b")
    carry_out(schedule, 10)
    assert carry_out(schedule, 30) == []
    assert not any(source.is_late(40) for source in sources)


@pytest.mark.parametrize("found", [False, True])
def test_late_answer_finds_room_only_while_its_permit_is_not_in_use(found):
    schedule, sources = owing(1, False)
    carry_out(schedule, 11)
    schedule.answered(sources[1], found, 12)
    assert (sources[1].asks, sources[1].overdue) == (0, 0)
    assert not schedule.has_room()  # the other server's ask holds it
    schedule.answered(sources[0], False, 12)
    assert schedule.has_room()
    schedule.running = 1
    assert not schedule.has_room()


def test_late_answers_come_before_those_of_later_asks():
    schedule, sources = owing(2, True)
    carry_out(schedule, 11)
    schedule.answered(sources[1], False, 12)
    assert sources[1].overdue == 0
    schedule.running = 0
    sources[1].next_ask = 0.0
    assert ("ask", 1, 1) in carry_out(schedule, 12.01)
    assert (sources[1].asks, sources[1].overdue) == (1, 0)
    assert not sources[1].is_late(13)


def test_connection_whose_tubes_have_changed_asks_at_once_and_waits_again_soon():
    schedule, sources = asking(2, "a")
    assert carry_out(schedule, 10) == [("wait", 0, 1)]
    schedule.watching_changed(sources[0], 11)
    assert carry_out(schedule, 11) == [("ask", 0, 1)]
    schedule.answered(sources[0], False, 11.001)
    assert carry_out(schedule, 11.002) == [("ask", 0, 1)]
    schedule.answered(sources[0], False, 11.003)
    assert carry_out(schedule, 11.06) == [("wait", 0, 1)]
