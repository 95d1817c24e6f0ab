"""How long to pause between reserves that are asked with timeout 0, by a Conn and by a Consumer alike.

A reserve that found nothing is followed by the next one after a pause that grows from `FIRST_PAUSE` to `LONGEST_PAUSE`.
When a job was found, the pauses begin with the first one again. `connection.reserving` keeps a Conn's next pause, and
`pool.permits` that of each server of a Consumer. README.md, docs/pipelining.md, docs/operations.md and
docs/performance.md tell these numbers to users.
"""

from __future__ import annotations

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "QUIET", "REST", "longer"]

FIRST_PAUSE = 0.001  # seconds
LONGEST_PAUSE = 0.05
REST = 0.05  # seconds without a reserve after a recall: the connection is being dialed anew
# Seconds without a reserve after DEADLINE_SOON or a refusal, which the server would say thousands of times meanwhile.
QUIET = 0.25


def longer(pause: float) -> float:
    """The pause that follows this one, if nothing is found again."""
    return min(pause * 2, LONGEST_PAUSE)
