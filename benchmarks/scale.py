"""What many of everything cost: python -m benchmarks --scale, with the names of tables, or with shapes as 100x3/100.

shapes       a Consumer of so many servers, with so many handlers; `benchmarks.shapes` says what is measured
servers      a Producer of so many servers
greenlets    so many that wait beside 64 at work
connections  so many to one server
tubes        so many that are watched
jobs         so many in the tube

Of the last five `benchmarks.many` measures what an operation costs: microseconds of the client's CPU, and KB of memory.
A figure is the median of some rounds, in which the rows take turns.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace

from benchmarks.cases import FLOOR, Case
from benchmarks.raw import Raw
from benchmarks.report import machine
from benchmarks.rounds import Bed

__all__ = ["NAMES", "ROUNDS", "is_shape", "main"]

SHAPES = ("1/64", "10/64", "100/64", "300/20", "100x3/100", "10/10")
SHAPE = re.compile(r"\d+(x\d+)?/\d+")
MANY = {
    "servers": (1, 10, 100, 300),
    "greenlets": (1, 10, 100, 1000, 10_000),
    "connections": (1, 10, 100, 1000),
    "tubes": (1, 10, 100, 1000, 5000),
    "jobs": (0, 1000, 100_000, 1_000_000),
}
NAMES = ("shapes", *MANY)
ROUNDS = 3
LONG = 0.25  # of a floor's usual number of operations


def is_shape(name: str) -> bool:
    """Tell whether this names a shape."""
    return SHAPE.fullmatch(name) is not None


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(names: Iterable[str]) -> str:
    names = list(names)
    return f"{line(names)}\n|---{'|---:' * (len(names) - 1)}|"


def shape(bed: Bed, name: str) -> dict[str, float]:
    """A Consumer of many servers."""
    servers, _, handlers = name.partition("/")
    count, _, multiply = servers.partition("x")
    uris = [bed.server(number=number).uri for number in range(int(count))]
    return bed.child("benchmarks.shapes", json.dumps([uris, int(handlers), int(multiply or 1)]))


def many(bed: Bed, what: str, number: int) -> dict[str, float]:
    """One row of one table."""
    servers = number if what == "servers" else 1
    uris = [bed.server(number=each).uri for each in range(servers)]
    found: dict[str, float] = bed.child("benchmarks.many", json.dumps([what, uris, number]))
    if what == "greenlets":
        case = Case("work", FLOOR, 64 + number)
        floor = bed.measure(replace(case, long=LONG + 2 * number / case.count))
        found["gevent, nothing else, all: a reserve and delete"] = floor["cpu"] * 1e6
    return found


def measure(bed: Bed, what: str, rounds: int, say: Callable[[str], None]) -> str:
    """One table, as Markdown."""
    taken: dict[int, list[dict[str, float]]] = {number: [] for number in MANY[what]}
    for turn in range(rounds):
        for number in list(taken)[:: -1 if turn % 2 else 1]:
            say(f"{what}, round {turn + 1} of {rounds}: {number:,}")
            taken[number].append(many(bed, what, number))
    names = list(dict.fromkeys(name for rows in taken.values() for name in rows[0]))
    lines = [head([what, *names])]
    for number, rows in taken.items():
        middle = [statistics.median(row[name] for row in rows) if name in rows[0] else None for name in names]
        lines.append(line([f"{number:,}", *("" if each is None else f"{each:,.1f}" for each in middle)]))
    return "\n".join(lines)


def main(chosen: list[str], say: Callable[[str], None], rounds: int = ROUNDS) -> None:
    """Measure what is chosen, or everything."""
    shapes = [name for name in chosen if is_shape(name)]
    if "shapes" in chosen or not chosen:
        shapes += SHAPES
    with Raw() as raw, Bed(raw) as bed:
        told = machine(raw.system_call())
        print(", ".join(f"{name} {value}" for name, value in told.items()), flush=True)
        for number, name in enumerate(shapes):
            say(f"a Consumer of {name}")
            found = shape(bed, name)
            say("")
            if not number:
                print("\n" + head(["servers / handlers", *found]))
            print(
                line([name, *(f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for value in found.values())]),
                flush=True,
            )
        for what in MANY:
            if what in chosen or not chosen:
                table = measure(bed, what, rounds, say)
                say("")
                print(f"\n{table}", flush=True)
