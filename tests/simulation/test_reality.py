"""The same seeded programs in the simulated world, on real sockets against the embedded server, and against beanstalkd.

Two Conns and a Producer, one call at a time, so that each outcome follows from the calls before it; now and then all
connections are cut or reset. What differs is a fault of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from random import Random
from typing import Any

import gevent
import pytest

import gstalk
from gstalk.testing import Beanstalkd, FaultProxy, Server
from tests.simulation.program import Program
from tests.simulation.world import World, running

CALLS = 60
TUBES = ("a", "b")
OPTIONS: dict[str, Any] = {
    "conn_timeout": 5,
    "reconnect_timeout": 0.1,
    "info_func": lambda message: None,
    "error_func": lambda error, message: None,
}


class Player:
    """Carries a seed's calls out, and writes down what each came to, without what no two servers have in common."""

    def __init__(self, seed: int, uri: str, faults: dict[str, Callable[[], object]]) -> None:
        self.rng = Random(seed)
        self.uri = uri
        self.faults = faults
        self.conns: list[gstalk.Conn | None] = [None, None]
        self.jobs: list[gstalk.Job] = []
        self.outcomes: list[str] = []

    def play(self) -> list[str]:
        self.producer = gstalk.Producer(self.uri, **OPTIONS)
        self.producer.wait_connected(5)
        for _ in range(CALLS):
            kind, call = self._choose()
            try:
                outcome = self._told(call())
            except gstalk.GstalkError as error:
                sent = getattr(error, "sent", "")
                outcome = f"{type(error).__name__} {sent}"
            self.outcomes.append(f"{kind}: {outcome}")
        self.producer.stop()
        for conn in self.conns:
            if conn is not None:
                conn.close()
        return self.outcomes

    def _conn(self) -> gstalk.Conn:
        which = self.rng.randrange(2)
        conn = self.conns[which]
        if conn is None or not conn.is_connected:
            conn = self.conns[which] = gstalk.dial(self.uri, **OPTIONS)
        return conn

    def _told(self, result: Any) -> str:
        if isinstance(result, gstalk.Job):
            self.jobs.append(result)
            return f"job {result.id} {result.body!r} of {result.tube}"
        if isinstance(result, gstalk.JobStats):
            return f"{result.id} {result.tube} {result.state} {result.pri} {result.reserves} {result.releases}"
        if isinstance(result, gstalk.TubeStats):
            return f"{result.name} {result.current_jobs_ready} {result.current_jobs_buried} {result.total_jobs}"
        return repr(result)

    def _choose(self) -> tuple[str, Callable[[], Any]]:
        rng = self.rng
        tube, body = rng.choice(TUBES), b"%d" % rng.randrange(10**6) + bytes(rng.choice((0, 0, 3000, 70_000)))
        number = rng.randint(1, 12)
        put: dict[str, Any] = {"priority": rng.choice((0, 1024)), "delay": rng.choice((0, 0, 60))}
        conn = self._conn()
        settle = rng.choice(("delete", "release", "bury", "touch", "stats", "delete"))
        job = rng.choice(self.jobs) if self.jobs else None
        by_id = rng.choice(("delete", "kick_job", "peek", "stats_job", "bury", "release", "reserve_job"))
        by_tube = rng.choice(("peek_ready", "peek_delayed", "peek_buried", "stats_tube", "watch", "ignore"))
        fault = rng.choice(list(self.faults))
        choices: list[tuple[str, Callable[[], Any]]] = [
            (f"put {tube}", lambda: conn.put(tube, body, **put)),
            (f"put {tube}", lambda: self.producer.put(tube, body, **put)),
            (f"put_many {tube}", lambda: conn.put_many(tube, [body[:9]] * 3)),
            ("reserve", lambda: conn.reserve_with_timeout(0)),
            ("reserve", lambda: conn.reserve_with_timeout(0)),
            (f"{settle} of a job", lambda: getattr(job, settle)() if job is not None else None),
            (f"{settle} of a job", lambda: getattr(job, settle)() if job is not None else None),
            (f"{by_id} {number}", lambda: getattr(conn, by_id)(number)),
            (f"{by_tube} {tube}", lambda: getattr(conn, by_tube)(tube)),
            (f"kick {tube}", lambda: conn.kick(tube, 2)),
            ("list", lambda: (sorted(conn.list_tubes_watched()), conn.list_tube_used())),
        ]
        if rng.random() < 0.05:
            return fault, lambda: self._strike(fault)
        return rng.choice(choices)

    def _strike(self, fault: str) -> str:
        """Cut all connections, and wait until it is noticed and the Producer is there again."""
        had = self.producer.is_connected
        self.faults[fault]()
        with gevent.Timeout(5):
            while any(conn is not None and conn.is_connected for conn in self.conns):
                gevent.sleep(0.001)
        return f"{had} {self.producer.wait_connected(5)} {[job.is_lost for job in self.jobs]}"


def simulated(seed: int) -> list[str]:
    world = World(Program(seed))
    with running(world) as hub:

        def close(side: str) -> None:
            getattr(world, side)(0, 0, *([True] if side == "_reset" else []))

        faults: dict[str, Callable[[], object]] = {"close": lambda: close("_cut"), "reset": lambda: close("_reset")}
        player: Any = gevent.spawn(lambda: Player(seed, world.address(0, 0), faults).play())
        hub.join()
        played = player.value
    assert world.violations == []
    assert played is not None, player.exception
    return played


@pytest.fixture(params=["embedded", pytest.param("beanstalkd", marks=pytest.mark.real)])
def proxy(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    with ExitStack() as stack:
        server: Any = Server() if request.param == "embedded" else Beanstalkd()
        stack.enter_context(server)
        yield stack.enter_context(FaultProxy(server.uri.removeprefix("beanstalk://")))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_program_comes_to_the_same_on_real_sockets(proxy, seed):
    faults = {"close": proxy.close_all, "reset": proxy.reset}
    real = Player(seed, proxy.uri, faults).play()
    assert simulated(seed) == real
