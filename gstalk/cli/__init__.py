"""The command line `gstalk`, with click from the extra `gstalk[cli]`; rich is imported where it shows something.

Results go to standard output; progress, questions and errors to standard error. Exit codes: 0 done, 1 refused or
failed, 2 wrong usage, 3 no connection. Each room holds commands of one kind and no name of another room's; `_output`
and `_servers` are what they share.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import NoReturn

try:
    import click
except ImportError as missing:
    raise SystemExit(f"gstalk: the command line needs {missing.name}: pip install 'gstalk[cli]'") from None

import gevent

import gstalk
from gstalk.cli import _completion  # noqa: F401  # has click use it
from gstalk.cli._output import complain, exit_code
from gstalk.cli._servers import URI_HELP, Servers, take_uris
from gstalk.cli.buried import delete, info, kick
from gstalk.cli.demo import demo
from gstalk.cli.jobs import bury, pause, purge, put, resume
from gstalk.cli.look import peek, stats, tubes
from gstalk.cli.metrics import exporter, metrics
from gstalk.cli.serve import serve
from gstalk.cli.top import top
from gstalk.cli.transfer import dump, load, move
from gstalk.cli.work import work

__all__ = ["cli", "main"]

# From click 8.2 on; before, a bare `gstalk` was no error.
_NO_ARGUMENTS: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line; errors end in one sentence. What a command returns, if an int, is the exit code.

    Args:
        args: Instead of the program's own.
    """
    _stand_in_for_closed_streams()
    _have_signals_interrupt_us()
    try:
        code = cli.main(args, prog_name="gstalk", standalone_mode=False)
        sys.stdout.flush()
    except _NO_ARGUMENTS as error:
        error.show()  # the help
        code = error.exit_code
    except click.UsageError as error:
        hint = f"; see '{error.ctx.command_path} --help'" if error.ctx is not None else ""
        complain(f"{_sentence(error)}{hint}")
        code = error.exit_code
    except click.ClickException as error:
        complain(_sentence(error))
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        # One that struck in a text that was being executed, as in the making of a dataclass, Python has noted, and
        # though it was caught would end `python -m gstalk` by the signal. With the next text the note is gone.
        exec("")
        code = 1
    except gstalk.GstalkError as error:
        complain(error)
        code = exit_code(error)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # then nobody is there to be told
            complain(error.strerror or error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer goes nowhere
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _stand_in_for_closed_streams() -> None:
    """Fill the places of standard descriptors that are closed, or sockets would take them.

    Reading there finds nothing. Writing results fails: what was to be printed must not count as printed. What is said
    on standard error goes nowhere, and changes no exit code.
    """
    for name, mode, access in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, access), mode, encoding="utf-8"))  # noqa: SIM115


def _have_signals_interrupt_us() -> None:
    """SIGINT and SIGTERM raise KeyboardInterrupt in the greenlet that calls this, not in whichever happens to run.

    One that has written a line and is about to delete its job must come to that.
    """
    me = gevent.getcurrent()

    def interrupt(number: int, frame: object) -> None:
        if gevent.getcurrent() is me:
            raise KeyboardInterrupt
        gevent.get_hub().loop.run_callback(me.throw, KeyboardInterrupt())

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, interrupt)


def _sentence(error: click.ClickException) -> str:
    """click's sentences as one of our style: no capital but in BODY, no full stop, and a number is no range."""
    message = re.sub(r"(is not a valid \w+) range\b", r"\1", error.format_message())
    sentences = message.rstrip(".?").split(". ")
    return "; ".join(each if each[1:2].isupper() else each[:1].lower() + each[1:] for each in sentences)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--uri", "uris", multiple=True, envvar="BEANSTALKD_URI", metavar="URI", help=URI_HELP)
@click.version_option(gstalk.__version__)
@click.pass_context
def cli(context: click.Context, uris: tuple[str, ...]) -> None:
    """Work with beanstalkd."""
    context.obj = Servers(uris)


for command in (
    info, kick, delete, tubes, stats, top, put, peek, bury, pause, resume, purge, move, dump, load, work, metrics,
    exporter, serve, demo,
):  # fmt: skip
    cli.add_command(command)
    command.short_help = " ".join(str(command.help).partition("\n\n")[0].split())  # click would cut it off
    if command is not serve:  # it speaks to no server
        take_uris(command)
