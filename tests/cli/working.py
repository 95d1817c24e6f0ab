"""`gstalk work` as a real process, with handlers that write down what they did."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess

import gstalk
from tests.servers import wait_until

ROOT = Path(__file__).parents[2]

TASKS = """
import ctypes, os, time
import gevent

LOG = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
number = 5


def note(word, job):
    os.write(LOG, b"%b %b %d\\n" % (word, job.body, os.getpid()))


def quick(job):
    note(b"begun", job)
    gevent.sleep(0.005)
    job.delete()
    note(b"done", job)


def half_a_second(job):
    note(b"begun", job)
    gevent.sleep(0.5)
    job.delete()
    note(b"done", job)


def returns(job):
    note(b"done", job)


def fails(job):
    note(b"begun", job)
    raise ValueError("no")


def hangs(job):
    note(b"begun", job)
    gevent.sleep(1000)


def blocks(job):
    note(b"begun", job)
    time.sleep(1000)


def blocks_in_c(job):
    note(b"begun", job)
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(lock)


async def waits(job):
    pass


def yields(job):
    yield


def none():
    pass


waits_in_a_lambda = lambda job: waits(job)
by_tube = {"a": returns, "b": fails}
by_tube_async = {"c": waits}
"""

# Has its standard input for its terminal, as a login has, and then is the program.
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def counts(conn: gstalk.Conn, tube: str) -> tuple[int | None, ...]:
    """How many jobs are ready, reserved, delayed and buried."""
    try:
        stats = conn.stats_tube(tube)
    except gstalk.NotFoundError:
        return 0, 0, 0, 0
    return (
        stats.current_jobs_ready,
        stats.current_jobs_reserved,
        stats.current_jobs_delayed,
        stats.current_jobs_buried,
    )


class Working:
    """A worker that runs, in a directory of its own where `tasks.py` is.

    Args:
        place: The directory.
        uri: The server.
        *args: Arguments of `gstalk work`.
        program: What starts `gstalk`, in words for the interpreter.
        environment: What its environment has beyond ours.
        terminal: The terminal that it is started from, if it is to have one.
    """

    def __init__(
        self,
        place: Path,
        uri: str,
        *args: str,
        program: Sequence[str] = ("-m", "gstalk"),
        environment: Mapping[str, str] | None = None,
        terminal: int | None = None,
    ) -> None:
        self.place = place
        if not (place / "tasks.py").exists():
            (place / "tasks.py").write_text(TASKS)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        words = [sys.executable, *program, "--uri", uri, "work", *args]
        if terminal is not None:
            words = [sys.executable, "-c", IN_TERMINAL, *words]
        # A session of its own: what it sends to its process group doesn't reach us.
        self.process: Any = subprocess.Popen(
            words, cwd=place, env=env, stdin=subprocess.DEVNULL if terminal is None else terminal,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.errors = ""
        self._reader = gevent.spawn(self._read)

    def __enter__(self) -> Working:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        self._reader.kill()
        self.process.stderr.close()

    def _read(self) -> None:
        while data := self.process.stderr.readline():
            self.errors += data.decode()

    def deafen(self) -> None:
        """Read no more of what it says: that ends in broken pipes."""
        self._reader.kill()
        self.process.stderr.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 30) -> int:
        """Wait until it, and all that it started, have ended; its exit code."""
        with gevent.Timeout(seconds, AssertionError(f"it does not end; it said: {self.errors}")):
            self._reader.join()  # all of them have its standard error
        return int(self.process.wait(timeout=seconds))

    def wait_said(self, pattern: str) -> None:
        try:
            wait_until(lambda: re.search(pattern, self.errors), 30)
        except AssertionError:
            raise AssertionError(f"it did not say {pattern!r}, but: {self.errors}") from None

    def wait_noted(self, word: str, count: int = 1, bodies: Set[bytes] = frozenset()) -> None:
        """Wait for so many jobs, and for those with these bodies."""

        def are_noted() -> bool:
            noted = self.noted(word)
            return len(noted) >= count and bodies <= {body for body, _ in noted}

        try:
            wait_until(are_noted, 30)
        except AssertionError:
            raise AssertionError(f"it did not note {count} {word!r}; it said: {self.errors}") from None

    def noted(self, word: str) -> list[tuple[bytes, int]]:
        """Bodies of jobs begun or done, each with the process that noted it."""
        try:
            lines = (self.place / "log").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [(body, int(pid)) for kind, body, pid in map(bytes.split, lines) if kind == word.encode()]
