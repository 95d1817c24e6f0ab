"""What becomes of a job whose handler failed: when it is tried again, and when no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from gstalk.errors import InvalidArgumentError
from gstalk.protocol import checks

__all__ = ["RetryPolicy"]


@dataclass(frozen=True)
class RetryPolicy:
    """How failed jobs are tried again.

    Attributes:
        max_attempts: After so many a job is given up; `None`: never.
        first_delay: Seconds before the second attempt.
        factor: What each delay is multiplied with to get the next; 1 or more.
        max_delay: The longest delay, in seconds.
        jitter: Whether a delay is shortened at random, to between half of it and all of it.
        exhausted: What becomes of a job that is given up: "bury" or "delete".
    """

    max_attempts: int | None = 25
    first_delay: float | timedelta = 1
    factor: float = 2
    max_delay: float | timedelta = 300
    jitter: bool = True
    exhausted: Literal["bury", "delete"] = "bury"

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            self._set("max_attempts", checks.whole_number("max_attempts", self.max_attempts, 1, 2**32 - 1))
        for name in ("first_delay", "max_delay"):
            value = checks.seconds(name, getattr(self, name))
            checks.whole_seconds(name, value)
            self._set(name, value)
        self._set("factor", checks.number("factor", self.factor))
        if self.factor < 1:
            raise InvalidArgumentError(f"factor must be at least 1, got {self.factor}")
        if not isinstance(self.jitter, bool):
            raise TypeError(f"jitter must be a bool, got {type(self.jitter).__name__}")
        self._set("exhausted", checks.text("exhausted", self.exhausted))
        if self.exhausted not in ("bury", "delete"):
            raise InvalidArgumentError(f"exhausted must be 'bury' or 'delete', got {self.exhausted!r}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def delay(self, attempt: int, chance: float) -> float:
        """Seconds until the next attempt.

        Args:
            attempt: How many have been made, at least 1.
            chance: A random number from 0 to below 1; it counts only with `jitter`.
        """
        first, most = float(self.first_delay), float(self.max_delay)  # type: ignore[arg-type]
        try:
            whole = min(first * self.factor ** (attempt - 1), most)
        except OverflowError:
            whole = most if first else 0.0
        return whole * (0.5 + chance / 2) if self.jitter else whole

    def is_exhausted(self, reserves: int, kicks: int) -> bool:
        """Tell whether a job that has just failed is to be given up; each kick grants a fresh set of attempts."""
        return self.max_attempts is not None and reserves >= self.max_attempts * (kicks + 1)

    def is_exhausted_by_losses(self, reserves: int, releases: int, timeouts: int, buries: int, kicks: int) -> bool:
        """Tell the same of a job just reserved, counting only attempts that were lost with their worker."""
        losses = reserves - releases - timeouts - buries - 1
        return self.max_attempts is not None and losses >= self.max_attempts * (kicks + 1)
