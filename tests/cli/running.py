"""The command line, run in this process where its logic is looked at, and what tests ask of servers."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import pytest
from gevent import subprocess

import gstalk
from gstalk.cli import main
from tests.cli.terminal import Terminal

UNUSED = "localhost:1"  # where nobody listens


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@contextlib.contextmanager
def _standing_in(files: Sequence[IO[bytes]]) -> Iterator[None]:
    """Have files stand in for the standard descriptors and streams, and for the signals' handlers."""
    saved = [os.dup(number) for number in range(3)]
    streams = sys.stdin, sys.stdout, sys.stderr
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115  # they are not theirs
        for number, mode in enumerate("rww")
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)
        for number, copy in enumerate(saved):
            os.dup2(copy, number)
            os.close(copy)


def run(*args: str, stdin: bytes = b"", uri: str | None = None) -> Outcome:
    """Run `gstalk` in this process."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        files[0].write(stdin)
        files[0].seek(0)
        with _standing_in(files), pytest.raises(SystemExit) as ended:
            main([*(["--uri", uri] if uri is not None else []), *args])
        for file in files:
            file.seek(0)
        out, err = (file.read().decode("utf-8", "surrogateescape") for file in files[1:])
    return Outcome(int(ended.value.code or 0), out, err)


def buried(conn: gstalk.Conn, tube: str, *bodies: bytes, priority: int = 1024) -> list[int]:
    """Put jobs and bury them, in this order."""
    ids = []
    for body in bodies:
        job_id = conn.put(tube, body, priority=priority)
        conn.reserve_job(job_id).bury()
        ids.append(job_id)
    return ids


def states(conn: gstalk.Conn, tube: str) -> dict[str, int]:
    """How many jobs of a tube are in which state."""
    try:
        stats = conn.stats_tube(tube)
    except gstalk.NotFoundError:
        return {}
    names = ("ready", "reserved", "delayed", "buried")
    found = {name: getattr(stats, f"current_jobs_{name}") for name in names}
    return {name: count for name, count in found.items() if count}


COMMAND = [sys.executable, "-m", "gstalk"]


def start(*args: str, uri: str, **options: Any) -> Any:
    """Start `gstalk` as a process of its own; what isn't said otherwise is a pipe."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([*COMMAND, "--uri", uri, *args], **{**pipes, **options})


def finish(process: Any, stdin: bytes = b"") -> Outcome:
    """Wait for its end."""
    out, err = process.communicate(stdin)
    return Outcome(process.returncode, (out or b"").decode(), (err or b"").decode())


def shell(line: str, uri: str) -> Outcome:
    """Run a line of shell in which `$G` is gstalk; the exit code is the first program's."""
    script = f'{line}; exit "${{PIPESTATUS[0]}}"'
    environment = {**os.environ, "G": shlex.join(COMMAND), "BEANSTALKD_URI": uri}
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    return finish(subprocess.Popen(["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL, **pipes))


def terminal(uri: str, *args: str, **options: Any) -> Terminal:
    """Run the command on a terminal."""
    return Terminal([*COMMAND, "--uri", uri, *args], **options)
