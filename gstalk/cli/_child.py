"""A worker process as its parent sees it: what it has said, and how long it has said nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent import socket, subprocess
from gevent.event import Event

from gstalk.cli._output import tell
from gstalk.cli._signals import hold_signals, let_signals_through
from gstalk.cli._signs import OVER, PATCHED, READY, STILL, TURNED, UNPATCHED, Silence
from gstalk.connection.clock import monotonic

__all__ = ["Child"]

DUMPING = 0.5  # seconds that a process gets to print where it stands, when told to by SIGABRT


class Child:
    """A process, which is started, and speaks through a socket that also comes to its end with this parent.

    Args:
        command: What to start; `--parent` and the socket's descriptor are added.
        period: Seconds between two looks at it.
        on_loaded: Called when its handler is there, with whether it is monkey-patched.
        on_ready: Called when it works.

    Attributes:
        pid: The process.
        is_loaded: Its handler is there.
        is_over: It works no more: it runs what the program has for its end.

    Raises:
        OSError: It can't be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        period: float,
        on_loaded: Callable[[bool], object],
        on_ready: Callable[[], object],
    ) -> None:
        self._on_loaded, self._on_ready = on_loaded, on_ready
        self._socket, its = socket.socketpair()
        # It inherits that: a question where it stands waits until it can answer, and doesn't kill it, as a stop may.
        hold_signals({signal.SIGUSR1})
        try:
            self._process: Any = subprocess.Popen([*command, "--parent", str(its.fileno())], pass_fds=(its.fileno(),))
        except BaseException:
            self._socket.close()
            raise
        finally:
            let_signals_through()
            its.close()
        self.pid: int = self._process.pid
        self.is_loaded = self.is_over = False
        self._has_turned = self._is_heard = self._is_given_up = False
        self._silence = Silence(monotonic(), period)
        self._ended = Event()
        self._listener = gevent.spawn(self._listen)

    def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        code: int = self._process.wait()
        self._ended.set()
        # What it has said before it ended; not all that processes say which it has left behind.
        self._listener.join(0.1)
        self._listener.kill()
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it is still there."""
        self._process.send_signal(number)

    def silence(self, now: float) -> float:
        """Seconds that it has said nothing, as of now. While it imports its loop has yet to turn: it may be silent."""
        is_heard, self._is_heard = self._is_heard or not self._has_turned, False
        return self._silence.look(now, is_heard)

    def abort(self) -> None:
        """End it, though it has not said where it stands: Python's fault handler may."""
        if self._is_given_up:
            return
        self._is_given_up = True
        tell(f"process {self.pid} stands still and can't say where (a C function has Python's lock, or it is stopped): "
             "aborting it")  # fmt: skip
        self.send_signal(signal.SIGABRT)
        self._ended.wait(DUMPING)
        self.send_signal(signal.SIGKILL)

    def _listen(self) -> None:
        try:
            while words := self._socket.recv(4096):
                for word in words:
                    self._hear(bytes([word]))
        except OSError:
            pass  # it has ended in the middle
        finally:
            self._socket.close()

    def _hear(self, word: bytes) -> None:
        if word in (PATCHED, UNPATCHED):
            self.is_loaded = True
            self._on_loaded(word == PATCHED)
        elif word == READY:
            self._on_ready()
        elif word == TURNED:
            self._has_turned = self._is_heard = True
        elif word == OVER:
            self.is_over = self._is_heard = True
        elif word == STILL:
            self._is_given_up = True
            tell(f"process {self.pid} stands still: killing it")  # it has told where
            self.send_signal(signal.SIGKILL)
