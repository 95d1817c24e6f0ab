"""The real beanstalkd, started for a test and stopped with it."""

from __future__ import annotations

import atexit
import itertools
import os
import random
import shutil
import signal
import tempfile
from types import TracebackType
from typing import Any

import gevent
from gevent import socket, subprocess

__all__ = ["Beanstalkd", "free_port"]

_PLACES = "/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin:/opt/homebrew/bin"

_FIRST_PORT = 10_240
_SHARES, _SHARE = 112, 200  # so many processes with so many ports each, up to 32639
_turns = itertools.count(random.SystemRandom().randrange(_SHARE))  # the system's chance: runs often share a seed


class Beanstalkd:
    """A beanstalkd process on a free loopback port, or on a unix socket.

    Args:
        *args: More arguments for it, such as ``"-z", "100000"``.
        unix: Listen on a unix socket in a directory of its own.
        binlog: A directory for its binlog (``-b``), kept across `restart`.

    Raises:
        FileNotFoundError: There is no beanstalkd; `$GSTALK_BEANSTALKD` may name one.
        RuntimeError: It did not start; with what it said.
    """

    def __init__(self, *args: str, unix: bool = False, binlog: str | None = None) -> None:
        self._args = list(args) + (["-b", binlog, "-f0"] if binlog else [])
        self._directory = tempfile.mkdtemp(prefix="gstalk-") if unix else None
        self._process: Any = None
        self._errors: Any = None
        self._starter = 0
        self.port = 0 if unix else free_port()

    @staticmethod
    def find() -> str | None:
        """Find the program: `$GSTALK_BEANSTALKD`, the path, or the usual places."""
        if named := os.environ.get("GSTALK_BEANSTALKD"):
            return shutil.which(named)
        return shutil.which("beanstalkd") or shutil.which("beanstalkd", path=_PLACES)

    @property
    def uri(self) -> str:
        """Where it listens, now or when it is started: what `gstalk.dial` takes."""
        return f"unix://{self._directory}/socket" if self._directory else f"beanstalk://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def __enter__(self) -> Beanstalkd:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = self.find()
        if program is None:
            raise FileNotFoundError("no beanstalkd on this machine: install it, or name it in $GSTALK_BEANSTALKD")
        where = ["-l", f"unix:{self._directory}/socket"] if self._directory else []
        where = where or ["-l", "127.0.0.1", "-p", str(self.port)]
        # A file: a pipe that nobody reads fills up, and with it stops a server that refuses many puts.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # `_end` closes it
        self._starter = os.getpid()
        self._process = subprocess.Popen(
            [program, *where, *self._args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._errors
        )
        atexit.register(self._end)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        for _ in range(500):
            if self._process.poll() is not None:
                self._errors.seek(0)
                raise RuntimeError(f"beanstalkd did not start: {self._errors.read().decode(errors='replace').strip()}")
            if self._answers():
                return
            gevent.sleep(0.01)
        raise RuntimeError("beanstalkd does not answer")

    def _answers(self) -> bool:
        family = socket.AF_UNIX if self._directory else socket.AF_INET
        place: Any = f"{self._directory}/socket" if self._directory else ("127.0.0.1", self.port)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            try:
                sock.settimeout(1)
                sock.connect(place)
                sock.sendall(b"list-tube-used\r\n")
                return bool(sock.recv(64) == b"USING default\r\n")
            except OSError:
                return False

    def kill(self) -> None:
        """End it at once, with SIGKILL."""
        self._end()

    def stop(self) -> None:
        """End it, and remove its socket's directory."""
        self._end()
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def restart(self) -> None:
        """Kill it if it runs, and start it again in the same place."""
        self._end()
        self.start()

    def drain(self) -> None:
        """Have it take no new jobs (SIGUSR1), until it is restarted."""
        os.kill(self.pid, signal.SIGUSR1)

    def pause(self) -> None:
        """Stop the process (SIGSTOP): connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or os.getpid() != self._starter:
            return  # a fork's copy: the server is the parent's
        atexit.unregister(self._end)
        if process.poll() is None:
            process.kill()
            process.wait()
        self._errors.close()


def free_port() -> int:
    """Find a loopback port that stays free while a server is down.

    Below the range that systems take outgoing connections' ports from: one of those may else sit on a server's port
    when the server is to start again. So may a server of another test run: each process has some ports of its own, by
    its number, and takes one after the other. It begins anywhere among them: two whose numbers are far apart may share.
    """
    first = _FIRST_PORT + os.getpid() % _SHARES * _SHARE
    for _ in range(_SHARE):
        port = first + next(_turns) % _SHARE
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no free port from {first} to {first + _SHARE - 1}")
