"""How much memory this process has."""

from __future__ import annotations

import resource
import sys

__all__ = ["resident"]


def resident() -> int:
    """Bytes of memory that are this process's now; where the system doesn't tell that, the most that there were."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
