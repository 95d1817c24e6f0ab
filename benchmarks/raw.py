"""The C programs, compiled with the standard compiler: instant.c, and raw.c, the raw limit, in three ways.

- raw C: each read's commands in one send, at once
- raw C, gathering: they wait until half of what is in flight is answered
- raw C, paced: that, and a nap before each read, which no library can afford; it shows what the server itself can do
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.cases import PACED, Case
from benchmarks.meter import server_cpu

__all__ = ["Raw"]

FILLING = 256  # commands in flight when a tube is filled for others
PAUSE = 20  # microseconds, to which the system adds some 50


class Raw:
    """The compiled program; a context manager, which removes it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="gstalk-bench-")
        self._program = str(Path(self._directory.name, "raw"))
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise FileNotFoundError("no C compiler (cc) on this machine, which the raw limit needs")
        self.instant = str(Path(self._directory.name, "instant"))
        for program in (self._program, self.instant):
            source = str(Path(__file__).with_name(f"{Path(program).name}.c"))
            subprocess.run([compiler, "-O2", "-o", program, source], check=True)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def run(
        self,
        uri: str,
        workload: str,
        count: int,
        depth: int,
        size: int,
        tube: str = "bench0",
        gather: int = 1,
        pause: int = 0,
    ) -> dict[str, Any]:
        parts = urlsplit(uri)
        place = parts.path or str(parts.port)
        command = [self._program, place, workload, *map(str, (count, depth, size)), tube, str(gather), str(pause)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def system_call(self) -> float:
        """Microseconds of CPU that a system call takes here: one that sends or reads 100 bytes on the loopback."""
        done = subprocess.run([self._program, "calls"], check=True, capture_output=True, text=True)
        return float(done.stdout)

    def measure(self, case: Case, uri: str, pid: int) -> dict[str, Any]:
        depth = case.greenlets
        gather = 1 if case.client == "raw C" else depth // 2
        pause = PAUSE if case.client == PACED else 0
        before = server_cpu(pid)
        took = self.run(uri, case.workload, case.count, depth, case.size, gather=gather, pause=pause)
        busy = (server_cpu(pid) - before) / took["seconds"]
        return {"rate": case.count / took["seconds"], "cpu": took["cpu"] / case.count, "busy": min(busy, 1.0)}

    def fill(self, case: Case, uri: str) -> None:
        """Put the jobs that a case is to work off, and some more, so that the last ones are found as fast."""
        share = (case.warm_up + case.count) // case.tubes + 2 * max(case.greenlets, 64)
        for number in range(case.tubes):
            self.run(uri, "put", share, FILLING, case.size, f"bench{number}")
