"""What is measured: a case is one client at one workload, and a group is what is compared with each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["DEFAULT_GROUPS", "DEPTHS", "FLOOR", "GROUPS", "PACED", "Case"]

DEPTHS = (16, 64, 128, 256, 512, 1024)
GATHERING_DEPTHS = (128, 256, 512)
PACED = "raw C, paced"
FLOOR = "gevent, nothing else"
GREENLETS = (1, 4, 16, 64, 256, 1000)
CONNECTIONS = (1, 3, 8)
SERVERS = (1, 2, 4)
SIZES = (11, 1024, 60_000)
WIRES = ("tcp", "unix", "tls")
TUBES = (1, 100)

# Operations of one measurement: about half a second of each client on a small machine.
COUNTS = {
    "put": {"fast": 80_000, "many": 16_000, "slow": 8_000},
    "put_many": {"fast": 80_000},
    "work": {"fast": 40_000, "many": 10_000, "slow": 4_000},
    "mixed": {"fast": 20_000, "many": 5_000, "slow": 2_500},
}
LARGE = 2500  # bytes of a body from which on fewer do


@dataclass(frozen=True)
class Case:
    """One client at one workload.

    Attributes:
        workload: `put`; `put_many`; `work`: reserve and delete; `mixed`: put, reserve and delete at the same time.
        client: A name that `clients`, `floor`, `peers` or `raw` knows.
        greenlets: How many put, or handle jobs; for `raw` it is the depth, commands in flight.
        connections: To each server.
        wire: tcp, unix or tls; instant: tcp, to the server that answers at once.
        pinned: Client and server share one core, so that it isn't the waking of another one that is measured.
        long: How many times the usual number of operations.
    """

    workload: str
    client: str
    greenlets: int = 64
    connections: int = 1
    servers: int = 1
    size: int = 11
    wire: str = "tcp"
    tubes: int = 1
    pinned: bool = False
    long: float = 1.0

    @property
    def family(self) -> str:
        """gstalk, raw, floor or peer."""
        if self.client == FLOOR:
            return "floor"
        return next((name for name in ("gstalk", "raw") if self.client.startswith(name)), "peer")

    @property
    def count(self) -> int:
        """Operations that are measured."""
        pace = "many" if self.greenlets > 1 else "slow"
        if self.family != "peer" and (self.greenlets > 1 or self.workload == "put_many"):
            pace = "fast"
        return int(COUNTS[self.workload][pace] * self.long * min(1.0, LARGE / self.size))

    @property
    def warm_up(self) -> int:
        """Operations before that."""
        return min(self.count // 20, 2000)


def _raw(workload: str, **options: object) -> Iterator[Case]:
    for depth in DEPTHS:
        yield Case(workload, "raw C", depth, **options)  # type: ignore[arg-type]
    for depth in GATHERING_DEPTHS:
        yield Case(workload, "raw C, gathering", depth, **options)  # type: ignore[arg-type]
    yield Case(workload, PACED, 256, **options)  # type: ignore[arg-type]


def _peers(workload: str) -> list[Case]:
    return [
        Case(workload, "greenstalk", 1),
        Case(workload, "greenstalk x64, patched", 64),
        Case(workload, "pystalk", 1),
        Case(workload, "aiostalk", 1),
        Case(workload, "aiostalk x64", 64),
    ]


_PUT = Case("put", "gstalk Conn")
_PRODUCER = Case("put", "gstalk Producer")
_MANY = Case("put_many", "gstalk Conn", 1)
_WORK = Case("work", "gstalk Consumer")
_RAW_128 = [Case(workload, client, 128) for workload in ("put", "work") for client in ("raw C", "raw C, gathering")]
_GREENSTALK = [Case("put", "greenstalk", 1), Case("work", "greenstalk", 1)]


def _each(cases: list[Case], **ranges: tuple[Any, ...]) -> list[Case]:
    """Vary one dimension of these cases."""
    ((name, values),) = ranges.items()
    return [replace(case, **{name: value}) for value, case in itertools.product(values, cases)]


GROUPS: dict[str, list[Case]] = {
    "put": [
        *_raw("put"),
        Case("put", FLOOR),
        _PUT,
        _PRODUCER,
        _MANY,
        Case("put_many", "gstalk Producer", 1),
        *_peers("put"),
    ],
    "work": [*_raw("work"), Case("work", FLOOR), _WORK, Case("work", "gstalk Conn"), *_peers("work")],
    "mixed": [
        Case("mixed", "gstalk Producer+Consumer"),
        Case("mixed", "greenstalk", 1),
        Case("mixed", "greenstalk x64, patched", 64),
    ],
    "lockstep": [
        Case(workload, client, 1, pinned=True)
        for workload in ("put", "work")
        for client in ("gstalk Conn", "greenstalk", "greenstalk, patched")
    ],
    "instant": [
        replace(case, wire="instant")
        for case in (
            *(Case("put", FLOOR), _PUT, _PRODUCER, _MANY, Case("put_many", "gstalk Producer", 1)),
            *(Case("work", FLOOR), Case("work", "gstalk Conn"), _WORK),
        )
    ],
    "growth": _each([_PUT, _WORK], greenlets=(64, 1000)),
    "length": _each([_PUT, _MANY], long=(0.125, 12.5)) + _each([_WORK], long=(0.25, 25.0)),
    "greenlets": _each([_PUT, _PRODUCER, _WORK], greenlets=GREENLETS),
    "connections": _each([_PRODUCER, _WORK], connections=CONNECTIONS),
    "servers": _each([_PRODUCER, _WORK], servers=SERVERS),
    "bodies": _each([*_RAW_128, _PUT, _PRODUCER, _MANY, _WORK, *_GREENSTALK], size=SIZES),
    "wires": _each([*_RAW_128, *_GREENSTALK], wire=WIRES[:2]) + _each([_PUT, _WORK], wire=WIRES),
    "tubes": _each([_PUT, _PRODUCER, _WORK, *_GREENSTALK], tubes=TUBES),
}
DEFAULT_GROUPS = ("put", "work", "mixed", "lockstep", "instant", "growth")
