"""Everything at once: three servers that are killed, stopped, cut off and drained, while callers are cancelled.

`GSTALK_SEED` makes the same choices again; what they hit is a matter of time. `SOAK_MINUTES` says how long `make soak`
goes on; each minute has servers and a record of its own, so that memory stays bounded and what is wrong is found soon.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd
from gstalk.testing.faults import Direction
from tests.conftest import SOAK
from tests.faults.hub import silent_hub
from tests.servers import wait_until
from tests.survival.load import TUBE, Load
from tests.survival.record import Record, head_of
from tests.survival.witness import Witness

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.slow, pytest.mark.limit(24 * 3600)]

SECONDS = 60 if SOAK else 10  # of each round
MINUTES = float(os.environ.get("SOAK_MINUTES", 10)) if SOAK else SECONDS / 60
ENOUGH = 1000  # jobs deleted in each round
OPTIONS: dict[str, Any] = {"conn_timeout": 2, "reconnect_timeout": 0.5, "stop_timeout": 1}


class Mishap(Exception):
    """A handler fails."""


class Chaos:
    """One round: servers, a load, and what happens to them."""

    def __init__(self, place: Path, rng: random.Random, stack: ExitStack) -> None:
        self.rng = rng
        self.is_over = False
        self.events: Counter[str] = Counter()
        self.servers = []
        for number in range(3):
            (place / str(number)).mkdir(parents=True)
            self.servers.append(stack.enter_context(Beanstalkd(binlog=str(place / str(number)))))
        self.witnesses = [stack.enter_context(Witness(server.uri, head_of)) for server in self.servers]
        self.record = Record(self.witnesses)
        self.load = Load(
            self.record,
            random.Random(rng.random()),
            mishap=self._mishap,
            event_func=self._event,
            retry=gstalk.RetryPolicy(first_delay=0, max_delay=0),
            **OPTIONS,
        )
        self._chance = random.Random(rng.random())

    def _event(self, event: gstalk.Event) -> None:
        if isinstance(event.exception, gstalk.CommandTimeoutError):
            if event.kind == "disconnect":
                self.events["stalls noticed"] += 1
            self.record.broke()

    def _mishap(self, job: gstalk.Job) -> None:
        chance = self._chance.random()
        if chance < 0.1:
            gevent.sleep(chance / 2)
        elif chance < 0.14:
            raise Mishap
        elif chance < 0.17:
            raise gstalk.Retry(delay=0)
        elif chance < 0.18:
            self.record.set_aside += 1
            raise gstalk.Bury
        elif chance < 0.19:
            raise gevent.GreenletExit

    # -- what happens ------------------------------------------------------------------------------------------

    def kill(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        self.record.broke()  # first: while the kill is waited for, a put may be tried elsewhere and end
        server.kill()
        gevent.sleep(rng.choice([0, 0.1, 1]))
        server.start()

    def stall(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        self._trouble(server.pause, server.resume, rng.choice([0.1, 1, 4]))

    def darken(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        """Nothing passes in one direction, or in both."""
        direction: Direction = rng.choice(["up", "down", "both"])
        self._trouble(lambda: witness.stall(direction), lambda: witness.resume(direction), rng.choice([0.1, 1, 4]))

    def _trouble(self, begin: Callable[[], None], end: Callable[[], None], seconds: float) -> None:
        self.record.broke()
        self.record.in_trouble += 1
        begin()
        try:
            gevent.sleep(seconds)
        finally:
            end()
            self.record.in_trouble -= 1
            self.record.broke()

    def cut(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        witness.slice(rng.choice([None, 1, 7, 300]), rng.choice(["up", "down"]))
        gevent.sleep(rng.random() * 0.05)
        self.record.broke()
        rng.choice([witness.reset, witness.close_all])()
        witness.slice(None)

    def drain(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        server.drain()
        gevent.sleep(rng.choice([0.5, 2]))
        self.kill(server, witness, rng)

    def shut_out(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        """Connections are accepted, and closed or left alone; those that there were are cut."""
        rng.choice([witness.refuse, witness.hold])()
        self.record.broke()
        witness.reset()
        gevent.sleep(rng.choice([0.5, 3]))
        witness.accept()

    def befall(self, server: Beanstalkd, witness: Witness, rng: random.Random) -> None:
        """One thing after the other happens to a server."""
        fates = [self.kill, self.stall, self.darken, self.cut, self.cut, self.drain, self.shut_out]
        while not self.is_over:
            gevent.sleep(rng.random() * 1.5)
            fate = rng.choice(fates)
            self.events[f"{fate.__name__}s"] += 1
            fate(server, witness, rng)

    def interrupt(self, rng: random.Random) -> None:
        """Puts are cancelled all the time; now and then the Consumer stops, and begins anew."""
        while not self.is_over:
            gevent.sleep(rng.random() * 0.04)
            self.load.cancel()
            self.events["cancellations"] += 1
            if rng.random() < 0.02:
                self.load.consumer.stop(rng.choice([0, 0.01, 1]))
                self.events["stops"] += 1

    def run(self, seconds: float) -> None:
        """So long, and until enough jobs were done: a busy machine takes longer for them."""
        rngs = [random.Random(self.rng.random()) for _ in range(4)]
        with self.load.running():
            storm: list[gevent.Greenlet[..., None]] = [
                gevent.spawn(self.befall, server, witness, rng)
                for server, witness, rng in zip(self.servers, self.witnesses, rngs, strict=False)
            ]
            storm.append(gevent.spawn(self.interrupt, rngs[-1]))
            try:
                end = monotonic() + seconds
                while monotonic() < end or (len(self.record.deleted) <= ENOUGH and monotonic() < end + 60):
                    gevent.sleep(0.1)
                    assert not any(each.ready() for each in storm)
            finally:
                self.is_over = True
                gevent.joinall(storm, timeout=20)  # not killed: a server may just be starting
            for server, witness in zip(self.servers, self.witnesses, strict=True):
                self.record.broke()  # first, as in `kill`
                server.restart()
                witness.accept()
                witness.slice(None)
                self.record.broke()
            # All of them are well: everything goes on by itself.
            since = {uri: len([copy for copy in self.record.deleted if copy[0] == uri]) for uri in self.load.uris}
            wait_until(
                lambda: all(
                    len([copy for copy in self.record.deleted if copy[0] == uri]) > before + 10
                    for uri, before in since.items()
                ),
                20,
            )
        for server in self.servers:
            with gstalk.dial(server.uri) as watcher:
                wait_until(lambda: watcher.stats().current_jobs_reserved == 0)
        self.record.collect(TUBE)


def test_chaos(tmp_path: Path, rng, figures):
    rounds = max(round(MINUTES * 60 / SECONDS), 1)
    events: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for number in range(rounds):
        with ExitStack() as stack, silent_hub():
            chaos = Chaos(tmp_path / str(number), rng, stack)
            chaos.run(SECONDS)
            try:
                chaos.record.balance(killed=True)
            finally:
                events += chaos.events
                sums.update(chaos.record.figures)
                figures |= {"minutes": (number + 1) * SECONDS / 60, **events, **sums}
        assert len(chaos.record.deleted) > ENOUGH
        assert chaos.record.figures["lost by a killed server"] <= chaos.events["kills"] + chaos.events["drains"]
    # Six things happen to servers, and two to puts and the Consumer. Chance may leave some out of a few seconds.
    assert len(events.keys() - {"stalls noticed"}) == 8 or rounds < 10
    assert len(events) > 5
