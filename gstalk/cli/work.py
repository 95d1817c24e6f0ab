"""`gstalk work`: a worker process around a handler, or several under a parent."""

from __future__ import annotations

import functools
import os
import sys

import click
from gevent import monkey

import gstalk
from gstalk.cli._anew import anew
from gstalk.cli._durations import Duration
from gstalk.cli._generation import Plan
from gstalk.cli._notify import notify
from gstalk.cli._output import tell
from gstalk.cli._processes import Processes
from gstalk.cli._servers import TUBE, Servers
from gstalk.cli._signals import hold_signals
from gstalk.cli._signs import UntouchableError
from gstalk.cli._worker import AGAIN, Work, Worker

__all__ = ["work"]

GRACE = 10.0  # seconds beyond `--stop-timeout` that a process gets to end before its parent kills it
positive = Duration(0, min_open=True)


@click.command()
@click.argument("target", metavar="MODULE:HANDLER")
@click.option("--tube", "tubes", type=TUBE, multiple=True, required=True, help="A tube to watch; repeatable.")
@click.option("--greenlets", type=click.IntRange(1), default=10, show_default=True, help="Handlers running at once.")
@click.option("--multiply", type=click.IntRange(1), default=1, show_default=True, help="Connections to each server.")
@click.option("--auto-delete", is_flag=True, help="Delete a job when its handler returns.")
@click.option("--auto-touch", is_flag=True, help="Touch jobs at a third of their ttr, so that slow handlers keep them.")
@click.option("--time-limit", metavar="SECONDS", type=positive, help="How long a handler may run.")
@click.option("--max-attempts", type=click.IntRange(0), default=25, show_default=True,
              help="Bury a job that failed so often; 0: never.")  # fmt: skip
@click.option("--stop-timeout", metavar="SECONDS", type=Duration(0), default=25, show_default=True,
              help="How long handlers may go on after a signal.")  # fmt: skip
@click.option("--burst", is_flag=True, help="End when no job is ready or reserved; delayed ones are not waited for.")
@click.option("--max-jobs", metavar="N", type=click.IntRange(1), help="End after N jobs; a --processes parent goes on.")
@click.option("--max-memory", metavar="MB", type=click.IntRange(1), help="A process that holds more is restarted.")
@click.option("--patch", is_flag=True, help="gevent.monkey.patch_all() before anything else is imported.")
@click.option("--processes", metavar="N", type=click.IntRange(1), help="N processes, restarted when they die.")
@click.option("--hang-timeout", metavar="SECONDS", type=Duration(1),
              help="Kill a process whose event loop stands still so long; its jobs go back.")  # fmt: skip
@click.option("--heartbeat", metavar="FILE", help="Touch a file every second while the event loop turns.")
@click.option("--reload", is_flag=True, help="Restart when a file of an imported module changes; for development.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what goes wrong.")
@click.option("-v", "--verbose", is_flag=True, help="A line on standard error for each job.")
@click.option("--parent", type=int, hidden=True, help="A descriptor that comes to its end with the parent process.")
@click.pass_context
def work(
    context: click.Context,
    target: str,
    tubes: tuple[str, ...],
    greenlets: int,
    multiply: int,
    auto_delete: bool,
    auto_touch: bool,
    time_limit: float | None,
    max_attempts: int,
    stop_timeout: float,
    burst: bool,
    max_jobs: int | None,
    max_memory: int | None,
    patch: bool,
    processes: int | None,
    hang_timeout: float | None,
    heartbeat: str | None,
    reload: bool,
    quiet: bool,
    verbose: bool,
    parent: int | None,
) -> int:
    """Call a handler for every job of some tubes.

    HANDLER is a function of MODULE that takes a gstalk.Job, or a dictionary from tube to function. MODULE is looked
    for in the current directory too.

    SIGTERM and SIGINT (Ctrl-C): no more jobs are reserved, running handlers finish. A second one: they are ended at
    once, and their jobs go back. SIGUSR1: prints what each greenlet is doing. SIGHUP: restarts with the code as it is
    then. With --processes new processes start, and when they work, the old ones finish.
    """
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    if sys.__stdout__ is None:
        # Standard output is closed, and writing there fails, since a result must not get lost. What a handler prints is
        # none: it goes nowhere, as in any other Python program.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    servers: Servers = context.obj
    command = _command(context, servers.uris, patch)
    try:
        config = gstalk.Config(
            num_greenlets=greenlets if max_jobs is None else min(greenlets, max_jobs),
            multiply=multiply,
            auto_delete=auto_delete,
            auto_touch=auto_touch,
            time_limit=time_limit,
            stop_timeout=stop_timeout,
            retry=gstalk.RetryPolicy(max_attempts=max_attempts or None),
        )
        gstalk.Consumer(servers.uris, tubes)  # checks the tubes' names; connects nowhere
    except gstalk.InvalidArgumentError as error:
        raise click.UsageError(str(error)) from None
    order = Work(
        target,
        tuple(servers.uris),
        tubes,
        config,
        burst,
        max_jobs,
        max_memory,
        hang_timeout,
        heartbeat,
        reload,
        quiet,
        verbose,
        parent,
    )
    number = processes or (1 if hang_timeout is not None else None)  # who blocks can't end himself
    banner = functools.partial(_banner, order, number)
    try:
        if number is not None and parent is None:
            say = (lambda text: None) if quiet else tell
            plan = Plan(command, number, burst, stop_timeout + GRACE)
            return Processes(plan, hang_timeout, heartbeat, say, banner).run()
        if patch and not monkey.is_module_patched("socket"):
            # By now click, rich, gstalk and much of the standard library are imported; what they took from it, such as
            # locks, would stay unpatched. So begin again, in this process, with the monkey at the very first.
            os.execv(command[0], command)
        worker = Worker(order, banner)
        code = worker.run()
    except UntouchableError as error:
        raise click.UsageError(str(error)) from None
    if code == AGAIN and parent is None:
        if not worker.begins_anew:
            return 0  # after --max-jobs; whoever started this process starts the next
        hold_signals()
        notify("WATCHDOG=1")  # the time until the next one is for the beginning
        os.execv(command[0], command)
    return code


def _command(context: click.Context, uris: list[str], patch: bool) -> list[str]:
    """How to start this very worker, as a process that is told what this one was told."""
    words = [word for uri in uris for word in ("--uri", uri)]
    words += ["work", context.params["target"]]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        option = parameter.opts[0]
        if isinstance(parameter, click.Argument) or value is None or value is False or option == "--parent":
            continue
        words += [option] if value is True else [word for each in _all(value) for word in (option, str(each))]
    return anew(words, patch)


def _all(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def _banner(order: Work, processes: int | None, is_patched: bool) -> str:
    config = order.config
    attempts = config.retry.max_attempts
    ends = ["the tubes are empty"] * order.burst + [f"{order.max_jobs} jobs were begun"] * bool(order.max_jobs)
    facts = {
        "tubes": ", ".join(order.tubes),
        "servers": ", ".join(order.uris),
        "handlers": f"{config.num_greenlets} greenlets, connections to each server: {config.multiply}"
        + (f"; in each of {processes} processes" if processes else "")
        + ("; monkey-patched" if is_patched else "; not monkey-patched"),
        "jobs": ("deleted when their handler returns" if config.auto_delete else "finished by their handler")
        + ("; touched" if config.auto_touch else "")
        + (f"; at most {config.time_limit:g} s" if config.time_limit else "")
        + (f"; buried after {attempts} attempts" if attempts else "; tried again for ever"),
        "ends": " or ".join([*ends, f"SIGTERM or Ctrl-C, then {config.stop_timeout:g} s at most; again: at once"]),
        "signals": f"kill -USR1 {os.getpid()} prints what greenlets do; kill -HUP {os.getpid()} restarts",
    }
    return "\n".join(
        [f"{order.target} works, pid {os.getpid()}, gstalk {gstalk.__version__}"]
        + [f"  {name:8}  {fact}" for name, fact in facts.items()]
    )
