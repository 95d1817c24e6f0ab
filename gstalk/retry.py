"""What becomes of a job: a `Fate`, decided from values alone. `pool.handling` carries it out."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from gstalk.errors import Bury, InvalidArgumentError, Retry
from gstalk.protocol import checks
from gstalk.protocol.stats import JobStats
from gstalk.records import record

__all__ = ["Fate", "RetryPolicy", "judged"]

LEAST_LOSSES = 3  # a stop that meets a job on its way counts like a loss: one or two of them say nothing about a job


@record(frozen=True)
class RetryPolicy:
    """How failed jobs are tried again.

    Attributes:
        max_attempts: After so many a job is given up; `None`: never. One that was lost with its worker so often, and at
            least three times, is buried.
        first_delay: Seconds before the second attempt.
        factor: What each delay is multiplied with to get the next; 1 or more.
        max_delay: The longest delay, in seconds.
        jitter: Whether a delay is shortened at random, to between half of it and all of it.
        exhausted: What becomes of a job that failed so often: "bury" or "delete".
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
        return self.max_attempts is not None and losses >= max(self.max_attempts, LEAST_LOSSES) * (kicks + 1)


@record(frozen=True)
class Fate:
    """What becomes of a job.

    Attributes:
        command: What is sent for it.
        priority: Of a release or a bury; `None`: the job's own.
        delay: Of a release, in whole seconds.
        is_given_up: Whether its attempts are used up.
    """

    command: Literal["release", "bury", "delete"]
    priority: int | None = None
    delay: int = 0
    is_given_up: bool = False

    def __str__(self) -> str:
        if self.command == "release":
            return f"released, with a delay of {self.delay} s"
        if self.command == "delete":
            return "given up and deleted"
        return "given up and buried" if self.is_given_up else "buried"

    @property
    def outcome(self) -> str:
        """What the job is when that is carried out, in one word."""
        return {"release": "released", "bury": "buried", "delete": "deleted"}[self.command]

    @classmethod
    def of_failed(
        cls, policy: RetryPolicy, stats: JobStats, error: BaseException, chance: float, has_run: bool = True
    ) -> Fate:
        """Decide about a job whose handler has failed.

        Args:
            policy: Says when it is tried again, and when no more.
            stats: The job's.
            error: What `judged` returned for the handler's exception.
            chance: A random number from 0 to below 1.
            has_run: Whether its handler was called. One that has not run is never deleted: somebody should look.
        """
        if isinstance(error, Bury):
            return cls("bury", stats.pri if error.priority is None else error.priority)
        attempt = stats.reserves or 0
        if policy.is_exhausted(attempt, stats.kicks or 0):
            return cls(policy.exhausted if has_run else "bury", stats.pri, is_given_up=True)
        delay, priority = checks.check_delay(policy.delay(attempt, chance)), stats.pri
        if isinstance(error, Retry):
            delay = delay if error.delay is None else error.delay
            priority = priority if error.priority is None else error.priority
        return cls("release", priority, delay)

    @classmethod
    def of_reserved(cls, policy: RetryPolicy, stats: JobStats) -> Fate | None:
        """Decide about a job just reserved; `None`: its handler is to run.

        One that was lost with its worker too often is buried, never deleted: it may not have run at all.
        """
        reserves, kicks = stats.reserves or 0, stats.kicks or 0
        if policy.is_exhausted_by_losses(reserves, stats.releases or 0, stats.timeouts or 0, stats.buries or 0, kicks):
            return cls("bury", stats.pri, is_given_up=True)
        return None


def judged(error: BaseException) -> BaseException:
    """Judge what a handler raised, before a `Fate` is made of it.

    Returns:
        A right `Retry` or `Bury`: one in the builtin values that it holds. A wrong one: what is wrong with it, for such
        a handler has failed like any other, so that its delays grow and its attempts end. Anything else: itself.
    """
    if not isinstance(error, (Retry, Bury)):
        return error
    try:
        priority = None if error.priority is None else checks.check_priority(error.priority)
        if isinstance(error, Bury):
            return Bury(priority)
        return Retry(None if error.delay is None else checks.check_delay(error.delay), priority)
    except Exception as wrong:  # also what an heir's own property raises, or a number's own method
        wrong.__cause__ = error  # shows where it was raised
        return wrong
