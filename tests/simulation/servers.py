"""Servers of the simulated world: the embedded server's engine on the world's clock, and a record of what it did.

Each has a kernel, which takes connections and bytes also while the process is frozen, and a process, which can be
killed. It comes back with ids from 1 and nothing in it, or, where it is `durable`, with all that it had acknowledged
and ids that go on; what was reserved is ready then.

The record is what the oracle believes: which body has which id, and who did what to it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from gstalk.testing.engine import Engine, Job
from gstalk.testing.wire import Client
from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Endpoint
from tests.simulation.program import Program

__all__ = ["HOSTILE", "Copy", "Job", "Server"]

QUIET = 0.25  # seconds for which a connection asks nothing when it was told DEADLINE_SOON
PID = 12345  # what each server says of itself
SERVICE = 5e-6  # seconds from bytes in to the server's turn
WRONG = (b"BAD_FORMAT\r\n", b"UNKNOWN_COMMAND\r\n", b"EXPECTED_CRLF\r\n")
HOSTILE = (
    b"WHATEVER\r\n",
    b"INSERTED\r\n",
    b"FOUND 1 99999999999\r\n",
    b"OK 3\r\nabcde",
    b"\r\n",
    b"x" * 400,
    b"DELETED\r\nDELETED\r\n",
    b"USING nobody-s\r\n",
    b"INTERNAL_ERROR\r\n",
    b"RESERVED 99999 1\r\nx\r\n",
)


@dataclass
class Copy:
    """A job as one server has it, and all that happened to it there.

    Attributes:
        process: Whose connection did the last thing, by the number of the process.
    """

    server: int
    epoch: int
    id: int
    body: bytes
    tube: str
    pri: int
    delay: int
    ttr: int
    inserted_by: int
    reserved: Counter[int] = field(default_factory=Counter)  # how often, by process
    deleted_by: int | None = None
    settled: Counter[tuple[str, int]] = field(default_factory=Counter)  # release, bury, touch, kick: by process
    reserved_at: float = 0.0
    is_lost: bool = False  # with a server that keeps nothing
    priorities: list[tuple[str, int, int, int]] = field(default_factory=list)  # what, process, before, after

    def reserved_elsewhere(self, program: Program) -> int:
        """How often it was reserved by processes that have no handlers."""
        return sum(count for process, count in self.reserved.items() if not program.processes[process].consumes)


class RecordingEngine(Engine):
    """The engine, which notes what happens to its jobs."""

    server: Server

    def stats(self, now: float) -> list[tuple[str, object]]:
        """Without this process's own number: its digits would be one more or less, and cut the reply elsewhere."""
        return [(name, PID if name == "pid" else value) for name, value in super().stats(now)]

    def insert(self, job: Job, now: float) -> None:
        self.server.inserted(job)
        super().insert(job, now)

    def delete(self, job: Job) -> None:
        self.server.copy_of(job).deleted_by = self.server.at_work
        super().delete(job)

    def make_ready(self, job: Job, now: float) -> None:
        super().make_ready(job, now)
        if job.state == "ready":  # nobody has waited for it
            self.server.entries[job] += 1
            self.server.world.on_ready(self.server, job)

    def make_reserved(self, job: Job, client: Client, now: float) -> None:
        super().make_reserved(job, client, now)
        assert isinstance(client, RecordingClient)
        self.server.reserved(job, client, now)


class RecordingClient(Client):
    """A connection, which knows whose it is.

    Attributes:
        process: The number of the process that made it.
        hostile: What it is answered instead of the truth, next.
    """

    engine: RecordingEngine

    def __init__(self, engine: RecordingEngine, process: int) -> None:
        super().__init__(engine)
        self.process = process
        self.hostile: bytes | None = None
        self.soon_at = -1.0  # when it was told DEADLINE_SOON
        self.given_at = -1.0  # when it was given a job by a reserve of any job
        self._word = b""  # its last command

    def was_given(self, now: float) -> None:
        if self._word != b"reserve-job":
            self.given_at = now

    def take_turn(self, now: float) -> None:
        self.engine.server.at_work = self.process
        super().take_turn(now)

    def write(self, data: bytes) -> None:
        server = self.engine.server
        if data == b"DRAINING\r\n" and server.is_full:
            data = b"OUT_OF_MEMORY\r\n"
        if data in WRONG and not server.was_hostile:
            server.world.violation("malformed", f"server {server.number} was sent something wrong: {data!r}")
        if data == b"DEADLINE_SOON\r\n":
            self.soon_at = server.loop.time
        if self.hostile is not None:
            data, self.hostile = self.hostile, None
        super().write(data)

    def _command(self, line: bytes, now: float) -> None:
        server = self.engine.server
        word, _, rest = line.partition(b" ")
        program = server.world.program
        is_conn = self.process < len(program.processes) and not program.processes[self.process].consumes
        if word == b"reserve-with-timeout" and self.soon_at > 0 and is_conn and not server.world.faults:
            after, way = now - self.soon_at, server.world.way
            if way < after < QUIET - way and program.slicing == 0:
                server.world.violation("deadline soon", f"process {self.process} asked {after:.3f} s after it was told")
        self._word = word
        if word == b"reserve-with-timeout" and not server.is_left_by(self):
            server.world.on_ask(self.process, server.number)
        before: tuple[Job, int] | None = None
        if word in (b"release", b"bury", b"touch", b"kick-job"):
            job = self.engine.jobs.get(int(rest.split(b" ")[0]))
            if job is not None:
                before = job, job.pri
        server.commands[self.process] += 1
        if server.world.is_traced:
            server.world.trace(f"server {server.number}", f"from {self.process}: {line.decode('latin-1')}")
        if server.ambush == word.decode("latin-1"):
            server.is_doomed = True
        if word in (b"release", b"bury") and server.is_full and server.rng.random() < 0.4:
            if word == b"release" and server.rng.random() < 0.5:
                self._bury_released(rest)  # no memory for the heap
            else:
                self.write(b"OUT_OF_MEMORY\r\n")  # none for the binlog's entry
        else:
            super()._command(line, now)
        if before is not None and self.out[-20:].endswith(
            (b"RELEASED\r\n", b"BURIED\r\n", b"TOUCHED\r\n", b"KICKED\r\n")
        ):
            copy = server.copy_of(before[0])
            what = word.decode()
            copy.settled[what, self.process] += 1
            copy.priorities.append((what, self.process, before[1], before[0].pri))

    def _bury_released(self, rest: bytes) -> None:
        job_id, pri, _ = (int(number) for number in rest.split())
        job = self._mine(job_id)
        if job is not None:
            job.pri = pri
            self.engine.make_buried(job)
            self.write(b"BURIED\r\n")


class Server:
    """One server: its kernel, its process, and the record of all its lives.

    Args:
        durable: Whether it keeps its jobs when it is killed.
        silent_expiry: As the embedded server's.
    """

    def __init__(
        self, world: Any, number: int, *, durable: bool, silent_expiry: bool, max_job_size: int, rng: Random
    ) -> None:
        self.world = world
        self.loop: VirtualLoop = world.loop
        self.number = number
        self.durable = durable
        self.rng = rng
        self.epoch = 0
        self.is_up = True
        self.is_full = False
        self.was_hostile = False
        self.ambush = ""  # the word that it carries out and then dies of, before it answers; "end": a half-close
        self.is_doomed = False
        self.died_at = 0.0
        self.refuses_since: float | None = None  # it takes no jobs
        self.entries: Counter[Job] = Counter()  # how often a job has become ready
        self.frozen_until = 0.0
        self.at_work = -1  # the process whose command is carried out
        self.copies: dict[tuple[int, int], Copy] = {}  # by epoch and id
        self.commands: Counter[int] = Counter()  # by process
        self.by_body: dict[bytes, list[Copy]] = {}
        self.lives: list[str] = []
        self._silent_expiry, self._max_job_size = silent_expiry, max_job_size
        self._clients: dict[Endpoint, RecordingClient] = {}
        self._endpoints: dict[Client, Endpoint] = {}
        self._waiting: list[tuple[Endpoint, int]] = []  # connections that the kernel has, and the process not yet
        self._heard: dict[Endpoint, None] = {}
        self._is_due = False
        self._tick: Any = None
        self.engine = self._new_engine(None)

    def _new_engine(self, old: Engine | None) -> RecordingEngine:
        now = self.loop.time
        engine = RecordingEngine(self._max_job_size, now, self._silent_expiry)
        engine.server = self
        engine.id = f"{self.rng.getrandbits(64):016x}"
        self.lives.append(engine.id)
        if old is None:
            return engine
        if not self.durable:
            self.epoch += 1
            for copy in self.copies.values():
                copy.is_lost = copy.is_lost or copy.deleted_by is None
            return engine
        engine.job_ids = itertools.count(next(old.job_ids))
        for job in sorted(old.jobs.values(), key=lambda job: job.id):
            if not job.state:  # its body had not come
                continue
            new = Job(job.id, engine.tube(job.tube.name), job.pri, job.delay, job.ttr, job.created)
            for name in ("body", "reserves", "timeouts", "releases", "buries", "kicks"):
                setattr(new, name, getattr(job, name))
            engine.jobs[new.id] = new
            engine._total_jobs += 1
            new.tube.total += 1
            if job.state == "buried":
                engine.make_buried(new)
                new.buries -= 1
            elif job.state == "delayed" and job.due > now:
                engine.make_ready_after(new, job.delay, now)
            else:
                engine.make_ready(new, now)
        return engine

    # -- the record --------------------------------------------------------------------------------------------

    def inserted(self, job: Job) -> None:
        copy = Copy(
            self.number, self.epoch, job.id, job.body, job.tube.name.decode(), job.pri, job.delay, job.ttr, self.at_work
        )
        self.copies[self.epoch, job.id] = copy
        self.by_body.setdefault(job.body, []).append(copy)

    def copy_of(self, job: Job) -> Copy:
        return self.copies[self.epoch, job.id]

    def find(self, job_id: int, body: bytes) -> Copy | None:
        """The newest job of that id and body."""
        for copy in reversed(self.by_body.get(body, [])):
            if copy.id == job_id:
                return copy
        return None

    def reserved(self, job: Job, client: RecordingClient, now: float) -> None:
        copy = self.copy_of(job)
        copy.reserved[client.process] += 1
        copy.reserved_at = now
        client.was_given(now)
        for tube in client.watched:  # a reserve-job is told by the state before, which is gone; it passes nobody over
            first = tube.ready.first()
            if not tube.pause and first is not None and first.pri < job.pri and job.state == "ready":
                self.world.violation("priority", f"job {first.id} was passed over by {job.id}")
        self.world.job_reserved(self, copy, client)

    def clients_of(self, process: int) -> list[RecordingClient]:
        return [each for each in self._clients.values() if each.process == process]

    def keeps_waiting(self, process: int, but_leaving: bool = False) -> bool:
        """Whether a connection of a process waits for a job; `but_leaving`: as in `reserved_by`."""
        waiting = [end.peer for end, each in self._clients.items() if each.process == process and each.is_waiting]
        return any(not (but_leaving and (near.is_shut or near.is_closed or near.is_reset)) for near in waiting)

    def reserved_by(self, process: int, but_leaving: bool = False) -> list[Copy]:
        """What connections of a process hold now; `but_leaving`: without those that it has ended or half-closed."""
        found = []
        for client, endpoint in self._endpoints.items():
            if isinstance(client, RecordingClient) and client.process == process and len(client.reserved):
                near = endpoint.peer
                if not but_leaving or not (near.is_shut or near.is_closed or near.is_reset):
                    found += [self.copy_of(job) for job in client.reserved]
        return found

    # -- the kernel --------------------------------------------------------------------------------------------

    def accept(self, endpoint: Endpoint, process: int) -> None:
        endpoint.notify = lambda: self._hear(endpoint)
        self._waiting.append((endpoint, process))
        self._soon()

    def _hear(self, endpoint: Endpoint) -> None:
        self._heard[endpoint] = None
        self._soon()

    def _soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self.loop.at(max(self.loop.time + SERVICE, self.frozen_until), self._settle)

    # -- the process -------------------------------------------------------------------------------------------

    def is_left_by(self, client: RecordingClient) -> bool:
        """Whether the other side has said all that it will: what comes now was on its way before that."""
        return self._endpoints[client].peer.is_shut

    def _settle(self) -> None:
        self._is_due = False
        if not self.is_up:
            return
        if self.loop.time < self.frozen_until:
            self._soon()
            return
        for endpoint, process in self._waiting:
            client = RecordingClient(self.engine, process)
            self._clients[endpoint] = client
            self._endpoints[client] = endpoint
            client.is_gone = lambda client=client, endpoint=endpoint: not self._send(client, endpoint)  # type: ignore[misc]
            self._heard[endpoint] = None
        self._waiting.clear()
        heard, self._heard = self._heard, {}
        for endpoint in heard:
            self._read(endpoint)
        self.engine.run(self.loop.time)
        if self.is_doomed:
            self.kill()
            self.loop.after(SERVICE, self.start)
            return
        self._answer()
        self._set_tick()

    def _read(self, endpoint: Endpoint) -> None:
        client = self._clients.get(endpoint)
        if client is None:
            return
        if client.out:
            self._send(client, endpoint)
        if client.ended:
            self.engine.talking[client] = None
        if client.out or client.ended:
            return  # as the real one, it reads no more before its replies are taken
        try:
            while endpoint.received:
                client.take(endpoint.recv(65536))
            if endpoint.has_end or endpoint.error or endpoint.is_reset:
                if self.ambush == "end" and client.is_waiting:
                    self.is_doomed = True
                client.half_close()
        except OSError:
            client.half_close()

    def _answer(self) -> None:
        while self.engine.talking:
            client = next(iter(self.engine.talking))
            del self.engine.talking[client]
            endpoint = self._endpoints.get(client)
            if endpoint is None:
                continue
            self._send(client, endpoint)
            if client.ended and not client.out:
                del self._endpoints[client], self._clients[endpoint]
                endpoint.close()

    def _send(self, client: Client, endpoint: Endpoint) -> bool:
        try:
            while client.out:
                taken = endpoint.send(bytes(client.out))
                del client.out[:taken]
        except BlockingIOError:
            self.engine.talking.pop(client, None)
        except OSError:
            client.out.clear()
            return False
        return True

    def _set_tick(self) -> None:
        due = self.engine.next_deadline
        if due is not None and (self._tick is None or self._tick > due or self._tick <= self.loop.time):
            self._tick = due
            self.loop.at(max(due, self.loop.time), self._soon)

    # -- what happens to it ------------------------------------------------------------------------------------

    def kill(self) -> None:
        if not self.is_up:
            return
        self.is_up = self.is_doomed = False
        self.died_at = self.loop.time
        self.ambush = ""
        for endpoint in [*self._clients, *(each for each, _ in self._waiting)]:
            endpoint.close()
        self._clients.clear()
        self._endpoints.clear()
        self._waiting.clear()
        self._heard.clear()
        self.engine = self._new_engine(self.engine)
        self.is_full = False
        self.refuses_since = None
        self._tick = None

    def start(self) -> None:
        if not self.is_up:
            self.is_up = True
            self.frozen_until = 0.0
            self._set_tick()

    def freeze(self, seconds: float) -> None:
        self.frozen_until = max(self.frozen_until, self.loop.time + seconds)

    def fill(self, flag: bool) -> None:
        """Have no memory left, or again."""
        self.is_full = self.engine.is_draining = flag
        self.refuses_since = self.loop.time if flag else None

    def drain(self) -> None:
        self.engine.is_draining = True
        self.refuses_since = self.refuses_since or self.loop.time

    def pause(self, tube: str, seconds: int) -> None:
        found = self.engine.tubes.get(tube.encode())
        if found is not None:
            self.engine.pause(found, seconds, self.loop.time)
            self._set_tick()

    def be_hostile(self, reply: bytes, process: int) -> None:
        """Answer a process's next command with something else."""
        self.was_hostile = True
        for client in self._clients.values():
            if client.process == process:
                client.hostile = reply
                return

    def be_honest(self) -> None:
        for client in self._clients.values():
            client.hostile = None
        self.frozen_until = 0.0
        self.loop.at(self.loop.time, self._settle)
