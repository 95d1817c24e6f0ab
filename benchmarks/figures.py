"""What gstalk promises about its speed, held against what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import PACED
from benchmarks.rounds import Result
from gstalk.protocol.pauses import LONGEST_PAUSE

__all__ = ["DEAR", "Figure", "best_peer", "best_raw", "floor", "is_shown", "judge", "ratio"]

DEAR = 2.0  # microseconds of a system call, from which on what the kernel does decides, not what Python does

# What an operation of gstalk's may cost, of that of a gevent program which does nothing else.
OF_FLOOR = {
    ("put", "gstalk Conn"): 1.4,
    ("put", "gstalk Producer"): 1.8,
    ("put_many", "gstalk Conn"): 0.8,
    ("put_many", "gstalk Producer"): 1.5,
    ("work", "gstalk Conn"): 2.5,
    ("work", "gstalk Consumer"): 2.5,
}


@dataclass(frozen=True)
class Figure:
    """One promise: `value` is to be at least, or at most, `target`."""

    name: str
    value: float
    target: float
    unit: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        bound = f"at {'most' if self.at_most else 'least'} {self.target:g}{self.unit}"
        return f"{'met   ' if self.met else 'MISSED'} {self.name}: {self.value:.3g}{self.unit} ({bound})"


def _alike(one: Result, other: Result) -> bool:
    """Whether two results are of the same work over the same wire, measured in the same rounds."""
    here, there = one.case, other.case
    work = "put" if here.workload == "put_many" else here.workload
    return (work, here.size, here.wire, here.tubes, here.pinned, one.group) == (
        there.workload,
        there.size,
        there.wire,
        there.tubes,
        there.pinned,
        other.group,
    )


def _best(family: str, result: Result, results: list[Result]) -> Result | None:
    others = [each for each in results if each.case.family == family and _alike(result, each)]
    return max(others, key=lambda each: each.rate, default=None)


def best_raw(result: Result, results: list[Result]) -> Result | None:
    """The raw limit: the paced one isn't, since its naps are its own, and every greenlet's in a library."""
    return _best("raw", result, [each for each in results if each.case.client != PACED])


def is_shown(result: Result, results: list[Result]) -> bool:
    """Of the raw limit's ways and depths only the best is shown, and the paced one."""
    return result.case.family != "raw" or result.case.client == PACED or best_raw(result, results) is result


def best_peer(result: Result, results: list[Result]) -> Result | None:
    return _best("peer", result, results)


def floor(result: Result, results: list[Result]) -> Result | None:
    """The gevent program that does nothing else, at the same work."""
    return _best("floor", result, results)


def ratio(one: Result, other: Result) -> float:
    """How one's rate stands to the other's: the median over the rounds, so that a slow one hits both alike."""
    return statistics.median(here / there for here, there in zip(one.rates, other.rates, strict=True))


def judge(results: list[Result], others: dict[str, Any], system_call: float) -> list[Figure]:
    """Hold against the promises whatever of it was measured.

    Args:
        system_call: Microseconds that one takes. Where they are cheap, Python's own work limits gstalk, which the raw
            client has none of: there the two are not as near to each other.
    """
    found: list[Figure] = []
    is_dear = system_call >= DEAR

    def of(group: str, workload: str, client: str, **dimensions: Any) -> Result | None:
        for result in results:
            case = result.case
            wished = all(getattr(case, name) == value for name, value in dimensions.items())
            if wished and (result.group, case.workload, case.client) == (group, workload, client):
                return result
        return None

    def hold(name: str, one: Result | None, other: Result | None, target: float) -> None:
        if one is not None and other is not None:
            found.append(Figure(name, ratio(one, other), target))

    for name, workload, client, dear, cheap in (
        ("Conn.put", "put", "gstalk Conn", 1.0, 0.92),
        ("Producer.put", "put", "gstalk Producer", 0.9, 0.88),
        ("Conn.put_many", "put_many", "gstalk Conn", 1.0, 1.3),
        ("Producer.put_many", "put_many", "gstalk Producer", 1.0, 1.2),
    ):
        if (one := of("put", workload, client)) is not None:
            hold(f"{name}, of the raw limit", one, best_raw(one, results), dear if is_dear else cheap)
    hold("Producer.put, of Conn.put", of("put", "put", "gstalk Producer"), of("put", "put", "gstalk Conn"), 0.95)
    for peer, target in (("greenstalk", 6.0), ("greenstalk x64, patched", 1.0)):
        hold(f"Conn.put, times {peer}", of("put", "put", "gstalk Conn"), of("put", "put", peer), target)
    if (consumer := of("work", "work", "gstalk Consumer")) is not None:
        hold("Consumer, of the raw limit", consumer, best_raw(consumer, results), 1.0 if is_dear else 0.92)
        hold("Consumer, times greenstalk", consumer, of("work", "work", "greenstalk"), 6.0 if is_dear else 4.5)
    for workload, name, patched, blocking in (("put", "put", 1.0, 0.7), ("work", "reserve+delete", 0.9, 0.75)):
        one = of("lockstep", workload, "gstalk Conn")
        other = of("lockstep", workload, "greenstalk, patched")
        hold(f"one greenlet, {name}, of greenstalk patched", one, other, patched)
        hold(f"one greenlet, {name}, of greenstalk blocking", one, of("lockstep", workload, "greenstalk"), blocking)
    for one in results:
        if one.group == "instant" and one.case.family == "gstalk" and (least := floor(one, results)) is not None:
            name = (
                f"{one.case.client}, {one.case.workload}: CPU against the server that answers at once, of the floor's"
            )
            target = OF_FLOOR[one.case.workload, one.case.client]
            found.append(Figure(name, one.cpu / least.cpu, target, at_most=True))
    for workload, client in (("put", "gstalk Conn"), ("work", "gstalk Consumer")):
        many, few = (of("growth", workload, client, greenlets=number) for number in (1000, 64))
        hold(f"{client}, {workload}: 1,000 greenlets, of 64", many, few, 0.9)
    for workload, client in (("put", "gstalk Conn"), ("put_many", "gstalk Conn"), ("work", "gstalk Consumer")):
        runs = [each for each in results if (each.group, each.case.workload) == ("length", workload)]
        if runs:
            long, short = (choose(runs, key=lambda each: each.case.count) for choose in (max, min))
            hold(f"{client}, {workload}: a million jobs, of ten thousand", long, short, 0.9)
    found += _others(others)
    return found


def _others(others: dict[str, Any]) -> list[Figure]:
    bounds: list[tuple[str, str, Callable[[Any], float], float, str]] = [
        (
            "latency",
            "idle: put to handler p99 beyond the round trip's",
            lambda r: r["handler"]["p99"] - r["trip"]["p99"],
            2.0,
            " ms",
        ),
        (
            "shared",
            "others busy on the connection: put to handler, most",
            lambda r: r["most"],
            LONGEST_PAUSE * 1000 + 5,
            " ms",
        ),
        ("quiet", "idle Consumer: commands in 10 s", lambda r: r["commands"], 0.0, ""),
        ("quiet", "idle Consumer: CPU in 10 s", lambda r: r["cpu"] * 1000, 10.0, " ms"),
        ("memory", "memory for each of 1,000 connections", lambda r: r["kilobytes"], 20.0, " KB"),
        ("million", "memory: growth from 100,000 to a million jobs", lambda r: r["growth"], 1.0, " MB"),
        ("import", "import gstalk", lambda r: r["milliseconds"], 15.0, " ms"),
    ]
    return [
        Figure(name, value(others[key]), most, unit, True) for key, name, value, most, unit in bounds if key in others
    ]
