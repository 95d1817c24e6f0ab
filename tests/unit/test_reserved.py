"""The jobs that a connection has reserved: each state, and what becomes of it by whatever happens."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import gstalk
from gstalk.connection import reserved
from gstalk.connection.reserved import ReservedJobs, is_ours, settles
from gstalk.job import Job
from gstalk.protocol import commands
from gstalk.protocol.commands import Command
from gstalk.protocol.request import Request, TwoStepRequest
from gstalk.protocol.stats import JobStats

SETTLING = [commands.DELETE, commands.RELEASE, commands.BURY]


class Owner:
    uri = "beanstalk://here:11300"


def make(job_id: int = 7, reserved_at: float = 100.0) -> Job:
    return Job(Owner(), job_id, b"x", "default", reserved_at, "held")


def request(command: Command, job: Job | None, error: BaseException | None = None, job_id: int = 7) -> Request:
    """An answered request."""
    answered = Request(command, Owner.uri, job_id, None, job)
    if error is None:
        answered.succeed()
    else:
        answered.fail(error)
    return answered


class World:
    """A connection's jobs, and one of them in the state that a test begins with."""

    def __init__(self) -> None:
        self.settled = 0
        self.reserved = ReservedJobs()
        self.reserved.on_settled = self._count
        self.job = make()
        self.reserved.add(self.job)
        self.again: Job | None = None

    def _count(self) -> None:
        self.settled += 1

    def add_again(self) -> None:
        self.again = make()
        self.reserved.add(self.again)

    def answer(self, error: BaseException | None = None, command: Command = commands.DELETE) -> Request:
        answered = request(command, self.job, error)
        self.reserved.settled(answered)
        return answered

    def answer_by_id(self, error: BaseException | None = None) -> Request:
        answered = request(commands.DELETE, None, error)
        self.reserved.settled(answered)
        return answered

    def touch(self, error: BaseException | None = None) -> Request:
        answered = request(commands.TOUCH, self.job, error)
        self.reserved.touched(answered, 101.0)
        return answered


def held(world: World) -> None: ...


def settling(world: World) -> None:
    world.reserved.settle(world.job)


def superseded(world: World) -> None:
    """Its delete is under way, and the connection has reserved the job again."""
    settling(world)
    world.add_again()


def taken(world: World) -> None:
    """Its delete is under way, and a touch was answered NOT_FOUND."""
    settling(world)
    world.touch(gstalk.NotFoundError("x"))


def finished(world: World) -> None:
    settling(world)
    world.answer()


def finished_by_id(world: World) -> None:
    """Its delete is under way, and another by its id has succeeded."""
    settling(world)
    world.answer_by_id()


def lost(world: World) -> None:
    world.touch(gstalk.NotFoundError("x"))


NOT_FOUND, REFUSED = gstalk.NotFoundError("x"), gstalk.InternalError("x")
GONE, BURIED = gstalk.ConnectionLostError("x"), gstalk.BuriedError("x")
EVENTS: dict[str, Callable[[World], object]] = {
    "succeeds": lambda w: w.answer(),
    "buried instead": lambda w: w.answer(BURIED, commands.RELEASE),
    "not found": lambda w: w.answer(gstalk.NotFoundError("x")),
    "refused": lambda w: w.answer(REFUSED),
    "lost on its way": lambda w: w.answer(GONE),
    "succeeds by id": lambda w: w.answer_by_id(),
    "not found by id": lambda w: w.answer_by_id(gstalk.NotFoundError("x")),
    "refused by id": lambda w: w.answer_by_id(REFUSED),
    "touched": lambda w: w.touch(),
    "touch not found": lambda w: w.touch(gstalk.NotFoundError("x")),
    "touch refused": lambda w: w.touch(REFUSED),
    "stats not found": lambda w: w.reserved.looked(request(commands.STATS_JOB, w.job, gstalk.NotFoundError("x"))),
    "reserved again": World.add_again,
    "connection over": lambda w: w.reserved.lose_all(),
}
OWN = {"succeeds", "buried instead", "not found", "refused", "lost on its way"}  # its settling must be under way
# By the state: what each event makes of it. What isn't named leaves it as it is.
TABLE: list[tuple[Callable[[World], None], str, dict[str, str]]] = [
    (
        held,
        "held",
        {
            "succeeds by id": "finished",
            "not found by id": "lost",
            "touch not found": "lost",
            "stats not found": "lost",
            "reserved again": "lost",
            "connection over": "lost",
        },
    ),
    (
        settling,
        "settling",
        {
            "succeeds": "finished",
            "buried instead": "finished",
            "not found": "lost",
            "refused": "held",
            "lost on its way": "lost",
            "succeeds by id": "finished",
            "connection over": "lost",
        },
    ),
    *(
        (
            state,
            "settling",
            {
                "succeeds": "finished",
                "buried instead": "finished",
                "not found": "lost",
                "refused": "lost",
                "lost on its way": "lost",
                "connection over": after,
            },
        )
        # What is under way there is told of the end by its own request.
        for state, after in ((superseded, "settling"), (taken, "settling"))
    ),
    (finished, "finished", {}),
    (finished_by_id, "finished", {}),
    (lost, "lost", {}),
]
CASES = [
    pytest.param(state, event, changes.get(event, before), id=f"{state.__name__}, {event}")
    for state, before, changes in TABLE
    for event in EVENTS
    if before == "settling" or state is finished_by_id or event not in OWN
]


@pytest.mark.parametrize(("prepare", "event", "expected"), CASES)
def test_state_by_event(prepare, event, expected):
    world = World()
    prepare(world)
    EVENTS[event](world)
    job = world.job
    assert job._state == expected
    assert (job.is_finished, job.is_lost) == (expected == "finished", expected == "lost")
    if expected in ("finished", "lost"):
        assert not world.reserved.holds(job)


@pytest.mark.parametrize(("prepare", "event", "expected"), CASES)
def test_finished_and_lost_are_for_ever(prepare, event, expected):
    """Whatever happens after that, to this job or to another of its id."""
    if expected not in ("finished", "lost"):
        return
    for later in EVENTS:
        if later in OWN:
            continue
        world = World()
        prepare(world)
        EVENTS[event](world)
        EVENTS[later](world)
        assert world.job._state == expected, later


@pytest.mark.parametrize("command", SETTLING, ids=lambda command: command.name)
@pytest.mark.parametrize("prepare", [held, superseded])
def test_settled_by_its_own_command_whichever(prepare, command):
    world = World()
    prepare(world)
    if prepare is held:
        settling(world)
    world.answer(command=command)
    assert world.job.is_finished
    assert not world.reserved.by_id
    assert world.settled == 1


def test_deleted_after_the_connection_reserved_it_again_finishes_both():
    """The server can't tell the two apart: what it has deleted is gone for either."""
    world = World()
    superseded(world)
    world.answer()
    assert world.again is not None
    assert (world.job.is_finished, world.again.is_finished) == (True, True)
    assert (world.job.is_lost, world.again.is_lost) == (False, False)


@pytest.mark.parametrize("error", [NOT_FOUND, REFUSED, GONE], ids=lambda error: type(error).__name__)
def test_refused_after_the_connection_reserved_it_again_leaves_the_newer_one(error):
    world = World()
    superseded(world)
    world.answer(error)
    assert world.again is not None
    assert (world.job.is_lost, world.again._state) == (True, "held")
    assert world.reserved.holds(world.again)


@pytest.mark.parametrize("by_id", [False, True])
def test_every_answer_of_what_settles_is_told(by_id):
    for error in (None, BURIED, NOT_FOUND, REFUSED, GONE):
        world = World()
        if not by_id:
            settling(world)
        world.answer_by_id(error) if by_id else world.answer(error)
        assert world.settled == 1


@pytest.mark.parametrize("command", SETTLING, ids=lambda command: command.name)
def test_not_found_is_told_to_a_jobs_holder_as_lost_and_by_id_as_not_found(command):
    world = World()
    settling(world)
    text = f"{command.name} 7 at beanstalk://here:11300: the server has taken the job back; its time to run may be over"
    own = world.answer(NOT_FOUND, command).error
    assert (type(own), str(own)) == (gstalk.JobLostError, text)
    assert World().answer_by_id(NOT_FOUND).error is NOT_FOUND
    assert type(World().touch(NOT_FOUND).error) is gstalk.JobLostError


def test_finished_by_id_while_its_own_delete_was_under_way_is_told_as_finished():
    world = World()
    finished_by_id(world)
    error = world.answer(NOT_FOUND).error
    assert type(error) is gstalk.JobFinishedError
    assert str(error) == "delete 7 at beanstalk://here:11300: the job was finished meanwhile; x"


def test_answer_that_a_signal_cut_short_may_come_twice():
    """The second time it is told with the connection's end: a job that is finished stays so."""
    world = World()
    finished(world)
    world.answer(GONE)
    assert world.job.is_finished


def test_refused_job_is_still_held_unless_the_connection_is_over():
    for error, held in ((REFUSED, True), (GONE, False)):
        world = World()
        settling(world)
        world.answer(error)
        assert world.reserved.holds(world.job) is held


@pytest.mark.parametrize(
    ("prepare", "error", "is_told"),
    [
        (settling, None, False),
        (settling, BURIED, False),
        (settling, REFUSED, True),
        (settling, NOT_FOUND, True),
        (settling, GONE, True),
        (finished_by_id, NOT_FOUND, False),
    ],
)
def test_failure_of_what_nobody_waits_for_is_told_once(prepare, error, is_told):
    world = World()
    prepare(world)
    told: list[Request] = []
    world.reserved.unattended[world.job] = told.append
    world.answer_by_id(REFUSED)  # another command about the same job
    assert world.reserved.unattended
    answered = world.answer(error)
    assert (told, world.reserved.unattended) == ([answered] * is_told, {})


def test_statistics_not_found_of_a_finished_job_say_so_and_by_id_the_job_is_lost():
    world = World()
    finished(world)
    asked = request(commands.STATS_JOB, world.job, NOT_FOUND)
    world.reserved.looked(asked)
    assert asked.error is NOT_FOUND
    world = World()
    world.reserved.looked(request(commands.STATS_JOB, None, NOT_FOUND))
    assert world.job.is_lost


def test_connection_over_loses_jobs_though_nobody_refers_to_one_and_a_signal_has_left_a_finished_one():
    reserved = ReservedJobs()
    reserved.add(make(6))
    done, job = make(7), make(8)
    reserved.add(done)
    reserved.add(job)
    done._state = "finished"
    reserved.lose_all()
    assert (done.is_finished, job.is_lost, reserved.by_id) == (True, True, {})


def test_jobs_are_not_kept():
    """A connection that held its jobs, which hold it, would be a cycle."""
    reserved = ReservedJobs()
    job = make()
    reserved.add(job)
    gone = weakref.ref(job)
    gc.disable()
    try:
        del job
        assert gone() is None
    finally:
        gc.enable()
    assert list(reserved.by_id) == [7]  # the server holds it for us all the same
    reserved.settled(request(commands.DELETE, None))
    assert not reserved.by_id


# -- those whose time to run may be over -------------------------------------------------------------------------


def told(reserved: ReservedJobs, now: float, job_id: int = 7, **stats: Any) -> None:
    answered = request(commands.STATS_JOB, None, None, job_id)
    known: dict[str, Any] = {"id": job_id, "state": "reserved", "ttr": 10, "time_left": 10, "reserves": 1}
    answered.result = JobStats(**{**known, **stats})
    reserved.told(answered, now)


def test_doubtful_job_in_somebodys_hands_is_asked_about_when_it_is_old_and_once_in_its_time():
    reserved = ReservedJobs()
    job = make(reserved_at=100.0)
    reserved.add(job)
    asked = []
    for tenth in range(1000, 1400):
        if found := reserved.doubtful(tenth / 10):
            asked.append(tenth / 10)
            reserved.touched(request(commands.TOUCH, job), tenth / 10)
            told(reserved, tenth / 10, time_left=10)
        assert found in ([], [7])
    assert asked == [105.0, 116.0, 127.0, 138.0]
    assert job._state == "held"


def test_doubtful_job_that_nobody_refers_to_is_asked_about_at_once():
    reserved = ReservedJobs()
    reserved.add(make())
    assert reserved.doubtful(100.5) == [7]
    assert reserved.doubtful(103.0) == []  # no answer yet
    told(reserved, 103.0, time_left=7)
    assert reserved.doubtful(110.9) == []
    assert reserved.doubtful(112.0) == [7]


def test_doubtful_jobs_are_named_a_few_at_a_time_and_all_of_them():
    reserved = ReservedJobs()
    for job_id in range(1, 151):
        reserved.add(make(job_id))
    found = [reserved.doubtful(100.0) for _ in range(4)]
    assert [len(each) for each in found] == [64, 64, 22, 0]
    assert sorted(each for ids in found for each in ids) == list(range(1, 151))


def test_doubtful_jobs_that_could_not_be_asked_about_come_after_the_others():
    reserved = ReservedJobs()
    for job_id in range(1, 66):
        reserved.add(make(job_id))
    for job_id in reserved.doubtful(100.0):
        reserved.told(request(commands.STATS_JOB, None, gstalk.OutOfMemoryError("x"), job_id), 100.0)
    assert reserved.doubtful(100.0) == [65]


def test_doubtful_job_of_a_server_that_does_not_tell_its_time_is_asked_about_every_second():
    reserved = ReservedJobs()
    job = make()
    reserved.add(job)
    for now in (106.0, 107.0, 108.0):
        assert reserved.doubtful(now) == [7]
        told(reserved, now, ttr=None, time_left=None)
    assert reserved.holds(job)


def test_doubtful_are_none_for_a_second_after_all_were_looked_at():
    reserved = ReservedJobs()
    assert reserved.doubtful(100.0) == []
    reserved.add(make())
    assert reserved.doubtful(100.9) == []
    assert reserved.doubtful(101.0) == [7]


@pytest.mark.parametrize("state", ["ready", "delayed", "buried", "invalid"])
def test_told_that_nobody_has_reserved_it_the_job_is_lost(state):
    reserved = ReservedJobs()
    job = make()
    reserved.add(job)
    assert reserved.doubtful(106.0) == [7]
    told(reserved, 106.0, state=state)
    assert job.is_lost
    assert not reserved.by_id


def test_told_not_found_the_job_is_lost_and_otherwise_refused_it_is_asked_about_again():
    reserved = ReservedJobs()
    job = make()
    reserved.add(job)
    assert reserved.doubtful(106.0) == [7]
    reserved.told(request(commands.STATS_JOB, None, gstalk.OutOfMemoryError("x")), 106.0)
    assert reserved.holds(job)
    assert reserved.doubtful(107.0) == [7]
    reserved.told(request(commands.STATS_JOB, None, NOT_FOUND), 107.0)
    assert job.is_lost


def test_told_that_it_was_reserved_once_more_the_job_is_lost():
    """Another connection has it: only the number of reserves says so."""
    reserved = ReservedJobs()
    job = make()
    reserved.add(job)
    assert reserved.doubtful(106.0) == [7]
    told(reserved, 106.0, reserves=3, time_left=4)
    assert reserved.doubtful(111.0) == [7]
    told(reserved, 111.0, reserves=3, time_left=10)  # touched elsewhere, or a clock that jumps
    assert reserved.holds(job)
    reserved.touched(request(commands.TOUCH, job), 121.0)  # only the number tells: so it might still be ours
    assert reserved.doubtful(122.0) == [7]
    told(reserved, 122.0, reserves=4, time_left=10)
    assert job.is_lost


def test_told_too_late_says_nothing_about_the_job_that_was_reserved_again():
    reserved = ReservedJobs()
    old = make()
    reserved.add(old)
    assert reserved.doubtful(106.0) == [7]
    new = make(reserved_at=106.0)
    reserved.add(new)
    told(reserved, 106.1, state="ready")
    assert reserved.holds(new)
    assert not new.is_lost
    assert reserved.doubtful(107.0) == []  # the new one was looked at, and is not asked about
    told(reserved, 107.1, state="ready")
    assert reserved.holds(new)


def test_doubtful_job_that_is_finished_and_reserved_anew_is_asked_about_anew():
    world = World()
    assert world.reserved.doubtful(106.0) == [7]
    finished(world)
    new = make(reserved_at=106.0)
    world.reserved.add(new)
    assert world.reserved.doubtful(111.0) == [7]


def test_told_of_a_job_while_its_delete_is_under_way_the_delete_decides():
    world = World()
    assert world.reserved.doubtful(106.0) == [7]
    settling(world)
    told(world.reserved, 106.1, state="ready")
    world.answer()
    assert world.job.is_finished


def test_touch_begins_a_jobs_time_anew_for_the_judgement():
    world = World()
    world.reserved.touched(request(commands.TOUCH, world.job), 120.0)
    assert world.reserved.doubtful(126.0) == [7]
    told(world.reserved, 126.0, time_left=4)
    assert world.reserved.holds(world.job)


@pytest.mark.parametrize(
    ("stats", "asked", "since", "reserves", "ours"),
    [
        ({"state": "reserved", "ttr": 10, "time_left": 3, "reserves": 1}, 107, 100, None, True),
        ({"state": "ready", "ttr": 10, "time_left": 0, "reserves": 1}, 107, 100, None, False),
        ({"state": "reserved", "ttr": 10, "time_left": 3, "reserves": 2}, 107, 100, 1, False),
        ({"state": "reserved", "ttr": 10, "time_left": 3, "reserves": 2}, 107, 100, 2, True),
        # Its time was over, and whoever has it began later than we did: another has it.
        ({"state": "reserved", "ttr": 10, "time_left": 9, "reserves": 2}, 115, 100, None, False),
        # Nearly over: clocks and whole seconds may be wrong by so much.
        ({"state": "reserved", "ttr": 10, "time_left": 9, "reserves": 2}, 112, 100, None, True),
        # Over, but the server has not noticed yet: it misses that while a connection is silent.
        ({"state": "reserved", "ttr": 10, "time_left": -5, "reserves": 1}, 115, 100, None, True),
        # The server's clock was set back while we held it.
        ({"state": "reserved", "ttr": 10, "time_left": 30, "reserves": 1}, 105, 100, None, True),
        # A server that doesn't tell.
        ({"state": "reserved"}, 200, 100, 1, True),
        ({"state": "reserved", "ttr": 10}, 200, 100, 1, True),
        ({"state": "reserved", "time_left": 10}, 200, 100, 1, True),
    ],
)
def test_is_ours(stats, asked, since, reserves, ours):
    assert is_ours(JobStats(**stats), asked, since, reserves) is ours


def test_settles_is_true_of_what_settles_and_of_its_first_step():
    release = request(commands.RELEASE, None)
    first = TwoStepRequest(commands.STATS_JOB, Owner.uri, 7)
    first.second = release
    asked = [request(command, None) for command in (*SETTLING, commands.TOUCH, commands.STATS_JOB)]
    assert [settles(each) for each in (*asked, first)] == [True, True, True, False, False, True]


def test_figures_are_as_documented():
    assert (reserved.AGE, reserved.PERIOD, reserved.BATCH, reserved.SLACK) == (5.0, 1.0, 64, 2.0)
