"""For tests: servers to test against."""

from __future__ import annotations

from gstalk.testing.beanstalkd import Beanstalkd

__all__ = ["Beanstalkd"]
