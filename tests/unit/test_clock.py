"""The clock is that of `time.monotonic`, nobody can freeze it, and the core has no other one.

That waits end while a clock stands is for `tests/users/test_frozen_clock.py`.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

import freezegun
import pytest

from gstalk.connection.clock import monotonic
from tests.house import is_core
from tests.test_layers import sources


def test_clock_reads_what_time_monotonic_reads():
    readings = [time.monotonic(), monotonic(), time.monotonic(), monotonic()]
    assert sorted(readings) == readings
    assert all(isinstance(each, float) for each in readings)


@pytest.mark.parametrize("tick", [False, True])
def test_clock_goes_on_while_a_tests_time_is_frozen(tick):
    before = monotonic()
    with freezegun.freeze_time("2020-01-01", tick=tick):
        assert datetime.now().year == 2020
        inside = monotonic()
        assert before <= inside < before + 5
        assert any(monotonic() > inside for _ in range(10**7))


def test_clock_does_not_look_at_what_a_test_puts_in_the_place_of_time_monotonic(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert now <= monotonic() < now + 5


def test_core_takes_its_time_from_nowhere_else():
    """Else a wait would end by a clock that stands. Spans are told with the time of day, which nothing waits for."""
    pattern = re.compile(r"^\s*(?:import|from) time\b", re.MULTILINE)
    using = {module for module, source in sources().items() if is_core(module) and pattern.search(source)}
    assert using == {"gstalk.connection.clock", "gstalk.otel"}
