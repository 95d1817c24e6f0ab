"""An in-memory beanstalkd 1.12 without I/O and without a clock: bytes in, bytes out, and `now` is an argument.

Stand-alone on purpose: it shares no code with the client, since a fake that shares the client's parser shares its
mistakes. One conformance suite runs against it and against the real server, and it is right where they agree.

`Engine` keeps tubes and jobs; a `Client`, in `wire`, is a connection. `Engine.run` gives clients their turns, `tick`
carries out what is due at `now`, and `next_deadline` tells when something will be.

**Turns.** The real server waits with epoll for one event at a time, and so do we: whoever has something to do is
appended to a list; the first of the list gets a turn, and goes to its end. Those that a turn has woken are appended
behind it, the last one woken first, because the server gathers them on a stack.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from gstalk.testing.wire import Client

__all__ = ["Agenda", "Bag", "Engine", "Job", "Tube"]

URGENT = 1024  # jobs of a smaller priority are counted as urgent
_STATES = ("urgent", "ready", "reserved", "delayed", "buried")
_COUNTED = (
    "put peek peek-ready peek-delayed peek-buried reserve reserve-with-timeout delete release use watch ignore bury "
    "kick touch stats stats-job stats-tube list-tubes list-tube-used list-tubes-watched pause-tube"
).split()

T = TypeVar("T")


class Bag(list[T]):
    """The server's own kind of set. Its order can be seen: what is removed leaves its place to the last one."""

    _turn = 0

    def remove(self, item: T) -> None:
        where = self.index(item)
        self[where] = self[-1]
        self.pop()

    def take(self) -> T:
        """Remove the one whose turn it is: roughly, who came first."""
        where = self._turn % len(self)
        item = self[where]
        self.remove(item)
        self._turn = where + 1
        return item


class Agenda(Generic[T]):
    """Items by key, then by number. An entry that was removed from the heap's middle stays there until it comes up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._entries: dict[T, tuple[float, int, T]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """In the order in which they came."""
        return iter(self._entries)

    def add(self, key: float, number: int, item: T) -> None:
        """Add it, or give it another key."""
        entry = self._entries[item] = (key, number, item)
        heapq.heappush(self._heap, entry)

    def discard(self, item: T) -> None:
        self._entries.pop(item, None)
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = sorted(self._entries.values(), key=lambda entry: entry[:2])

    def first(self) -> T | None:
        heap = self._heap
        while heap:
            if self._entries.get(heap[0][2]) is heap[0]:
                return heap[0][2]
            heapq.heappop(heap)
        return None

    @property
    def first_key(self) -> float | None:
        return None if self.first() is None else self._heap[0][0]


class Job:
    __slots__ = (
        "body",
        "buries",
        "created",
        "delay",
        "due",
        "id",
        "kicks",
        "pri",
        "releases",
        "reserver",
        "reserves",
        "state",
        "timeouts",
        "ttr",
        "tube",
    )

    def __init__(self, id: int, tube: Tube, pri: int, delay: int, ttr: int, now: float) -> None:
        self.id, self.tube, self.pri, self.delay, self.ttr = id, tube, pri, delay, ttr
        self.body = b""
        self.created = now
        self.due = 0.0  # when a delay or a reservation ends
        self.state = ""
        self.reserver: Client | None = None
        self.reserves = self.timeouts = self.releases = self.buries = self.kicks = 0


class Tube:
    def __init__(self, name: bytes) -> None:
        self.name = name
        self.ready: Agenda[Job] = Agenda()
        self.delayed: Agenda[Job] = Agenda()
        self.buried: dict[int, Job] = {}
        self.waiting: Bag[Client] = Bag()
        self.counts = dict.fromkeys(_STATES, 0)
        self.total = self.deletes = self.pauses = self.using = self.watching = 0
        self.pause = 0  # seconds that it was paused for; 0 when it isn't any more
        self.paused_until = 0.0

    @property
    def is_needed(self) -> bool:
        return bool(self.using or self.watching or sum(self.counts.values()) or self.name == b"default")


class Engine:
    """The server's state.

    Attributes:
        is_draining: Whether puts are refused, as after SIGUSR1.
        id: A random name for this instance.
        silent_expiry: Whether a job that its holder lets run out becomes ready at once, or, as mostly at the real
            server, when the holder says something again.
        talking: Clients that are to be sent something, or closed; whoever sends takes them out.
    """

    def __init__(self, max_job_size: int = 65535, now: float = 0.0, silent_expiry: bool = True) -> None:
        self.max_job_size = max_job_size
        self.silent_expiry = silent_expiry
        self.is_draining = False
        self.id = os.urandom(8).hex()
        self.started = now
        self.jobs: dict[int, Job] = {}
        self.tubes: dict[bytes, Tube] = {}
        self.clients: set[Client] = set()
        self.talking: dict[Client, None] = {}
        self.commands = dict.fromkeys([*_COUNTED, "reserve-job", "kick-job", "quit"], 0)
        self.job_ids = itertools.count(1)
        self.total_connections = 0
        self._turns: dict[Client, None] = {}  # who may have something to do, in order
        self._heard: list[Client] = []  # who was answered, or began to wait, in this turn or tick
        self._missed: set[Job] = set()  # whose time is over, which nobody has noticed
        self._moments = itertools.count()  # of two things due at one time, the one comes first that was asked for first
        self._order: Bag[Tube] = Bag()
        self._agenda: Agenda[Job | Tube | Client] = Agenda()
        self._counts = dict.fromkeys(_STATES, 0)
        self._timeouts = self._total_jobs = 0
        self.tube(b"default")

    # -- turns -------------------------------------------------------------------------------------------------

    def give_turn(self, client: Client) -> None:
        """Something has come from it: it is appended to those that get a turn, if it isn't among them yet.

        Also while it waits in a reserve. It is passed over then, or comes early if it has been answered meanwhile.
        """
        self._turns.setdefault(client)

    def hear(self, client: Client) -> None:
        """Something has happened to it: it gets a turn, and what has run out in its silence is noticed."""
        self._heard.append(client)
        if self._missed:
            for job in self._missed.intersection(client.reserved):
                self._schedule(job.due, job)

    def run(self, now: float) -> None:
        """Carry out all that clients have sent, as far as it can be."""
        self.tick(now)
        while self._turns:
            client = next(iter(self._turns))
            del self._turns[client]
            if client.is_due:
                self._turns[client] = None
                client.take_turn(now)
                self._give_turns()
                self.tick(now)

    def _give_turns(self) -> None:
        """To those that were heard of, the last one first."""
        while self._heard:
            client = self._heard.pop()
            if client.is_due:
                self._turns.setdefault(client)

    # -- time --------------------------------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When `tick` will have something to do."""
        return self._agenda.first_key

    def tick(self, now: float) -> None:
        """Carry out what is due, in order of time."""
        while (due := self._agenda.first_key) is not None and due <= now:
            item = self._agenda.first()
            self._agenda.discard(item)  # type: ignore[arg-type]  # there is one: it has a key
            if isinstance(item, Job):
                self._end_time_of(item, now)
            elif isinstance(item, Tube):
                item.pause = 0
                self.hand_out(item, now)
            elif item is not None:
                item.end_wait(now)
        self._give_turns()

    def _end_time_of(self, job: Job, now: float) -> None:
        """Its delay, or its time to run, is over."""
        if job.state == "reserved":
            if not self.silent_expiry and job not in self._missed:
                self._missed.add(job)
                return
            job.timeouts += 1
            self._timeouts += 1
        self.make_ready(job, now)

    def _schedule(self, when: float, item: Job | Tube | Client) -> None:
        self._agenda.add(when, next(self._moments), item)

    def wake(self, client: Client, when: float) -> None:
        self._schedule(when, client)

    def let_sleep(self, client: Client) -> None:
        self._agenda.discard(client)

    # -- tubes -------------------------------------------------------------------------------------------------

    def tube(self, name: bytes) -> Tube:
        """Find a tube, or make it."""
        tube = self.tubes.get(name)
        if tube is None:
            tube = self.tubes[name] = Tube(name)
            self._order.append(tube)
        return tube

    def tube_names(self) -> list[bytes]:
        return [tube.name for tube in self._order]

    def drop_if_unneeded(self, tube: Tube) -> None:
        if not tube.is_needed:
            del self.tubes[tube.name]
            self._order.remove(tube)
            self._agenda.discard(tube)

    def pause(self, tube: Tube, seconds: int, now: float) -> None:
        tube.pauses += 1
        tube.pause, tube.paused_until = seconds, now + seconds
        self._schedule(tube.paused_until, tube)

    # -- jobs --------------------------------------------------------------------------------------------------

    def insert(self, job: Job, now: float) -> None:
        self.jobs[job.id] = job
        self._total_jobs += 1
        job.tube.total += 1
        self.make_ready_after(job, job.delay, now)

    def _count(self, job: Job, by: int) -> None:
        for counts in (self._counts, job.tube.counts):
            counts[job.state] += by
            if job.state == "ready" and job.pri < URGENT:
                counts["urgent"] += by

    def take_out(self, job: Job) -> None:
        """Take a job out of the state that it is in."""
        self._count(job, -1)
        self._missed.discard(job)
        if job.state == "ready":
            job.tube.ready.discard(job)
        elif job.state == "buried":
            del job.tube.buried[job.id]
        else:
            self._agenda.discard(job)
            if job.reserver is not None:
                job.reserver.reserved.discard(job)
                job.reserver = None
            else:
                job.tube.delayed.discard(job)
        job.state = ""

    def _enter(self, job: Job, state: str) -> None:
        if job.state:
            self.take_out(job)
        job.state = state
        self._count(job, 1)

    def make_ready(self, job: Job, now: float) -> None:
        self._enter(job, "ready")
        job.tube.ready.add(job.pri, job.id, job)
        self.hand_out(job.tube, now)

    def make_ready_after(self, job: Job, delay: int, now: float) -> None:
        if not delay:
            self.make_ready(job, now)
            return
        self._enter(job, "delayed")
        job.due = now + delay
        job.tube.delayed.add(job.due, next(self._moments), job)
        self._schedule(job.due, job)

    def make_buried(self, job: Job) -> None:
        self._enter(job, "buried")
        job.buries += 1
        job.tube.buried[job.id] = job

    def make_reserved(self, job: Job, client: Client, now: float) -> None:
        self._enter(job, "reserved")
        job.reserves += 1
        job.reserver = client
        self.touch(job, now)
        client.write(b"RESERVED %d %d\r\n%b\r\n" % (job.id, len(job.body), job.body))

    def touch(self, job: Job, now: float) -> None:
        """Have its time to run start now."""
        assert job.reserver is not None
        job.due = now + job.ttr
        job.reserver.reserved.add(job.due, job.id, job)
        self._missed.discard(job)
        self._schedule(job.due, job)

    def hand_out(self, tube: Tube, now: float) -> None:
        """Give a tube's ready jobs to the clients that wait for them."""
        while tube.waiting and not tube.pause and (job := tube.ready.first()) is not None:
            client = tube.waiting.take()
            client.stop_waiting()
            self.make_reserved(job, client, now)

    def delete(self, job: Job) -> None:
        self.take_out(job)
        del self.jobs[job.id]
        job.tube.deletes += 1
        self.drop_if_unneeded(job.tube)

    # -- statistics --------------------------------------------------------------------------------------------

    def stats(self, now: float) -> list[tuple[str, object]]:
        return [
            *((f"current-jobs-{state}", self._counts[state]) for state in _STATES),
            *((f"cmd-{name}", self.commands[name]) for name in _COUNTED),
            ("job-timeouts", self._timeouts),
            ("total-jobs", self._total_jobs),
            ("max-job-size", self.max_job_size),
            ("current-tubes", len(self.tubes)),
            ("current-connections", len(self.clients)),
            ("current-producers", sum(client.is_producer for client in self.clients)),
            ("current-workers", sum(client.is_worker for client in self.clients)),
            ("current-waiting", sum(client.is_waiting for client in self.clients)),
            ("total-connections", self.total_connections),
            ("pid", os.getpid()),
            ("version", '"1.12"'),
            ("rusage-utime", "0.000000"),
            ("rusage-stime", "0.000000"),
            ("uptime", int(now - self.started)),
            ("binlog-oldest-index", 0),
            ("binlog-current-index", 0),
            ("binlog-records-migrated", 0),
            ("binlog-records-written", 0),
            ("binlog-max-size", 10485760),
            ("draining", "true" if self.is_draining else "false"),
            ("id", self.id),
            ("hostname", "embedded"),
            ("os", "#1 embedded"),
            ("platform", "python"),
        ]

    def stats_tube(self, tube: Tube, now: float) -> list[tuple[str, object]]:
        return [
            ("name", tube.name.decode()),
            *((f"current-jobs-{state}", tube.counts[state]) for state in _STATES),
            ("total-jobs", tube.total),
            ("current-using", tube.using),
            ("current-watching", tube.watching),
            ("current-waiting", len(tube.waiting)),
            ("cmd-delete", tube.deletes),
            ("cmd-pause-tube", tube.pauses),
            ("pause", tube.pause),
            ("pause-time-left", int(tube.paused_until - now) if tube.pause else 0),
        ]

    def stats_job(self, job: Job, now: float) -> list[tuple[str, object]]:
        return [
            ("id", job.id),
            ("tube", job.tube.name.decode()),
            ("state", job.state or "invalid"),
            ("pri", job.pri),
            ("age", int(now - job.created)),
            ("delay", job.delay),
            ("ttr", job.ttr),
            ("time-left", int(job.due - now) if job.state in ("reserved", "delayed") else 0),
            ("file", 0),
            *((name, getattr(job, name)) for name in ("reserves", "timeouts", "releases", "buries", "kicks")),
        ]
