"""The clock of one measurement: wall time, the client's CPU, the servers' CPU, and a sample of latencies."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["EVERY", "Meter", "Others", "percentiles", "server_cpu"]

EVERY = 16  # one operation in so many has its latency taken: often enough, and not felt


def server_cpu(pid: int) -> float:
    """User and system time that a process has used, in seconds; finer than what /proc/PID/stat counts."""
    return time.clock_gettime((~pid << 3) | 2)  # Linux: the clock that clock_getcpuclockid(3) gives


def percentiles(values: list[float]) -> dict[str, float]:
    """Latencies in milliseconds."""
    values = sorted(values)
    if not values:
        return {}
    at = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    return {name: values[min(math.floor(len(values) * part), len(values) - 1)] * 1000 for name, part in at.items()}


class Others:
    """What else the machine is busy with meanwhile: a measurement that others disturb tells about them.

    Args:
        pids: The servers' processes; the children are known.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._began = self._now()

    def share(self) -> float:
        """CPU time of others since this was made, in cores; 0 where the system doesn't tell."""
        seconds, everybody, own = (end - begin for begin, end in zip(self._began, self._now(), strict=True))
        return max(everybody - own, 0.0) / seconds if everybody else 0.0

    def _now(self) -> tuple[float, float, float]:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(each.ru_utime + each.ru_stime for each in used) + sum(map(server_cpu, self._pids))
        try:
            with open("/proc/stat", encoding="ascii") as lines:
                user, nice, system, _, _, irq, soft, stolen, *_ = map(int, lines.readline().split()[1:])
        except OSError:
            return time.perf_counter(), 0.0, own
        everybody = (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), everybody, own


class Meter:
    """Started by a client when it is warm, stopped when it has done its operations.

    Args:
        pids: The servers' processes.
    """

    def __init__(self, pids: list[int]) -> None:
        self.latencies: list[float] = []
        self._pids = pids
        self._began: list[float] = []
        self._ended: list[float] = []

    def start(self) -> None:
        self.latencies.clear()
        self._began = self._now()

    def each(self, numbers: Iterable[int], do: Callable[[int], object]) -> None:
        """Do something for each number, and take the latency of some."""
        note = self.latencies.append
        for number in numbers:
            if number % EVERY:
                do(number)
            else:
                began = time.perf_counter()
                do(number)
                note(time.perf_counter() - began)

    def stop(self) -> None:
        self._ended = self._now()

    def _now(self) -> list[float]:
        return [time.perf_counter(), time.process_time(), *map(server_cpu, self._pids)]

    def result(self, operations: int) -> dict[str, Any]:
        seconds, cpu, *servers = (end - begin for begin, end in zip(self._began, self._ended, strict=True))
        return {
            "rate": operations / seconds,
            "cpu": cpu / operations,
            "busy": sum(servers) / len(servers) / seconds,
            **percentiles(self.latencies),
        }
