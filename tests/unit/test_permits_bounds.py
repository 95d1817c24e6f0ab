"""No server is starved by a Consumer's schedule, however many there are: a world in virtual time, of values alone."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from gstalk.pool.permits import RATE, Asking, Source

TRIP = 0.0005  # seconds from an ask to its answer
SLOW = 0.1  # the same at a slow server
WORK = 0.02  # seconds that a handler takes


class World:
    """Servers that have jobs, a Consumer's schedule, and handlers."""

    def __init__(self, servers: int, handlers: int, others: str, work: float = WORK) -> None:
        self.now = 100.0
        self.chance = Random(1)
        self.work = work
        self.schedule = Asking(handlers)
        self.sources = [Source(str(number)) for number in range(servers)]
        kinds = {each: others if number % 2 else "empty" for number, each in enumerate(self.sources)}
        self.trip = {each: SLOW if kind == "slow" else TRIP for each, kind in kinds.items()}
        self.is_hot = {each: kind == "hot" for each, kind in kinds.items()}
        self.is_dead = {each: kind == "dead" for each, kind in kinds.items()}
        self.jobs = dict.fromkeys(self.sources, 0)
        self.held = dict.fromkeys(self.sources, 0)
        self.found: dict[Source, float] = {}  # when each gave its last job
        self.asks = self.misses = self.recalls = self.decisions = 0
        self.rings = 0  # of the timer
        self.most_asked = 0  # so many servers in one turn of the loop
        self._events: list[tuple[float, int, str, Source]] = []
        self._number = count()
        self._rings_at = float("inf")
        for each in self.sources:
            self.schedule.add(each)
        self._decide()

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while True:
            when = min(self._events[0][0] if self._events else float("inf"), self._rings_at)
            if when > until:
                self.now = until
                return
            self.now = when
            if self._rings_at <= when:
                self._rings_at = float("inf")
                self.rings += 1
            else:
                _, _, what, source = heappop(self._events)
                getattr(self, what)(source)
            self._decide()

    def put(self, source: Source) -> None:
        """A job comes; a wait hands it over at once."""
        self.jobs[source] += 1
        if source.waiting:
            self._later(TRIP, "answer_wait", source)

    def answer(self, source: Source) -> None:
        if self.is_dead[source]:
            return  # it stands still
        found = self.jobs[source] > 0 or self.is_hot[source]
        self.misses += not found
        self._take(source, found)

    def answer_wait(self, source: Source) -> None:
        if source.waiting and self.jobs[source]:
            self._take(source, True)

    def end(self, source: Source) -> None:
        """A handler has ended, and with it the job."""
        self.schedule.running -= 1
        self.held[source] -= 1
        source.held = self.held[source] > 0
        self.schedule.changed(source)

    def _take(self, source: Source, found: bool) -> None:
        self.schedule.answered(source, found, self.now)
        if found:
            self.jobs[source] = max(self.jobs[source] - 1, 0)
            self.found[source] = self.now
            self.schedule.running += 1
            self.held[source] += 1
            source.held = True
            self._later(self.work, "end", source)

    def _decide(self) -> None:
        decision = self.schedule.decide(self.now)
        for what, source, times in decision.actions:
            if what == "recall":
                self.recalls += 1
                self.schedule.recalled(source, self.now)
                self._rings_at = self.now
            elif what == "ask":
                self.asks += times
                for _ in range(times):
                    self._later(self.trip[source], "answer", source)
            elif self.jobs[source] or self.is_hot[source]:
                self.jobs[source] = max(self.jobs[source], 1)
                self._later(TRIP, "answer_wait", source)
        self.most_asked = max(self.most_asked, sum(what == "ask" for what, _, _ in decision.actions))
        self._rings_at = min(self._rings_at, self.now + decision.again)
        self.decisions += 1
        if self.decisions % 100 == 0:
            asked = sum(each.asks - each.overdue for each in self.sources)
            assert asked + self.schedule.running <= self.schedule.permits

    def _later(self, seconds: float, what: str, source: Source) -> None:
        heappush(self._events, (self.now + seconds, next(self._number), what, source))


def bound(servers: int, handlers: int, others: str) -> float:
    """Seconds until a job is found, whichever server it is on; as the module says that it tests."""
    if others == "empty" and handlers >= servers:
        return 3 * TRIP
    rest = servers if others != "empty" else servers - (handlers - 1)
    turn = 0.05 if rest <= 15 else rest / RATE + 0.05
    through = servers * TRIP  # those whose turn has come at the same time, one after the other
    if others == "hot":  # a handler must be free for each of them, and every other permit is for those with jobs
        through = servers * (WORK + 3 * TRIP) / handlers + WORK
    elif others == "slow":  # in as many asks at a time as there are handlers, when the waits have been recalled
        through = servers / 2 * SLOW / max(handlers // 2, 1) + SLOW
    return turn + through + 0.03


CASES = [
    (servers, handlers, others)
    for servers in (1, 2, 10, 100, 300, 1000)
    for handlers in (1, 2, 20, 1000)
    for others in ("empty", "hot", "slow", "dead")
    if not (others == "hot" and handlers > 20)  # there are handlers for all
    and not (others == "dead" and servers > 300 * handlers)  # each costs its permit for a second, once
]


@pytest.mark.parametrize(("servers", "handlers", "others"), CASES)
def test_job_is_found_in_time_whichever_server_it_is_on(servers, handlers, others):
    """Half of the servers are hot, slow, or stand still; the job is on one of the other half."""
    world = World(servers, handlers, others)
    world.run(20 if others in ("slow", "dead") else 3)  # until it has been seen how they are
    if others == "dead":
        world.run(servers / 2 / handlers)
    limit = bound(servers, handlers, others)
    took = []
    for number in range(10 if servers <= 100 else 4):
        source = world.sources[2 * world.chance.randrange((servers + 1) // 2)]
        began = world.now
        world.put(source)
        world._decide()
        world.run(limit)
        took.append(world.found.get(source, float("inf")) - began)
        world.run(0.01 * number + 2 * WORK)
    print(f"{max(took):.4f} of {limit:.4f} s")
    assert 0 < max(took) <= limit


@pytest.mark.parametrize(
    ("servers", "handlers"), [(1, 1), (10, 10), (10, 9), (10, 1), (100, 64), (300, 20), (1000, 20)]
)
def test_idle_process_asks_a_few_hundred_times_a_second_at_most(servers, handlers):
    world = World(servers, handlers, "empty")
    world.run(5)
    before, recalls = world.asks, world.recalls  # when it begins, all are asked at the same time
    world.run(10)
    most = min(20 * (servers - handlers + 1), 1.05 * RATE) if servers > handlers else 0
    assert most * 0.7 <= (world.asks - before) / 10 <= most
    assert world.recalls == recalls


@pytest.mark.parametrize(("servers", "handlers"), [(2, 2), (10, 10), (10, 20), (300, 20), (1000, 1000)])
def test_server_with_many_jobs_gets_all_handlers_30_ms_after_its_first_job(servers, handlers):
    world = World(servers, handlers, "empty", work=1.0)
    world.run(5)
    source = next(each for each in world.sources if each.waiting)
    world.is_hot[source] = True
    world.put(source)
    world._decide()
    world.run(TRIP)
    assert world.schedule.running == 1
    world.run(0.03 + 3 * handlers * TRIP)
    assert world.schedule.running == handlers


@pytest.mark.parametrize(("servers", "handlers"), [(1, 64), (10, 64), (1, 10_000), (100, 10_000), (300, 20)])
def test_job_that_comes_now_and_then_is_followed_by_few_asks_however_many_handlers_are_free(servers, handlers):
    world = World(servers, handlers, "empty", work=0.001)
    world.run(10)
    began = world.now
    before = world.asks
    for _ in range(100):
        world.put(world.chance.choice(world.sources))
        world._decide()
        world.run(0.2)
    idle = (world.now - began) * RATE if servers > handlers else 0
    assert world.asks - before <= 100 * 5 + idle


def test_one_busy_handler_leaves_the_other_servers_their_waits():
    world = World(10, 10, "empty", work=60.0)
    world.run(1)
    world.put(world.sources[3])
    world._decide()
    world.run(30)
    assert (world.schedule.running, sum(each.waiting for each in world.sources), world.recalls) == (1, 8, 1)


@pytest.mark.parametrize(("servers", "handlers", "dials"), [(10, 10, 0.2), (300, 20, 0.3)])
def test_jobs_that_take_their_time_cost_few_dials(servers, handlers, dials):
    world = World(servers, handlers, "empty", work=0.3)
    world.run(1)
    for _ in range(3 * 60):
        world.put(world.chance.choice(world.sources))
        world._decide()
        world.run(1 / 3)
    assert 0 < world.recalls <= dials * 60


@pytest.mark.parametrize("moment", [0.014 * number for number in range(25)])
@pytest.mark.parametrize("servers", [10, 100])
def test_server_that_had_a_job_last_gets_the_next_wait(servers, moment):
    """A wait whose slice is over goes to it, behind the asks that are under way: no dial is needed for that."""
    world = World(servers, 4, "empty", work=0.001)
    world.run(1)
    waiting = [each for each in world.sources if each.waiting]
    assert len(waiting) == 3
    polled = [each for each in world.sources if not each.waiting]
    had_one, had_one_last = polled[-3], polled[3]
    for each in (had_one, had_one_last):
        world.put(each)
        world.run(1)
    world.run(moment)
    assert not had_one_last.waiting
    world.schedule.slice_over(waiting[0], world.now)
    world._decide()
    world.run((servers - 3) * TRIP)
    assert had_one_last.waiting
    assert not waiting[0].waiting
    assert world.recalls == 0


@pytest.mark.parametrize(("servers", "handlers"), [(1, 2), (10, 10), (10, 5), (100, 64), (300, 20)])
def test_process_wakes_20_times_a_second_to_ask_however_many_servers(servers, handlers):
    """While one handler is busy. Each server has had its last job at another moment."""
    world = World(servers, handlers, "empty", work=0.001)
    world.run(1)
    for each in world.sources:
        world.put(each)
        world.run(0.007)
    world.run(2)
    world.work = 60.0
    world.put(world.sources[0])
    world._decide()
    world.run(5)
    assert world.schedule.running == 1
    before = world.rings
    world.run(5)
    assert world.rings - before <= 20 * 5 + 1


def test_hundreds_of_servers_are_not_asked_in_one_turn_of_the_loop():
    """Each has had a job at the same time, whose handler works on; there are handlers for many more."""
    world = World(300, 1000, "empty", work=60.0)
    world.run(1)
    for each in world.sources:
        world.put(each)
    world.run(3)
    assert not any(each.waiting for each in world.sources)
    world.most_asked = 0
    before = world.asks
    world.run(10)
    assert world.most_asked == 16
    assert 0.7 * RATE <= (world.asks - before) / 10 <= 1.05 * RATE
