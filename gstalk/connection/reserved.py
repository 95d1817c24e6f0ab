"""The jobs that a connection has reserved. Nobody else moves a job's state. No socket, no clock, nothing waits.

A job's state (`gstalk.job` says what each means), by what happens to it:

    what happens                                  reserved   settling              finished   lost
    its delete, release or bury is sent           settling   -                     -          -
    that succeeds                                 -          finished              finished   -
    that is refused: not found                    -          lost                  finished   -
    that is refused for another reason            -          reserved, or lost (*) finished   -
    it succeeds by id, or by another object       finished   finished              finished   lost
    the server says elsewhere: not found          lost       settling (*)          finished   lost
    this connection has reserved it again         lost       settling (*)          finished   lost
    the server says that it is another's now      lost       settling (*)          finished   lost
    the connection is over                        lost       lost                  finished   lost

`finished` and `lost` are for ever. A command that settles a job and is under way is answered by the server, and that
answer counts: a `delete` that says DELETED has finished the job, though its time to run was over and this connection
had reserved it again meanwhile. (*): the connection holds it no longer, so if that command is refused, it is lost.

A `Job` holds its connection, and a connection must not hold its jobs, or nobody would ever close one that is dropped:
so what stands here is a weak reference for each id. A Job that nobody refers to any more stays reserved all the same,
until its time to run is over. The server doesn't say when that is; `doubtful` names those that should be asked about,
and `told` hears the answers.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

from gstalk.errors import BuriedError, DisconnectedError, JobFinishedError, JobLostError, NotFoundError
from gstalk.job import Job
from gstalk.protocol import commands
from gstalk.protocol.request import Request
from gstalk.protocol.stats import JobStats

__all__ = ["ReservedJobs", "is_ours", "settles"]

SETTLING = (commands.DELETE, commands.RELEASE, commands.BURY)
AGE = 5.0  # seconds that a Job in somebody's hands is held before the server is asked whether it is ours still
PERIOD = 1.0  # seconds between two looks at all of them
BATCH = 64  # questions at a time
SLACK = 2.0  # seconds by which the server's figures, whole seconds, and the way to it may be wrong


class _Note:
    """What is known of a job that was touched, or that the server was asked about."""

    __slots__ = ("asked", "look_at", "reserves", "since")

    def __init__(self, since: float) -> None:
        self.since = since  # the latest moment at which our hold can have begun anew
        self.look_at = since  # when to ask
        self.asked: float | None = None  # since when an answer is due
        self.reserves: int | None = None  # as the server told last


class ReservedJobs:
    """The jobs of one connection.

    Attributes:
        by_id: A weak reference to each Job that is reserved or whose settling is under way; others only look whether
            there are any.
        on_settled: Called when a delete, release or bury has been answered; must not switch.
        unattended: Jobs with a delete, release or bury under way that nobody waits for, and what is called, in the hub,
            with its request if that fails; it must not switch.
    """

    __slots__ = ("_look_at", "_notes", "by_id", "on_settled", "unattended")

    def __init__(self) -> None:
        self.by_id: dict[int, ref[Job]] = {}
        self.on_settled: Callable[[], None] | None = None
        self.unattended: dict[Job, Callable[[Request], None]] = {}
        self._notes: dict[int, _Note] = {}
        self._look_at = 0.0

    def holds(self, job: Job) -> bool:
        """Tell whether the connection holds this very Job: its time to run isn't over, as far as is known."""
        found = self.by_id.get(job.id)
        return found is not None and found() is job

    # -- what happens ------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """A job has been reserved. If that is so for the second time, the older Job's time to run was over."""
        if job.id in self.by_id:
            self._let_go(job.id)
        self.by_id[job.id] = ref(job)

    def settle(self, job: Job) -> None:
        """A delete, release or bury of a job is sent."""
        assert job._state == "held"
        job._state = "settling"

    def settled(self, request: Request) -> None:
        """That was answered; the request's `subject` is the Job, or `None` where it was sent by id."""
        job: Job | None = request.subject
        error = request.error
        job_id = request.key
        if error is None or error.__class__ is BuriedError:
            if job is not None:
                job._state = "finished"
            if job_id in self.by_id:
                newest = self.by_id[job_id]()
                if newest is not None:
                    newest._state = "finished"
                del self.by_id[job_id]  # last: what a signal leaves behind there is lost with the connection
            if self._notes:
                self._notes.pop(job_id, None)
        elif job is not None and job._state == "finished":  # by its id, or by another object of it, meanwhile
            request.fail(JobFinishedError(f"{request}: the job was finished meanwhile; {error}"))
        elif isinstance(error, NotFoundError):
            self._gone(request)
        elif job is not None and job._state == "settling":
            held = self.holds(job)
            job._state = "held" if held and not isinstance(error, DisconnectedError) else "lost"
            if held and job._state == "lost":
                del self.by_id[job_id]
        if self.unattended and job is not None:
            failed = self.unattended.pop(job, None)
            if failed is not None and error is not None and job._state != "finished":
                failed(request)
        if self.on_settled is not None:
            self.on_settled()

    def touched(self, request: Request, now: float) -> None:
        """A touch was answered."""
        if request.error is None:
            if request.key in self.by_id:
                note = self._notes.setdefault(request.key, _Note(now))
                note.since = now
        else:
            self.looked(request)

    def looked(self, request: Request) -> None:
        """A `stats-job` that somebody asked for was answered."""
        if isinstance(request.error, NotFoundError) and not (
            request.subject is not None and request.subject._state == "finished"
        ):
            self._gone(request)

    def lose_all(self) -> None:
        """The connection is over."""
        for found in self.by_id.values():
            job = found()
            if job is not None and job._state in ("held", "settling"):
                job._state = "lost"
        self.by_id.clear()
        self._notes.clear()

    def _gone(self, request: Request) -> None:
        """The server said that a job isn't there, or not ours. Its holder is told in the words of a Job."""
        job: Job | None = request.subject
        if job is None:
            self._let_go(request.key)
            return
        if self.holds(job):
            self._let_go(job.id)
        if job._state == "settling" and request.command in SETTLING:
            job._state = "lost"
        request.fail(JobLostError(f"{request}: the server has taken the job back; its time to run may be over"))

    def _let_go(self, job_id: int) -> None:
        """The connection holds a job no longer. What settles it and is under way decides about it all the same."""
        found = self.by_id.get(job_id)
        if found is None:
            return
        job = found()
        if job is not None and job._state == "held":
            job._state = "lost"
        self._notes.pop(job_id, None)
        del self.by_id[job_id]

    # -- those whose time to run may be over -------------------------------------------------------------------

    def doubtful(self, now: float) -> list[int]:
        """Name jobs that the server should be asked about, each at most once in its time to run.

        They are those that nobody refers to any more, at once, and those in somebody's hands that have grown old.
        """
        if now < self._look_at:
            return []
        found: list[int] = []
        for job_id, reference in self.by_id.items():
            note = self._notes.get(job_id)
            if note is None:
                job = reference()
                note = self._notes[job_id] = _Note(now)
                if job is not None:
                    note.since = now if job.reserved_at is None else job.reserved_at
                    note.look_at = note.since + AGE
            if note.asked is None and note.look_at <= now:
                note.asked = now
                found.append(job_id)
                if len(found) == BATCH:
                    return found
        self._look_at = now + PERIOD
        return found

    def told(self, request: Request, now: float) -> None:
        """The answer of a `stats-job` about one of them."""
        note = self._notes.get(request.key)
        if note is None or note.asked is None:  # settled, or reserved again meanwhile
            return
        asked, note.asked = note.asked, None
        if request.error is not None:
            note.look_at = now + PERIOD
            if isinstance(request.error, NotFoundError):
                self._let_go(request.key)
            return
        stats: JobStats = request.result
        if not is_ours(stats, asked, note.since, note.reserves):
            self._let_go(request.key)
            return
        note.reserves = stats.reserves
        note.look_at = now + max(stats.time_left or 0, 0) + PERIOD


def is_ours(stats: JobStats, asked: float, since: float, reserves: int | None) -> bool:
    """Judge whether a job that was ours is still reserved by us; the server doesn't say by whom.

    Args:
        asked: When the question was sent.
        since: The latest moment at which our hold can have begun anew, by a reserve or a touch.
        reserves: What the server told at an earlier time, when the job was ours.
    """
    if stats.state != "reserved":
        return False
    if reserves is not None and stats.reserves is not None and stats.reserves > reserves:
        return False
    if stats.ttr is None or stats.time_left is None:
        return True
    over = asked > since + stats.ttr + SLACK
    begun = asked - stats.ttr + stats.time_left  # the hold of whoever has it began then, or a little later
    return not (over and begun > since + SLACK)


def settles(request: Request) -> bool:
    """Tell whether a command settles a job, or is the first step of that."""
    return (request.second or request).command in SETTLING
