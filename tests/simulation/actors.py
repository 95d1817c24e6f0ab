"""Who lives in a simulated world: greenlets that use gstalk as programs do, are interrupted, and write down all of it.

An actor carries out its steps. What it called, and what came of it, stands in the `Ledger`; what can be judged at once
(the reply is that of another command, a wait was too long, an exception that nobody announced) is judged here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NamedTuple

import gevent

import gstalk
from gstalk import Conn, Consumer, GstalkError, Job, Producer
from tests.simulation.network import FOREVER
from tests.simulation.program import Actor, Process, Step
from tests.simulation.servers import QUIET, Copy, RecordingClient, Server
from tests.simulation.servers import Job as ServerJob
from tests.simulation.world import World

__all__ = ["Ledger", "Life", "Putting", "StruckError"]

LONG = 200.0  # seconds: longer than a world lasts
SWIFT = 0.03  # seconds that anything takes at most while nothing happens, but for what it waits for
POLL = 0.05  # seconds that a command may stand behind a reserve
UNTIL_SERVED = 1.5  # seconds that a job may be ready, and a handler free: turns, a quiet time, a recall
REST = 0.049  # seconds in which nothing is asked where a wait was recalled
CALM = 10.0  # seconds without a recall after which half of the permits that were kept for it are lent again
TICK = 0.06  # seconds between two looks at whether a put's time is over
SLACK = 0.15  # seconds that a wait may take on top of its promise: two ticks of the put queue, and the way


class StruckError(BaseException):
    """An exception of the program's own, thrown into a call."""


class StruckOSError(OSError):
    """The same, of a class that gstalk must not take for its own."""


STRUCK = (StruckError, StruckOSError, gevent.GreenletExit, gevent.Timeout)


@dataclass
class Putting:
    """A put that was called, and what came of it."""

    body: bytes
    process: int
    servers: tuple[int, ...]
    tube: str
    params: tuple[Any, Any, Any]
    most: int  # copies that it may make
    is_of_conn: bool = False
    result: int | None = None
    error: str = ""
    sent: str | None = None

    def failed(self, error: BaseException) -> None:
        """Write down an error; the object would hold the frames that it came through."""
        self.error, self.sent = repr(error), getattr(error, "sent", None)


class Exhausted(NamedTuple):
    """A job whose handler has failed for the last time. Unless one of these has changed, it must never run again."""

    life: str  # its server's
    kicks: int
    others: int  # reservations by those who have no handlers: what they take they may release


@dataclass
class Ledger:
    """What all actors have done.

    Attributes:
        wishes: What was asked for, and so may happen to a job: (process, body or (server, id), what).
        handled: How often a handler began, by process and copy.
        exhausted: The attempts of these copies were used up when a handler failed: what was true of it then.
    """

    puts: list[Putting] = field(default_factory=list)
    wishes: set[tuple[Any, ...]] = field(default_factory=set)
    handled: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)
    exhausted: dict[tuple[int, int, int], Exhausted] = field(default_factory=dict)
    given_up: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    interrupted: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)


@dataclass
class Held:
    """A job that an actor has reserved, and what it has called for it."""

    job: Job
    conn: Conn
    server: int
    called: set[str] = field(default_factory=set)


class Life:
    """A process while it lives: what its actors share."""

    def __init__(self, world: World, ledger: Ledger, number: int, plan: Process) -> None:
        self.world, self.ledger, self.number, self.plan = world, ledger, number, plan
        self.conns: dict[int, Conn] = {}
        self.watched: dict[int, set[str]] = defaultdict(lambda: {"default"})  # by the id of a Conn
        self.born: dict[int, int] = {}  # in which of its server's lives a Conn was dialed
        self._dialing: set[int] = set()
        self.all_conns: list[Conn] = []
        self.held: list[Held] = []
        self.producer: Producer | None = None
        self.producers: list[Producer] = []
        self.stops: dict[int, tuple[float, float | None]] = {}  # of Producers, by their id: when, and the time given
        self.consumer: Consumer | None = None
        self.is_calm = False
        self.is_over = False
        self.ended: set[tuple[int, int, int]] = set()  # copies whose handler has ended
        self.giving_up: Counter[tuple[int, int, int]] = Counter()  # as `running`: `given_up_func` is at work with these
        self.ignored: dict[str, float] = {}  # tubes that `ignore` has returned for, and when
        self.stopped_at: float | None = None  # when the `receive` that runs was told to end
        self.receives = 0  # how many there were
        self.producers_made = 0
        self.closing = 0  # calls that close something, now
        self.has_dropped = False  # a Conn, which closes when nothing holds it any more
        self.was_interrupted = False  # any of its calls, ever
        self.reserving = 0  # calls that reserve, now
        self.crowded_at = 0.0  # when there were several, the last time
        self.stalled_at = FOREVER  # when a put first came to know that a server stands still
        self.cuts = 0  # connections that were cut to see whether they come back
        self.full_at = 0.0  # when all handlers had a job, the last time
        self.recalled: dict[int, float] = {}  # by server: when a wait there was recalled
        self.recalls = 0  # how many there were in this `receive`
        self.last_recall = 0.0
        self.dials: Counter[int] = Counter()  # of Conns, by server
        self.kills: list[float] = []  # when a stop may have killed handlers, and given their jobs back
        self.running: Counter[tuple[int, int, int]] = Counter()
        self.actors: list[gevent.Greenlet[..., Any]] = []
        self.doing: dict[int, Doing] = {}
        self.receiving = False
        self.children: list[gevent.Greenlet[..., Any]] = []
        options = dict(plan.options)
        if options.pop("events", False):
            options["event_func"] = self._event
        self.has_mapping = options.pop("mapping", False)  # `receive` is given a handler for each tube
        self.last_words = options.pop("given_up", "")  # what `given_up_func` does
        if self.last_words:
            options["given_up_func"] = self._given_up
        self.options: dict[str, Any] = {
            **options,
            "info_func": lambda message: None,
            "error_func": self._error,
            "retry": gstalk.RetryPolicy(**plan.retry),
        }
        self.patience = float(options["conn_timeout"])

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        if self.plan.consumes:
            self.world.on_reserved = self._chain(self.world.on_reserved)
            self.consumer = Consumer(self.uris, list(self.plan.consumes), **self.options)
        for number, actor in enumerate(self.plan.actors):
            greenlet = gevent.spawn_later(actor.start, self._act, number, actor)
            greenlet.name = f"actor {self.number}.{number}"
            self.actors.append(greenlet)

    def actors_who(self, receive: bool) -> list[gevent.Greenlet[..., Any]]:
        """Those who are in `receive`, or the others."""
        return [
            greenlet for greenlet, actor in zip(self.actors, self.plan.actors, strict=True) if actor.receives == receive
        ]

    @property
    def uris(self) -> list[str]:
        return [self.world.address(self.number, server) for server in self.plan.servers]

    @property
    def is_ending(self) -> bool:
        """Whether it is closing connections by itself."""
        return self.is_over or self.stopped_at is not None or self.closing > 0 or self.has_dropped

    @property
    def is_clean(self) -> bool:
        """Whether nothing has come between this process and its servers, nor kept it from looking at them."""
        return self.number not in self.world.disturbed and self.world.blocked < 0.5

    def _chain(self, before: Any) -> Any:
        def reserved(server: Server, copy: Copy, client: RecordingClient) -> None:
            before(server, copy, client)
            if client.process == self.number:
                self._look_at_tube(copy)
                self._look_at_stop(copy)
                self._count_reserved()

        return reserved

    def _look_at_tube(self, copy: Copy) -> None:
        """When `ignore` has returned, no more jobs of that tube are reserved."""
        if self.is_clean and copy.tube in self.ignored and copy in self._reserved:
            self.world.violation("ignored", f"process {self.number} was given a job of {copy.tube!r}")

    @property
    def _reserved(self) -> list[Copy]:
        """What this process has reserved, but for connections that are ending."""
        return [copy for server in self.world.servers for copy in server.reserved_by(self.number, True)]

    def note_stop(self, seconds: float = 0.0) -> None:
        """In so many seconds the `receive` that runs is told to end."""
        if seconds:  # perhaps of one that is about to begin
            self.world.loop.after(seconds, partial(self._stopped, self.receives + (not self.receiving)))
        else:
            self._stopped(self.receives)

    def _stopped(self, receives: int) -> None:
        world = self.world
        if self.stopped_at is not None or not self.receiving or self.receives != receives:
            return
        self.stopped_at = world.now()

        def look() -> None:
            world.loop.after(0.3, partial(self._look_for_forgotten, receives, self._idle()))

        if world.program.latency < 0.005:
            world.loop.after(0.4, look)

    def _idle(self) -> set[tuple[int, int, int, int]]:
        """What is reserved, and no handler works at."""
        return {
            (*name, copy.reserved[self.number])
            for copy in self._reserved
            if not self.running[name := (copy.server, copy.epoch, copy.id)] and not self.giving_up[name]
        }

    def _look_for_forgotten(self, receives: int, before: set[tuple[int, int, int, int]]) -> None:
        """A Consumer that lets its handlers finish keeps no other jobs meanwhile."""
        is_the_same = self.receives == receives and self.receiving
        still = before & self._idle()
        if still and is_the_same and self.is_clean and not self.world.faults["full"]:
            self.world.violation("idle", f"process {self.number} was stopped, and keeps {still}")

    def _look_at_stop(self, copy: Copy) -> None:
        """When a Consumer was told to stop, it reserves no more."""
        world = self.world
        is_late = self.stopped_at is not None and world.now() > self.stopped_at + world.way + world.blocked
        if is_late and self.is_clean and copy in self._reserved:
            world.violation("stopped", f"process {self.number} has reserved {copy.id} after its stop")

    def became_ready(self, server: Server, job: ServerJob) -> None:
        """A job of a tube that is watched is taken soon, where a handler is free all the time."""
        world, began, entry = self.world, self.world.now(), server.entries[job]
        if self.consumer is None or not self.receiving or self.plan.changes_tubes or not self.is_clean:
            return
        if server.number not in self.plan.servers or job.tube.name.decode() not in self.plan.consumes:
            return
        receives = self.receives

        def look() -> None:
            if server.engine.jobs.get(job.id) is not job or job.state != "ready" or server.entries[job] != entry:
                return
            if self.receives != receives or self.stopped_at is not None or not self.receiving or not self.is_clean:
                return
            if world.faults["pause"] or world.faults["full"] or self.ledger.calls["pause_tube"]:
                return
            self._look_whether_full()
            if self.full_at < began:
                world.violation("starved", f"job {job.id} of server {server.number} waits for process {self.number}")

        world.loop.after(UNTIL_SERVED, look)

    def _look_whether_full(self) -> None:
        """A handler works on when its job's time is over, as does `given_up_func`, and may have it once more."""
        names = {(copy.server, copy.epoch, copy.id) for copy in self._reserved}
        waiting = sum(not (self.running[name] or self.giving_up[name]) for name in names)
        busy = sum(self.running.values()) + sum(self.giving_up.values())
        if waiting + busy >= self.plan.options["num_greenlets"]:
            self.full_at = self.world.now()

    def half_closed(self, server: int) -> None:
        """A Consumer's wait is recalled for another server's sake alone, and at most once a second."""
        now, world = self.world.now(), self.world
        self.recalls += 1
        self.last_recall = now
        if not self.receiving or self.stopped_at is not None or self.plan.changes_tubes or world.blocked:
            return
        others = [number for number in self.plan.servers if number != server]
        if not any(near.is_connected for number in others for near in world.living(self.number, number)):
            world.violation("recalled", f"process {self.number} has recalled its wait at {server}, the only one it has")
        if not world.is_swift:
            return
        if self.plan.options.get("multiply", 1) == 1 and now - self.recalled.get(server, 0.0) < 0.95:
            world.violation("recalled", f"process {self.number} has recalled its wait at {server} twice in a second")
        self.recalled[server] = now

    @property
    def kept(self) -> int:
        """Permits that are kept from waits at most: one for each recall, half as many after each calm time."""
        return self.recalls >> int((self.world.now() - self.last_recall) / CALM)

    def dialed(self, server: int) -> None:
        """A wait that is recalled has ended when the new connection is dialed; else it could win the next job."""
        is_alone = self.plan.conns.count(server) == 1 and self.is_clean and not self.has_dropped
        if is_alone and self.world.servers[server].keeps_waiting(self.number, but_leaving=True):
            self.world.violation("recalled", f"process {self.number} dials {server}, where its Conn still waits")

    def asked(self, server: int) -> None:
        """A server whose wait was recalled is not asked at once: it would be asked as often as all the others."""
        rested = self.world.now() - self.recalled.get(server, 0.0)
        if rested < REST and self.plan.options.get("multiply", 1) == 1 and self.is_clean:
            self.world.violation("recalled", f"process {self.number} asks {server} {rested:.3f} s after its recall")

    def _count_reserved(self) -> None:
        # Forgotten timeouts may strike together: then a job is given back while the next one is asked for.
        was_struck = self.world.blocked and "forget-timeout" in self.plan.handlers
        if not self.is_clean or was_struck:
            return
        self._look_whether_full()
        count = sum((copy.server, copy.epoch, copy.id) not in self.ended for copy in self._reserved)
        if count > self.plan.options["num_greenlets"]:
            self.world.violation("permits", f"{count} jobs reserved by process {self.number}")

    def _event(self, event: gstalk.Event) -> None:
        self.ledger.told[event.kind] += 1

    def _error(self, error: BaseException, message: str) -> None:
        self.ledger.told["error"] += 1
        self.world.trace(f"process {self.number}", f"told: {message}: {error!r}")
        if not isinstance(error, (GstalkError, HandlerError, *STRUCK)):
            self.world.violation("told", f"{message}: {error!r}")

    # -- steps -------------------------------------------------------------------------------------------------

    def _act(self, number: int, actor: Actor) -> None:
        for place, step in enumerate(actor.steps):
            if self.is_over:
                return
            if self.number in self.world.dead and step.what != "receive-on":
                continue
            doing = self.doing[number] = Doing(self, actor, step, f"{number}.{place}")
            try:
                doing.run()
            except STRUCK as error:
                if isinstance(error, gevent.Timeout) and error is not doing.limit and not doing.is_struck:
                    self.world.violation("foreign timeout", f"{doing}: {error!r}")
            finally:
                del self.doing[number]

    def conn(self, which: int) -> tuple[Conn, int]:
        """A Conn of this process, dialed anew if it is broken."""
        which %= len(self.plan.conns)
        while which in self._dialing:
            gevent.sleep(0.01)
        found = self.conns.get(which)
        server = self.plan.conns[which]
        if found is None or not found.is_connected:
            self._dialing.add(which)
            self.dials[server] += 1
            try:
                found = self.conns[which] = gstalk.dial(self.world.address(self.number, server), **self.options)
                self.all_conns.append(found)
                self.born[id(found)] = len(self.world.servers[server].lives)
            finally:
                self._dialing.discard(which)
        return found, server

    def make_producer(self) -> Producer:
        if self.producer is None:
            self.producer = Producer(self.uris, **self.options)
            self.producers.append(self.producer)
            self.producers_made += 1
        return self.producer

    # -- a Consumer's handlers ---------------------------------------------------------------------------------

    @property
    def handlers(self) -> Any:
        """What `receive` is given."""
        return {tube: self.handler_of(tube) for tube in self.plan.consumes} if self.has_mapping else self.handle

    def handler_of(self, tube: str) -> Callable[[Job], None]:
        def handle(job: Job) -> None:
            if job.tube != tube:
                self.world.violation("tube", f"a job of {job.tube!r} reached the handler of {tube!r}")
            self.handle(job)

        return handle

    def handle(self, job: Job) -> None:
        server = self.server_of(job)
        copy = server.find(job.id, job.body)
        if copy is None:
            if not server.was_hostile:
                self.world.violation("reply", f"a handler got job {job.id} of {job.uri} with another's body")
            self.ledger.wishes.add((self.number, (server.number, job.id), "delete"))
            return
        name = copy.server, copy.epoch, copy.id
        key = (self.number, *name)
        self.ledger.handled[key] += 1
        if self.ledger.handled[key] > copy.reserved[self.number]:
            self.world.violation("handled twice", f"job {name} was handled more often than reserved")
        if copy.tube not in self.plan.consumes and not self.plan.changes_tubes:
            self.world.violation("tube", f"a job of {copy.tube!r} reached a Consumer of {self.plan.consumes}")
        if self.world.is_swift and self.world.now() > copy.reserved_at + SWIFT:
            self.world.violation("at once", f"job {name} was reserved {self.world.now() - copy.reserved_at:.3f} s ago")
        self.running[name] += 1
        began, was_blocked = self.world.now(), self.world.blocked
        self.ledger.told["handler"] += 1
        self.ended.discard(name)
        live = server.engine.jobs.get(job.id)
        attempt = live.reserves if live is not None else 1
        self._look_at_attempts(copy, live.kicks if live is not None else 0)
        what = self.plan.handlers[(copy.id + attempt) % len(self.plan.handlers)] if not self.is_calm else "finish"
        self.world.trace(f"handler {self.number}", f"job {name}, attempt {attempt}: {what}")
        if self.is_calm or self.plan.options.get("auto_delete") or self.plan.retry.get("exhausted") == "delete":
            self.ledger.wishes.add((self.number, job.body, "delete"))
        try:
            getattr(self, "_" + what.replace("-", "_"), self._delete)(job)
        except GstalkError as error:
            self.check_state(job, error)
            raise
        except BaseException as error:
            if what == "exit" or not isinstance(error, gevent.GreenletExit):  # which else is a stop's
                self._failed(job, copy, isinstance(error, gstalk.Bury))
            raise
        finally:
            self._look_at_end(job, self.world.now() - began, self.world.blocked - was_blocked)
            self.running[name] -= 1
            if not self.running[name]:
                self.ended.add(name)

    def _look_at_end(self, job: Job, took: float, blocked: float) -> None:
        """A handler ends."""
        self._look_whether_full()
        limit = self.plan.options.get("time_limit")
        if limit is not None and took - blocked > limit + SLACK:
            self.world.violation("time limit", f"a handler of job {job.id} ran for {took:.3f} s, not {limit}")
        is_kept = self.plan.options.get("auto_touch") and self.is_clean and not self.world.blocked
        if is_kept and job.is_lost and not self.world.faults["full"]:
            self.world.violation("touched", f"job {job.id} was lost after {took:.3f} s, in spite of auto_touch")

    def _failed(self, job: Job, copy: Copy, is_buried: bool) -> None:
        """A handler fails: when the job's attempts are used up, that was its last one.

        Args:
            is_buried: As the handler wishes, and so not given up.
        """
        world, server = self.world, self.world.servers[copy.server]
        live, most = server.engine.jobs.get(job.id), self.plan.retry["max_attempts"]
        if live is None or most is None or live.reserves < most * (live.kicks + 1):
            return
        # What may come between: a line that breaks, a server that refuses the bury, the end of the job's ttr, a stop.
        told = job.reserved_at is not None and world.now() + 1.0 + world.way < job.reserved_at + copy.ttr
        if not told or job._state != "held" or not self.is_clean or world.faults["full"]:
            return
        exhausted = Exhausted(server.lives[-1], live.kicks, copy.reserved_elsewhere(world.program))
        self._was_exhausted((copy.server, copy.epoch, copy.id), exhausted, is_buried)

    def _was_exhausted(self, name: tuple[int, int, int], exhausted: Exhausted, is_buried: bool = False) -> None:
        """Its attempts are used up. It is asked about, and then settled, unless a stop kills whoever does that."""
        world, now, blocked = self.world, self.world.now(), self.world.blocked

        def look() -> None:
            nonlocal blocked
            if (computed := world.blocked - blocked) > 0:  # perhaps it still does; then all begins anew
                blocked = world.blocked
                world.loop.after(computed + 2 * world.way, look)
                return
            was_killed = any(now <= at <= world.now() for at in self.kills)
            if self.giving_up[name] or was_killed or not self.is_clean or world.faults["full"]:
                return
            self.ledger.exhausted[name] = exhausted
            if self.last_words and not is_buried and not self.ledger.given_up[name]:
                world.violation("given up", f"job {name} was, and nobody was told")

        world.loop.after(2 * world.way, look)

    def _given_up(self, job: Job, error: BaseException) -> None:
        """The `given_up_func`."""
        self.ledger.told["given up"] += 1
        server = self.server_of(job)
        copy, live = server.find(job.id, job.body), server.engine.jobs.get(job.id)
        most = self.plan.retry["max_attempts"]
        if copy is None or live is None or not self.is_clean or self.world.faults["full"]:
            return
        name = copy.server, copy.epoch, copy.id
        if job.is_finished or job.is_lost or most is None or live.reserves < most:
            self.world.violation("given up", f"job {name} after {live.reserves} attempts of {most}: {error!r}")
        self.ledger.given_up[name] += 1
        # Its time may be over while `given_up_func` is at work: then nothing can be done with it, and it runs again.
        again = live.kicks + live.timeouts
        if self.ledger.given_up[name] > again + 1 and not copy.reserved_elsewhere(self.world.program):
            self.world.violation("given up", f"job {name} was given up more often than kicked")
        exhausted = self.ledger.exhausted.pop(name, None)
        self.giving_up[name] += 1
        try:
            if self.last_words == "raise":
                raise HandlerError
            if self.last_words == "hang":
                gevent.sleep(3)
            elif self.last_words == "dead letter":
                self.make_producer().put("dead", b"%d.%d.%d" % name, timeout=1)
                self._delete(job)
        except gevent.GreenletExit:  # a stop: the job is given back, and will be given up again
            self.ledger.given_up[name] -= 1
            raise
        finally:
            self.giving_up[name] -= 1
            self._look_whether_full()
            if exhausted is not None:
                self._was_exhausted(name, exhausted)

    def server_of(self, job: Job) -> Server:
        return self.world.servers[int(job.uri.rpartition(":")[0].rpartition(".")[2])]

    def _look_at_attempts(self, copy: Copy, kicks: int) -> None:
        server = self.world.servers[copy.server]
        name = copy.server, copy.epoch, copy.id
        now = Exhausted(server.lives[-1], kicks, copy.reserved_elsewhere(self.world.program))
        if self.ledger.exhausted.get(name) == now:
            self.world.violation("attempts", f"job {name} runs again, though its attempts are used up")

    def wish(self, job: Job, what: str, priority: int | None = None) -> None:
        self.ledger.wishes.add((self.number, job.body, what))
        if priority is not None:
            self.ledger.wishes.add((self.number, job.body, "priority", priority))

    def _delete(self, job: Job) -> None:
        self.wish(job, "delete")
        job.delete()
        self.was_deleted(job)

    def check_state(self, job: Job, error: BaseException, settles: bool = True) -> None:
        """An error of a job's method says what has become of the job.

        Args:
            settles: Whether that was its delete, release or bury. While somebody's is under way, its answer alone says
                what becomes of the job; a touch beside it may hear before that that the job isn't there.
        """
        is_lost = isinstance(error, gstalk.JobLostError)
        is_open = not settles and job._state == "settling"
        if is_lost and not (job.is_lost or job.is_finished or is_open):
            self.world.violation("lost", f"job {job.id}: {error}, but it isn't lost")
        if job.is_lost and job.is_finished:
            self.world.violation("lost", f"job {job.id} is finished and lost")

    def was_deleted(self, job: Job) -> None:
        server = self.server_of(job)
        copies = [copy for copy in server.by_body.get(job.body, []) if copy.id == job.id]
        if not any(copy.deleted_by is not None for copy in copies):
            self.world.violation("delete", f"job {job.id} of {job.uri} was said to be deleted")
        if not job.is_finished:
            self.world.violation("finished", f"job {job.id} was deleted and isn't finished")

    def _finish(self, job: Job) -> None:
        if not self.plan.options.get("auto_delete"):
            self._delete(job)

    def _nothing(self, job: Job) -> None:
        pass

    def _raise(self, job: Job) -> None:
        raise HandlerError

    def _retry(self, job: Job) -> None:
        raise gstalk.Retry(delay=0 if self.ledger.told["handler"] < 50 else 2)  # else it goes round in no time

    def _retry_later(self, job: Job) -> None:
        self.wish(job, "release", 77)
        raise gstalk.Retry(delay=1, priority=77)

    def _bury(self, job: Job) -> None:
        self.wish(job, "bury")
        raise gstalk.Bury

    def _sleep(self, job: Job) -> None:
        gevent.sleep(0.05)
        self._delete(job)

    def _hang(self, job: Job) -> None:
        gevent.sleep(20)
        self._delete(job)

    def _overrun(self, job: Job) -> None:
        gevent.sleep(2.5)
        self._delete(job)

    def _touch(self, job: Job) -> None:
        for _ in range(4):
            gevent.sleep(0.4)
            job.touch()
        self._delete(job)

    def _release(self, job: Job) -> None:
        self.wish(job, "release")
        job.release(delay=1)

    def _bury_self(self, job: Job) -> None:
        self.wish(job, "bury", 5)
        job.bury(priority=5)

    def _spawn(self, job: Job) -> None:
        def later() -> None:
            try:
                gevent.sleep(0.01)
                self._delete(job)
            except GstalkError:
                pass

        self.children.append(gevent.spawn(later))
        gevent.sleep(0.02)

    def _exit(self, job: Job) -> None:
        raise gevent.GreenletExit

    def _forget_timeout(self, job: Job) -> None:
        timeout = gevent.Timeout(0.01, StruckError)
        timeout.start()
        self._delete(job)

    def _timeout(self, job: Job) -> None:
        self.wish(job, "delete")
        with gevent.Timeout(0.0002, False):  # type: ignore[arg-type]  # the stubs lack False
            job.delete()

    def _put(self, job: Job) -> None:
        self.make_producer().put("handled", b"by a handler", timeout=1)  # one that nobody watches
        self._delete(job)

    def _peek(self, job: Job) -> None:
        if job.stats().id != job.id or job.time_left() < 0:
            self.world.violation("reply", f"stats of job {job.id}")
        self._delete(job)

    def _compute(self, job: Job) -> None:
        self.compute(0.3)
        self._delete(job)

    def _twice(self, job: Job) -> None:
        self._delete(job)
        try:
            job.touch()
        except gstalk.JobFinishedError:
            return
        self.world.violation("finished", f"job {job.id} could be touched after its delete")

    def compute(self, seconds: float) -> None:
        self.world.blocked += seconds  # first: the world goes on meanwhile, and is looked at
        self.world.loop.compute(seconds)


class HandlerError(Exception):
    """What a handler fails with."""


class Doing:
    """One step while it is done."""

    def __init__(self, life: Life, actor: Actor, step: Step, name: str) -> None:
        self.life, self.actor, self.step, self.name = life, actor, step, name
        self.world, self.ledger = life.world, life.ledger
        self.rng = Random(step.pick)
        self.limit: gevent.Timeout | None = None
        self.is_struck = False
        self._is_over = False

    def __str__(self) -> str:
        return f"process {self.life.number} step {self.name}: {self.step.what}{self.step.args}"

    def run(self) -> None:
        step = self.step
        self.ledger.calls[step.what] += 1
        me = gevent.getcurrent()
        if step.strike is not None:
            self.world.loop.after_events(step.strike, lambda: self._strike(me))
        began, was_blocked = self.world.now(), self.world.blocked
        if self.world.is_traced:
            self.world.trace(f"actor {self.life.number}.{self.name}", f"{step.what} {step.args} ...")
        outcome: Any = None
        closes = step.what in ("close", "stop_producer")
        self.life.closing += closes
        try:
            if step.limit is not None:
                self.limit = gevent.Timeout(step.limit)
                self.limit.start()
                self._note_kill(step.limit)
            outcome = getattr(self, "_" + step.what.replace("-", "_"))(*step.args)
            self._look_at_conn(began)
        except GstalkError as error:
            outcome = error
            if isinstance(error, gstalk.InvalidArgumentError):
                self.world.violation("argument", f"{self}: {error}")
        except STRUCK as error:
            outcome = error
            self.ledger.interrupted[step.what] += 1
            self.life.was_interrupted = True
            took = self.world.now() - began - (self.world.blocked - was_blocked)
            if error is self.limit and step.what not in SLOW and took > (step.limit or 0.0) + 0.02:
                self.world.violation("prompt", f"{self}: ended {took:.3f} s after a timeout of {step.limit}")
            raise
        except BaseException as error:
            outcome = error
            raise
        finally:
            self._is_over = True
            self.life.closing -= closes
            if self.limit is not None:
                self.limit.close()
            if self.world.is_traced:
                self.world.trace(f"actor {self.life.number}.{self.name}", f"... {step.what}: {outcome!r}"[:300])

    def _look_at_conn(self, began: float) -> None:
        """A Conn does not outlive its server's process: ids would mean other jobs."""
        conn = self.life.conns.get(self.actor.conn % len(self.life.plan.conns)) if self.life.plan.conns else None
        if conn is not None and conn.is_connected and self.step.what in ASKING:
            server, faults = self.world.servers[self._server], self.world.faults
            told = self.world.way  # so long the end of the stream may take
            if faults["stall"] or faults["blackhole"]:
                return
            if self.life.born[id(conn)] < len(server.lives) and server.died_at < began - told:
                self.world.violation("another server", f"{self}: worked on a Conn that was dialed before a restart")

    def _strike(self, greenlet: Any) -> None:
        if not self._is_over:
            self.is_struck = True
            kind = STRUCK[self.step.pick % 3]
            self.world.trace("STRIKE", f"{self}: {kind.__name__}")
            self._note_kill(0.0)
            greenlet.kill(kind(), block=False)

    def _note_kill(self, seconds: float) -> None:
        """An interruption that comes in so many seconds is a stop, if this is a `receive`."""
        if self.step.what.startswith("receive"):
            self.life.kills.append(self.world.now() + seconds + self.life.plan.options["stop_timeout"])
            self.life.note_stop(seconds)

    @contextmanager
    def within(self, seconds: float, what: str = "wait", swift: float | None = None) -> Iterator[None]:
        """A wait that is to end in time, whatever happens. `swift`: what it may take while nothing happens."""
        began, was_blocked = self.world.now(), self.world.blocked
        try:
            yield
        except GstalkError:
            swift = None  # it has told what was in its way
            self._look_at_time(began, was_blocked, seconds, what, swift)
            raise
        self._look_at_time(began, was_blocked, seconds, what, swift)

    def _look_at_time(self, began: float, was_blocked: float, seconds: float, what: str, swift: float | None) -> None:
        took = self.world.now() - began - (self.world.blocked - was_blocked)
        if swift is not None and self.world.is_swift and took > swift + SWIFT:
            self.world.violation("swift", f"{self}: took {took:.3f} s, though nothing was in its way")
        if took > seconds + SLACK:
            self.world.violation(what, f"{self}: took {took:.3f} s, at most {seconds} s promised")

    # -- steps -------------------------------------------------------------------------------------------------

    def _sleep(self, seconds: float) -> None:
        gevent.sleep(seconds)

    def _compute(self, seconds: float) -> None:
        self.life.compute(seconds)

    def _putting(self, tube: str, size: int, params: tuple[Any, Any, Any], most: int, number: int = 0) -> Putting:
        body = b"%d.%s.%d %d|" % (self.life.number, self.name.encode(), number, self.step.pick) + bytes(size)
        servers = self.life.plan.servers if not self.life.plan.conns else (self._server,)
        putting = Putting(body, self.life.number, servers, tube, params, most, bool(self.life.plan.conns))
        self.ledger.puts.append(putting)
        return putting

    @property
    def _server(self) -> int:
        return self.life.plan.conns[self.actor.conn % len(self.life.plan.conns)]

    def _bound(self) -> float:
        """Seconds that a command may take that isn't a reserve: a recall's end and dial, what is before it, itself."""
        return 4 * self.life.patience + 0.5

    def _put(self, tube: str, size: int, priority: Any, delay: Any, ttr: Any, timeout: float) -> None:
        options = {"priority": priority, "delay": delay, "ttr": ttr}
        if self.life.plan.conns:
            conn, _ = self.life.conn(self.actor.conn)
            putting = self._putting(tube, size, (priority, delay, ttr), 1)
            with self._outcome(putting), self.within(self._bound(), "wait", POLL):
                putting.result = conn.put(tube, putting.body, **options)
        else:
            most = 1 if self.life.plan.options.get("retry_ambiguous") is False or timeout == 0 else 3
            producer = self.life.make_producer()
            putting = self._putting(tube, size, (priority, delay, ttr), most)
            began = self.world.now()
            try:
                with self._outcome(putting), self.within(timeout or self._bound(), "put's time", 0.0):
                    putting.result = producer.put(tube, putting.body, timeout=timeout, **options)
                self._look_at_stall(began)
            except gstalk.ConnectionClosedError as error:
                stopped_at, limit = self.life.stops.get(id(producer), (0.0, 0))
                if limit is None and began < stopped_at and not self.world.faults and not self.world.blocked:
                    self.world.violation("stop", f"{self}: {error!r}, though it was under way when all was well")
                raise
            except GstalkError as error:
                self._look_at_refusal(error, timeout, began)
                raise

    def _look_at_stall(self, began: float) -> None:
        """A server that stalled gets no more puts until it has answered again. Called when a put has ended."""
        life, world = self.life, self.world
        now = world.now()
        frozen = any(world.servers[number].frozen_until > now for number in life.plan.servers)
        is_alone = sum(world.faults.values()) == 1 and not world.blocked and len(life.plan.servers) > 1
        if not (frozen and is_alone and world.program.latency <= 0.001 and now - began > 0.9 * life.patience):
            return
        if began > life.stalled_at:
            world.violation("stalled", f"{self}: waited {now - began:.3f} s for a server that had stalled already")
        life.stalled_at = min(life.stalled_at, now)

    def _look_at_refusal(self, error: GstalkError, timeout: float, began: float) -> None:
        """A put fails only if no server takes it; if all refuse it, that is what it says."""
        life, world = self.life, self.world
        servers = [world.servers[number] for number in life.plan.servers]
        if isinstance(error, gstalk.PutTimeoutError):
            places = [world.address(life.number, number) for number in life.plan.servers]
            if not all(any(place in uri for place in places) for uri in error.causes):
                world.violation("causes", f"{self}: {error.causes}")
            refuse = all(each.refuses_since is not None and each.refuses_since < began for each in servers)
            if refuse and timeout >= 3 and life.is_clean:
                world.violation("refused", f"{self}: {error!r}, though all servers had refused it")
        elif not isinstance(error, (gstalk.DisconnectedError, gstalk.DrainingError, gstalk.OutOfMemoryError)):
            return
        has_time = timeout >= 3 * life.patience and not world.blocked and life.number not in world.dead
        may_try = life.plan.options.get("retry_ambiguous") is not False and life.producer is not None
        if has_time and may_try and not set(life.plan.servers) <= world.troubled:
            world.violation("another", f"{self}: {error!r}, though a server was there all the time")

    @contextmanager
    def _outcome(self, putting: Putting) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            putting.failed(error)
            if isinstance(error, gstalk.BuriedError):
                putting.result = error.job_id
            raise

    def _put_many(self, tube: str, count: int, size: int, timeout: float) -> None:
        if self.life.plan.conns:
            put_many: Callable[..., Any] = self.life.conn(self.actor.conn)[0].put_many
            puttings = [self._putting(tube, size, (None, None, None), 1, number) for number in range(count)]
        else:
            producer = self.life.make_producer()
            put_many = lambda *args: producer.put_many(*args, timeout=timeout)  # noqa: E731
            most = 1 if self.life.plan.options.get("retry_ambiguous") is False else 3
            puttings = [self._putting(tube, size, (None, None, None), most, number) for number in range(count)]
        try:
            # Where no connection is, a body is taken when the time of the one before it is over.
            each = (timeout + TICK) * count if self.world.program.faults else timeout
            bound = self._bound() if self.life.plan.conns else each
            with self.within(bound, "put_many", POLL):
                results = put_many(tube, (putting.body for putting in puttings))
        except gstalk.PutManyError as error:
            results = error.results
        except BaseException as error:
            for putting in puttings:
                putting.failed(error)
            raise
        for number, putting in enumerate(puttings):
            result = results[number] if number < len(results) else gstalk.ConnectionClosedError("not taken", "no")
            if isinstance(result, int):
                putting.result = result
            else:
                putting.failed(result)
        if len(results) < count and all(isinstance(result, int) for result in results):
            self.world.violation("put_many", f"{self}: {len(results)} results of {count}")

    # -- reserving ---------------------------------------------------------------------------------------------

    def _got(self, conn: Conn, server: int, job: Job | None) -> None:
        if job is None:
            return
        copy = self.world.servers[server].find(job.id, job.body)
        if copy is None:
            if not self.world.servers[server].was_hostile:
                self.world.violation("reply", f"{self}: got job {job.id} with another's body")
            return
        if self.step.what != "reserve_job" and copy.tube not in self.life.watched[id(conn)]:
            self.world.violation("tube", f"{self}: got a job of {copy.tube!r}, which is not watched")
        if job.tube is not None and job.tube != copy.tube:
            self.world.violation("tube", f"{self}: job {job.id} is said to be of {job.tube!r}")
        older = [each.job for each in self.life.held if each.conn is conn and each.job.id == job.id]
        if any(each._state == "held" for each in older):
            self.world.violation("lost", f"{self}: job {job.id} was reserved again, and the Job of before isn't lost")
        self.life.held.append(Held(job, conn, server))

    def _reserve(self) -> None:
        conn, server = self.life.conn(self.actor.conn)
        with self._sent(server):
            job = conn.reserve()
        self._got(conn, server, job)

    @contextmanager
    def _sent(self, server: int) -> Iterator[None]:
        """A reserve that the server has, and hasn't answered, may have been acted upon; here for one caller alone."""
        life, began = self.life, self.world.now()
        life.reserving += 1
        if life.reserving > 1:
            life.crowded_at = began
        try:
            yield
        except gstalk.DisconnectedError as error:
            is_alone = self.world.connects[life.number, server] == 1 and life.crowded_at < began
            is_alone = is_alone and not life.was_interrupted
            if error.sent == "no" and is_alone:
                if self.world.servers[server].keeps_waiting(life.number):
                    self.world.violation("sent", f"{self}: {error!r}, but the server has it")
                clients = self.world.servers[server].clients_of(life.number)
                self.world.loop.after(2 * self.world.way, partial(self._look_at_unsent, clients, began))
            raise
        finally:
            life.reserving -= 1

    def _look_at_unsent(self, clients: list[RecordingClient], began: float) -> None:
        """No job was given to whoever was told that nothing was asked for."""
        if any(each.given_at >= began for each in clients):
            self.world.violation("sent", f"{self}: it was said to be unsent, and the server has given a job")

    def _reserve_with_timeout(self, timeout: float) -> None:
        conn, server = self.life.conn(self.actor.conn)
        before = self._certain(server)
        with self._sent(server), self.within(timeout + self._bound(), "reserve's time", timeout):
            job = conn.reserve_with_timeout(timeout)
        if job is None and (still := before & self._certain(server)) and self.life.is_clean:
            self.world.violation("none", f"{self}: got none, and {still} were ready all the time")
        self._got(conn, server, job)

    def _certain(self, server: int) -> set[tuple[int, int]]:
        """Jobs that any reserve of this process's at this server would get, and how often each was reserved."""
        engine = self.world.servers[server].engine
        clients = [each for each in engine.clients if each.process == self.life.number]  # type: ignore[attr-defined]
        if any(not each.job.is_finished and not each.job.is_lost for each in self.life.held):
            return set()  # their time may be over soon, and then nothing is asked for a while
        if any(self.world.now() < each.soon_at + QUIET + self.world.way for each in clients):  # type: ignore[attr-defined]
            return set()  # such a time it is
        watched = [{tube.name for tube in each.watched} for each in clients]
        names = set.intersection(*watched) if watched else set()
        tubes = [engine.tubes[name] for name in names if not engine.tubes[name].pause]
        return {(job.id, job.reserves) for tube in tubes for job in tube.ready}

    def _reserve_job(self) -> None:
        conn, server = self.life.conn(self.actor.conn)
        with self.within(self._bound(), "wait", POLL):
            job = conn.reserve_job(self._any_id(server))
        self._got(conn, server, job)

    def _any_id(self, server: int) -> int:
        return self.rng.randint(1, max(len(self.world.servers[server].copies), 1))

    # -- what becomes of jobs ----------------------------------------------------------------------------------

    def _settle(self, what: str, priority: int | None) -> None:
        held = [each for each in self.life.held if not each.called & {"delete", "release", "bury"}]
        if not held:
            return
        each = held[self.step.pick % len(held)]
        job = each.job
        if what == "drop":
            self.life.wish(job, "drop")
            self.life.held.remove(each)
            return
        each.called.add(what)
        self.life.wish(job, what, priority)
        options = {"priority": priority} if what in ("release", "bury") else {}
        try:
            with self.within(self._bound(), "wait", POLL):
                result = getattr(job, what)(**options)
        except GstalkError as error:
            self.life.check_state(job, error, what in ("delete", "release", "bury"))
            raise
        if what == "delete":
            self.life.was_deleted(job)
        elif what in ("release", "bury"):
            self._was_settled(each, what)
        elif isinstance(result, gstalk.JobStats) and (result.id, result.tube) != (job.id, job.tube):
            self.world.violation("reply", f"{self}: stats of another job")
        elif what == "time_left":
            # A server that has not noticed the end of the job's time says since when that is over.
            least = 0 if self.world.program.servers[each.server].silent_expiry else -LONG
            if not least <= result <= 60:
                self.world.violation("reply", f"{self}: {result} s")

    def _was_settled(self, each: Held, what: str) -> None:
        copies = self.world.servers[each.server].by_body.get(each.job.body, [])
        if not any(copy.id == each.job.id and copy.settled[what, self.life.number] for copy in copies):
            self.world.violation("settled", f"{self}: job {each.job.id} was said to be settled by {what}")
        if not each.job.is_finished:
            self.world.violation("finished", f"{self}: job {each.job.id} isn't finished")

    def _by_id(self, what: str) -> None:
        conn, server = self.life.conn(self.actor.conn)
        job_id = self._any_id(server)
        self.ledger.wishes.add((self.life.number, (server, job_id), what))
        with self.within(self._bound(), "wait", POLL):
            result = getattr(conn, what)(job_id)
        record = self.world.servers[server]
        if record.was_hostile:
            return
        copies = [copy for copy in record.copies.values() if copy.id == job_id]
        if what == "peek":
            # The server's peek also finds a job whose body is still to come; it shows what it has room for: zeros.
            is_known = (
                result is None or not result.body.strip(b"\0") or any(copy.body == result.body for copy in copies)
            )
            if not is_known or (result is not None and result.id != job_id):
                self.world.violation("reply", f"{self}: job {job_id} has another's body")
        elif what == "stats_job":
            if result.id != job_id:
                self.world.violation("reply", f"{self}: stats of job {result.id}, not {job_id}")
        elif what == "delete" and not any(copy.deleted_by is not None for copy in copies):
            self.world.violation("delete", f"{self}: job {job_id} was said to be deleted")

    def _by_tube(self, what: str, tube: str) -> None:
        conn, server = self.life.conn(self.actor.conn)
        with self.within(self._bound(), "wait", POLL):
            result = conn.kick(tube, 3) if what == "kick" else getattr(conn, what)(tube)
        record = self.world.servers[server]
        if record.was_hostile:
            return
        if isinstance(result, Job):
            copy = record.find(result.id, result.body)
            if copy is None or copy.tube != tube:
                self.world.violation("reply", f"{self}: got job {result.id}")
        elif isinstance(result, gstalk.TubeStats) and result.name != tube:
            self.world.violation("reply", f"{self}: stats of tube {result.name!r}")
        elif what == "kick" and not 0 <= result <= 3:
            self.world.violation("reply", f"{self}: {result} kicked")

    def _ask(self, what: str) -> None:
        conn, server = self.life.conn(self.actor.conn)
        with self.within(self._bound(), "wait", POLL):
            result = getattr(conn, what)()
        record = self.world.servers[server]
        if record.was_hostile:
            return
        if (
            (what == "stats" and result.id not in record.lives)
            or (what == "list_tubes" and "default" not in result)
            or (what == "list_tubes_watched" and not set(result) <= self.life.watched[id(conn)])
        ):
            self.world.violation("reply", f"{self}: {result}")

    def _watch(self, tube: str) -> None:
        conn, _ = self.life.conn(self.actor.conn)
        self.life.watched[id(conn)].add(tube)
        with self.within(self._bound(), "wait", POLL):
            conn.watch(tube)

    def _ignore(self, tube: str) -> None:
        conn, _ = self.life.conn(self.actor.conn)
        with self.within(self._bound(), "wait", POLL):
            conn.ignore(tube)

    def _pause_tube(self, tube: str, seconds: int) -> None:
        conn, _ = self.life.conn(self.actor.conn)
        with self.within(self._bound()):
            conn.pause_tube(tube, seconds)

    # -- ends --------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        conn, _ = self.life.conn(self.actor.conn)
        with self.within(self.life.patience, "close", POLL):
            conn.close()
        for each in self.life.held:
            if each.conn is conn and not (each.job.is_lost or each.job.is_finished):
                self.world.violation("close", f"{self}: job {each.job.id} is neither lost nor finished")
        try:
            conn.stats()
        except gstalk.ConnectionClosedError:
            return
        self.world.violation("close", f"{self}: it is used after that")

    def _drop_conn(self) -> None:
        """Forget a Conn without a word. Jobs that are held keep it, and others may be in its calls."""
        which = self.actor.conn % len(self.life.plan.conns)
        conn = self.life.conns.pop(which, None)
        self.life.has_dropped = True
        if conn is not None:
            self.life.all_conns.remove(conn)

    def _stop_producer(self, timeout: float | None) -> None:
        producer, self.life.producer = self.life.producer, None
        if producer is not None:
            began = self.world.now()
            self.life.stops[id(producer)] = (began, timeout)
            bound = 16.0 if timeout is None else timeout
            try:
                with self.within(bound + self.life.patience * 2 * len(self.life.plan.servers), "stop"):
                    producer.stop(timeout) if timeout is not None else producer.stop()
            except BaseException:  # also of a strike that was meant for the step before: then it closes at once
                self.life.stops[id(producer)] = (began, 0)
                raise
            if producer.is_connected:
                self.world.violation("stop", f"{self}: is connected after stop")
            putting = self._putting("z", 0, (None, None, None), 0)
            with suppress(gstalk.ConnectionClosedError):
                producer.put("z", putting.body)
                self.world.violation("stop", f"{self}: takes another put")

    def _wait_connected(self, timeout: float) -> None:
        producer = self.life.make_producer()
        with self.within(timeout, "wait", 0.0):
            is_connected = producer.wait_connected(timeout)
        if is_connected != producer.is_connected:
            self.world.violation("reply", f"{self}: {is_connected}")

    def _receive(self, seconds: float, timeout: float | None) -> None:
        """Receive for so long."""
        consumer = self.life.consumer
        assert consumer is not None
        limit = self.life.plan.options["stop_timeout"] if timeout is None else timeout

        def stop() -> None:
            self.life.kills.append(self.world.now() + limit)
            self.life.note_stop()
            consumer.stop() if timeout is None else consumer.stop(timeout=timeout)

        stopper = gevent.spawn_later(seconds, stop)
        try:
            self.receive(seconds + limit)
        finally:
            stopper.kill()

    def _receive_on(self) -> None:
        """Receive until the end of the world; it is stopped by whoever ends that."""
        self.receive(FOREVER)

    def _change_tubes(self, what: str, tube: str) -> None:
        """Have a Consumer watch a tube, or ignore one, while its `receive` runs or before it."""
        life, consumer = self.life, self.life.consumer
        assert consumer is not None
        if what == "watch":
            life.ignored.pop(tube, None)
        was, before = life.receiving, consumer.tubes
        try:
            with self.within(self._bound()):
                if what == "watch":
                    consumer.watch(tube, life.handler_of(tube) if life.has_mapping else None)
                else:
                    consumer.ignore(tube)
                    if was and life.receiving and life.stopped_at is None:
                        life.ignored[tube] = self.world.now()
        except gstalk.NotIgnoredError:
            if before != [tube]:
                self.world.violation("tubes", f"{self}: refused, though {before} were watched")
        else:
            if (tube in consumer.tubes) != (what == "watch"):
                self.world.violation("tubes", f"{self}: {consumer.tubes} are watched")

    def receive(self, bound: float) -> None:
        consumer = self.life.consumer
        assert consumer is not None
        self.life.receiving, self.life.stopped_at = True, None
        self.life.receives += 1
        self.life.recalled.clear()
        self.life.recalls = 0
        try:
            with self.within(bound + 3.0, "receive"):
                consumer.receive(self.life.handlers)
        finally:
            self.life.receiving = False
            # A server without memory may refuse to take a job back; then the connection's end makes it.
            if self.life.is_clean and not self.world.blocked and not self.world.faults["full"]:
                left = [(copy.server, copy.id) for s in self.world.servers for copy in s.reserved_by(self.life.number)]
                if left:
                    self.world.violation("reservations", f"{self}: receive has returned, and {left} are reserved")
            if consumer.is_connected:
                self.world.violation("receive", f"{self}: is connected after it")


ASKING = {"put", "by_id", "by_tube", "ask"}  # what has an answer of the server's, when it ends well
SLOW = {"receive", "receive-on", "close", "stop_producer"}  # an interruption ends these only after some more work
