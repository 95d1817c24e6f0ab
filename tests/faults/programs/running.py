"""Running the programs beside this module, each in a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gevent
from gevent import subprocess

ROOT = Path(__file__).parents[3]


class Program:
    """A program that runs, and what it has printed: JSON, one value a line.

    Args:
        name: The module's name in this directory, or, with dots, wherever it is.
        *args: Its arguments.
        flags: Python's own.
        seconds: How long it may take.
    """

    def __init__(self, name: str, *args: object, flags: tuple[str, ...] = (), seconds: float = 60) -> None:
        module = name if "." in name else f"tests.faults.programs.{name}"
        command = [sys.executable, *flags, "-m", module, *map(str, args)]
        self._limit = seconds
        pipe = subprocess.PIPE
        self.process: Any = subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT, text=True)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()

    def read(self) -> Any:
        """The next value that it prints."""
        with gevent.Timeout(self._limit, AssertionError("the program says nothing")):
            line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the program ended and said: {self.process.stderr.read()}")
        return json.loads(line)

    @property
    def sleeps(self) -> bool:
        """Whether it waits. Where the system doesn't tell, it soon will."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text("utf-8").rpartition(") ")[2].startswith("S")
        except OSError:
            return True

    def end(self) -> tuple[int, list[Any], str]:
        """Wait for its end: its exit code, what it printed, and what it complained of."""
        output, errors = self.process.communicate(timeout=self._limit)
        return self.process.returncode, [json.loads(line) for line in output.splitlines()], errors


def run(name: str, *args: object, flags: tuple[str, ...] = (), seconds: float = 60) -> list[Any]:
    """Run a program to its end, which is to be a good one without a complaint; what it printed."""
    with Program(name, *args, flags=flags, seconds=seconds) as program:
        code, said, errors = program.end()
    assert (code, errors) == (0, "")
    return said
