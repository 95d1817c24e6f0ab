"""One worker process: the handler's import, a Consumer around it, and all that may end it."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import gevent
from gevent import monkey, socket
from gevent.event import Event

import gstalk
from gstalk.cli._book import Book, logger
from gstalk.cli._load import Handler, Unusable, load
from gstalk.cli._lookout import Lookout
from gstalk.cli._memory import resident
from gstalk.cli._notify import notify, notify_reloading, watchdog_seconds
from gstalk.cli._output import complain, exit_code, plural, tell
from gstalk.cli._signals import STOPS, Terminal, is_at_once, is_hang_up_heard, let_signals_through
from gstalk.cli._signs import OVER, PATCHED, READY, TURNED, UNPATCHED, Heartbeat, Pulse, ToParent, period
from gstalk.cli._sources import Sources
from gstalk.cli._tubes import until_empty

__all__ = ["AGAIN", "Work", "Worker"]

AGAIN = 75  # exit code of a child that wants to be started anew: after --max-jobs, grown, or with changed files
SETTLING = 5.0  # seconds after which a worker counts as ready, also if no server is there
MIB = 1024 * 1024


@dataclass(frozen=True)
class Work:
    """What a worker process is to do: the options of `gstalk work`."""

    target: str
    uris: tuple[str, ...]
    tubes: tuple[str, ...]
    config: gstalk.Config
    burst: bool
    max_jobs: int | None
    max_memory: int | None
    hang_timeout: float | None
    heartbeat: str | None
    reload: bool
    quiet: bool
    verbose: bool
    parent: int | None


class Worker:
    """A Consumer around a handler, and what may end it.

    Args:
        work: What to do.
        banner: What is said when the handler is there, unless a parent says it; of whether the process is patched.

    Attributes:
        begins_anew: Whether it ended so that another one takes its place: at SIGHUP, grown, or when a file changed.
    """

    def __init__(self, work: Work, banner: Callable[[bool], str]) -> None:
        self.begins_anew = False
        self._work = work
        self._banner = banner
        self._parent = None if work.parent is None else ToParent(work.parent)
        self._consumer: gstalk.Consumer | None = None
        self._stops: list[int] = []  # signals that asked to stop
        self._pressed = 0  # so many of them asked to stop at once
        self._code = 0
        self._is_ending = False
        self._hung_up = Event()
        self._terminal = Terminal()
        self._book = Book(work.config.num_greenlets)

    def run(self) -> int:
        """Work until there is a reason to end; returns the exit code."""
        self._listen_to_signals()
        sources = Sources() if self._work.reload else None
        heartbeat = self._heartbeat()
        try:
            handler = self._load()
        except Exception as error:
            if sources is None or isinstance(error, Unusable):
                raise
            complain(error)
            reasons: list[Callable[[], object]] = [lambda: self._hung_up.wait(), *self._reasons_to_end(sources)]
            gevent.wait([gevent.spawn(each) for each in reasons], count=1)
            return AGAIN
        self._set_up_logging()
        is_patched = monkey.is_module_patched("socket")
        if self._parent is None:
            self._say(self._banner(is_patched))
        else:
            self._parent.say(PATCHED if is_patched else UNPATCHED)
        config = self._work.config.replace(event_func=lambda event: self._book.end(event, self._is_ending))
        self._consumer = gstalk.Consumer(self._work.uris, self._work.tubes, config)
        if self._is_ending:  # SIGHUP came before there was anything to stop
            self._consumer = None
            return AGAIN
        pulse = Pulse(period(watchdog_seconds(), self._work.hang_timeout), self._signs(heartbeat))
        lookout = Lookout(pulse, self._book, is_patched, self._work.hang_timeout, self._parent)
        lookout.start()
        beside = [gevent.spawn(each) for each in (pulse.run, self._get_ready, *self._reasons_to_end(sources))]
        try:
            self._consumer.receive(handler)
        finally:
            gevent.killall(beside)
            lookout.stop()
            self._consumer = None
            if self._parent is not None:
                self._parent.say(OVER)
        book = self._book
        self._say(
            f"pid {os.getpid()} stopped: {plural(book.done, 'job')} done, {book.failed} failed, {book.cut} cut off"
        )
        if self.begins_anew and not self._stops:
            return AGAIN
        return 1 if book.cut or self._pressed else 0 if self._stops else self._code

    def _set_up_logging(self) -> None:
        if not logging.getLogger().handlers:
            logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s")
        if not logging.getLogger("gstalk").level:
            logging.getLogger("gstalk").setLevel(logging.WARNING if self._work.quiet else logging.INFO)
        logger.setLevel(logging.INFO if self._work.verbose else logging.WARNING)

    def _say(self, text: str) -> None:
        """Tell what goes as it should."""
        if not self._work.quiet:
            tell(text)

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
        book, most = self._book, self._work.max_jobs

        def handle(job: gstalk.Job) -> Any:
            if book.begun == most:
                # It was on its way when the last one began.
                job.release()
                return None
            book.begin(job)
            if book.begun == most:
                self._code = AGAIN
                self._stop()
            return handler(job)

        return handle

    # -- signs of life -----------------------------------------------------------------------------------------

    def _heartbeat(self) -> Heartbeat | None:
        """Under a parent it is the parent's: one file for all."""
        return Heartbeat(self._work.heartbeat) if self._work.heartbeat and self._parent is None else None

    def _signs(self, heartbeat: Heartbeat | None) -> list[Callable[[], object]]:
        signs: list[Callable[[], object]] = []
        if self._parent is not None:
            parent = self._parent
            signs.append(lambda: parent.say(TURNED))
        else:
            signs.append(self._terminal.look)
        if self._parent is None and watchdog_seconds() is not None:
            signs.append(lambda: notify("WATCHDOG=1"))
        if heartbeat is not None:
            signs.append(heartbeat)
        if self._work.max_memory is not None:
            signs.append(self._weigh)
        return signs

    def _get_ready(self) -> None:
        """Tell that this worker works, when it is connected, or has tried for a while: a server may well be down."""
        if self._consumer is not None:
            self._consumer.wait_connected(SETTLING)
        if self._parent is not None:
            self._parent.say(READY)
        else:
            notify("READY=1")

    def _weigh(self) -> None:
        """Stop when the process has grown too large. One job it takes in any case, or it might do nothing but begin."""
        limit = (self._work.max_memory or 0) * MIB
        if not self._is_ending and self._book.begun and (size := resident()) > limit:
            self._say(
                f"pid {os.getpid()} has grown to {size // MIB} MiB, beyond --max-memory {self._work.max_memory}: "
                "restarting"
            )
            self._begin_anew()

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

    def _begin_anew(self) -> None:
        self.begins_anew, self._code = True, AGAIN
        self._stop()

    def _until_orphaned(self) -> None:
        assert self._work.parent is not None
        socket.wait_read(self._work.parent)  # nothing is ever written: it has come to its end
        tell(f"pid {os.getpid()} stops: its parent is gone")
        self._stop()

    def _until_empty(self) -> None:
        try:
            until_empty(self._work.uris, self._work.tubes, self._book.finished)
        except gstalk.GstalkError as error:
            tell(str(error))
            self._code = exit_code(error)
        self._stop()

    def _watch(self, sources: Sources) -> None:
        """Stop when a file has changed."""
        while (changed := sources.changed()) is None:
            gevent.sleep(0.5)
        self._say(f"{os.path.relpath(changed)} has changed: restarting")
        self._begin_anew()

    # -- signals -----------------------------------------------------------------------------------------------

    def _listen_to_signals(self) -> None:
        # Python's own handlers run at once, also while a job's handler keeps the hub.
        for number in STOPS:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_look)
        if is_hang_up_heard():
            signal.signal(signal.SIGHUP, self._on_hang_up)
        let_signals_through()
        if not faulthandler.is_enabled():
            # SIGABRT, from systemd's watchdog or our parent, is the last means: it shows where a process stands that
            # can't say it, since a C function has Python's lock.
            faulthandler.enable()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM, SIGINT and SIGQUIT: stop, politely or at once. A handler that blocks is the lookout's business."""
        self._stops.append(number)
        is_first = len(self._stops) == 1
        if is_first and self._parent is None:
            notify("STOPPING=1")
        if not is_at_once(self._stops, self._parent is not None):
            if self._consumer is None:
                raise SystemExit(0)  # no job is in hand: the module is being imported, or all is over
            if is_first:
                self._say(f"pid {os.getpid()} stops; {plural(len(self._book), 'job')} in progress")
            self._stop()
            return
        self._pressed += 1
        if self._consumer is None or self._pressed > 1:
            os._exit(1)
        self._stop(0)

    def _on_hang_up(self, number: int, frame: FrameType | None) -> None:
        """SIGHUP: finish, and begin anew with the code as it is then. Under a parent that is the parent's business."""
        if self._parent is not None or self._is_ending:
            return
        if self._terminal.is_closing:
            self._on_stop(signal.SIGTERM, frame)
            return
        notify_reloading()
        self._say(f"pid {os.getpid()} restarts; {plural(len(self._book), 'job')} in progress")
        self._hung_up.set()
        self._begin_anew()

    def _on_look(self, number: int, frame: FrameType | None) -> None:
        """SIGUSR1: tell what each greenlet is doing, also if one of them keeps all others from running."""
        tell(f"pid {os.getpid()}: " + "\n".join(self._book.look(frame)))
