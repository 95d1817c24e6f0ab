"""The measuring, in rounds: each case of a group has its turn, so that a slow moment of the machine hits all alike.

Before each measurement the server is started anew, so that each finds the same: an empty server.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.instant import Instant
from benchmarks.meter import Others
from benchmarks.raw import Raw
from gstalk.testing import Beanstalkd

__all__ = ["DISTURBED", "Bed", "Result", "run_group"]

ROOT = Path(__file__).parent.parent
DISTURBED = 0.15  # cores that others may use
LONGEST = 300.0  # seconds; one that takes longer hangs


@dataclass
class Result:
    """What the rounds of a case came to: the median of each figure.

    Attributes:
        rates: Operations a second, of each round.
        cpu: Seconds of the client's CPU for an operation.
        busy: The share of time in which the server, or the mean of them, was at work.
        others: CPU time of other programs meanwhile, in cores.
        p50, p99, p999: Milliseconds that an operation took.
    """

    group: str
    case: Case
    rates: list[float]
    cpu: float
    busy: float
    others: float
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate}


class Bed:
    """The servers, started when they are needed; a context manager, which stops them."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        self._stack = ExitStack()
        self._servers: dict[tuple[str, int], Beanstalkd] = {}
        self._tls: Any = None
        self._instant: Instant | None = None
        self._place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gstalk-bench-")))

    def __enter__(self) -> Bed:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def server(self, wire: str = "tcp", number: int = 0) -> Beanstalkd:
        """A server that has just been started."""
        key = ("unix" if wire == "unix" else "tcp", number)
        if key not in self._servers:
            self._servers[key] = self._stack.enter_context(Beanstalkd(unix=key[0] == "unix"))
        else:
            self._servers[key].restart()
        return self._servers[key]

    def instant(self) -> Instant:
        """The server that answers at once; it remembers nothing, so one serves all."""
        if self._instant is None:
            self._instant = self._stack.enter_context(Instant(self.raw.instant))
        return self._instant

    def measure(self, case: Case) -> dict[str, Any]:
        """Measure once; `others` is how much else the machine did meanwhile."""
        servers: list[Any]
        if case.wire == "instant":
            servers = [self.instant()]
        else:
            servers = [self.server(case.wire, number) for number in range(case.servers)]
        between = [self._terminator(servers[0].port).pid] if case.wire == "tls" else []
        others = Others([server.pid for server in servers] + between)
        measured = self._measure(case, servers)
        return {**measured, "others": others.share()}

    def _measure(self, case: Case, servers: list[Any]) -> dict[str, Any]:
        if case.workload == "work" and case.wire != "instant":
            for server in servers:
                self.raw.fill(case, server.uri)
        if case.pinned:
            os.sched_setaffinity(servers[0].pid, {min(os.sched_getaffinity(0))})
        pids = [server.pid for server in servers]
        if case.family == "raw":
            return self.raw.measure(case, servers[0].uri, pids[0])
        uris = [server.uri for server in servers]
        order = {"case": asdict(case), "uris": uris, "pids": pids, "ca": ""}
        if case.wire == "tls":
            order |= {"uris": [self._terminator(servers[0].port).uri("good")], "ca": str(self._place / "ca.crt")}
        return self.child("benchmarks.child", json.dumps(order))

    def child(self, module: str, order: str = "", *args: str) -> dict[str, Any]:
        """Run a module in a process of its own; what it prints is JSON."""
        command = [sys.executable, "-m", module, *args]
        done = subprocess.run(command, input=order, capture_output=True, text=True, cwd=ROOT, timeout=LONGEST)
        if done.returncode:
            raise RuntimeError(f"{module} {order} failed:\n{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _terminator(self, port: int) -> Any:
        from tests.certificates import make_certificates
        from tests.servers import Terminator

        if self._tls is None:
            make_certificates(self._place)
            self._tls = Terminator(self._place, port)
            self._tls.start()
            self._stack.callback(self._tls.kill)
        return self._tls


def run_group(
    name: str, cases: list[Case], bed: Bed, rounds: int, patience: int, say: Callable[[str], None]
) -> list[Result]:
    """Measure the cases of a group, in turns.

    Args:
        patience: How often a measurement is made again that others on the machine have disturbed.
    """
    taken: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in list(taken)[:: -1 if number % 2 else 1]:  # what gets slower in a round hits all alike
            say(f"{name}, round {number + 1} of {rounds}: {case.workload}, {case.client}")
            tries = [bed.measure(case)]
            while tries[-1]["others"] > DISTURBED and len(tries) <= patience:
                time.sleep(0.2)
                tries.append(bed.measure(case))
            taken[case].append(min(tries, key=lambda each: each["others"]))
    results = []
    for case, measured in taken.items():
        middle = {key: statistics.median(each[key] for each in measured) for key in measured[0] if key != "rate"}
        results.append(Result(name, case, [each["rate"] for each in measured], **middle))
    return results
