"""For tests: servers to test against, embedded and real, and a network that misbehaves."""

from __future__ import annotations

from gstalk.testing.beanstalkd import Beanstalkd
from gstalk.testing.faults import FaultProxy
from gstalk.testing.server import Server

__all__ = ["Beanstalkd", "FaultProxy", "Server"]
