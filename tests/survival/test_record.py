"""The judge himself: what he holds against the library, and what only against the server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import gstalk
from tests.survival.record import Record, make_body
from tests.survival.witness import Copy

URI = "beanstalk://127.0.0.1:1"


class Saw:
    """Stands for a witness: one job that was inserted, and those that the server handed out in ruins."""

    def __init__(self, head: bytes, *ruined: int) -> None:
        self.uri, self.ruined = URI, set(ruined)
        self.inserted: set[Copy] = {(URI, 7, head)}
        self.deletes: set[Copy] = set()
        self.foreign: list[bytes] = []
        self._head = head

    def head(self, job_id: int) -> bytes:
        return self._head


def record_of(*ruined: int) -> Record:
    """Of one put that was acknowledged, beside a witness who saw those jobs in ruins."""
    body = make_body(20)
    saw: Any = Saw(body.partition(b"\n")[0], *ruined)
    record = Record([saw])
    record.ended(record.begun(body, once=False), 7)
    return record


def job(body: bytes) -> gstalk.Job:
    return cast(gstalk.Job, SimpleNamespace(uri=URI, id=7, body=body))


def test_ruins_that_a_plain_socket_found_past_the_witness_are_the_killed_server_s():
    record = record_of()
    record.left.add(record.seen(URI, 7, bytes(20)))
    record.balance(killed=True)
    assert record.figures["ruined by a killed server"] == 1
    with pytest.raises(AssertionError):
        record.balance(killed=False)


def test_ruins_that_a_handler_got_must_be_those_that_the_server_sent():
    record = record_of(7)
    record.deletes.add(record.ran(job(bytes(20))))
    record.balance(killed=True)
    for other in record_of(), record_of(8):
        other.deletes.add(other.ran(job(bytes(20))))
        with pytest.raises(AssertionError):
            other.balance(killed=True)
