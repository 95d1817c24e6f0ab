"""When a connection counts as stuck: it made no progress for as long as it may. Numbers and `now` in, seconds out.

Progress is a byte that the kernel takes while some wait to be sent, a complete reply while one is due, another 64 KiB
of one, and a byte of a large write that leaves the kernel for the other side. Dripping bytes are none. A reply is due
from the moment at which its command has been sent whole.
"""

from __future__ import annotations

__all__ = ["UNLIMITED", "Progress"]

UNLIMITED = 10.0  # seconds between two looks whether all is well where there is no limit
LOOK = 0.1  # seconds between two looks at how far a large write has come


class Progress:
    """How far one connection has come.

    Args:
        limit: Seconds without progress after which it is stuck; `None`: it never is.

    Attributes:
        limit: The same.
        replied_at: Since when a reply is due.
        is_blocked: Whether the kernel has not taken all that is to be sent.
        is_draining: Whether a large write may still be in the kernel.
    """

    __slots__ = ("_accepted_at", "_delivered", "_taken", "is_blocked", "is_draining", "limit", "replied_at")

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.replied_at = 0.0
        self.is_blocked = False
        self.is_draining = False
        self._accepted_at = 0.0  # since when the kernel takes nothing
        self._taken = 0  # and how much of the stream it had taken then
        self._delivered = 0  # how much of the stream had left the kernel at the last look

    def blocked(self, taken: int, now: float) -> None:
        """The kernel took the stream up to here, and no more."""
        self.is_blocked = True
        self._accepted_at = now
        self._taken = taken

    def accepted(self, taken: int, oldest_end: int | None, now: float) -> bool:
        """Take note of how far the kernel has taken the stream; tell whether that is more than before.

        Args:
            oldest_end: Where the oldest command without a reply ends.
        """
        before, self._taken = self._taken, taken
        if taken <= before:
            return False
        self._accepted_at = now
        if oldest_end is not None and before < oldest_end <= taken:
            self.replied_at = now  # only now is its reply due
        return True

    def large_write(self, delivered: int) -> None:
        """Much was sent, and this much of the stream has left the kernel."""
        self.is_draining = True
        self._delivered = delivered

    def looked(self, delivered: int, left_over: int, now: float) -> None:
        """Take note of how much has left the kernel, and how much has not yet."""
        if delivered > self._delivered:
            self._accepted_at = self.replied_at = now
        self._delivered = delivered
        self.is_draining = left_over > 0

    def look_in(self, seconds: float) -> float:
        """Seconds after which to look again, if there are so many left."""
        return min(seconds, LOOK) if self.is_draining else seconds

    def time_left(self, oldest_end: int | None, patience: float, sent: int, now: float) -> float | None:
        """Seconds until the connection is stuck; `None`: nothing is due.

        Args:
            oldest_end: Where the oldest command without a reply ends; `None`: there is none.
            patience: Seconds that the server may take for that one on top.
            sent: How much of the stream the kernel has taken.
        """
        since = [self._accepted_at] if self.is_blocked else []
        if oldest_end is not None and oldest_end <= sent:
            since.append(self.replied_at + patience)
        elif oldest_end is not None and not self.is_blocked:
            since.append(self.replied_at)
        if not since or self.limit is None:
            return UNLIMITED if since else None
        return min(since) + self.limit - now
