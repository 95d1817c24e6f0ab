"""For the embedded server's rooms: an engine, and two of its clients."""

from __future__ import annotations

import pytest

from gstalk.testing.wire import Client
from tests.unit.talking import Talk


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
def one(talk: Talk) -> Client:
    return talk.client()


@pytest.fixture
def two(talk: Talk) -> Client:
    return talk.client()
