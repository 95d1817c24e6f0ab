"""For the rooms that touch a socket: a Consumer at work, and a connection to a played server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gstalk.config import Config
from gstalk.testing import Beanstalkd
from tests.io.lines import Line
from tests.io.working import Worker
from tests.servers import Played


@pytest.fixture
def work(server: Beanstalkd, tube: str) -> Iterator[Callable[..., Worker]]:
    """Start a `Worker` on the shared server and the test's tube; stopped at the test's end."""
    workers = []

    def start(handler: Any, uris: Any = None, tubes: Any = None, **options: Any) -> Worker:
        worker = Worker(uris or server.uri, tubes or tube, handler, **options)
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.stop(0)


@pytest.fixture
def line(play: Callable[..., Played]) -> Iterator[Callable[..., Line]]:
    """Connect to a server that says this, with these options."""
    with ExitStack() as stack:

        def start(replies: dict[str, Any] | None = None, tubes: tuple[str, ...] = (), **options: Any) -> Line:
            line = Line(play(replies or {}), Config(**options), tubes)
            stack.callback(line.connection.cut)
            return line

        yield start
