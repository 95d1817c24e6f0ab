"""The hub, where gevent prints an exception and goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent

__all__ = ["silent_hub"]


@contextmanager
def silent_hub() -> Iterator[None]:
    """No exception leaves a callback, a timer or a greenlet within."""
    hub = gevent.get_hub()
    told: list[tuple[object, ...]] = []
    hub.handle_error = lambda *error: told.append(error)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del hub.handle_error
    assert told == []
