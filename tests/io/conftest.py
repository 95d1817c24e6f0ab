"""For the rooms that touch a socket: a Consumer at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gstalk.testing import Beanstalkd
from tests.io.working import Worker


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
