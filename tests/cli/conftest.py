"""Servers for the command line's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import gstalk
from gstalk.testing import Beanstalkd, Server
from tests.cli.running import Outcome, run


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
