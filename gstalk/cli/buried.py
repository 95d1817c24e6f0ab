"""`gstalk info`, `kick` and `delete`: the buried jobs, in whatever tubes and on however many servers they are."""

from __future__ import annotations

import click

import gstalk
from gstalk.cli._output import confirm, fields, listed, plural, progress, report, row, short, table
from gstalk.cli._servers import TUBE, Servers, answers, tube_stats, visit
from gstalk.cli._sweep import age_of_first, sweep
from gstalk.protocol import commands
from gstalk.protocol.commands import Command

__all__ = ["delete", "info", "kick"]

of_tubes = click.option("--tube", "tubes", multiple=True, type=TUBE, help="A tube; may be repeated. Default: all.")
dry_run = click.option("--dry-run", is_flag=True, help="Change nothing; print how many jobs there are.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.command()
@of_tubes
@as_json
@click.pass_obj
def info(servers: Servers, tubes: tuple[str, ...], as_json: bool) -> int:
    """List the tubes that hold buried jobs, with their number and the age of the one that was buried first.

    A job's age counts from its put: the server doesn't tell when a job was buried.
    """
    rows: list[tuple[str, gstalk.TubeStats, int | None]] = []

    def look(conn: gstalk.Conn) -> None:
        found = _buried(conn, tubes)
        ages = answers(lambda stats: age_of_first(conn, str(stats.name), "buried"), found)
        rows.extend((conn.uri, stats, age) for stats, age in zip(found, ages, strict=True))

    code = visit(servers.uris, look)
    if as_json:
        for uri, stats, age in rows:
            row({**servers.label(uri), **fields(stats), "oldest": age})
    elif rows or not code:  # the head alone would say that nothing is buried
        heads = [*servers.label(""), "tube", "buried", "oldest"]
        cells = [
            (
                *servers.label(uri).values(),
                stats.name,
                stats.current_jobs_buried or 0,
                "" if age is None else short(age),
            )
            for uri, stats, age in rows
        ]
        table(heads, cells)
    return code


@click.command()
@of_tubes
@dry_run
@as_json
@click.pass_obj
def kick(servers: Servers, tubes: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Make buried jobs ready again.

    Never touches a delayed job, and ends even while others bury: as many jobs are kicked as were buried at the start,
    at most.
    """
    return _act(servers, *_survey(servers, tubes), commands.KICK_JOB, "kicked", dry_run, as_json)


@click.command()
@of_tubes
@dry_run
@click.option("--yes", is_flag=True, help="Don't ask.")
@as_json
@click.pass_obj
def delete(servers: Servers, tubes: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool) -> int:
    """Delete buried jobs.

    Ends even while others bury: as many jobs are deleted as were buried at the start, at most.
    """
    found, code = _survey(servers, tubes)
    if (count := _count(found)) and not dry_run:
        where = listed([uri for uri, each in found.items() if each])
        confirm(f"delete {plural(count, 'buried job')} on {where}", yes)
    return _act(servers, found, code, commands.DELETE, "deleted", dry_run, as_json)


Found = dict[str, list[gstalk.TubeStats]]  # from a server's URI to its tubes that hold buried jobs


def _buried(conn: gstalk.Conn, tubes: tuple[str, ...]) -> list[gstalk.TubeStats]:
    return [stats for stats in tube_stats(conn, tubes) if stats.current_jobs_buried]


def _survey(servers: Servers, tubes: tuple[str, ...]) -> tuple[Found, int]:
    found: Found = {}

    def look(conn: gstalk.Conn) -> None:
        found[conn.uri] = _buried(conn, tubes)

    return found, visit(servers.uris, look)


def _count(found: Found) -> int:
    return sum(stats.current_jobs_buried or 0 for each in found.values() for stats in each)


def _act(servers: Servers, found: Found, code: int, command: Command, done: str, dry_run: bool, as_json: bool) -> int:
    count = 0
    if not found:  # no server was there to count at
        return code
    if dry_run:
        report(_count(found), f"would be {done}", as_json)
        return code
    try:
        with progress(done, _count(found)) as advance:

            def acted(jobs: int) -> None:
                nonlocal count
                count += jobs
                advance(jobs)

            def act(conn: gstalk.Conn) -> None:
                for stats in found[conn.uri]:
                    sweep(conn, str(stats.name), "buried", command, stats.current_jobs_buried or 0, acted)

            code = max(code, visit([uri for uri, each in found.items() if each], act))
    finally:
        report(count, done, as_json)
    return code
