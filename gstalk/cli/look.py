"""`gstalk tubes`, `stats` and `peek`: what is there, once."""

from __future__ import annotations

import sys
from typing import Any, cast

import click

import gstalk
from gstalk.cli._lines import params_of, shown
from gstalk.cli._output import fields, printable, row, table
from gstalk.cli._servers import TUBE, Servers, tube_stats, visit
from gstalk.cli._sweep import STATES, State
from gstalk.cli._sweep import peek as look_at

__all__ = ["peek", "stats", "tubes"]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
COLUMNS = {
    "tube": "name",
    "ready": "current_jobs_ready",
    "reserved": "current_jobs_reserved",
    "delayed": "current_jobs_delayed",
    "buried": "current_jobs_buried",
    "waiting": "current_waiting",
    "paused": "pause_time_left",
}


@click.command()
@as_json
@click.pass_obj
def tubes(servers: Servers, as_json: bool) -> int:
    """List the tubes with their jobs, with who waits for some, and with the seconds that they are still paused."""
    rows: list[tuple[str, gstalk.TubeStats]] = []
    code = visit(servers.uris, lambda conn: rows.extend((conn.uri, each) for each in tube_stats(conn)))
    if as_json:
        for uri, each in rows:
            row({**servers.label(uri), **fields(each)})
    elif rows or not code:  # the head alone would say that there are no tubes
        cells = [
            (*servers.label(uri).values(), *(_cell(getattr(each, name)) for name in COLUMNS.values()))
            for uri, each in rows
        ]
        table([*servers.label(""), *COLUMNS], cells)
    return code


@click.command()
@click.option("--tube", type=TUBE, help="A tube's statistics.")
@click.option("--job", type=click.IntRange(1), metavar="ID", help="A job's statistics.")
@as_json
@click.pass_obj
def stats(servers: Servers, tube: str | None, job: int | None, as_json: bool) -> int:
    """Print the statistics of the server, of a tube or of a job."""
    if tube is not None and job is not None:
        raise click.UsageError("--tube and --job exclude each other")
    found: dict[str, dict[str, Any]] = {}

    def ask(conn: gstalk.Conn) -> None:
        what = conn.stats_tube(tube) if tube is not None else conn.stats_job(job) if job is not None else conn.stats()
        found[conn.uri] = fields(what)

    code = visit([servers.uri] if job is not None else servers.uris, ask)
    for number, (uri, values) in enumerate(found.items()):
        if as_json:
            row({**servers.label(uri), **values})
        else:
            if number:
                click.echo()
            for name, value in {**servers.label(uri), **values}.items():
                click.echo(f"{printable(name)}: {_told(value)}")
    return code


@click.command()
@click.argument("job_id", required=False, metavar="[ID]", type=click.IntRange(1))
@click.option("--tube", type=TUBE, help="Look at the job of this tube that is next.")
@click.option("--state", type=click.Choice(STATES), help="Which of the tube's jobs.  [default: ready]")
@as_json
@click.pass_obj
def peek(servers: Servers, job_id: int | None, tube: str | None, state: str | None, as_json: bool) -> None:
    """Print a job's body as it is, without reserving the job.

    On a terminal, what isn't printable is escaped.
    """
    if (job_id is None) == (tube is None):
        raise click.UsageError("name a job's ID or a --tube")
    if job_id is not None and state is not None:
        raise click.UsageError("--state goes with --tube")
    with gstalk.dial(servers.uri) as conn:
        if job_id is not None:
            job = conn.peek(job_id)
            missing = f"peek {job_id} at {conn.uri}: no such job"
        else:
            job = look_at(conn, str(tube), cast(State, state or "ready"))
            missing = f"peek at {conn.uri}: tube {tube!r} has no {state or 'ready'} job"
        if job is None:
            raise gstalk.NotFoundError(missing)
        if as_json:
            stats = job.stats()
            row({"id": job.id, "state": stats.state, **shown(stats.tube, job.body, params_of(stats))})
        elif sys.stdout.isatty():
            click.echo(printable(job.body.decode("utf-8", "backslashreplace"), keep="\n\t"))
        else:
            sys.stdout.buffer.write(job.body)


def _cell(value: object) -> object:
    return "" if value is None else value


def _told(value: object) -> str:
    """A value as the server spells it."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else printable(str(value))
