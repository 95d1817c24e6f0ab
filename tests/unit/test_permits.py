"""Which of a Consumer's connections ask, and for how many jobs: what is decided, without a clock."""

from __future__ import annotations

import pytest

from gstalk.pool.permits import Asking, Source

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


def scheduled(sources: list[Source], free: int) -> Asking:
    """A schedule with so many free permits."""
    schedule = Asking(free + sum(each.asks - each.overdue for each in sources))
    for each in sorted(sources, key=lambda each: each.asked_at):
        schedule.add(each)
    gone = Source("gone")
    schedule.add(gone)
    schedule.remove(gone)  # so that all is counted anew
    return schedule


@pytest.mark.parametrize(
    ("sources", "free", "actions", "again"),
    [
        # a wait where a permit is there for each server, those lent to waits counted
        ([], 1, [], NEVER),
        ([source("a")], 1, [("wait", 0, 1)], NEVER),
        ([source("a"), source("a")], 2, [("wait", 1, 1)], NEVER),
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
        # as many waits as permits allow: one is left for asking the others in turn
        ([waiting("a"), source("b"), source("c")], 1, [("ask", 1, 1)], 0.3),
        ([waiting("a"), source("b"), source("c"), source("d")], 2, [("wait", 1, 1), ("ask", 2, 1)], 0.3),
        ([source("a"), source("b"), source("c"), source("d")], 3, [("wait", 0, 1), ("wait", 1, 1), ("ask", 2, 1)], 0.3),
        # a source that finds jobs gets all that is left; two have it in turn, or half each where that is enough
        ([holding("a", hot=True)], 5, [("ask", 0, 5)], 1.0),
        ([holding("a", hot=True, asks=2, since=9.5)], 3, [("ask", 0, 3)], 0.5),
        ([hot("a"), hot("b")], 3, [("ask", 0, 3)], 0.5),
        ([hot("a"), hot("b"), hot("c")], 33, [("ask", 0, 17), ("ask", 1, 16)], 0.5),
        ([holding("a", hot=True, asks=2, overdue=2), source("b")], 1, [("ask", 1, 1)], 1.0),
        ([holding("a", hot=True, next_ask=NOW + 1)], 2, [], 1.0),
        # where others find jobs, those whose turn it is get half; no wait is begun if that leaves too few
        ([hot("a"), source("b"), source("c"), source("d")], 3, [("ask", 1, 1), ("ask", 2, 1), ("ask", 0, 1)], 0.5),
        ([hot("a"), source("b")], 3, [("wait", 1, 1), ("ask", 0, 2)], 0.3),
    ],
)
def test_decision_is_made_of_the_sources_the_free_permits_and_the_time(sources, free, actions, again):
    decision = scheduled(sources, free).decide(NOW)
    assert [(what, sources.index(which), times) for what, which, times in decision.actions] == actions
    assert decision.again == pytest.approx(again)


def in_need(server: str) -> Source:
    """It is to ask, and finds no permit."""
    return holding(server)


def in_more_need(server: str) -> Source:
    """It has found jobs, and finds no permit for more."""
    return holding(server, hot=True)


@pytest.mark.parametrize(
    ("sources", "since", "actions", "again"),
    [
        # one that finds no permit takes that of another server's wait: after 30 ms, once a second, one for all
        ([in_need("a"), waiting("b")], 0, [], 0.03),
        ([in_need("a"), waiting("b")], 0.02, [], 0.01),
        ([in_need("a"), waiting("b")], 0.03, [1], 0.03),
        ([in_need("a"), waiting("b", recalled_at=NOW - 0.4)], 0.04, [], 0.6),
        ([in_need("a"), waiting("b", recalled_at=8.5), waiting("c", recalled_at=8)], 1, [2], 0.03),
        ([in_need("a"), in_need("b"), waiting("c"), waiting("d")], 1, [2], 0.03),
        # none of its own server, which would be for the same jobs; another may take that
        ([in_need("a"), waiting("a")], 1, [], NEVER),
        ([in_more_need("a"), waiting("a")], 1, [], NEVER),
        ([in_more_need("a"), waiting("a"), waiting("b")], 1, [2], 0.03),
        ([in_more_need("a"), waiting("a"), in_need("b")], 1, [1], 0.03),
        # the same for one that finds jobs; while it has asks in flight, those may find nothing
        ([in_more_need("a"), waiting("b")], 0.02, [], 0.01),
        ([in_more_need("a"), waiting("b")], 0.03, [1], 0.03),
        ([hot("a"), waiting("b")], 0.04, [], 0.26),
        ([hot("a"), waiting("b")], 0.3, [1], 0.03),
    ],
)
def test_wait_is_recalled_for_those_who_find_no_permit(sources, since, actions, again):
    schedule = scheduled(sources, 0)
    schedule.decide(NOW - since)
    decision = schedule.decide(NOW)
    assert [(what, sources.index(which)) for what, which, _ in decision.actions] == [("recall", n) for n in actions]
    assert decision.again == pytest.approx(again)


def asking(permits: int, *servers: str) -> tuple[Asking, list[Source]]:
    schedule = Asking(permits)
    sources = [Source(server) for server in servers]
    for each in sources:
        schedule.add(each)
    return schedule, sources


def set_time(schedule: Asking, source: Source, next_ask: float) -> None:
    """Have it asked from this moment on."""
    source.next_ask = next_ask
    assert source.group is not None
    source.group.next_ask = 0.0
    schedule.changed(source)


def carry_out(schedule: Asking, now: float) -> list[tuple[str, int, int]]:
    """Decide, and note what was decided as the Consumer does."""
    actions = schedule.decide(now).actions
    for what, source, _ in actions:
        if what == "recall":
            schedule.recalled(source, now)
    sources = list(schedule.sources)
    return [(what, sources.index(source), times) for what, source, times in actions]


def test_each_server_has_one_wait_while_there_are_permits_for_all():
    schedule, _ = asking(3, "a", "a", "b", "c")
    assert carry_out(schedule, 10) == [("wait", 1, 1), ("wait", 2, 1), ("wait", 3, 1)]
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
    for most in (2, 4, 3):  # twice as many each time, until all are asked with
        assert carry_out(schedule, 10) == [("ask", 0, most)]
        assert carry_out(schedule, 10) == []
        for _ in range(most):
            schedule.answered(sources[0], True, 10)
            schedule.running += 1
    assert schedule.running == 10
    schedule.running = 0
    assert carry_out(schedule, 10) == [("ask", 0, 10)]


def test_connection_that_has_found_nothing_is_asked_for_few_jobs_again():
    schedule, sources = asking(1000, "a")
    sources[0].held = True
    assert carry_out(schedule, 10) == [("ask", 0, 1)]
    schedule.answered(sources[0], True, 10)
    assert carry_out(schedule, 10) == [("ask", 0, 1000)]  # it has never found nothing
    for found in (True, False, True):
        schedule.answered(sources[0], found, 10)
    assert carry_out(schedule, 10.1) == []
    for _ in range(997):
        schedule.answered(sources[0], False, 10.1)
    assert carry_out(schedule, 10.2) == [("ask", 0, 1)]
    schedule.answered(sources[0], True, 10.2)
    assert carry_out(schedule, 10.2) == [("ask", 0, 2)]


def found_few(schedule: Asking, sources: list[Source], now: float) -> None:
    """Have each answer that it has nothing, and then the first one that it has a job."""
    for each in sources:
        each.held = True
    for moment in (now - 0.2, now - 0.1):
        schedule.decide(moment)
        for each in sources:
            if each.asks:
                schedule.answered(each, moment == now - 0.1 and each is sources[0], moment)
    schedule.running = 1


def test_line_that_falls_silent_is_noted_while_permits_are_free():
    """So that another connection to its server is asked."""
    schedule, sources = asking(64, "a", "a")
    found_few(schedule, sources, 10)
    assert carry_out(schedule, 10) == [("ask", 0, 2)]
    assert schedule.decide(10.1).again <= 0.9
    assert schedule.decide(10.9).again == pytest.approx(0.1)
    assert carry_out(schedule, 11) == [("ask", 1, 1)]


def test_asks_on_a_silent_line_keep_no_other_connection_from_asking():
    schedule, sources = asking(64, "a", "a")
    found_few(schedule, sources, 10)
    assert carry_out(schedule, 10) == [("ask", 0, 2)]
    for _ in range(2):
        schedule.answered(sources[0], True, 10)
    assert carry_out(schedule, 10) == [("ask", 0, 4)]  # none of these is answered
    assert carry_out(schedule, 11) == [("ask", 1, 1)]
    schedule.answered(sources[1], False, 11)
    assert carry_out(schedule, 11.1) == [("ask", 1, 1)]
    schedule.answered(sources[1], True, 11.1)
    assert carry_out(schedule, 11.1) == [("ask", 1, 2)]


def test_server_whose_turn_it_is_gets_a_permit_that_nobody_else_wants():
    schedule, sources = asking(4, "a", "b", "c")
    found_few(schedule, sources, 10)
    assert carry_out(schedule, 9.9) == [("ask", 0, 2)]
    for now, turn in ((10, 1), (10, 2), (10.1, 1), (10.1, 2)):
        assert carry_out(schedule, now) == [("ask", turn, 1)]
        schedule.answered(sources[turn], False, now)


def test_servers_whose_turn_it_is_leave_half_of_the_permits_to_one_that_finds_jobs():
    """Also while it may not ask for more: its answers are on their way, and theirs may take long."""
    schedule, sources = asking(8, *"abcdefg")
    found_few(schedule, sources, 10)
    assert carry_out(schedule, 9.9) == [("ask", 0, 2)]
    assert [what for what, _, _ in carry_out(schedule, 10)] == ["ask"] * 3
    assert schedule.decide(10).again <= 1.0  # none of these may be answered


def test_many_servers_whose_turn_it_is_are_asked_in_several_turns_of_the_loop():
    """Which come at once, though none of the first ones may answer."""
    schedule, sources = asking(100, *map(str, range(40)))
    for each in sources:
        each.held = True
    asked = []
    for again in (0.0, 0.0, NEVER):
        decision = schedule.decide(10)
        assert decision.again == again
        asked.append(len(decision.actions))
    assert asked == [16, 16, 8]


def test_servers_have_their_turns_at_the_same_moments():
    """Whenever they were found empty; and none of them later than 50 ms after that."""
    schedule, sources = asking(3, "a", "b", "c")
    for each in sources:
        each.held = True
    now = 10.0
    for number in range(10):  # until each is asked as seldom as ever
        now += 0.06
        assert len(carry_out(schedule, now)) == 3
        for each in sources:
            now += 0.001 * number
            schedule.answered(each, False, now)
    again = schedule.decide(now).again
    assert 0 < again <= 0.05 - 0.001 * number
    assert len(schedule.decide(now + again + 1e-9).actions) == 3


def test_processes_have_their_common_moments_at_different_times():
    """Else a job that has just missed those of one would have missed those of all."""
    moments = [Asking(1, began).common_moment(10.02, 0.05) for began in (9.99, 9.98, 5.01)]
    assert moments == pytest.approx([10.04, 10.03, 10.06])


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


def test_no_wait_is_recalled_for_a_job_that_takes_less_than_30_ms_while_others_stand_in_line():
    """They had their turn at the same time, and were being asked one after the other."""
    schedule, sources = asking(2, "a", "b", "c", "d")
    assert carry_out(schedule, 10) == [("wait", 0, 1), ("ask", 1, 1)]
    schedule.answered(sources[1], False, 10.02)
    assert carry_out(schedule, 10.02) == [("ask", 2, 1)]
    schedule.answered(sources[2], True, 10.04)
    schedule.running, sources[2].held = 1, True
    assert carry_out(schedule, 10.04) == []
    assert carry_out(schedule, 10.049) == []
    assert carry_out(schedule, 10.075) == [("recall", 0, 1)]


def test_deadline_soon_keeps_a_connection_quiet_for_a_quarter_of_a_second():
    schedule, sources = asking(5, "a")
    sources[0].held = True
    assert carry_out(schedule, 10) == [("ask", 0, 1)]
    schedule.deadline_soon(sources[0], 10)
    assert carry_out(schedule, 10.2) == []
    assert carry_out(schedule, 10.26) == [("ask", 0, 1)]


def test_connection_whose_reserve_was_refused_neither_asks_nor_waits_for_a_quarter_of_a_second():
    schedule, sources = asking(5, "a")
    for now in (10.0, 10.26):
        assert carry_out(schedule, now) == [("wait", 0, 1)]
        schedule.failed(sources[0], now)
        decision = schedule.decide(now + 0.001)
        assert not decision.actions
        assert decision.again == pytest.approx(0.249)
    sources[0].held = True
    assert carry_out(schedule, 10.52) == [("ask", 0, 1)]
    schedule.failed(sources[0], 10.52)
    assert carry_out(schedule, 10.7) == []


def test_starved_connection_takes_nothing_from_its_own_server():
    """That would cost a dial, and the wait is for the same jobs."""
    sources = [holding("a", hot=True), waiting("a"), source("b", next_ask=100.0)]  # the last one was found empty
    schedule = scheduled(sources, 1)
    schedule.running = 1
    for now in (10.0, 10.031, 10.1, 12.0):
        assert carry_out(schedule, now) == []


def test_connection_that_was_called_back_asks_nothing_for_50_ms():
    """The permit is for the one that starves, and the connection is being dialed anew."""
    schedule, sources = asking(2, "a", "b")
    carry_out(schedule, 10)
    schedule.recalled(sources[1], 10)
    schedule.answered(sources[0], False, 10)
    set_time(schedule, sources[0], 100.0)
    for now in (10.0, 10.001, 10.049):
        assert [source for _, source, _ in carry_out(schedule, now) if source == 1] == []
    assert ("wait", 1, 1) in carry_out(schedule, 10.051)


def test_connection_that_was_busy_when_its_server_was_asked_waits_when_it_is_idle_again():
    """It was being dialed anew, say. The other one holds a job, perhaps for hours, and the server would be polled."""
    sources = [waiting("a"), holding("a")]
    schedule = scheduled(sources, 4)
    schedule.recalled(sources[0], 10)
    sources[0].busy = True
    assert carry_out(schedule, 10.06) == [("ask", 1, 1)]
    sources[0].busy = False
    schedule.answered(sources[1], False, 10.061)
    assert carry_out(schedule, 10.2) == [("wait", 0, 1)]


class Looking(Source):
    """One that looks for itself whether it is idle, as a Consumer's do."""

    idle = True

    @property
    def is_idle(self) -> bool:
        return self.idle


def test_connection_for_the_next_ask_is_one_that_is_idle_also_where_none_may_wait():
    schedule = Asking(5)
    sources = [Looking("a") for _ in range(3)]
    for each in sources:
        each.recalled_at = 10.0  # none may wait yet
        each.idle = False
        schedule.add(each)
    sources[1].idle = True
    assert carry_out(schedule, 10.01) == [("ask", 1, 1)]


def owing(permits: int, held: bool) -> tuple[Asking, list[Source]]:
    """Servers a and b; a finds nothing now and then, and b owes an answer since 10."""
    schedule, sources = asking(permits, "a", "b")
    set_time(schedule, sources[0], 20.0)
    sources[1].held = held
    schedule.running = permits - 1
    assert carry_out(schedule, 10) == [("ask", 1, 1)]
    set_time(schedule, sources[0], 0.0)
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


@pytest.mark.parametrize("is_hot", [False, True])
def test_server_whose_one_connection_owes_an_answer_is_asked_on_another_but_not_waited_on(is_hot):
    """The line may be dead, and the server not. If it is, that costs one permit more for a second."""
    sources = [source("a"), holding("a", hot=is_hot, asks=2, since=9.0), source("b", next_ask=100.0, held=True)]
    schedule = scheduled(sources, 3)
    assert carry_out(schedule, 10) == [("ask", 0, 1)]
    schedule.answered(sources[0], True, 10.001)
    assert carry_out(schedule, 10.002) == [("ask", 0, 5)]
    assert carry_out(schedule, 11.1) == []
    assert schedule.has_room()


def test_ask_behind_others_is_overdue_a_second_after_the_last_answer():
    sources = [holding("a", hot=True)]
    schedule = scheduled(sources, 3)
    assert carry_out(schedule, 10) == [("ask", 0, 3)]
    schedule.answered(sources[0], False, 10.9)
    assert not sources[0].is_late(11.5)
    assert sources[0].is_late(11.9)


def test_connection_that_owes_an_answer_is_late_however_often_it_is_asked_and_for_all_of_it():
    sources = [holding("a", hot=True)]
    schedule = scheduled(sources, 4)
    schedule.running = 3
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
