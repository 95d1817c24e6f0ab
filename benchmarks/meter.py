"""The clock of one measurement: wall time, the client's CPU, the servers' CPU, and a sample of latencies."""

from __future__ import annotations

import math
import time
from typing import Any

__all__ = ["EVERY", "Meter", "percentiles", "server_cpu"]

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
