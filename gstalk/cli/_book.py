"""What a worker process has in hand, and what became of what it had."""

from __future__ import annotations

import logging
from types import FrameType
from typing import Any

import gevent
from gevent import getcurrent
from gevent.event import Event

import gstalk
from gstalk.cli._greenlets import is_running, others, place_of, stack_of_handler
from gstalk.cli._output import plural
from gstalk.connection.clock import monotonic

__all__ = ["Book", "logger"]

logger = logging.getLogger("gstalk.work")


class Book:
    """The jobs of a worker process.

    Args:
        greenlets: So many handlers run at once.

    Attributes:
        begun: Jobs whose handler was called.
        done: Those whose handler has done its part.
        failed: Those whose handler has failed.
        cut: Those whose handler was cut off by the worker's end.
        finished: Set when a handler has ended.
        looked_at: When somebody has looked for the last time.
    """

    def __init__(self, greenlets: int) -> None:
        self.begun = self.done = self.failed = self.cut = 0
        self.finished = Event()
        self.looked_at = float("-inf")
        self._greenlets = greenlets
        self._current: dict[Any, tuple[gstalk.Job, float]] = {}  # what each greenlet works at, and since when

    def __len__(self) -> int:
        return len(self._current)

    def begin(self, job: gstalk.Job) -> None:
        """Note that the handler is about to be called in this greenlet."""
        self.begun += 1
        self._current[getcurrent()] = job, monotonic()

    def end(self, event: gstalk.Event, is_ending: bool) -> None:
        """Note what became of the job of this greenlet; `is_ending`: the worker itself may have cut the handler off."""
        if event.kind != "handled" or getcurrent() not in self._current:
            return  # the latter: a job too many
        job, _ = self._current.pop(getcurrent())
        error = event.exception
        if error is None or isinstance(error, (gstalk.Retry, gstalk.Bury)):
            self.done += 1
            outcome = "done" if error is None else "buried" if isinstance(error, gstalk.Bury) else "released"
            shown = "to be tried again" if outcome == "released" else outcome
        elif isinstance(error, gevent.GreenletExit) and is_ending:
            self.cut += 1
            outcome, shown = "released", "cut off, and released"
        else:
            self.failed += 1
            outcome, shown = "failed", f"failed with {type(error).__name__}"
        told = {name: getattr(event, name) for name in ("uri", "job_id", "attempt", "duration")}
        known = {**told, "tube": job.tube, "outcome": outcome}
        extra = {name: value for name, value in known.items() if value is not None}
        logger.info("%s: %s, %.3f s", _named(job), shown, event.duration or 0.0, extra=extra)
        self.finished.set()

    def look(self, running: FrameType | None) -> list[str]:
        """Tell what each greenlet is doing, in lines.

        Args:
            running: The frame in which the thread of the greenlets is.
        """
        self.looked_at = now = monotonic()
        lines = [
            f"{plural(self.done, 'job')} done, {self.failed} failed; "
            f"{len(self._current)} of {self._greenlets} greenlets have a job"
        ]
        current = list(self._current.items())
        for greenlet, (job, began) in current:
            lines.append(f"  {_named(job)} for {now - began:.1f} s")
            lines += stack_of_handler(greenlet, running)
        return [*lines, *others({greenlet for greenlet, _ in current}, running)]

    def whereabouts(self, running: FrameType | None) -> str:
        """Tell which job has the event loop, if one has, and where the thread is."""
        jobs = [job for greenlet, (job, _) in list(self._current.items()) if is_running(greenlet)]
        return f"{_named(jobs[0]) if jobs else 'no job'}, at {place_of(running)}"


def _named(job: gstalk.Job) -> str:
    return f"job {job.id}" if job.tube is None else f"job {job.id} of {job.tube}"
