"""beanstalkd's protocol from the server's side: what a client sends, and what it is answered.

A `Client` is a connection: `feed` takes what it sent, `out` gathers what it is to be sent, `half_close` and `close` are
the two ways in which it ends. The traps of the real server are here too: a refused put header leaves its body to be
run as commands, a body that is too big is swallowed, a line that is too long is answered once.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from gstalk.testing.engine import FOREVER, Engine, Job, Tube

__all__ = ["Client"]

MAX_LINE = 224
SAFETY_MARGIN = 1.0
_NAME = re.compile(rb"[A-Za-z0-9+/;.$_()][A-Za-z0-9\-+/;.$_()]{0,199}")


class Bad(Exception):
    """A line that is answered with BAD_FORMAT."""


class Client:
    """A connection, as the server sees it.

    Attributes:
        out: What it is to be sent; whoever sends it clears it.
        ended: Whether the server wants to close it, once `out` is sent.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.out = bytearray()
        self.ended = False
        self.used = engine.tube(b"default")
        self.watched: list[Tube] = [self.used]
        self.used.using += 1
        self.used.watching += 1
        self.reserved: dict[int, Job] = {}
        self.wait_until: float | None = None  # while it waits in a reserve
        self.is_producer = self.is_worker = False
        self._half_closed = False
        self._in = bytearray()
        self._put: tuple[int, int, int, int] | None = None  # a put whose body is awaited
        self._swallow = 0  # bytes of a refused body still to come
        self._verdict = b""  # what to answer then
        self._skipping = False  # the rest of a line that was too long
        engine.clients[self] = None
        engine.total_connections += 1

    def write(self, data: bytes) -> None:
        self.out += data
        self.engine.talking.add(self)

    # -- input -------------------------------------------------------------------------------------------------

    def feed(self, data: bytes, now: float) -> None:
        """Take what the client sent, and carry out what is complete; nothing while it waits in a reserve."""
        self._in += data
        self.run(now)

    def run(self, now: float) -> None:
        self.engine.tick(now)
        while not self.ended and self.wait_until is None and self._step(now):
            pass
        if self._half_closed and self.wait_until is None and not self.ended:
            self.close(now)

    def _step(self, now: float) -> bool:
        """Do one thing with the input; `False` if there is too little of it."""
        if self._swallow:
            cut = min(self._swallow, len(self._in))
            del self._in[:cut]
            self._swallow -= cut
            if self._swallow:
                return False
            self.write(self._verdict)
            return True
        if self._put is not None:
            return self._body(now)
        if self._skipping:
            return self._skip()
        end = self._in.find(b"\r\n", 0, MAX_LINE)
        if end < 0:
            if len(self._in) < MAX_LINE:
                return False
            del self._in[:MAX_LINE]  # a CR at its end is forgotten with it (S7)
            self._skipping = True
            return True
        line = bytes(self._in[:end])
        del self._in[: end + 2]
        try:
            self._command(line, now)
        except Bad:
            self.write(b"BAD_FORMAT\r\n")
        return True

    def _skip(self) -> bool:
        end = self._in.find(b"\r\n")
        if end < 0:
            del self._in[: len(self._in) - self._in.endswith(b"\r")]
            return False
        del self._in[: end + 2]
        self._skipping = False
        self.write(b"BAD_FORMAT\r\n")
        return True

    def _body(self, now: float) -> bool:
        assert self._put is not None
        pri, delay, ttr, size = self._put
        if len(self._in) < size + 2:
            return False
        body = bytes(self._in[:size])
        end = bytes(self._in[size : size + 2])
        del self._in[: size + 2]
        self._put = None
        engine = self.engine
        if end != b"\r\n":
            self.write(b"EXPECTED_CRLF\r\n")
            return True
        if engine.draining:
            self.write(b"DRAINING\r\n")
            return True
        job = Job(engine.next_id, self.used, pri, delay, ttr, body, now)
        engine.next_id += 1
        engine.jobs[job.id] = job
        self.used.total += 1
        self.write(b"INSERTED %d\r\n" % job.id)
        if delay:
            engine.make_delayed(job, delay, now)
        else:
            engine.make_ready(job, now)
        return True

    def _command(self, line: bytes, now: float) -> None:
        name, space, rest = line.partition(b" ")
        command = _COMMANDS.get(name)
        if command is None:
            if line.startswith(b"quit"):
                self.close(now)
                return
            if any(line.startswith(known) and b" " not in known for known in _PLAIN):
                raise Bad
            self.write(b"UNKNOWN_COMMAND\r\n")
            return
        if (name in _PLAIN) == bool(space):
            if name in _PLAIN:
                raise Bad
            self.write(b"UNKNOWN_COMMAND\r\n")
            return
        if name.decode() in self.engine.commands and name != b"put":
            self.engine.commands[name.decode()] += 1
        command(self, rest, now)

    # -- commands ----------------------------------------------------------------------------------------------

    def _do_put(self, rest: bytes, now: float) -> None:
        numbers = rest.split(b" ")
        if len(numbers) != 4:
            raise Bad
        pri, delay, ttr, size = (_number(text) for text in numbers)
        self.engine.commands["put"] += 1
        self.is_producer = True
        if size > self.engine.max_job_size:
            self._swallow, self._verdict = size + 2, b"JOB_TOO_BIG\r\n"
        else:
            self._put = pri, delay, max(ttr, 1), size

    def _do_use(self, rest: bytes, now: float) -> None:
        tube = self.engine.tube(_name(rest))
        old, self.used = self.used, tube
        tube.using += 1
        old.using -= 1
        self.engine.drop_if_unneeded(old)
        self.write(b"USING %b\r\n" % tube.name)

    def _do_reserve(self, rest: bytes, now: float) -> None:
        self._reserve(FOREVER, now)

    def _do_reserve_with_timeout(self, rest: bytes, now: float) -> None:
        self._reserve(_number(rest), now)

    def _reserve(self, seconds: float, now: float) -> None:
        engine = self.engine
        self.is_worker = True
        job = engine.best_for(self)
        if self._deadline_soon(now) and not any(engine.first_ready(tube) for tube in self.watched):
            self.write(b"DEADLINE_SOON\r\n")
        elif job is not None:
            engine.make_reserved(job, self, now)
        elif seconds == 0 or self._half_closed:
            self.write(b"TIMED_OUT\r\n")
        else:
            self.wait_until = now + seconds
            for tube in self.watched:
                tube.waiting[self] = None
            engine.remind(self, min([self.wait_until, *(j.due - SAFETY_MARGIN for j in self.reserved.values())]))

    def _deadline_soon(self, now: float) -> bool:
        return any(job.due - SAFETY_MARGIN <= now for job in self.reserved.values())

    def look(self, now: float) -> None:
        """Something may be due while it waits."""
        if self.wait_until is None:
            return
        if self._deadline_soon(now):
            self.stop_waiting()
            self.write(b"DEADLINE_SOON\r\n")
        elif now >= self.wait_until:
            self.stop_waiting()
            self.write(b"TIMED_OUT\r\n")
        else:
            self.engine.remind(self, min([self.wait_until, *(j.due - SAFETY_MARGIN for j in self.reserved.values())]))

    def stop_waiting(self) -> None:
        self.wait_until = None
        for tube in self.watched:
            tube.waiting.pop(self, None)

    def _do_reserve_job(self, rest: bytes, now: float) -> None:
        self.is_worker = True
        job = self.engine.jobs.get(_number(rest, 2**64))
        if job is None or job.state == "reserved":
            self.write(b"NOT_FOUND\r\n")
        else:
            self.engine.make_reserved(job, self, now)

    def _mine(self, text: bytes) -> Job | None:
        job = self.reserved.get(_number(text, 2**64))
        if job is None:
            self.write(b"NOT_FOUND\r\n")
        return job

    def _do_delete(self, rest: bytes, now: float) -> None:
        job = self.engine.jobs.get(_number(rest, 2**64))
        if job is None or (job.state == "reserved" and job.reserver is not self):
            self.write(b"NOT_FOUND\r\n")
        else:
            self.engine.delete(job)
            self.write(b"DELETED\r\n")

    def _do_release(self, rest: bytes, now: float) -> None:
        texts = rest.split(b" ")
        if len(texts) != 3:
            raise Bad
        pri, delay = _number(texts[1]), _number(texts[2])
        job = self._mine(texts[0])
        if job is not None:
            self.engine.take_out(job)
            job.pri, job.delay = pri, delay
            job.releases += 1
            self.write(b"RELEASED\r\n")
            if delay:
                self.engine.make_delayed(job, delay, now)
            else:
                self.engine.make_ready(job, now)

    def _do_bury(self, rest: bytes, now: float) -> None:
        texts = rest.split(b" ")
        if len(texts) != 2:
            raise Bad
        pri = _number(texts[1])
        job = self._mine(texts[0])
        if job is not None:
            self.engine.take_out(job)
            job.pri = pri
            job.buries += 1
            self.engine.make_buried(job)
            self.write(b"BURIED\r\n")

    def _do_touch(self, rest: bytes, now: float) -> None:
        job = self._mine(rest)
        if job is not None:
            self.engine.set_deadline(job, now)
            self.write(b"TOUCHED\r\n")

    def _do_watch(self, rest: bytes, now: float) -> None:
        tube = self.engine.tube(_name(rest))
        if tube not in self.watched:
            self.watched.append(tube)
            tube.watching += 1
        self.write(b"WATCHING %d\r\n" % len(self.watched))

    def _do_ignore(self, rest: bytes, now: float) -> None:
        tube = self.engine.tubes.get(_name(rest))
        if tube is not None and tube in self.watched:
            if len(self.watched) == 1:
                self.write(b"NOT_IGNORED\r\n")
                return
            self.watched.remove(tube)
            tube.watching -= 1
            self.engine.drop_if_unneeded(tube)
        self.write(b"WATCHING %d\r\n" % len(self.watched))

    def _found(self, job: Job | None) -> None:
        if job is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self.write(b"FOUND %d %d\r\n%b\r\n" % (job.id, len(job.body), job.body))

    def _do_peek(self, rest: bytes, now: float) -> None:
        self._found(self.engine.jobs.get(_number(rest, 2**64)))

    def _do_peek_ready(self, rest: bytes, now: float) -> None:
        self._found(self.engine.first_ready(self.used))

    def _do_peek_delayed(self, rest: bytes, now: float) -> None:
        self._found(self.engine.first_delayed(self.used))

    def _do_peek_buried(self, rest: bytes, now: float) -> None:
        self._found(next(iter(self.used.buried.values()), None))

    def _kick(self, job: Job, now: float) -> None:
        job.kicks += 1
        self.engine.make_ready(job, now)

    def _do_kick(self, rest: bytes, now: float) -> None:
        bound = _number(rest)
        tube, kicked = self.used, 0
        first: Callable[[], Job | None] = lambda: next(iter(tube.buried.values()), None)  # noqa: E731
        if not tube.buried:
            first = lambda: self.engine.first_delayed(tube)  # noqa: E731
        while kicked < bound and (job := first()) is not None:
            self._kick(job, now)
            kicked += 1
        self.write(b"KICKED %d\r\n" % kicked)

    def _do_kick_job(self, rest: bytes, now: float) -> None:
        job = self.engine.jobs.get(_number(rest, 2**64))
        if job is None or job.state not in ("buried", "delayed"):
            self.write(b"NOT_FOUND\r\n")
        else:
            self._kick(job, now)
            self.write(b"KICKED\r\n")

    def _ok(self, body: str) -> None:
        data = b"---\n" + body.encode()
        self.write(b"OK %d\r\n%b\r\n" % (len(data), data))

    def _do_stats(self, rest: bytes, now: float) -> None:
        self._ok("".join(f"{key}: {value}\n" for key, value in self.engine.stats(now)) + "\n")

    def _do_stats_tube(self, rest: bytes, now: float) -> None:
        tube = self.engine.tubes.get(_name(rest))
        if tube is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self._ok("".join(f"{key}: {value}\n" for key, value in self.engine.stats_tube(tube, now)) + "\n")

    def _do_stats_job(self, rest: bytes, now: float) -> None:
        job = self.engine.jobs.get(_number(rest, 2**64))
        if job is None:
            self.write(b"NOT_FOUND\r\n")
        else:
            self._ok("".join(f"{key}: {value}\n" for key, value in self.engine.stats_job(job, now)) + "\n")

    def _do_list_tubes(self, rest: bytes, now: float) -> None:
        self._ok("".join(f"- {name.decode()}\n" for name in self.engine.tubes))

    def _do_list_tubes_watched(self, rest: bytes, now: float) -> None:
        self._ok("".join(f"- {tube.name.decode()}\n" for tube in self.watched))

    def _do_list_tube_used(self, rest: bytes, now: float) -> None:
        self.write(b"USING %b\r\n" % self.used.name)

    def _do_pause_tube(self, rest: bytes, now: float) -> None:
        name, space, delay = rest.partition(b" ")
        if not space:
            raise Bad
        seconds = _number(delay)
        tube = self.engine.tubes.get(_name(name))
        if tube is None:
            self.write(b"NOT_FOUND\r\n")
            return
        tube.pauses += 1
        tube.pause = seconds
        tube.paused_until = now + seconds
        self.write(b"PAUSED\r\n")
        if not seconds:
            self.engine.hand_out(tube, now)

    def _do_quit(self, rest: bytes, now: float) -> None:
        self.close(now)

    # -- its end -----------------------------------------------------------------------------------------------

    def half_close(self, now: float) -> None:
        """The client will send no more: a wait ends, what it sent is still carried out, then the server closes."""
        self._half_closed = True
        if self.wait_until is not None:
            self.stop_waiting()
            self.write(b"TIMED_OUT\r\n")
        self.run(now)

    def close(self, now: float) -> None:
        """The connection is gone: what it reserved is ready again."""
        if self not in self.engine.clients:
            return
        self.ended = True
        self.engine.talking.add(self)
        self.stop_waiting()
        del self.engine.clients[self]
        for job in list(self.reserved.values()):
            self.engine.make_ready(job, now)
        self.used.using -= 1
        for tube in self.watched:
            tube.watching -= 1
        for tube in {self.used, *self.watched}:
            self.engine.drop_if_unneeded(tube)


def _number(text: bytes, limit: int = 2**32) -> int:
    if not text.isdigit() or int(text[:25]) >= limit:
        raise Bad
    return int(text)


def _name(text: bytes) -> bytes:
    if not _NAME.fullmatch(text):
        raise Bad
    return text


_PLAIN = frozenset(
    b"reserve peek-ready peek-delayed peek-buried stats list-tubes list-tubes-watched list-tube-used quit".split()
)
_COMMANDS: dict[bytes, Callable[[Client, bytes, float], None]] = {
    name.removeprefix("_do_").replace("_", "-").encode(): function
    for name, function in vars(Client).items()
    if name.startswith("_do_")
}
