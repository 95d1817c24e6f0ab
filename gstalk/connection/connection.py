"""A connection with what belongs to it: the jobs that it holds, the tube it uses, the tubes it watches.

`Conn` and `Consumer` stand on it; both reserve, each in its own way, and a `Job` refers to it. Which promises are
kept here:

- What settles a job is carried out, both steps of it where the job's own priority has to be asked for first. What
  becomes of the job stands in `connection.reserved`.
- A reservation that nobody wants goes back with the job's own priority (`give_back`).
- A wait on the server can be called back (`recall`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gevent
from gevent import get_hub, getcurrent
from gevent.hub import Hub

from gstalk.config import Config
from gstalk.connection import threads
from gstalk.connection.calls import join
from gstalk.connection.clock import monotonic
from gstalk.connection.connect import dial
from gstalk.connection.critical import critical, section_of
from gstalk.connection.hooks import Hooks, Outcomes
from gstalk.connection.pipeline import Pipeline
from gstalk.connection.recall import Recall
from gstalk.connection.reserved import SETTLING, ReservedJobs
from gstalk.connection.transport import Transport
from gstalk.connection.used_tube import blame, misplace
from gstalk.errors import (
    ConnectionClosedError,
    ConnectionLostError,
    DisconnectedError,
    InvalidArgumentError,
    JobFinishedError,
    JobLostError,
    ProtocolError,
)
from gstalk.job import Job, Seconds
from gstalk.protocol import checks, commands
from gstalk.protocol.commands import Command
from gstalk.protocol.session import Slot, WaitSlot
from gstalk.protocol.stats import JobStats, ServerStats
from gstalk.uri import Address

__all__ = ["Link"]

Line = Callable[[int], bytes]  # a command, once the job's own priority is known


class Link:
    """One connection and its state on the server.

    Attributes:
        pipe: The commands in flight; another one after a `recall`.
        reserved: The jobs that this connection has reserved.
        outcomes: What tells of the ends of commands; `None`: nobody listens.
        used: The tube that the last command appended will find in use; `None`: unknown.
        watched: The tubes watched, as the server confirmed them.
        section: The hub's critical section; greenlets change what belongs to a connection inside of it alone.
        on_failure: Called once, when the connection is over; must not switch.
        on_closing: Called when it begins to close and what settles jobs is still waited for; must not switch.
    """

    __slots__ = (
        "__weakref__ _closed _end_wait _finalizer _holder _limit _recall address config hub "
        "on_closing on_failure outcomes pipe reserved section server uri used watched"
    ).split()

    def __init__(self, address: Address, config: Config, tubes: tuple[str, ...] = ()) -> None:
        """Dial, and wait until the server has answered.

        Args:
            tubes: What to watch, instead of `default`.

        Raises:
            ConnectError: It did not.
        """
        self.address = address
        self.uri = str(address)
        self.config = config
        self.hub: Hub = threads.enter()
        self.section = section_of(self.hub)
        self.outcomes = None if config.event_func is None else Outcomes(self.uri, self.hub, Hooks(config))
        self.reserved = ReservedJobs()
        self.used: str | None = "default"
        self.watched = list(tubes) or ["default"]
        self.on_failure: Callable[[], None] | None = None
        self.on_closing: Callable[[], None] | None = None
        self._closed = False
        self._end_wait: Callable[[], None] | None = None
        self._recall: Recall | None = None  # the last one
        self._limit = cast("float | None", config.conn_timeout)  # what a Config holds; its constructor takes timedelta
        self.pipe = Pipeline(self.uri, self.hub, self._limit)
        self.pipe.check_may_wait()
        transport, self.server = self._dial()
        self._holder = [self.pipe]
        self._finalizer = weakref.finalize(self, threads.drop, self._holder)
        self._finalizer.atexit = False
        self._adopt(self.pipe)
        self.pipe.attach(transport)

    # -- commands ----------------------------------------------------------------------------------------------

    def check(self, what: str) -> None:
        """Refuse a command that can't be sent from here, or any more, before its arguments are looked at."""
        if get_hub() is not self.hub and self.pipe.failure is None:
            raise threads.wrong_hub(f"{what} at {self.uri}")
        if self._closed or self.pipe.failure is not None:
            raise self.gone(what)
        if getcurrent() is self.hub:
            self.pipe.check_may_wait()
        if self.section.owner is not None:
            self.section.wait()

    def gone(self, what: str) -> DisconnectedError:
        """Build the error of a command that comes after the connection's end."""
        if self._closed:
            return ConnectionClosedError(f"{what} at {self.uri}: the connection is closed; it was not sent")
        return self.pipe.error(what)

    def clear(self, what: str) -> None:
        """Return when a command may be appended; may wait for room, and ends a wait on the server."""
        while not self.pipe.clear:
            self.wait_room()
            self.check(what)

    @critical
    def wait_room(self) -> None:
        """Wait until a command may be appended, or the connection is over. Only what interrupts is raised here."""
        with self.section:
            if self._end_wait is not None:
                self._end_wait()
        if not self.pipe.clear:
            self.pipe.wait_room()

    def call(self, command: Command, data: bytes, key: Any = None, duty: Any = None, extra: Any = None) -> Any:
        """Send a command, wait for its reply, and return its result or raise its error."""
        slot = Slot(command, self.pipe.session, key, duty, extra)
        return self.send(data, slot).wait(slot)

    @critical
    def send(self, data: bytes, slot: Slot, tube: str | None = None, before: Slot | None = None) -> Pipeline:
        """Append a command as soon as there is room for it; whoever is interrupted until then has sent nothing.

        Args:
            data: Its bytes.
            slot: Where the reply goes.
            tube: The one that it acts on, if it acts on the tube in use.
            before: The slot of another command, whose bytes stand before those of this one, and belong with them.
        """
        self.clear(slot.command.name)
        with self.section:
            if tube is None or tube == self.used:
                self.pipe.append(data, slot, before)
            else:
                self.append_using(tube, data, slot)
            return self.pipe

    @critical
    def append(self, data: bytes, slot: Slot) -> None:
        """Append a command of ours, in a greenlet, whether there is room or not."""
        with self.section:
            self.pipe.append(data, slot)

    def append_using(self, tube: str, data: bytes, slot: Slot) -> None:
        """Append a command that acts on the used tube, behind a `use` where that is another one."""
        line = commands.by_tube(commands.USE, tube)
        use = self.pipe.slot(commands.USE, tube.encode("ascii"), self._use_answered)
        self.used = tube
        self.pipe.append(line + data, slot, use)

    def _use_answered(self, use: Slot) -> None:
        """Keep what stands behind a `use` that failed from staying in the wrong tube."""
        error = use.error
        if isinstance(error, ProtocolError):  # so has the command that it was said for: who sent that is told the same
            blame(self.pipe, use)
        elif error is not None and not isinstance(error, DisconnectedError) and misplace(self.pipe, error):
            self.used = None  # nothing behind it has changed the tube: the next command says `use` again

    @critical
    def use(self, tube: str) -> None:
        data = commands.by_tube(commands.USE, tube)
        self.clear("use")
        # `append_using` with nothing behind it: the slot of the `use` is the one to wait for.
        with self.section:
            pipe = self.pipe
            slot = pipe.slot(commands.USE, tube.encode("ascii"), self._use_answered)
            self.used = tube
            pipe.append(data, slot)
        pipe.wait(slot)

    def watch(self, tube: str) -> int:
        count: int = self.call(commands.WATCH, commands.by_tube(commands.WATCH, tube), None, self._watching, tube)
        return count

    def ignore(self, tube: str) -> int:
        count: int = self.call(commands.IGNORE, commands.by_tube(commands.IGNORE, tube), None, self._watching, tube)
        return count

    def _watching(self, slot: Slot) -> None:
        """Remember what is watched, for the next dial; whoever still waits for the reply."""
        if slot.error is None:
            if slot.command is commands.IGNORE and slot.extra in self.watched:
                self.watched.remove(slot.extra)
            elif slot.command is commands.WATCH and slot.extra not in self.watched:
                self.watched.append(slot.extra)

    # -- jobs --------------------------------------------------------------------------------------------------

    def ask(self, seconds: int, got: Callable[[Slot], None], end_wait: Callable[[], None] | None = None) -> Slot:
        """Send a reserve; `got` is called with its slot, whose result is a `Job` or `None`.

        Args:
            seconds: How long the server may wait; above 0 only if nothing else is in flight.
            end_wait: How to end that wait, when another command is to go out.
        """
        pipe = self.pipe
        if not seconds:
            slot = Slot(commands.RESERVE, pipe.session, None, self._reserved, got)
        else:
            slot = WaitSlot(commands.RESERVE, pipe.session, None, self._reserved, got)
            slot.patience = seconds
            self._end_wait = end_wait
        pipe.append(commands.reserve(seconds), slot)
        if seconds and pipe.failure is None:
            pipe.hold_back(True)
        return slot

    def _reserved(self, slot: Slot) -> None:
        if self._end_wait is not None:
            self._end_wait = None
            if self.pipe.failure is None:
                self.pipe.hold_back(False)
        if slot.error is None and slot.result is not None:
            slot.result = self.hold(*slot.result)
        slot.extra(slot)

    def hold(self, job_id: int, body: bytes) -> Job:
        """Make the Job of a reply that has reserved one."""
        tube = self.watched[0] if len(self.watched) == 1 else None
        job = Job(self, job_id, body, tube, self.pipe.read_at, "held")
        self.reserved.add(job)
        return job

    @critical
    def return_job(self, job: Job) -> None:
        """`give_back`, in a greenlet."""
        with self.section:
            try:
                self.give_back(job)
            except BaseException as error:
                self._struck(job, error)
                raise

    def give_back(self, job: Job) -> None:
        """Release a job that nobody wants, with its own priority; in the hub, or inside the section.

        Never switches; nobody waits for it.
        """
        if job._state == "held" and self.pipe.failure is None:
            self._settle_later(job, job.id, commands.RELEASE, lambda p: commands.release(job.id, p, 0), True)

    def _given_back(self, slot: Slot) -> None:
        """If the server does not take a job back, the connection's end makes it: else it would keep it for its ttr."""
        self.reserved.unattended.pop(slot.extra, None)  # so it is attended to
        self.reserved.settled(slot)
        if slot.extra._state == "held":
            self.pipe.fail(ConnectionLostError, f"job {slot.key} could not be given back: {slot.error}", slot.error)

    @critical
    def delete(self, job: Job | int) -> None:
        slot = None
        if type(job) is Job and job._owner is self and job._state == "held":
            # The usual case, in as few steps as can be.
            section = self.section
            me = getcurrent()
            if me.parent is not self.hub or section.owner is not None or self._closed or self.pipe.failure is not None:
                self.check("delete")  # a greenlet whose parent is the hub is of its thread, and not the hub itself
            try:
                section.owner = me
                if job._state == "held":  # still: a signal handler may have come between
                    pipe = self.pipe
                    self.reserved.settle(job)
                    slot = Slot(commands.DELETE, pipe.session, job.id, self.reserved.settled, job)
                    pipe.append(b"delete %d\r\n" % job.id, slot)
            except BaseException as error:
                self._struck(job, error)
                raise
            finally:
                section.owner = None
            if slot is not None:
                (self.outcomes or pipe).wait(slot)
                return
        job_id, ours = self._whose(job, "delete")
        data = commands.by_id(commands.DELETE, job_id)
        self._settle(job_id, ours, commands.DELETE, lambda: self._settle_now(ours, job_id, commands.DELETE, data))

    @critical
    def delete_unwaited(self, job: Job) -> None:
        """Delete a job that we hold; nobody waits for the reply."""
        duty = self._settled if self.outcomes is None else self.outcomes.later(self._settled)
        section = self.section
        if section.owner is not None:
            section.wait()
        try:
            section.owner = getcurrent()
            if job._state == "held":
                self.reserved.settle(job)
                self.pipe.append(b"delete %d\r\n" % job.id, self.pipe.slot(commands.DELETE, job.id, duty, job))
        except BaseException as error:
            self._struck(job, error)
            raise
        finally:
            section.owner = None

    def release(self, job: Job | int, priority: int | None = None, delay: Seconds = 0) -> None:
        job_id, ours = self._whose(job, "release")
        seconds = checks.check_delay(delay)
        self._settle_with(job_id, ours, commands.RELEASE, priority, lambda p: commands.release(job_id, p, seconds))

    def bury(self, job: Job | int, priority: int | None = None) -> None:
        job_id, ours = self._whose(job, "bury")
        self._settle_with(job_id, ours, commands.BURY, priority, lambda p: commands.bury(job_id, p))

    def _settle_with(self, job_id: int, job: Job | None, command: Command, priority: int | None, line: Line) -> None:
        """Settle with this priority, or `None`: the job's own."""
        if priority is None:
            self._settle(job_id, job, command, lambda: self._settle_later(job, job_id, command, line))
        else:
            data = line(priority)
            self._settle(job_id, job, command, lambda: self._settle_now(job, job_id, command, data))

    @critical
    def touch(self, job: Job | int) -> None:
        job_id, ours = self._whose(job, "touch")
        self.clear("touch")
        with self.section:
            if ours is not None:
                self._refuse_finished(ours, "touch")  # as in `_settle`
            pipe = self.pipe
            slot = pipe.slot(commands.TOUCH, job_id, self._touched, ours)
            pipe.append(commands.by_id(commands.TOUCH, job_id), slot)
        pipe.wait(slot)

    def touch_unwaited(self, job: Job) -> None:
        """Touch a job that we hold; nobody waits for the reply, but the job learns if it is lost."""
        slot = self.pipe.slot(commands.TOUCH, job.id, self._touched, job)
        self.pipe.append(commands.by_id(commands.TOUCH, job.id), slot)

    def kick_job(self, job: Job | int) -> None:
        job_id = self._id_of(job, "kick-job")
        self.call(commands.KICK_JOB, commands.by_id(commands.KICK_JOB, job_id), job_id)

    def stats_job(self, job: Job | int) -> JobStats:
        job_id = self._id_of(job, "stats-job")
        ours = job if isinstance(job, Job) and job._state in ("held", "settling") else None
        data = commands.by_id(commands.STATS_JOB, job_id)
        stats: JobStats = self.call(commands.STATS_JOB, data, job_id, self._looked, ours)
        if isinstance(job, Job):
            job.tube = stats.tube
        return stats

    def _id_of(self, job: Job | int, what: str) -> int:
        self.check(what)
        self._check_owner(job, what)
        return job.id if isinstance(job, Job) else checks.check_job_id(job)

    def _check_owner(self, job: Job | int, what: str) -> None:
        if isinstance(job, Job) and job._owner is not self and job._state != "peeked":
            why = "another connection has reserved this job; use the job's own method"
            raise InvalidArgumentError(f"{what} {job.id} at {self.uri}: {why}")

    def _whose(self, job: Job | int, what: str) -> tuple[int, Job | None]:
        """Check a job that is to be settled or touched: its id, and the Job if it is one that we reserved."""
        if not isinstance(job, Job):
            self.check(what)
            return checks.check_job_id(job), None
        self._check_owner(job, what)
        ours = job if job._state == "held" else None
        self._refuse_finished(job, what)
        self.check(what)
        return job.id, ours

    def _refuse_finished(self, job: Job, what: str) -> None:
        if job._state in ("settling", "finished"):
            raise JobFinishedError(f"{what} {job.id} at {self.uri}: the job is finished, or being finished now")
        if job._state == "lost":
            why = f"lost with its connection ({by[1]})" if (by := self.pipe.failure) else "the server has taken it back"
            raise JobLostError(f"{what} {job.id} at {self.uri}: {why}; nothing was sent")

    @critical
    def _settle(self, job_id: int, job: Job | None, command: Command, send: Callable[[], Slot]) -> None:
        if job is None:
            self.clear(command.name)
        with self.section:
            if job is not None:
                self._refuse_finished(job, command.name)  # once more: a signal handler may have come between
            try:
                slot = send()
            except BaseException as error:
                self._struck(job, error)
                raise
        (self.outcomes or self.pipe).wait(slot)

    def _settle_now(self, job: Job | None, job_id: int, command: Command, data: bytes) -> Slot:
        slot = self.pipe.slot(command, job_id, self._settled, job)
        if job is not None:
            self.reserved.settle(job)
        self.pipe.append(data, slot)
        return slot

    def _struck(self, job: Job | None, error: BaseException) -> None:
        """A signal's exception has hit a settling: the job may be marked with nothing sent, so the connection ends."""
        if job is not None and job._state == "settling":
            self.pipe.torn(error)

    def _settle_later(self, job: Job | None, job_id: int, command: Command, line: Line, alone: bool = False) -> Slot:
        """Settle with the job's own priority, once the server has told it; the slot returned is the second step's."""
        pipe = self.pipe
        duty: Callable[[Slot], None] = self._given_back if alone else self._settled
        if alone and self.outcomes is not None:
            duty = self.outcomes.later(duty)
        last = pipe.slot(command, job_id, duty, job)
        if job is not None:
            self.reserved.settle(job)
        holds = self.reserved.holds

        def go_on(first: Slot) -> None:
            if job is not None and first.error is None and not holds(job):  # reserved again: another's, by now
                first.error = JobLostError(f"{last}: the server has taken the job back; nothing was sent")
            if first.error is None:
                try:
                    pipe.append(line(first.result.pri), last)
                    return
                except (TypeError, InvalidArgumentError):  # in the hub, where nothing may be raised
                    first.error = ProtocolError(f"{first}: pri is {first.result.pri}; connection closed")
            last.error = first.error
            duty(last)
            pipe.complete(last)
            if isinstance(last.error, ProtocolError):
                pipe.fail(ConnectionLostError, f"the server broke the protocol: {last.error}", last.error)

        first = pipe.slot(commands.STATS_JOB, job_id, go_on, last)
        pipe.append(commands.by_id(commands.STATS_JOB, job_id), first)
        return last

    def look_after_jobs(self) -> None:
        """Ask the server about jobs whose time to run may be over. Never switches; nobody waits for the replies."""
        for job_id in self.reserved.doubtful(monotonic()):
            slot = self.pipe.slot(commands.STATS_JOB, job_id, self._told)
            self.pipe.append(commands.by_id(commands.STATS_JOB, job_id), slot)

    # The duties of these commands; a bound method keeps the connection until its answer is there.

    def _settled(self, slot: Slot) -> None:
        self.reserved.settled(slot)

    def _touched(self, slot: Slot) -> None:
        self.reserved.touched(slot, self.pipe.read_at)

    def _looked(self, slot: Slot) -> None:
        self.reserved.looked(slot)

    def _told(self, slot: Slot) -> None:
        self.reserved.told(slot, self.pipe.read_at)

    # -- life --------------------------------------------------------------------------------------------------

    def recall(self) -> None:
        """Call a waiting reserve back. Commands gather on a new pipe meanwhile; never switches."""
        old, new = self.pipe, Pipeline(self.uri, self.hub, self._limit)
        try:
            self._end_wait = None
            self.pipe = self._holder[0] = new
            self._adopt(new)
            old.on_failure = None
            self._recall = Recall(old, new, partial(self._dial, self.used or "default"), self.server.id)
        except BaseException as error:  # a signal's
            self._adopt(self.pipe)
            old.torn(error)
            self.pipe.torn(error)
            raise

    def _dial(self, used: str = "default") -> tuple[Transport, ServerStats]:
        return dial(self.hub, self.address, self.config.tls_context, self._limit, used, self.watched)

    def _adopt(self, pipe: Pipeline) -> None:
        link = weakref.ref(self)

        def failed() -> None:
            if (mine := link()) is not None:
                mine._failed()

        pipe.on_failure = failed

    def _failed(self) -> None:
        self.reserved.lose_all()
        self._finalizer.detach()
        if self.on_failure is not None:
            self.on_failure()
        # Last: whoever was told refers to this connection, and it to him.
        self.on_failure = self.on_closing = self.reserved.on_settled = self._end_wait = None

    def close(self) -> None:
        """Let what settles jobs finish, at most `conn_timeout`, and close; idempotent."""
        if get_hub() is not self.hub:
            raise threads.wrong_hub(f"close of {self.uri}")
        if self._closed:
            return
        if self.section.owner is not None and getcurrent() is not self.hub:
            self.section.wait()
        self._closed = True
        try:
            if self._may_settle() and getcurrent() is not self.hub:
                with self._patience():
                    self._drain()
        finally:
            self.cut()

    def leave_wait(self) -> None:
        """Begin to `leave` while a reserve waits on the server; never switches."""
        self._closed = True  # a command would find no way past the wait
        self.pipe.end()

    def leave(self) -> None:
        """Close so that the server has let go when this returns: settle, half-close, and read to the end."""
        self._closed = True
        try:
            with self._patience():
                if self._recall is not None and not self._recall.greenlet.ready():  # the server still has that wait
                    if not self._may_settle():
                        self.pipe.fail(ConnectionClosedError, "you closed it")
                    self._recall.greenlet.join()
                self._drain()
                self.pipe.wait(self.pipe.end())
        finally:
            self.cut()

    def cut(self) -> None:
        """Close at once; never switches."""
        self._closed = True
        if self._recall is not None:
            self._recall.cut()
        self.pipe.fail(ConnectionClosedError, "you closed it")

    def _may_settle(self) -> bool:
        return any(s.command in SETTLING or isinstance(s.extra, Slot) for s in self.pipe.slots)

    def _drain(self) -> None:
        """Wait for deletes, releases and buries; replies come in order, so one more command tells when they did."""
        pipe = self.pipe
        pipe.give_up(lambda s: s.command not in SETTLING and not isinstance(s.extra, Slot))
        if self.on_closing is not None:
            self.on_closing()
        while pipe.failure is None and self._may_settle():
            fence = pipe.slot(commands.LIST_TUBE_USED)
            self.append(commands.plain(commands.LIST_TUBE_USED), fence)
            join(self.hub, fence)

    @property
    def is_connected(self) -> bool:
        return not self._closed and self.pipe.failure is None

    def _patience(self) -> gevent.Timeout:
        """A time limit of `conn_timeout` that ends its block quietly."""
        return gevent.Timeout(self._limit, False)  # type: ignore[arg-type]  # the stubs lack False
