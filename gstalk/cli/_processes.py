"""A parent of several worker processes: it passes signals on, replaces all of them at SIGHUP, and watches over them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import gevent
from gevent.event import Event

from gstalk.cli._child import Child
from gstalk.cli._generation import Generation, Plan
from gstalk.cli._notify import notify, notify_reloading, watchdog_seconds
from gstalk.cli._output import tell
from gstalk.cli._signals import Terminal, is_hang_up_heard
from gstalk.cli._signs import Heartbeat, period
from gstalk.connection.clock import monotonic

__all__ = ["Processes"]

LAG = 1.0  # seconds beyond `--hang-timeout` that a process gets to tell where it stands
ALIVE = 3.0  # seconds of silence from which on a process counts as one whose event loop stands still


class Processes:
    """So many processes, until there is a reason to end.

    Args:
        plan: Which processes.
        hang_timeout: Seconds after which one is killed whose event loop doesn't turn; `None`: never.
        heartbeat: A file that is touched while the event loops of all turn.
        say: Tells what goes as it should.
        banner: What is said when the first handler is there; of whether the processes are patched.
    """

    def __init__(
        self,
        plan: Plan,
        hang_timeout: float | None,
        heartbeat: str | None,
        say: Callable[[str], object],
        banner: Callable[[bool], str],
    ) -> None:
        self._plan = plan
        self._hang_timeout = hang_timeout
        self._say = say
        self._banner: Callable[[bool], str] | None = banner  # `None`: it was said, a handler is there
        self._period = period(watchdog_seconds(), hang_timeout)
        self._signs: list[Callable[[], object]] = [Heartbeat(heartbeat)] if heartbeat else []
        if watchdog_seconds() is not None:
            self._signs.append(lambda: notify("WATCHDOG=1"))
        self._terminal = Terminal()
        self._generations: list[Generation] = []  # all that have processes
        self._trial: Generation | None = None  # the one that is to take the others' place
        self._retired: set[Generation] = set()  # those whose place others have taken: their end is of no account
        self._codes: list[int] = [0]
        self._asked = 0
        self._changed = Event()

    def run(self) -> int:
        """Keep the processes going until they are to stop; returns the exit code."""
        for number, function in {
            signal.SIGTERM: self._ask,
            signal.SIGINT: self._ask,
            signal.SIGQUIT: self._end,
            signal.SIGUSR1: self._pass_on_look,
        }.items():
            gevent.signal_handler(number, function)
        if is_hang_up_heard():
            gevent.signal_handler(signal.SIGHUP, self._hang_up)
        watching = gevent.spawn(self._watch)
        gevent.spawn(self._announce, self._begin(is_trial=False))
        while self._generations:
            self._changed.wait()
            self._changed.clear()
        watching.kill()
        self._say(f"pid {os.getpid()} stopped: all processes have ended")
        return 1 if self._asked > 1 else max(self._codes)

    # -- generations -------------------------------------------------------------------------------------------

    def _begin(self, is_trial: bool) -> Generation:
        generation = Generation(self._plan, self._period, self._say, self._is_loaded, is_trial)
        self._generations.append(generation)
        gevent.spawn(self._live, generation)
        return generation

    def _live(self, generation: Generation) -> None:
        generation.run()
        self._generations.remove(generation)
        if self._asked or generation not in self._retired:
            self._codes += generation.codes
        self._retired.discard(generation)
        self._changed.set()

    def _retire(self, generation: Generation) -> None:
        self._retired.add(generation)
        generation.stop()

    def _announce(self, generation: Generation) -> None:
        if generation.until_ready():
            notify("READY=1")

    def _begin_anew(self) -> None:
        """Start others beside those that are there; when all of them work, these finish. If one fails, these go on."""
        if self._trial is not None:
            self._retire(self._trial)  # what it runs is old by now
        notify_reloading()
        before = [each for each in self._generations if not each.is_stopping]
        self._say(f"pid {os.getpid()} restarts its processes: the old ones stop when {self._plan.number} new ones work")
        trial = self._trial = self._begin(is_trial=True)
        is_good = trial.until_ready()
        if self._trial is not trial or self._asked:
            return  # another one has begun, or all is over
        self._trial = None
        if is_good:
            trial.is_trial = False
            for each in before:
                self._retire(each)
        else:
            tell(f"pid {os.getpid()} can't restart its processes: a new one failed; the old ones go on")
            self._retire(trial)
        notify("READY=1")

    def _is_loaded(self, is_patched: bool) -> None:
        banner, self._banner = self._banner, None
        if banner is not None:
            self._say(banner(is_patched))

    # -- watching ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the processes, end those that stand still, and give signs of life while none does."""
        while True:
            now = monotonic()
            self._terminal.look()
            silences = [(child, child.silence(now)) for each in self._generations for child in each.children]
            for child, seconds in silences:
                if self._hang_timeout is not None and seconds >= self._patience(child, self._hang_timeout):
                    gevent.spawn(child.abort)
            if self._banner is None and all(seconds < ALIVE or child.is_over for child, seconds in silences):
                for sign in self._signs:
                    sign()
            gevent.sleep(self._period)

    def _patience(self, child: Child, hang_timeout: float) -> float:
        """Seconds that a process may say nothing; one that is over holds no jobs, and has as long as for a stop."""
        return max(hang_timeout + LAG, self._plan.grace) if child.is_over else hang_timeout + LAG

    # -- signals -----------------------------------------------------------------------------------------------

    def _hang_up(self) -> None:
        if self._terminal.is_closing:
            self._ask()
        elif not self._asked:
            self._begin_anew()

    def _ask(self) -> None:
        self._asked += 1
        if self._asked > 1:
            self._end()
            return
        notify("STOPPING=1")
        count = sum(len(each.children) for each in self._generations)
        self._say(f"pid {os.getpid()} stops {count} process{'es' * (count != 1)}")
        for each in self._generations:
            each.stop()

    def _end(self) -> None:
        self._asked = max(self._asked + 1, 2)
        notify("STOPPING=1")
        for each in self._generations:
            each.end()

    def _pass_on_look(self) -> None:
        for each in self._generations:
            each.send(signal.SIGUSR1)
