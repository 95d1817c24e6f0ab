"""Connections that are cut and servers that are killed, under load: judged by the ids of jobs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket, subprocess

import gstalk
from gstalk.testing import Beanstalkd
from tests.faults.hub import silent_hub
from tests.servers import wait_until
from tests.survival.load import SIZES, TTR, TUBE, Load
from tests.survival.record import Record, head_of, make_body
from tests.survival.witness import Witness

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.limit(3600)]

SOON = 0.05  # recovery has tests of its own


def goes_on(record: Record) -> None:
    """Wait until puts and deletes succeed again."""
    puts, deletes = len(record.acknowledged), len(record.deleted)
    wait_until(lambda: len(record.acknowledged) >= puts + 20 and len(record.deleted) >= deletes + 20, 20)


def test_cuts_of_all_connections_lose_nothing(own_server: Beanstalkd, connect, rng, many, figures):
    """The server lives: whatever is wrong at the end, gstalk did it."""
    rounds = many(6, 100)
    with Witness(own_server.uri, head_of) as witness, silent_hub():
        record = Record([witness])
        with Load(record, rng, reconnect_timeout=SOON).running():
            for _ in range(rounds):
                goes_on(record)
                witness.slice(rng.choice([None, None, 1, 7, 300]), rng.choice(["up", "down"]))
                gevent.sleep(rng.random() * 0.03)
                record.broke()
                rng.choice([witness.reset, witness.close_all])()
                witness.slice(None)
            goes_on(record)
        watcher = connect(own_server.uri)
        wait_until(lambda: watcher.stats().current_jobs_reserved == 0)
        record.collect(TUBE)
        try:
            record.balance(killed=False)
        finally:
            figures |= {"rounds": rounds, **record.figures}
    assert record.figures["in flight at breaks"] > rounds / 4  # a busy machine has fewer


class PlainSockets:
    """A load without gstalk: eight connections, one command after the other, straight to the server."""

    def __init__(self, record: Record, rng: random.Random, **_: Any) -> None:
        self.record, self.rng = record, rng
        (self._witness,) = record.witnesses.values()
        self._port = int(self._witness.upstream.rpartition(":")[2])
        self._stopped = False

    @contextmanager
    def running(self) -> Iterator[None]:
        greenlets = [gevent.spawn(self._work) for _ in range(8)]
        yield
        self._stopped = True
        gevent.joinall(greenlets, timeout=20, raise_error=True)

    def _work(self) -> None:
        while not self._stopped:
            try:
                with socket.create_connection(("127.0.0.1", self._port)) as sock:
                    self._talk(sock, sock.makefile("rb"))
            except OSError:
                gevent.sleep(0.005)

    def _talk(self, sock: Any, file: Any) -> None:
        def say(command: bytes) -> list[bytes]:
            sock.sendall(command)
            if not (line := file.readline()).endswith(b"\r\n"):  # it may end in the middle of a number
                raise ConnectionResetError
            return line.split()

        def read(size: int) -> bytes:
            if len(body := file.read(size + 2)) < size + 2:
                raise ConnectionResetError
            return body[:-2]  # one that the server has ruined needs no line end

        say(b"use %b\r\n" % TUBE.encode())
        say(b"watch %b\r\n" % TUBE.encode())
        while not self._stopped:
            head = self.record.begun(body := make_body(self.rng.choice(SIZES)), True)
            outcome = None
            try:
                outcome = int(say(b"put 0 0 %d %d\r\n%b\r\n" % (TTR, len(body), body))[1])
                self._witness.insert(outcome, head)
            finally:
                self.record.ended(head, outcome)
            reply = say(b"reserve-with-timeout 0\r\n")
            if reply[0] == b"RESERVED":
                copy = self.record.seen(self._witness.uri, int(reply[1]), read(int(reply[2])))
                self.record.deletes.add(copy)
                if say(b"delete %d\r\n" % copy[1]) == [b"DELETED"]:
                    self.record.deleted.add(copy)


def test_kills_of_the_server_lose_nothing_but_what_it_loses_itself(tmp_path: Path, rng, many, figures):
    """With a binlog; beside it, the same kills under a load of plain sockets, without gstalk."""
    rounds = many(12, 200)
    for name, load in ((" without gstalk", PlainSockets), ("", Load)):
        binlog = tmp_path / f"binlog{name}"
        binlog.mkdir()
        with Beanstalkd(binlog=str(binlog)) as server, Witness(server.uri, head_of) as witness, silent_hub():
            record = Record([witness])
            with load(record, rng, reconnect_timeout=SOON).running():
                for _ in range(rounds):
                    goes_on(record)
                    # By another process: this one would only kill while it isn't talking to the server.
                    subprocess.call(["sh", "-c", f"sleep {rng.random() * 0.1:.4f}; kill -9 {server.pid}"])
                    record.broke()
                    server.restart()
                goes_on(record)
            with gstalk.dial(server.uri) as watcher:
                wait_until(lambda: watcher.stats().current_jobs_reserved == 0)
            record.collect(TUBE)
        try:
            record.balance(killed=True)
        finally:
            figures |= {"kills" + name: rounds, **{what + name: count for what, count in record.figures.items()}}
        assert record.figures["in flight at breaks"] > rounds / 4  # a busy machine has fewer
        assert record.figures["lost by a killed server"] < rounds  # S30: one in forty; more would be something else
