"""What was asked and what came of it, in Jepsen's terms, and the sum of it at the end.

A put is **acknowledged** (an id came back), **unsent** (the library said that no server has it) or **maybe** (anything
else). A delete is acknowledged or maybe. A **copy** is a job as one server has it; a put that was tried again may have
made several. Then at the end, of what ran and of what is still on the servers:

- *lost*: acknowledged (or it ran), never asked to be deleted, and gone;
- *duplicated*: a second copy, beyond the tries that a break may have left without an answer;
- *unexpected*: nobody put it;
- *resurrected*: its delete was acknowledged, and it ran again or is still there;
- *found though unsent*.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from gevent import socket

import gstalk
from tests.survival.witness import Copy, Witness

__all__ = ["Record", "head_of", "make_body", "taken_from"]

_numbers = itertools.count(1)


def make_body(size: int) -> bytes:
    """A body like no other, that can be checked to its last byte."""
    number = next(_numbers)
    return b"%d %d\n%b" % (number, size, bytes([97 + number % 26]) * size)


def head_of(body: bytes) -> bytes:
    """What identifies a body; `b""` if it isn't one of ours, whole."""
    head, _, rest = body.partition(b"\n")
    with suppress(ValueError):
        number, size = map(int, head.split(b" "))
        if rest == bytes([97 + number % 26]) * size:
            return head
    return b""


class Record:
    """Of one load against servers that stand behind witnesses.

    Args:
        witnesses: By URI, as the clients see it.
    """

    def __init__(self, witnesses: Iterable[Witness]) -> None:
        self.witnesses = {witness.uri: witness for witness in witnesses}
        self.attempted: set[bytes] = set()
        self.acknowledged: dict[bytes, int] = {}
        self.unsent: set[bytes] = set()
        self.maybe: set[bytes] = set()
        self.once: set[bytes] = set()  # put by a Producer that doesn't try again what may be stored
        self.copies: defaultdict[bytes, set[Copy]] = defaultdict(set)
        self.left: set[Copy] = set()  # on the servers at the end
        self.deletes: set[Copy] = set()
        self.deleted: set[Copy] = set()
        self.resurrected: list[Copy] = []
        self.ruined: set[Copy] = set()
        self.ran_in_ruins: set[Copy] = set()  # those of them that a handler got
        self.in_flight: set[bytes] = set()
        self.breaks: Counter[bytes] = Counter()  # how many tries of this put may have been left without an answer
        self.in_trouble = 0  # servers that answer nothing just now
        self.set_aside = 0  # jobs whose handlers wanted them buried
        self.figures: Counter[str] = Counter()

    # -- while it runs -----------------------------------------------------------------------------------------

    def begun(self, body: bytes, once: bool) -> bytes:
        """A put is called."""
        head = head_of(body)
        self.attempted.add(head)
        if once:
            self.once.add(head)
        self.in_flight.add(head)
        self.breaks[head] = self.in_trouble
        return head

    def ended(self, head: bytes, outcome: object) -> None:
        """It returned an id, or raised something."""
        self.in_flight.discard(head)
        if isinstance(outcome, int):
            self.acknowledged[head] = outcome
        else:
            (self.unsent if getattr(outcome, "sent", "maybe") == "no" else self.maybe).add(head)

    def broke(self) -> None:
        """Connections are being broken: the tries under way may stay without an answer."""
        self.breaks.update(self.in_flight)
        self.figures["in flight at breaks"] += len(self.in_flight)

    def ran(self, job: gstalk.Job) -> Copy:
        """A handler got a job."""
        self.figures["runs"] += 1
        copy = self.seen(job.uri, job.id, job.body)
        if not head_of(job.body):
            self.ran_in_ruins.add(copy)
        return copy

    def delete(self, job: gstalk.Job, copy: Copy) -> None:
        """Delete it, and note what came of that."""
        self.deletes.add(copy)
        job.delete()
        self.deleted.add(copy)

    def seen(self, uri: str, job_id: int, body: bytes) -> Copy:
        """A server handed a job out: to a handler, or past the witness to a plain socket."""
        head = head_of(body)
        if not head:  # perhaps the witness knows what it once was
            head = self.witnesses[uri].head(job_id)
            self.ruined.add((uri, job_id, head))
        copy = (uri, job_id, head)
        # In ruins it can't be told from a later job under the same id: a killed server may count from 1 again.
        if copy in self.deleted and head_of(body):
            self.resurrected.append(copy)
        if head:
            self.copies[head].add(copy)
        return copy

    @property
    def backlog(self) -> int:
        return len(self.acknowledged) - len(self.deleted) - self.set_aside

    # -- at the end --------------------------------------------------------------------------------------------

    def collect(self, tube: str) -> None:
        """Take what the servers still have, past the witnesses."""
        for witness in self.witnesses.values():
            for job_id, body in taken_from(witness.upstream, tube):
                self.figures["left on the servers"] += 1
                self.left.add(self.seen(witness.uri, job_id, body))

    def balance(self, *, killed: bool) -> None:
        """Hold what was said against what was found.

        Args:
            killed: Whether servers were killed. Those lose and ruin a few jobs by themselves (S30 of beanstalkd's
                ways): then what a server said it had, and was never asked to delete, counts as its own loss.
        """
        inserted = {copy for witness in self.witnesses.values() for copy in witness.inserted}
        asked = {copy for witness in self.witnesses.values() for copy in witness.deletes}
        found = set(self.copies)
        lost = (found | self.acknowledged.keys()) - {head for _, _, head in self.deletes | self.left}
        extra = {head: len(copies) - 1 for head, copies in self.copies.items() if len(copies) > 1}
        self.figures.update(
            {
                "puts acknowledged": len(self.acknowledged),
                "maybe": len(self.maybe),
                "unsent": len(self.unsent),
                "deletes acknowledged": len(self.deleted),
                "deletes maybe": len(self.deletes - self.deleted),
                "duplicated": sum(extra.values()),
                "lost": 0 if killed else len(lost),
                "lost by a killed server": len(lost) if killed else 0,
                "ruined by a killed server": len(self.ruined) if killed else 0,
                "resurrected": len(self.resurrected),
                "unexpected": len(found - self.attempted),
                "found though unsent": len(self.unsent & found),
            }
        )
        # Each id that a put returned was given by the server, for that body.
        given = {(job_id, head) for _, job_id, head in inserted}
        assert [head for head, job_id in self.acknowledged.items() if (job_id, head) not in given] == []
        # No delete left that nobody had called, and no command about a job on a connection that didn't hold it.
        assert asked - self.deletes == set()
        assert [witness.foreign for witness in self.witnesses.values() if witness.foreign] == []
        assert self.resurrected == []
        assert found - self.attempted == set()
        assert self.unsent & found == set()
        assert self.unsent & {head for _, _, head in inserted} == set()
        if killed:
            # The client had no part in what is lost: the server had said that it had it, and nobody asked for its end.
            ruined = {(uri, job_id) for uri, witness in self.witnesses.items() for job_id in witness.ruined}
            assert {(uri, job_id) for uri, job_id, _ in self.ran_in_ruins} - ruined == set()
        else:
            assert lost == set()
            assert self.ruined == set()
        # A second copy only where a try was left without an answer, and none where that isn't tried again.
        assert [head for head in extra if head in self.once] == []
        assert [head for head, more in extra.items() if more > self.breaks[head]] == []


def taken_from(uri: str, tube: str) -> Iterator[tuple[int, bytes]]:
    """Take a server's jobs out of a tube, with ids and bodies; on a plain socket, which bears a body without an end."""
    with socket.create_connection(("127.0.0.1", int(uri.rpartition(":")[2]))) as sock, sock.makefile("rb") as file:
        ask = partial(_ask, sock, file)
        ask(b"use %b" % tube.encode())
        for peek in (b"peek-ready", b"peek-delayed", b"peek-buried"):
            while (found := ask(peek)) is not None:
                yield found
                ask(b"delete %d" % found[0])


def _ask(sock: Any, file: Any, command: bytes) -> tuple[int, bytes] | None:
    """Say something to a server: the job that it answers with."""
    sock.sendall(command + b"\r\n")
    word, *numbers = file.readline().split()
    return (int(numbers[0]), file.read(int(numbers[1]) + 2)[:-2]) if word == b"FOUND" else None
