"""How fast this machine is, so that bounds in seconds of processor time hold on slower ones, too."""

from __future__ import annotations

from time import thread_time

__all__ = ["slowness"]

MEASURED = 0.004  # seconds that `_work` takes where the bounds were measured


def _work() -> float:
    began, total = thread_time(), 0
    for number in range(100_000):
        total += number % 7
    return thread_time() - began


def slowness() -> float:
    """How many times slower this machine is than the one on which bounds were measured; 1 for a faster one."""
    return max(1.0, min(_work() for _ in range(5)) / MEASURED)
