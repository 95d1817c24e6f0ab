"""The server that answers at once: instant.c, compiled with the standard compiler."""

from __future__ import annotations

import subprocess

__all__ = ["Instant"]


class Instant:
    """A running one; a context manager, which ends it.

    Args:
        program: The compiled program.
    """

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen([program], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.uri = f"beanstalk://127.0.0.1:{int(self._process.stdout.readline())}"
        self.pid = self._process.pid

    def __enter__(self) -> Instant:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
