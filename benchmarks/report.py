"""The results as a table, and the machine that they come from."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gevent

from benchmarks.cases import Case
from benchmarks.figures import DEAR, best_peer, best_raw, floor, is_shown, ratio
from benchmarks.rounds import Result
from gstalk.testing import Beanstalkd

__all__ = ["machine", "table"]

HEAD = (
    "what", "client", "how", "ops/s", "of raw", "of best peer", "CPU us", "of floor", "server busy",
    "p50 ms", "p99 ms", "p99.9 ms",
)  # fmt: skip


def machine(system_call: float) -> dict[str, Any]:
    """What a figure's reader must know about where it was measured: no names, no paths."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "none"

    told = subprocess.run([Beanstalkd.find() or "beanstalkd", "-v"], capture_output=True, text=True).stdout
    return {
        "cores": os.cpu_count(),
        "system calls": f"{'dear' if system_call >= DEAR else 'cheap'} ({system_call:.1f} us)",
        "processor": _processor(),
        "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "gevent": gevent.__version__,
        "beanstalkd": told.split()[-1] if told else "",
        **{name: installed(name) for name in ("gstalk", "greenstalk", "pystalk", "aiostalk")},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _setting(case: Case) -> str:
    """What isn't as usual about a case."""
    said = [
        f"depth {case.greenlets}" if case.family == "raw" else f"{case.greenlets} greenlet{'s' * (case.greenlets > 1)}"
    ]
    if case.connections > 1:
        said.append(f"{case.connections} connections")
    if case.servers > 1:
        said.append(f"{case.servers} servers")
    if case.size != 11:
        said.append(f"{case.size:,} B")
    if case.wire != "tcp":
        said.append("answered at once" if case.wire == "instant" else case.wire)
    if case.tubes > 1:
        said.append(f"{case.tubes} tubes")
    if case.pinned:
        said.append("one core")
    if case.long != 1.0:
        said.append(f"{case.count:,} jobs")
    return ", ".join(said)


def _row(result: Result, results: list[Result]) -> tuple[str, ...]:
    case = result.case
    raw, peer, least = (find(result, results) for find in (best_raw, best_peer, floor))

    def times(other: Result | None) -> str:
        return "" if other is None else f"{ratio(result, other):.2f}"

    def milliseconds(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    return (
        case.workload,
        case.client,
        _setting(case),
        f"{result.rate:,.0f}",
        times(raw),
        times(peer),
        f"{result.cpu * 1e6:.1f}",
        "" if least is None or case.family in ("raw", "peer") else f"{result.cpu / least.cpu:.2f}",
        f"{result.busy:.2f}",
        *map(milliseconds, (result.p50, result.p99, result.p999)),
    )


def table(results: list[Result]) -> str:
    """The results that are to be shown, as Markdown."""
    shown = [each for each in results if is_shown(each, results)]
    rows = [HEAD, *(_row(each, results) for each in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "| "
        + " | ".join(c.rjust(w) if n > 2 else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if n <= 2 else ":") for n, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
