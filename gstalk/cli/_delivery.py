"""Standard output that tells when a line has arrived.

What is in a pipe has not: if its reader ends (`gstalk dump mail | head`), it is gone. So on a pipe the lines go one by
one, and a line has arrived when the pipe is empty again, as Linux tells. Elsewhere, and on other systems, a line has
arrived when the kernel has taken it; then all lines that are ready share a write.

Nothing here blocks the hub: while a reader takes his time, jobs can be touched.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import struct
import sys
import termios
from collections.abc import Callable

import gevent
from gevent.event import AsyncResult
from gevent.queue import Queue

__all__ = ["Delivery"]

MOST = 64  # lines in a write
ATOMIC = 4096  # bytes that an empty pipe takes without waiting, Linux's PIPE_BUF
LONGEST_PAUSE = 0.02  # seconds between two looks at a pipe


class Delivery:
    """Writes lines to a descriptor, in the order of the calls. Also a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        kind = os.fstat(fd).st_mode
        self._is_pipe = stat.S_ISFIFO(kind) and sys.platform == "linux"
        self._is_file = stat.S_ISREG(kind)
        self._queue: Queue[tuple[bytes, AsyncResult[None]]] = Queue()
        self._writer = gevent.spawn(self._run)

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.kill()

    def write(self, line: bytes, meanwhile: Callable[[], None], every: float) -> None:
        """Write a line, and wait until it has arrived.

        Args:
            meanwhile: Called every so many seconds that this takes.

        Raises:
            OSError: It did not arrive, or not all of it.
        """
        arrived: AsyncResult[None] = AsyncResult()
        self._queue.put((line, arrived))
        arrived.wait(every)
        while not arrived.ready():
            meanwhile()
            arrived.wait(every)
        arrived.get()

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while not self._is_pipe and len(batch) < MOST and self._queue.qsize():
                batch.append(self._queue.get())
            try:
                self._write(b"".join(line for line, _ in batch))
                if self._is_pipe:
                    self._wait_empty()
            except OSError as error:
                for _, arrived in batch:
                    arrived.set_exception(error)
            else:
                for _, arrived in batch:
                    arrived.set(None)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                if self._is_file or (self._is_pipe and len(data) <= ATOMIC):
                    written = os.write(self._fd, data)
                else:
                    written = self._write_in_thread(data)
            except BlockingIOError:  # somebody has made it non-blocking
                gevent.sleep(LONGEST_PAUSE)
                continue
            data = data[written:]

    def _write_in_thread(self, data: bytes) -> int:
        def attempt() -> int | OSError:  # an exception that leaves it would be printed
            try:
                return os.write(self._fd, data)
            except OSError as error:
                return error

        result = gevent.get_hub().threadpool.apply(attempt)
        if isinstance(result, OSError):
            raise result
        return int(result)

    def _wait_empty(self) -> None:
        poll = select.poll()
        poll.register(self._fd, 0)
        looks = 0
        while struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0]:
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                raise BrokenPipeError("the reader has closed the pipe")
            # At first the loop's next turn is waited for: a reader on another core is about to take it.
            looks += 1
            gevent.sleep(0 if looks < 20 else min(looks * 0.0001, LONGEST_PAUSE))
