"""beanstalkd's protocol from the server's side: what a client sends, and what it is answered.

A `Client` is a connection: `feed` takes what it sent, `out` gathers what it is to be sent, `half_close` and `close` are
the two ways in which it ends. The traps of the real server are here too: a refused put header leaves its body to be
run as commands, a lone CR or a line of 225 bytes is never answered, numbers are read as C reads them.

So is its rhythm, since it can be seen where several clients send several commands each. When it is a connection's turn,
the server does one thing with its socket, a read or a write, and then carries out one command, if it has a whole one. A
command's reply is written at the beginning of the next turn. So a client that has gone is noticed when the second reply
can't be written to it: what it sent beyond that is never carried out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from gstalk.testing import arguments
from gstalk.testing.engine import Agenda, Bag, Engine, Job, Tube

__all__ = ["Client"]

MAX_LINE = 224  # bytes of a line, which are read at once
BUCKET = 1024  # bytes of a refused body that are thrown away in one turn
SAFETY_MARGIN = 1  # seconds before a reserved job runs out in which its holder is warned


class State(enum.Enum):
    """What the server will do next with a connection."""

    READ_LINE = enum.auto()
    SKIP_LINE = enum.auto()  # to its end: it was too long
    READ_BODY = enum.auto()
    SKIP_BODY = enum.auto()  # it is too big
    REPLY = enum.auto()
    WAIT = enum.auto()  # in a reserve


class Client:
    """A connection, as the server sees it.

    Attributes:
        out: What it is to be sent; whoever sends it clears it.
        ended: Whether the server wants to close it, once `out` is sent.
        is_gone: Sends `out`, and tells whether nobody takes it any more; only asked when it has sent its last.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.out = bytearray()
        self.ended = False
        self.used = engine.tube(b"default")
        self.watched: Bag[Tube] = Bag([self.used])
        self.used.using += 1
        self.used.watching += 1
        self.reserved: Agenda[Job] = Agenda()
        self.is_producer = self.is_worker = False
        self.is_gone: Callable[[], bool] = lambda: False
        self._state = State.READ_LINE
        self._half_closed = False
        self._in = bytearray()  # what the server has not read yet
        self._line = b""  # what it has read of a line, and behind it
        self._job: Job | None = None  # whose body is awaited
        self._body = bytearray()  # as much of it as has come
        self._missing = 0  # bytes of a body still to come
        engine.clients.add(self)
        engine.total_connections += 1

    @property
    def is_waiting(self) -> bool:
        return self._state is State.WAIT

    @property
    def is_due(self) -> bool:
        """Whether there is something to do when its turn comes."""
        if self.ended:
            return False
        if self._state is State.WAIT:
            return self._half_closed
        return self._state is State.REPLY or bool(self._in) or self._half_closed

    def write(self, data: bytes) -> None:
        """Answer its command."""
        self.out += data
        self._state = State.REPLY
        self.engine.hear(self)
        self.engine.talking[self] = None

    # -- input -------------------------------------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        """Take what the client sent; `Engine.run` goes on with it."""
        self._in += data
        self.engine.give_turn(self)

    def feed(self, data: bytes, now: float) -> None:
        """Take what the client sent, and carry out all that can be."""
        self.take(data)
        self.engine.run(now)

    def take_turn(self, now: float) -> None:
        """Do one thing with the socket, and then carry out one command."""
        match self._state:
            case State.REPLY:
                if self._half_closed and self.is_gone():
                    self.close(now)
                    return
                self._state = State.READ_LINE
            case State.WAIT:
                self.stop_waiting()
                self.write(b"TIMED_OUT\r\n")
            case _ if not self._in:
                self.close(now)
            case State.READ_BODY:
                self._take_body(self._read(self._missing), now)
            case State.SKIP_BODY:
                self._skip_body(len(self._read(min(self._missing, BUCKET))))
            case _:
                self._line += self._read(MAX_LINE - len(self._line))
                if self._end_of_line() < 0 and len(self._line) == MAX_LINE:
                    self._line = b""
                    self._state = State.SKIP_LINE
        end = self._end_of_line()
        if end < 0 or self.ended:
            return
        if self._state is State.READ_LINE:
            line, self._line = self._line[:end], self._line[end + 2 :]
            self._command(line, now)
        elif self._state is State.SKIP_LINE:
            self._line = self._line[end + 2 :]
            self.write(b"BAD_FORMAT\r\n")

    def _read(self, size: int) -> bytes:
        data = bytes(self._in[:size])
        del self._in[:size]
        return data

    def _end_of_line(self) -> int:
        """Where the line ends. The server looks at the first CR only, and not at one that comes last."""
        end = self._line.find(b"\r", 0, max(len(self._line) - 1, 0))
        return end if end >= 0 and self._line[end + 1] == 10 else -1

    def _rest_of_line(self) -> bytes:
        """What has been read already of the body behind a line."""
        data, self._line = self._line[: self._missing], self._line[self._missing :]
        return data

    def _skip_body(self, size: int) -> None:
        self._state = State.SKIP_BODY
        self._missing -= size
        if not self._missing:
            self.write(b"JOB_TOO_BIG\r\n")

    def _take_body(self, data: bytes, now: float) -> None:
        job = self._job
        assert job is not None
        self._state = State.READ_BODY
        self._body += data
        self._missing -= len(data)
        if self._missing:
            return
        job.body, end = bytes(self._body[:-2]), self._body[-2:]
        self._body.clear()
        self._forget_job()
        if end != b"\r\n":
            self.write(b"EXPECTED_CRLF\r\n")
        elif self.engine.is_draining:
            self.write(b"DRAINING\r\n")
        else:
            self.engine.insert(job, now)
            self.write(b"INSERTED %d\r\n" % job.id)

    def _forget_job(self) -> None:
        """Its body is complete, or will never be."""
        if self._job is not None:
            del self.engine.jobs[self._job.id]
            self._job = None

    def _command(self, line: bytes, now: float) -> None:
        name, space, rest = line.partition(b" ")
        word = name + space
        if word not in _COMMANDS:  # it may still begin with one: the server looks no further
            word = next((known for known in _COMMANDS if line.startswith(known)), b"")
            rest = line[len(word) :]
        if b"\0" in line:
            self.write(b"BAD_FORMAT\r\n")
        elif not word:
            self.write(b"UNKNOWN_COMMAND\r\n")
        else:
            counted = word.decode().rstrip()
            self.engine.commands[counted] += 1
            try:
                if rest and word in _ALONE:
                    raise arguments.Bad
                _COMMANDS[word](self, rest, now)
            except arguments.Bad:
                self.engine.commands[counted] -= 1
                self.write(b"BAD_FORMAT\r\n")

    # -- putting -----------------------------------------------------------------------------------------------

    def _do_put(self, rest: bytes, now: float) -> None:
        match = arguments.PUT.fullmatch(rest)
        if match is None:
            raise arguments.Bad
        pri, delay, ttr, size = (arguments.below(2**32, text) for text in match.group(1, 2, 3, 4))
        if size > self.engine.max_job_size:
            self._missing = size + 2
            self._skip_body(len(self._rest_of_line()))
        elif match[5]:
            self.write(b"BAD_FORMAT\r\n")  # but counted
        else:
            self.is_producer = True
            # The id is taken now: one whose body is refused leaves a gap.
            self._job = job = Job(next(self.engine.job_ids), self.used, pri, delay, max(ttr, 1), now)
            job.body = bytes(size)
            self.engine.jobs[job.id] = job  # peek finds it already, with whatever is there of its body
            self._missing = size + 2
            self._take_body(self._rest_of_line(), now)

    def _do_use(self, rest: bytes, now: float) -> None:
        tube = self.engine.tube(arguments.name(rest))
        old, self.used = self.used, tube
        tube.using += 1
        old.using -= 1
        self.engine.drop_if_unneeded(old)
        self.write(b"USING %b\r\n" % tube.name)

    # -- reserving ---------------------------------------------------------------------------------------------

    def _do_reserve(self, rest: bytes, now: float) -> None:
        self._reserve(-1, now)

    def _do_reserve_with_timeout(self, rest: bytes, now: float) -> None:
        seconds = arguments.c_number(rest, -(2**63), 2**63)
        self._reserve(((seconds or 0) + 2**31) % 2**32 - 2**31, now)  # an int has 32 bits; below 0 it is for ever

    def _reserve(self, seconds: int, now: float) -> None:
        self.is_worker = True
        ready = [(job.pri, job.id, job) for tube in self.watched if (job := tube.ready.first()) is not None]
        if not ready and self._is_deadline_soon(now):
            self.write(b"DEADLINE_SOON\r\n")
            return
        self._state = State.WAIT
        self.engine.hear(self)
        for tube in self.watched:
            tube.waiting.append(self)
        jobs = [entry for entry in ready if not entry[2].tube.pause]
        if jobs:
            self.engine.hand_out(min(jobs)[2].tube, now)
        elif seconds == 0:
            self.end_wait(now)
        else:
            soonest = self.reserved.first_key
            wakes = [now + seconds] if seconds > 0 else []
            wakes += [soonest - SAFETY_MARGIN] if soonest is not None else []
            if wakes:
                self.engine.wake(self, min(wakes))

    def _is_deadline_soon(self, now: float) -> bool:
        soonest = self.reserved.first_key
        return soonest is not None and soonest - SAFETY_MARGIN <= now

    def end_wait(self, now: float) -> None:
        """There is no job for it."""
        self.stop_waiting()
        self.write(b"DEADLINE_SOON\r\n" if self._is_deadline_soon(now) else b"TIMED_OUT\r\n")

    def stop_waiting(self) -> None:
        """Take it off the lists of those that wait; what it is answered comes next."""
        if self.is_waiting:
            self._state = State.REPLY
            self.engine.let_sleep(self)
            for tube in self.watched:
                if self in tube.waiting:
                    tube.waiting.remove(self)

    def _do_reserve_job(self, rest: bytes, now: float) -> None:
        job = self._any_job(rest)
        if job is None or job.state in ("reserved", ""):
            self.write(b"NOT_FOUND\r\n")
        else:
            self.is_worker = True
            self.engine.make_reserved(job, self, now)

    # -- what becomes of a job ---------------------------------------------------------------------------------

    def _any_job(self, rest: bytes) -> Job | None:
        return self.engine.jobs.get(arguments.numbers(arguments.ID, rest)[0])

    def _mine(self, job_id: int) -> Job | None:
        job = self.engine.jobs.get(job_id)
        if job is None or job.reserver is not self:
            self.write(b"NOT_FOUND\r\n")
            return None
        return job

    def _do_delete(self, rest: bytes, now: float) -> None:
        job = self._any_job(rest)
        if job is None or not job.state or job.reserver not in (None, self):
            self.write(b"NOT_FOUND\r\n")
        else:
            self.engine.delete(job)
            self.write(b"DELETED\r\n")

    def _do_release(self, rest: bytes, now: float) -> None:
        job_id, pri, delay = arguments.numbers(arguments.RELEASE, rest)
        job = self._mine(job_id)
        if job is not None:
            job.pri, job.delay = pri, delay
            job.releases += 1
            self.engine.make_ready_after(job, delay, now)
            self.write(b"RELEASED\r\n")

    def _do_bury(self, rest: bytes, now: float) -> None:
        job_id, pri = arguments.numbers(arguments.BURY, rest)
        job = self._mine(job_id)
        if job is not None:
            job.pri = pri
            self.engine.make_buried(job)
            self.write(b"BURIED\r\n")

    def _do_touch(self, rest: bytes, now: float) -> None:
        job = self._mine(arguments.numbers(arguments.ID, rest)[0])
        if job is not None:
            self.engine.touch(job, now)
            self.write(b"TOUCHED\r\n")

    def _kick(self, job: Job, now: float) -> None:
        job.kicks += 1
        self.engine.make_ready(job, now)

    def _do_kick(self, rest: bytes, now: float) -> None:
        number = arguments.c_number(rest, 1 - 2**64, 2**64)
        if number is None:
            raise arguments.Bad
        bound, tube, kicked = number % 2**32, self.used, 0
        only_buried = bool(tube.buried)
        while kicked < bound:
            job = next(iter(tube.buried.values()), None) if only_buried else tube.delayed.first()
            if job is None:
                break
            self._kick(job, now)
            kicked += 1
        self.write(b"KICKED %d\r\n" % kicked)

    def _do_kick_job(self, rest: bytes, now: float) -> None:
        job = self._any_job(rest)
        if job is None or job.state not in ("buried", "delayed"):
            self.write(b"NOT_FOUND\r\n")
        else:
            self._kick(job, now)
            self.write(b"KICKED\r\n")

    # -- tubes -------------------------------------------------------------------------------------------------

    def _do_watch(self, rest: bytes, now: float) -> None:
        tube = self.engine.tube(arguments.name(rest))
        if tube not in self.watched:
            self.watched.append(tube)
            tube.watching += 1
        self.write(b"WATCHING %d\r\n" % len(self.watched))

    def _do_ignore(self, rest: bytes, now: float) -> None:
        tube = self.engine.tubes.get(arguments.name(rest))
        if tube not in self.watched:
            tube = None
        if tube is not None and len(self.watched) == 1:
            self.write(b"NOT_IGNORED\r\n")
            return
        if tube is not None:
            self._unwatch(tube)
        self.write(b"WATCHING %d\r\n" % len(self.watched))

    def _unwatch(self, tube: Tube) -> None:
        self.watched.remove(tube)
        tube.watching -= 1
        self.engine.drop_if_unneeded(tube)

    def _do_pause_tube(self, rest: bytes, now: float) -> None:
        match = arguments.PAUSE.fullmatch(rest)
        if match is None:
            raise arguments.Bad
        seconds = arguments.below(2**32, match[2])
        tube = self.engine.tubes.get(match[1])
        if not arguments.is_name(match[1]):
            self.write(b"BAD_FORMAT\r\n")  # but counted
        elif tube is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self.engine.pause(tube, seconds, now)
            self.write(b"PAUSED\r\n")

    # -- looking -----------------------------------------------------------------------------------------------

    def _found(self, job: Job | None) -> None:
        if job is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self.write(b"FOUND %d %d\r\n%b\r\n" % (job.id, len(job.body), job.body))

    def _do_peek(self, rest: bytes, now: float) -> None:
        self._found(self._any_job(rest))

    def _do_peek_ready(self, rest: bytes, now: float) -> None:
        self._found(self.used.ready.first())

    def _do_peek_delayed(self, rest: bytes, now: float) -> None:
        self._found(self.used.delayed.first())

    def _do_peek_buried(self, rest: bytes, now: float) -> None:
        self._found(next(iter(self.used.buried.values()), None))

    def _ok(self, lines: list[str]) -> None:
        body = "".join(f"{line}\n" for line in ["---", *lines]).encode()
        self.write(b"OK %d\r\n%b\r\n" % (len(body), body))

    def _do_stats(self, rest: bytes, now: float) -> None:
        self._ok([f"{key}: {value}" for key, value in self.engine.stats(now)])

    def _do_stats_tube(self, rest: bytes, now: float) -> None:
        tube = self.engine.tubes.get(arguments.name(rest))
        if tube is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self._ok([f"{key}: {value}" for key, value in self.engine.stats_tube(tube, now)])

    def _do_stats_job(self, rest: bytes, now: float) -> None:
        job = self._any_job(rest)
        if job is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self._ok([f"{key}: {value}" for key, value in self.engine.stats_job(job, now)])

    def _do_list_tubes(self, rest: bytes, now: float) -> None:
        self._ok([f"- {name.decode()}" for name in self.engine.tube_names()])

    def _do_list_tubes_watched(self, rest: bytes, now: float) -> None:
        self._ok([f"- {tube.name.decode()}" for tube in self.watched])

    def _do_list_tube_used(self, rest: bytes, now: float) -> None:
        self.write(b"USING %b\r\n" % self.used.name)

    # -- its end -----------------------------------------------------------------------------------------------

    def _do_quit(self, rest: bytes, now: float) -> None:
        self.close(now)

    def half_close(self) -> None:
        """The client will send no more: a wait ends, what it sent is still carried out, then the server closes."""
        self._half_closed = True
        self.engine.give_turn(self)

    def close(self, now: float) -> None:
        """The connection is gone: what it reserved is ready again."""
        if self.ended:
            return
        self.stop_waiting()
        self.ended = True
        self.engine.talking[self] = None
        self.engine.clients.remove(self)
        self._forget_job()
        for job in list(self.reserved):
            self.engine.make_ready(job, now)
        while self.watched:
            self._unwatch(self.watched[0])
        self.used.using -= 1
        self.engine.drop_if_unneeded(self.used)


# In the order in which the server tries them: the first that a line begins with is its command.
_COMMANDS: dict[bytes, Callable[[Client, bytes, float], None]] = {
    b"put ": Client._do_put,
    b"peek ": Client._do_peek,
    b"peek-ready": Client._do_peek_ready,
    b"peek-delayed": Client._do_peek_delayed,
    b"peek-buried": Client._do_peek_buried,
    b"reserve-with-timeout ": Client._do_reserve_with_timeout,
    b"reserve-job ": Client._do_reserve_job,
    b"reserve": Client._do_reserve,
    b"delete ": Client._do_delete,
    b"release ": Client._do_release,
    b"bury ": Client._do_bury,
    b"kick ": Client._do_kick,
    b"kick-job ": Client._do_kick_job,
    b"touch ": Client._do_touch,
    b"stats-job ": Client._do_stats_job,
    b"stats-tube ": Client._do_stats_tube,
    b"stats": Client._do_stats,
    b"use ": Client._do_use,
    b"watch ": Client._do_watch,
    b"ignore ": Client._do_ignore,
    b"list-tubes-watched": Client._do_list_tubes_watched,
    b"list-tube-used": Client._do_list_tube_used,
    b"list-tubes": Client._do_list_tubes,
    b"quit": Client._do_quit,
    b"pause-tube": Client._do_pause_tube,
}
_ALONE = frozenset(
    b"peek-ready peek-delayed peek-buried reserve stats list-tubes-watched list-tube-used list-tubes".split()
)
