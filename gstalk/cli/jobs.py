"""`gstalk put`, `bury`, `pause`, `resume` and `purge`: what is done to jobs and tubes by name."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO, cast

import click
import gevent

import gstalk
from gstalk.cli._durations import DELAY, TTR
from gstalk.cli._feed import feed
from gstalk.cli._lines import MAX_JOB_SIZE, BadLine, Row, lines
from gstalk.cli._output import complain, confirm, listed, progress, report, tell_reading
from gstalk.cli._servers import TUBE, Servers
from gstalk.cli._sweep import STATES, State, count_jobs, sweep
from gstalk.protocol import commands

__all__ = ["bury", "pause", "purge", "put", "resume"]

JOB_ID = click.IntRange(1, 2**64 - 1)
UINT32 = click.IntRange(0, 2**32 - 1)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.command()
@click.argument("tube", type=TUBE)
@click.argument("body", required=False)
@click.option("--file", type=click.File("rb"), help="Take the body from a file; - is standard input.")
@click.option("--lines", "by_line", is_flag=True, help="Put one job a line, without the line's end.")
@click.option("--priority", type=UINT32, default=1024, show_default=True, help="0 is the most urgent.")
@click.option("--delay", type=DELAY, default=0, show_default=True, help="Seconds, or 5m, 1h, 2d, until a job is ready.")
@click.option("--ttr", type=TTR, default=60, show_default=True, help="Seconds, or 5m, 1h, that its worker may take.")
@click.pass_obj
def put(
    servers: Servers,
    tube: str,
    body: str | None,
    file: BinaryIO | None,
    by_line: bool,
    priority: int,
    delay: float,
    ttr: float,
) -> int:
    """Put jobs, and print their ids.

    The body is the argument, a file, or what comes from standard input.
    """
    if body is not None and (file is not None or by_line):
        raise click.UsageError("BODY goes with neither --file nor --lines")
    params = gstalk.PutParams(priority=priority, delay=delay, ttr=ttr)
    source = file or sys.stdin.buffer
    with gstalk.dial(servers.uri) as conn:
        most = conn.stats().max_job_size or MAX_JOB_SIZE
        if body is None:
            tell_reading(source, "one job a line" if by_line else "the body")
        if by_line:
            return _put_lines(conn, tube, source.fileno(), most, params)
        gevent.sleep(0)  # as in `lines`
        # One byte too many is enough for the server to refuse it.
        data = os.fsencode(body) if body is not None else source.read(most + 1)
        click.echo(conn.put(tube, data, params))
    return 0


def _put_lines(conn: gstalk.Conn, tube: str, fd: int, most: int, params: gstalk.PutParams) -> int:
    def read(line: bytes | None) -> Row:
        if line is None:
            raise BadLine(f"longer than the server's max-job-size, {most} bytes")
        return Row(tube, line.removesuffix(b"\n"), params)

    with progress("put", None, shown=not sys.stdout.isatty()) as advance:

        def stored(ids: list[int]) -> None:
            if ids:
                click.echo("\n".join(map(str, ids)))
                advance(len(ids))

        return feed(conn, lines(fd, most + 1), read, stored)


@click.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True, type=JOB_ID)
@as_json
@click.pass_obj
def bury(servers: Servers, job_ids: tuple[int, ...], as_json: bool) -> int:
    """Bury jobs, ready or delayed, with the priority that they have."""
    count = code = 0
    with gstalk.dial(servers.uri) as conn:
        try:
            for job_id in job_ids:
                try:
                    conn.reserve_job(job_id).bury()
                    count += 1
                except gstalk.NotFoundError as error:
                    complain(f"{error}; one that a worker has reserved only that worker can bury")
                    code = 1
        finally:
            report(count, "buried", as_json)
    return code


@click.command()
@click.argument("tube", type=TUBE)
@click.argument("seconds", type=DELAY)
@click.pass_obj
def pause(servers: Servers, tube: str, seconds: float) -> None:
    """Have no job of a tube reserved for so many seconds, or for 5m, 1h, 2d."""
    with gstalk.dial(servers.uri) as conn:
        conn.pause_tube(tube, seconds)


@click.command()
@click.argument("tube", type=TUBE)
@click.pass_obj
def resume(servers: Servers, tube: str) -> None:
    """End a tube's pause."""
    with gstalk.dial(servers.uri) as conn:
        conn.pause_tube(tube, 0)


@click.command()
@click.argument("tube", type=TUBE)
@click.option("--state", type=click.Choice([*STATES, "all"]), default="all", show_default=True, help="Which jobs.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@as_json
@click.pass_obj
def purge(servers: Servers, tube: str, state: str, yes: bool, as_json: bool) -> None:
    """Delete the jobs of a tube.

    Not those that a worker has reserved. Ends even while others put: as many jobs are deleted as there were at the
    start, at most.
    """
    with gstalk.dial(servers.uri) as conn:
        bounds = count_jobs(conn, tube, STATES if state == "all" else (cast(State, state),))
        if total := sum(bounds.values()):
            kinds = listed([f"{bound:,} {each}" for each, bound in bounds.items() if bound])
            confirm(f"delete {kinds} job{'' if total == 1 else 's'} of {tube} on {conn.uri}", yes)
        count = 0
        try:
            with progress("deleted", total) as advance:

                def acted(jobs: int) -> None:
                    nonlocal count
                    count += jobs
                    advance(jobs)

                late = 0  # delayed jobs that have become ready since they were counted
                for each, bound in bounds.items():
                    before = count
                    sweep(conn, tube, each, commands.DELETE, bound + late, acted)
                    late = bound - (count - before) if each == "delayed" else 0
        finally:
            report(count, "deleted", as_json)
