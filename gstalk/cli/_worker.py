"""One worker process: the handler's import, a Consumer around it, and all that may end it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import gevent
from gevent import getcurrent, socket
from gevent.event import Event

import gstalk
from gstalk.cli._greenlets import others, stack_of_handler
from gstalk.cli._load import Handler, Unusable, load
from gstalk.cli._output import complain, exit_code, plural, tell
from gstalk.cli._sources import Sources
from gstalk.cli._tubes import until_empty
from gstalk.connection.clock import monotonic

__all__ = ["AGAIN", "Work", "Worker"]

AGAIN = 75  # exit code of a child that wants to be started anew: after --max-jobs, or with changed files
AT_ONCE = 2.0  # seconds that a worker told to end at once gets for it
logger = logging.getLogger("gstalk.work")


@dataclass(frozen=True)
class Work:
    """What a worker process is to do: the options of `gstalk work`."""

    target: str
    uris: tuple[str, ...]
    tubes: tuple[str, ...]
    config: gstalk.Config
    burst: bool
    max_jobs: int | None
    reload: bool
    verbose: bool
    parent: int | None


class Worker:
    """A Consumer around a handler, and what may end it.

    Args:
        work: What to do.
        banner: What is said when the handler is there, unless a parent has said it.

    Attributes:
        is_changed: Whether it ended because a file has changed.
    """

    def __init__(self, work: Work, banner: str) -> None:
        self.is_changed = False
        self._work = work
        self._banner = banner
        self._consumer: gstalk.Consumer | None = None
        self._asked = self._pressed = 0  # signals that asked to stop; those of them that asked to stop at once
        self._code = 0
        self._is_ending = False
        self._begun = self._done = self._failed = self._cut = 0
        self._current: dict[Any, tuple[gstalk.Job, float]] = {}  # what each greenlet works at, and since when
        self._finished = Event()  # a job has

    def run(self) -> int:
        """Work until there is a reason to end; returns the exit code."""
        # Python's own handlers run at once, also while a job's handler keeps the hub.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_look)
        sources = Sources() if self._work.reload else None
        try:
            handler = self._load()
        except Exception as error:
            if sources is None or isinstance(error, Unusable):
                raise
            complain(error)
            gevent.wait([gevent.spawn(each) for each in self._reasons_to_end(sources)], count=1)
            return AGAIN
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
        if not logging.getLogger("gstalk").level:
            logging.getLogger("gstalk").setLevel(logging.INFO)
        logger.setLevel(logging.INFO if self._work.verbose else logging.WARNING)
        if self._work.parent is None:
            tell(self._banner)
        config = self._work.config.replace(event_func=self._on_event)
        self._consumer = gstalk.Consumer(self._work.uris, self._work.tubes, config)
        beside = [gevent.spawn(function) for function in self._reasons_to_end(sources)]
        try:
            self._consumer.receive(handler)
        finally:
            gevent.killall(beside)
            self._consumer = None
        tell(f"pid {os.getpid()} stopped: {plural(self._done, 'job')} done, {self._failed} failed, {self._cut} cut off")
        return 1 if self._cut or self._pressed else 0 if self._asked else self._code

    # -- the handler -------------------------------------------------------------------------------------------

    def _load(self) -> Handler | Mapping[str, Handler]:
        """Import the handler, and put our book-keeping around it."""
        found = load(self._work.target, self._work.tubes)
        if isinstance(found, Mapping):
            return {tube: self._guard(handler) for tube, handler in found.items()}
        # With several tubes a job doesn't know its own; where it is to be shown, a mapping has it asked for.
        several = self._work.verbose and len(self._work.tubes) > 1
        return dict.fromkeys(self._work.tubes, self._guard(found)) if several else self._guard(found)

    def _guard(self, handler: Handler) -> Handler:
        def handle(job: gstalk.Job) -> Any:
            if self._begun == self._work.max_jobs:
                # It was on its way when the last one began.
                job.release()
                return None
            self._begun += 1
            if self._begun == self._work.max_jobs:
                self._code = AGAIN
                self._stop()
            self._current[getcurrent()] = job, monotonic()
            return handler(job)

        return handle

    def _on_event(self, event: gstalk.Event) -> None:
        """In the greenlet that has handled a job."""
        if event.kind != "handled" or getcurrent() not in self._current:
            return  # the latter: a job too many
        job, _ = self._current.pop(getcurrent())
        error = event.exception
        if error is None or isinstance(error, (gstalk.Retry, gstalk.Bury)):
            self._done += 1
            outcome = "done" if error is None else "buried" if isinstance(error, gstalk.Bury) else "released"
            shown = "to be tried again" if outcome == "released" else outcome
        elif isinstance(error, gevent.GreenletExit) and self._is_ending:
            self._cut += 1
            outcome, shown = "released", "cut off, and released"
        else:
            self._failed += 1
            outcome, shown = "failed", f"failed with {type(error).__name__}"
        told = {name: getattr(event, name) for name in ("uri", "job_id", "attempt", "duration")}
        known = {**told, "tube": job.tube, "outcome": outcome}
        extra = {name: value for name, value in known.items() if value is not None}
        logger.info("job %d of %s: %s, %.3f s", job.id, job.tube, shown, event.duration or 0.0, extra=extra)
        self._finished.set()

    # -- reasons to end ----------------------------------------------------------------------------------------

    def _reasons_to_end(self, sources: Sources | None) -> list[Callable[[], None]]:
        reasons: list[Callable[[], None]] = []
        if sources is not None:
            reasons.append(lambda: self._watch(sources))
        if self._work.parent is not None:
            reasons.append(self._until_orphaned)
        if self._work.burst and self._consumer is not None:
            reasons.append(self._until_empty)
        return reasons

    def _stop(self, *seconds: float) -> None:
        self._is_ending = True
        if self._consumer is not None:
            self._consumer.stop(*seconds)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT: the first one politely, the second at once, as SIGQUIT does.

        Under a parent both are polite however often they come: a terminal or a service manager may send one to all
        processes, and the parent passes its own on. It sends SIGQUIT when it is asked a second time.
        """
        at_once = number == signal.SIGQUIT or (self._asked > 0 and self._work.parent is None)
        self._asked += 1
        if not at_once:
            if self._consumer is None:
                raise SystemExit(0)  # no job is in hand: the module is being imported, or all is over
            if self._asked == 1:
                tell(f"pid {os.getpid()} stops; {plural(len(self._current), 'job')} in hand")
            self._stop()
            return
        self._pressed += 1
        if self._consumer is None or self._pressed > 1:
            os._exit(1)
        # A handler that doesn't let go of the hub can't be killed in it. Its job goes back with our connection.
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(1))
        signal.setitimer(signal.ITIMER_REAL, AT_ONCE)
        self._stop(0)

    def _until_orphaned(self) -> None:
        assert self._work.parent is not None
        socket.wait_read(self._work.parent)  # nothing is ever written: it has come to its end
        tell(f"pid {os.getpid()} stops: its parent is gone")
        self._stop()

    def _until_empty(self) -> None:
        try:
            until_empty(self._work.uris, self._work.tubes, self._finished)
        except gstalk.GstalkError as error:
            tell(str(error))
            self._code = exit_code(error)
        self._stop()

    def _watch(self, sources: Sources) -> None:
        """Stop when a file has changed."""
        while (changed := sources.changed()) is None:
            gevent.sleep(0.5)
        tell(f"{os.path.relpath(changed)} has changed: starting anew")
        self.is_changed, self._code = True, AGAIN
        self._stop()

    # -- looking -----------------------------------------------------------------------------------------------

    def _on_look(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR1: tell what each greenlet is doing, also if one of them keeps all others from running."""
        now = monotonic()
        lines = [
            f"pid {os.getpid()}: {plural(self._done, 'job')} done, {self._failed} failed; "
            f"{len(self._current)} of {self._work.config.num_greenlets} greenlets have a job"
        ]
        for greenlet, (job, began) in list(self._current.items()):
            lines.append(f"  job {job.id} of {job.tube} for {now - began:.1f} s")
            lines += stack_of_handler(greenlet, frame)
        tell("\n".join([*lines, *others(set(self._current), frame)]))
