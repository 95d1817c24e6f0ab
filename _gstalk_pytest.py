"""Fixtures for tests of programs that use gstalk; pytest loads this by itself where gstalk is installed.

It imports neither gstalk nor gevent before a fixture is asked for: a test suite may want to monkey-patch first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gstalk import Conn
    from gstalk.testing import Beanstalkd, Server

__all__ = ["beanstalkd", "gstalk_conn", "gstalk_server"]


@pytest.fixture
def gstalk_server() -> Iterator[Server]:
    """An embedded server; `.uri` says where."""
    from gstalk.testing import Server

    with Server() as server:
        yield server


@pytest.fixture
def beanstalkd() -> Iterator[Beanstalkd]:
    """A real beanstalkd; the test is skipped where there is none."""
    from gstalk.testing import Beanstalkd

    if Beanstalkd.find() is None:
        pytest.skip("no beanstalkd on this machine: install it, or name it in $GSTALK_BEANSTALKD")
    with Beanstalkd() as server:
        yield server


@pytest.fixture
def gstalk_conn(gstalk_server: Server) -> Iterator[Conn]:
    """A connection to the embedded server."""
    import gstalk

    with gstalk.dial(gstalk_server.uri) as conn:
        yield conn
