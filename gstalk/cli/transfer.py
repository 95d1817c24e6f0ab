"""`gstalk move`, `dump` and `load`: jobs from one place to another, of which none is lost on the way."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import BinaryIO

import click

import gstalk
from gstalk.cli._delivery import Delivery
from gstalk.cli._drain import Drain, Taken
from gstalk.cli._feed import feed
from gstalk.cli._lines import MAX_JOB_SIZE, encode, lines, params_of, parse
from gstalk.cli._output import complain, confirm, plural, progress, report, tell_reading
from gstalk.cli._servers import TUBE, Servers, at_once
from gstalk.cli._sweep import STATES, State, count_jobs

__all__ = ["dump", "load", "move"]

LAST_ID = 2**64 - 1

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.command()
@click.argument("source", metavar="FROM", type=TUBE)
@click.argument("target", metavar="TO", type=TUBE)
@click.option("--to-uri", metavar="URI", help="The server to move to.  [default: the same]")
@as_json
@click.pass_obj
def move(servers: Servers, source: str, target: str, to_uri: str | None, as_json: bool) -> int:
    """Move the jobs of a tube to another tube, or to another server.

    Ready, delayed and buried jobs, with their priority, the delay that is left, and their ttr; buried ones arrive
    ready. A job is put there before it is deleted here: a crash may double it, never lose it. Ends even while others
    put.
    """
    there = Servers((to_uri,)).uri if to_uri is not None else servers.uri
    if there == servers.uri and source == target:
        raise click.UsageError("a tube can't be moved to itself")
    with gstalk.dial(servers.uri) as conn, gstalk.dial(there) as other:

        def deliver(taken: Taken) -> None:
            other.put(target, taken.job.body, taken.params)
            taken.job.delete()

        return _drain(
            conn, source, count_jobs(conn, source), deliver, "moved", lambda count: report(count, "moved", as_json)
        )


@click.command()
@click.argument("tube", type=TUBE)
@click.option("--keep", is_flag=True, help="Only read; needs --ids.")
@click.option("--ids", metavar="A-B", help="With --keep: the ids of the jobs to read.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.pass_obj
def dump(servers: Servers, tube: str, keep: bool, ids: str | None, yes: bool) -> int:
    """Take the jobs of a tube out, and print them as JSON lines, for `gstalk load`.

    Ready, delayed and buried ones. A line is written and has arrived before its job is deleted, so a crash may leave
    a job in both places. Ends even while others put.
    """
    if keep != (ids is not None):
        raise click.UsageError("--keep and --ids go together")
    with gstalk.dial(servers.uri) as conn:
        if ids is not None:
            return _read(conn, tube, _range(ids))
        bounds = count_jobs(conn, tube)
        if total := sum(bounds.values()):
            confirm(f"take {plural(total, 'job')} out of {tube} on {conn.uri}", yes)
        with Delivery(sys.stdout.fileno()) as delivery:

            def deliver(taken: Taken) -> None:
                line = encode(tube, taken.job.body, taken.params)
                delivery.write(line, taken.job.touch, taken.ttr / 3)
                taken.job.delete()

            return _drain(conn, tube, bounds, deliver, "dumped", _tell_dumped, shown=not sys.stdout.isatty())


@click.command()
@click.argument("file", type=click.File("rb"), default="-")
@as_json
@click.pass_obj
def load(servers: Servers, file: BinaryIO, as_json: bool) -> int:
    """Put the jobs of JSON lines, as `gstalk dump` prints them, from a file or standard input.

    A line that is no job, or that is refused, is named, and doesn't stop the others.
    """
    count = 0
    with gstalk.dial(servers.uri) as conn:
        most = conn.stats().max_job_size or MAX_JOB_SIZE
        tell_reading(file, "lines of JSON")
        try:
            with progress("loaded", None) as advance:

                def stored(ids: list[int]) -> None:
                    nonlocal count
                    count += len(ids)
                    advance(len(ids))

                # A byte takes six characters at most, and what else is in a line is short.
                return feed(conn, lines(file.fileno(), 6 * most + 4096), parse, stored)
        finally:
            report(count, "loaded", as_json)


def _drain(
    conn: gstalk.Conn,
    tube: str,
    bounds: dict[State, int],
    deliver: Callable[[Taken], None],
    what: str,
    tell: Callable[[int], None],
    shown: bool = True,
) -> int:
    count = doubled = 0
    try:
        with progress(what, sum(bounds.values()), shown) as advance:

            def work(taken: Taken) -> None:
                nonlocal count, doubled
                try:
                    deliver(taken)
                except (gstalk.JobLostError, gstalk.NotFoundError):
                    if not conn.is_connected:
                        conn.stats()  # says why
                    doubled += 1
                count += 1
                advance(1)

            Drain(conn, tube, work).run(bounds)
    finally:
        tell(count)
        if doubled:
            complain(f"{plural(doubled, 'job')} ran out of time to run meanwhile, and may also still be in {tube}")
    return 1 if doubled else 0


def _tell_dumped(count: int) -> None:
    print(f"{plural(count, 'job')} dumped", file=sys.stderr)


def _range(ids: str) -> range:
    found = re.fullmatch(r"([0-9]{1,20})-([0-9]{1,20})", ids)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= LAST_ID:
        raise click.UsageError(f"--ids takes two numbers, the lower one first, such as 1-1000; got {ascii(ids)}")
    return range(int(found[1]), int(found[2]) + 1)


def _read(conn: gstalk.Conn, tube: str, ids: range) -> int:
    """Print the jobs of these ids that are in the tube, and that no worker has reserved."""
    count = 0
    out = sys.stdout.buffer

    def look(job_id: int) -> bytes:
        try:
            stats = conn.stats_job(job_id)
        except gstalk.NotFoundError:
            return b""
        job = conn.peek(job_id) if stats.tube == tube and stats.state in STATES else None
        return b"" if job is None else encode(tube, job.body, params_of(stats))

    with progress("read", len(ids), shown=not sys.stdout.isatty()) as advance:
        for line in at_once(look, ids):
            if line:
                out.write(line)
                count += 1
            advance(1)
    out.flush()
    _tell_dumped(count)
    return 0
