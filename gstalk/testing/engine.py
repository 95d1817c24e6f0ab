"""An in-memory beanstalkd 1.12 without I/O and without a clock: bytes in, bytes out, and `now` is an argument.

Stand-alone on purpose: it shares no code with the client, since a fake that shares the client's parser shares its
mistakes. One conformance suite runs against it and against the real server, and it is right where they agree.

`Engine` keeps tubes, jobs and clients; `Client` in `wire` is a connection. `Engine.tick` carries out what is due at
`now`, and tells when something will be.
"""

from __future__ import annotations

import heapq
import os
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gstalk.testing.wire import Client

__all__ = ["FOREVER", "Engine", "Job", "Tube"]

FOREVER = float("inf")
_STATES = ("urgent", "ready", "reserved", "delayed", "buried")
_COUNTED = (
    "put peek peek-ready peek-delayed peek-buried reserve reserve-with-timeout delete release use watch ignore bury "
    "kick touch stats stats-job stats-tube list-tubes list-tube-used list-tubes-watched pause-tube"
).split()


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

    def __init__(self, id: int, tube: Tube, pri: int, delay: int, ttr: int, body: bytes, now: float) -> None:
        self.id, self.tube, self.pri, self.delay, self.ttr, self.body = id, tube, pri, delay, ttr, body
        self.created = now
        self.due = 0.0  # when a delay or a reservation ends
        self.state = ""
        self.reserver: Client | None = None
        self.reserves = self.timeouts = self.releases = self.buries = self.kicks = 0


class Tube:
    def __init__(self, name: bytes) -> None:
        self.name = name
        # Heaps are emptied lazily: an entry counts while its job is in that state with that key.
        self.ready: list[tuple[int, int]] = []
        self.delayed: list[tuple[float, int]] = []
        self.buried: OrderedDict[int, Job] = OrderedDict()
        self.waiting: OrderedDict[Client, None] = OrderedDict()
        self.counts = dict.fromkeys(_STATES, 0)
        self.total = self.deletes = self.pauses = self.using = self.watching = 0
        self.pause = 0
        self.paused_until = 0.0

    @property
    def is_needed(self) -> bool:
        return bool(
            self.using or self.watching or any(self.counts[s] for s in ("ready", "reserved", "delayed", "buried"))
        )


class Engine:
    """The server's state.

    Attributes:
        draining: Whether puts are refused, as after SIGUSR1.
        id: A random name for this instance.
    """

    def __init__(self, max_job_size: int = 65535, now: float = 0.0) -> None:
        self.max_job_size = max_job_size
        self.started = now
        self.draining = False
        self.id = os.urandom(8).hex()
        self.jobs: dict[int, Job] = {}
        self.tubes: dict[bytes, Tube] = {}
        self.clients: OrderedDict[Client, None] = OrderedDict()
        self.commands = dict.fromkeys(_COUNTED, 0)
        self.counts = dict.fromkeys(_STATES, 0)
        self.next_id = 1
        self.job_timeouts = self.total_connections = 0
        self._agenda: list[tuple[float, int, Job]] = []  # ends of delays and reservations, lazily emptied
        self._waits: list[tuple[float, int, Client]] = []  # ends of waits, and of pauses
        self._serial = 0
        self.talking: set[Client] = set()  # clients that are to be sent something, or closed
        self.tube(b"default")

    # -- time --------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float | None:
        """Do what is due; returns when the next thing is, or `None`."""
        while self._agenda and self._agenda[0][0] <= now:
            due, _, job = heapq.heappop(self._agenda)
            if job.due == due and job.state == "delayed":
                self.make_ready(job, now)
            elif job.due == due and job.state == "reserved":
                job.timeouts += 1
                self.job_timeouts += 1
                self.make_ready(job, now)
        while self._waits and self._waits[0][0] <= now:
            _, _, client = heapq.heappop(self._waits)
            client.look(now)
        if any(tube.pause and tube.paused_until <= now for tube in self.tubes.values()):
            for tube in list(self.tubes.values()):
                if tube.pause and tube.paused_until <= now:
                    tube.pause = 0
                    self.hand_out(tube, now)
        due_times = [heap[0][0] for heap in (self._agenda, self._waits) if heap]
        due_times += [tube.paused_until for tube in self.tubes.values() if tube.pause]
        return min(due_times) if due_times else None

    def remind(self, client: Client, when: float) -> None:
        if when < FOREVER:
            self._serial += 1
            heapq.heappush(self._waits, (when, self._serial, client))

    # -- tubes -------------------------------------------------------------------------------------------------

    def tube(self, name: bytes) -> Tube:
        tube = self.tubes.get(name)
        if tube is None:
            tube = self.tubes[name] = Tube(name)
        return tube

    def drop_if_unneeded(self, tube: Tube) -> None:
        if not tube.is_needed and tube.name != b"default":
            self.tubes.pop(tube.name, None)

    # -- jobs --------------------------------------------------------------------------------------------------

    def _count(self, job: Job, by: int) -> None:
        for counts in (self.counts, job.tube.counts):
            counts[job.state] += by
            if job.state == "ready" and job.pri < 1024:
                counts["urgent"] += by

    def take_out(self, job: Job) -> None:
        """Take a job out of the state that it is in."""
        self._count(job, -1)
        if job.state == "buried":
            del job.tube.buried[job.id]
        elif job.state == "reserved" and job.reserver is not None:
            del job.reserver.reserved[job.id]
            job.reserver = None
        job.state = ""

    def _move(self, job: Job, state: str) -> None:
        if job.state:
            self.take_out(job)
        job.state = state
        self._count(job, 1)

    def make_ready(self, job: Job, now: float) -> None:
        self._move(job, "ready")
        heapq.heappush(job.tube.ready, (job.pri, job.id))
        self.hand_out(job.tube, now)

    def make_delayed(self, job: Job, delay: int, now: float) -> None:
        self._move(job, "delayed")
        job.delay = delay
        job.due = now + delay
        heapq.heappush(job.tube.delayed, (job.due, job.id))
        heapq.heappush(self._agenda, (job.due, job.id, job))

    def make_buried(self, job: Job) -> None:
        self._move(job, "buried")
        job.tube.buried[job.id] = job

    def make_reserved(self, job: Job, client: Client, now: float) -> None:
        self._move(job, "reserved")
        job.reserves += 1
        job.reserver = client
        client.reserved[job.id] = job
        self.set_deadline(job, now)
        client.write(b"RESERVED %d %d\r\n%b\r\n" % (job.id, len(job.body), job.body))

    def set_deadline(self, job: Job, now: float) -> None:
        job.due = now + job.ttr
        heapq.heappush(self._agenda, (job.due, job.id, job))

    def first_ready(self, tube: Tube) -> Job | None:
        while tube.ready:
            pri, job_id = tube.ready[0]
            job = self.jobs.get(job_id)
            if job is not None and job.state == "ready" and job.pri == pri and job.tube is tube:
                return job
            heapq.heappop(tube.ready)
        return None

    def first_delayed(self, tube: Tube) -> Job | None:
        while tube.delayed:
            due, job_id = tube.delayed[0]
            job = self.jobs.get(job_id)
            if job is not None and job.state == "delayed" and job.due == due:
                return job
            heapq.heappop(tube.delayed)
        return None

    def best_for(self, client: Client) -> Job | None:
        """The most urgent ready job of the tubes that a client watches, paused ones left out."""
        best = None
        for tube in client.watched:
            job = None if tube.pause else self.first_ready(tube)
            if job is not None and (best is None or (job.pri, job.id) < (best.pri, best.id)):
                best = job
        return best

    def hand_out(self, tube: Tube, now: float) -> None:
        """Give ready jobs to the clients that wait."""
        while tube.waiting:
            client = next(iter(tube.waiting))
            job = self.best_for(client)
            if job is None:
                return
            client.stop_waiting()
            self.make_reserved(job, client, now)

    def delete(self, job: Job) -> None:
        tube = job.tube
        self.take_out(job)
        del self.jobs[job.id]
        tube.deletes += 1
        self.drop_if_unneeded(tube)

    # -- statistics --------------------------------------------------------------------------------------------

    def stats(self, now: float) -> list[tuple[str, object]]:
        clients = list(self.clients)
        return [
            *((f"current-jobs-{state}", self.counts[state]) for state in _STATES),
            *((f"cmd-{name}", self.commands[name]) for name in _COUNTED[:13]),
            ("cmd-kick", self.commands["kick"]),
            *((f"cmd-{name}", self.commands[name]) for name in _COUNTED[14:]),
            ("job-timeouts", self.job_timeouts),
            ("total-jobs", self.next_id - 1),
            ("max-job-size", self.max_job_size),
            ("current-tubes", len(self.tubes)),
            ("current-connections", len(clients)),
            ("current-producers", sum(client.is_producer for client in clients)),
            ("current-workers", sum(client.is_worker for client in clients)),
            ("current-waiting", sum(client.wait_until is not None for client in clients)),
            ("total-connections", self.total_connections),
            ("pid", os.getpid()),
            ("version", '"1.12"'),
            ("rusage-utime", "0.000000"),
            ("rusage-stime", "0.000000"),
            ("uptime", int(now - self.started)),
            *((f"binlog-{name}", 0) for name in ("oldest-index", "current-index")),
            *((f"binlog-{name}", 0) for name in ("records-migrated", "records-written")),
            ("binlog-max-size", 10485760),
            ("draining", "true" if self.draining else "false"),
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
            ("pause-time-left", max(int(tube.paused_until - now), 0) if tube.pause else 0),
        ]

    def stats_job(self, job: Job, now: float) -> list[tuple[str, object]]:
        left = int(job.due - now) if job.state in ("reserved", "delayed") else 0
        return [
            ("id", job.id),
            ("tube", job.tube.name.decode()),
            ("state", job.state),
            ("pri", job.pri),
            ("age", int(now - job.created)),
            ("delay", job.delay),
            ("ttr", job.ttr),
            ("time-left", max(left, 0)),
            ("file", 0),
            *((name, getattr(job, name)) for name in ("reserves", "timeouts", "releases", "buries", "kicks")),
        ]
