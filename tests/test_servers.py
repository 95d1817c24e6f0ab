"""What tests wait with: it gives up in time, and blames nobody for what the machine did."""

from __future__ import annotations

from time import monotonic, sleep

import gevent
import pytest
from gevent.event import Event

from tests import servers
from tests.servers import wait_until


def test_wait_for_what_never_holds_ends_in_time():
    began = monotonic()
    with pytest.raises(AssertionError, match=r"^did not come to hold within 0\.2 s$"):
        wait_until(lambda: False, 0.2)
    assert 0.2 <= monotonic() - began < 3


def test_wait_whose_look_waits_for_ever_ends(monkeypatch):
    monkeypatch.setattr(servers, "MORE", 0.1)
    with pytest.raises(AssertionError, match=r"^did not come to hold within 0\.1 s$"):
        wait_until(Event().wait, 0.1)


def test_wait_of_a_process_that_stood_still_goes_on_for_some_looks():
    """What happened meanwhile is seen only when the event loop has turned a few times."""
    turns = 0

    def look() -> bool:
        nonlocal turns
        turns += 1
        if turns == 2:
            sleep(0.3)  # as if somebody else had the processor
        return happened.is_set()

    happened = Event()
    gevent.spawn_later(0.25, gevent.spawn_later, 0.01, happened.set)  # a step that leads to the next one
    wait_until(look, 0.1)
