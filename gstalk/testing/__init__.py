"""For tests: servers to test against, embedded and real."""

from __future__ import annotations

from gstalk.testing.beanstalkd import Beanstalkd
from gstalk.testing.server import Server

__all__ = ["Beanstalkd", "Server"]
