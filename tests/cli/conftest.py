"""Servers for the command line's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import gstalk
from gstalk.testing import Beanstalkd, Server
from tests.cli.running import Outcome, run
from tests.cli.working import Working


@pytest.fixture(params=["memory", "real"])
def place(request: pytest.FixtureRequest) -> Iterator[Server | Beanstalkd]:
    """A fresh server: each command is to work on the embedded one and on the real one."""
    with Server() if request.param == "memory" else Beanstalkd() as server:
        yield server


@pytest.fixture
def clerk(place: Server | Beanstalkd) -> Iterator[gstalk.Conn]:
    """A connection to it, to prepare and to look."""
    with gstalk.dial(place.uri) as conn:
        yield conn


@pytest.fixture
def gst(place: Server | Beanstalkd) -> Callable[..., Outcome]:
    """Run `gstalk` against the test's server."""
    return lambda *args, stdin=b"": run(*args, stdin=stdin, uri=place.uri)


@pytest.fixture
def start(tmp_path: Path, server: Beanstalkd, tube: str) -> Iterator[Callable[..., Working]]:
    """Start a worker for the test's tube: ``start("tasks:quick", "--burst")``."""
    with ExitStack() as stack:

        def begin(target: str, *args: str, uri: str = "", tubes: tuple[str, ...] = (tube,), **options: Any) -> Working:
            watched = [word for each in tubes for word in ("--tube", each)]
            return stack.enter_context(Working(tmp_path, uri or server.uri, target, *watched, *args, **options))

        yield begin
