"""The raw limit: raw.c, compiled with the standard compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.cases import Case
from benchmarks.meter import server_cpu

__all__ = ["Raw"]

FILLING = 256  # commands in flight when a tube is filled for others


class Raw:
    """The compiled program; a context manager, which removes it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="gstalk-bench-")
        self._program = str(Path(self._directory.name, "raw"))
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise FileNotFoundError("no C compiler (cc) on this machine, which the raw limit needs")
        source = str(Path(__file__).with_name("raw.c"))
        subprocess.run([compiler, "-O2", "-o", self._program, source], check=True)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def run(self, uri: str, workload: str, count: int, depth: int, size: int, tube: str = "bench0") -> dict[str, Any]:
        parts = urlsplit(uri)
        place = parts.path or str(parts.port)
        command = [self._program, place, workload, *map(str, (count, depth, size)), tube]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def measure(self, case: Case, uri: str, pid: int) -> dict[str, Any]:
        before = server_cpu(pid)
        took = self.run(uri, case.workload, case.count, case.greenlets, case.size)
        busy = (server_cpu(pid) - before) / took["seconds"]
        return {"rate": case.count / took["seconds"], "cpu": took["cpu"] / case.count, "busy": min(busy, 1.0)}

    def fill(self, case: Case, uri: str) -> None:
        """Put the jobs that a case is to work off, and some more, so that the last ones are found as fast."""
        share = (case.warm_up + case.count) // case.tubes + 2 * max(case.greenlets, 64)
        for number in range(case.tubes):
            self.run(uri, "put", share, FILLING, case.size, f"bench{number}")
