"""The judge himself: what he holds against the library, and what only against the server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

import gstalk
from tests.survival.record import Record, head_of, make_body
from tests.survival.witness import Copy, Witness

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
    return cast(gstalk.Job, SimpleNamespace(uri=URI, id=7, body=body, delete=lambda: None))


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


def test_ruins_under_the_id_of_a_deleted_job_are_not_that_one_come_back():
    """A killed server may count from 1 again, and be killed again in the middle of the next put."""
    body = make_body(20)
    saw: Any = Saw(head_of(body))
    record = Record([saw])
    record.delete(job(body), record.ran(job(body)))
    record.seen(URI, 7, bytes(20))
    assert record.resurrected == []
    record.seen(URI, 7, body)
    assert record.resurrected == [(URI, 7, head_of(body))]


def test_delete_that_is_late_for_its_killed_server_is_of_the_job_that_its_connection_held():
    witness = Witness("127.0.0.1:1", head_of)
    old, new = make_body(3), make_body(4)
    for direction, data, connection in (
        ("up", b"reserve\r\n", 1),
        ("down", b"RESERVED 1 %d\r\n%b\r\n" % (len(old), old), 1),
        ("up", b"put 0 0 9 %d\r\n%b\r\n" % (len(new), new), 2),
        ("down", b"INSERTED 1\r\n", 2),
        ("up", b"delete 1\r\n", 1),
    ):
        witness._read_along(direction, data, connection)
    assert witness.foreign == []
    assert witness.deletes == {(witness.uri, 1, head_of(old))}
    witness._read_along("up", b"delete 1\r\n", 2)
    assert witness.foreign == [b"delete 1"]
    assert witness.deletes == {(witness.uri, 1, head_of(old)), (witness.uri, 1, head_of(new))}
