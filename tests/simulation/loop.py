"""An event loop for gevent's hub in which time is a number: it jumps to the next thing that is due.

It offers what gevent asks of a loop: callbacks, timers, `io` and `async_` watchers, in the order of libev's: first all
callbacks, then whatever is ready, then whatever is due. Among things that are ready at the same moment the order is
chance's, as it is where several sockets are ready at once.

Beside the program's own watchers stands the world: functions that are called at their time (`at`) or after so many
events (`after_events`). They keep nothing alive. When nothing that is referred to is left to wait for, `run` returns.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Callable
from random import Random
from typing import Any

__all__ = ["EndlessError", "VirtualLoop"]

CALLBACKS = 1000  # that are run before the loop looks at anything else, as gevent has it
STEP = 1e-6  # seconds that one turn of the loop takes
READ, WRITE = 1, 2


class EndlessError(BaseException):
    """A run has taken more events than any right program would: something goes round in circles."""


class Callback:
    """What `run_callback` returns; gevent's rules for when it is true, and when pending."""

    __slots__ = ("args", "callback")

    def __init__(self, callback: Any, args: Any) -> None:
        self.callback = callback
        self.args = args

    def stop(self) -> None:
        self.callback = self.args = None

    close = stop

    def __bool__(self) -> bool:
        return self.args is not None

    @property
    def pending(self) -> bool:
        return self.callback is not None


class Watcher:
    """What all watchers have in common. `ref`: whether the loop goes on for its sake."""

    def __init__(self, loop: VirtualLoop, ref: bool) -> None:
        self.loop = loop
        self.callback: Any = None
        self.args: Any = None
        self.active = False
        self._ref = ref

    @property
    def ref(self) -> bool:
        return self._ref

    @ref.setter
    def ref(self, value: bool) -> None:
        if value != self._ref:
            self._ref = value
            if self.active:
                self.loop.referred += 1 if value else -1

    @property
    def pending(self) -> bool:
        return False

    def start(self, callback: Any, *args: Any, update: bool | None = None) -> None:
        if callback is None:
            raise TypeError("callback must be callable, not None")
        self.callback, self.args = callback, args
        if not self.active:
            self.active = True
            self.loop.active.add(self)
            self.loop.referred += self._ref
        self._started()

    def stop(self) -> None:
        self.callback = self.args = None
        if self.active:
            self.active = False
            self.loop.active.discard(self)
            self.loop.referred -= self._ref

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> None:
        raise NotImplementedError

    def fire(self) -> None:
        """Call back, if it is still started."""
        if self.active:
            self.loop.call(self, self.callback, self.args)


class Timer(Watcher):
    """Once after so many seconds, then every `repeat` seconds if that isn't 0."""

    def __init__(self, loop: VirtualLoop, after: float, repeat: float, ref: bool) -> None:
        super().__init__(loop, ref)
        self.after, self.repeat = after, repeat
        self.when = 0.0
        self.entry: Any = None

    def _started(self) -> None:
        self._set(self.after)

    def _set(self, seconds: float) -> None:
        self.when = self.loop.time + max(seconds, 0.0)
        self.entry = self.loop.at(self.when, self)

    def again(self, callback: Any, *args: Any, update: bool | None = None) -> None:
        if not self.repeat:
            self.stop()
            return
        self.start(callback, *args)
        self._set(self.repeat)

    def stop(self) -> None:
        super().stop()
        self.entry = None

    def fire(self) -> None:
        if not self.active:
            return
        callback, args = self.callback, self.args
        if self.repeat:
            self._set(self.repeat)
        else:
            Watcher.stop(self)
            self.entry = None
        self.loop.call(self, callback, args)


class Io(Watcher):
    """A descriptor that is ready, for as long as it is."""

    def __init__(self, loop: VirtualLoop, fd: int, events: int, ref: bool) -> None:
        super().__init__(loop, ref)
        self.fd, self.events = fd, events
        self.socket = loop.descriptors[fd]

    def _started(self) -> None:
        self.socket.watchers[self] = None
        self.loop.look_at(self.socket)

    def stop(self) -> None:
        super().stop()
        self.socket.watchers.pop(self, None)

    def is_ready(self) -> bool:
        return self.active and bool(self.socket.ready() & self.events)


class Async(Watcher):
    """What another thread, or a signal handler, wakes the loop with."""

    def _started(self) -> None:
        pass

    def send(self) -> None:
        if self.active:
            self.loop.sent[self] = None

    send_ignoring_arg = send


class VirtualLoop:
    """gevent's loop, in virtual time.

    Attributes:
        time: The seconds of this world's clock.
        turns: How often it has looked at what is ready.
        events: How many callbacks it has made, the world's included.
        errors: What callbacks have raised.
    """

    default = False
    approx_timer_resolution = 0.001

    def __init__(self, rng: Random, most_events: int = 400_000) -> None:
        self.rng = rng
        self.time = 1000.0
        self.turns = self.events = 0
        self.most_events = most_events
        self.error_handler: Any = None
        self.active: set[Watcher] = set()
        self.referred = 0
        self.descriptors: dict[int, Any] = {}
        self.sent: dict[Async, None] = {}
        self.errors: list[BaseException] = []
        self._callbacks: list[Callback] = []
        self._agenda: list[tuple[float, int, Any]] = []
        self._strikes: list[tuple[int, int, Callable[[], object]]] = []
        self._next_strike: float = most_events  # the number of events at which there is one, or too many
        self._numbers = itertools.count()
        self._ready: dict[Io, None] = {}

    # -- what gevent asks for ----------------------------------------------------------------------------------

    def run_callback(self, function: Any, *args: Any) -> Callback:
        callback = Callback(function, args)
        self._callbacks.append(callback)
        return callback

    run_callback_threadsafe = run_callback

    def timer(self, after: float, repeat: float = 0.0, ref: bool = True, priority: Any = None) -> Timer:
        if repeat < 0:
            raise ValueError("repeat must be positive or zero")
        return Timer(self, after, repeat, ref)

    def io(self, fd: int, events: int, ref: bool = True, priority: Any = None) -> Io:
        return Io(self, fd, events, ref)

    def async_(self, ref: bool = True, priority: Any = None) -> Async:
        return Async(self, ref)

    def now(self) -> float:
        return self.time

    def update_now(self) -> None:
        pass

    update = update_now

    def handle_error(self, context: Any, kind: Any, value: Any, trace: Any) -> None:
        if self.error_handler is not None:
            self.error_handler.handle_error(context, kind, value, trace)

    def destroy(self) -> None:
        self._callbacks.clear()

    def _format(self) -> str:
        return f"virtual time {self.time:.6f}"

    # -- the world ---------------------------------------------------------------------------------------------

    def at(self, when: float, what: Any) -> Any:
        """Have a function called, or a timer fire, at a time."""
        entry = (when, next(self._numbers), what)
        heapq.heappush(self._agenda, entry)
        return entry

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        self.at(self.time + seconds, what)

    def after_events(self, count: int, what: Callable[[], object]) -> None:
        """Have a function called between two callbacks, after so many more of them."""
        heapq.heappush(self._strikes, (self.events + count, next(self._numbers), what))
        self._next_strike = min(self._next_strike, self._strikes[0][0])

    def compute(self, seconds: float) -> None:
        """Keep the hub for so long. The world goes on meanwhile; the program's timers and watchers have to wait."""
        end = self.time + seconds
        timers = []
        while self._agenda and self._agenda[0][0] <= end:
            entry = heapq.heappop(self._agenda)
            if isinstance(entry[2], Timer):
                timers.append(entry)
            else:
                self.time = max(self.time, entry[0])
                self.events += 1
                if self.events >= self._next_strike:
                    self._strike()
                entry[2]()
        for entry in timers:
            heapq.heappush(self._agenda, entry)
        self.time = end

    def look_at(self, socket: Any) -> None:
        """A descriptor's state may have changed."""
        if socket.watchers:
            events = socket.ready()
            if events:
                for watcher in socket.watchers:
                    if watcher.events & events:
                        self._ready[watcher] = None

    @property
    def pending_callbacks(self) -> int:
        return sum(callback.pending for callback in self._callbacks)

    # -- running -----------------------------------------------------------------------------------------------
    # All of a run goes through here, some thousand times: what is asked for most is kept in locals, and not called.

    def call(self, context: Any, callback: Any, args: Any) -> None:
        self.events += 1
        if self.events >= self._next_strike:
            self._strike()
        try:
            callback(*args)
        except BaseException as error:
            self.errors.append(error)
            if isinstance(context, Watcher):
                context.stop()
            self.handle_error(context, *sys.exc_info())
            if isinstance(error, EndlessError):
                raise

    def _strike(self) -> None:
        strikes = self._strikes
        if strikes and strikes[0][0] <= self.events:
            what = heapq.heappop(strikes)[2]
            what()
        self._next_strike = min(strikes[0][0], self.most_events) if strikes else self.most_events
        if self.events > self.most_events:
            self.most_events += 100_000  # so that what ends now can end
            raise EndlessError(f"{self.events} events")

    def run(self, nowait: bool = False, once: bool = False) -> None:
        while True:
            self.turns += 1
            self.time += STEP
            if self._callbacks:
                self._run_callbacks()
            if not self._callbacks:
                if not self.referred:
                    return
                if not self._ready and not self.sent and not self._jump():
                    return  # somebody waits for what will never come
            self._turn()

    def _jump(self) -> bool:
        """Go to the moment at which something is due; tell whether there is one."""
        agenda = self._agenda
        while agenda:
            entry = agenda[0]
            what = entry[2]
            if isinstance(what, Timer) and what.entry is not entry:
                heapq.heappop(agenda)  # it was stopped, or set anew
                continue
            if entry[0] > self.time:
                self.time = entry[0]
            return True
        return False

    def _run_callbacks(self) -> None:
        count = CALLBACKS
        while self._callbacks and count > 0:
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                function, args = callback.callback, callback.args
                callback.callback = None
                if function is None or args is None:
                    continue
                try:
                    self.call(None, function, args)
                finally:
                    callback.args = None
                count -= 1

    def _turn(self) -> None:
        """Carry out what is due and what is ready."""
        agenda, ready = self._agenda, self._ready
        batch: list[Watcher] = []
        while agenda and agenda[0][0] <= self.time:
            entry = heapq.heappop(agenda)
            what = entry[2]
            if isinstance(what, Timer):
                if what.entry is entry and what.active:
                    batch.append(what)
            else:
                self.events += 1
                if self.events >= self._next_strike:
                    self._strike()
                what()
        if self.sent:
            batch += self.sent
            self.sent.clear()
        batch += ready
        if len(batch) > 1:
            self.rng.shuffle(batch)
        for watcher in batch:
            if isinstance(watcher, Io):
                if watcher.is_ready():
                    watcher.fire()
                    if watcher.is_ready():
                        continue
                ready.pop(watcher, None)
            else:
                watcher.fire()
