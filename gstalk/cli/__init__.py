"""The command line `gstalk`, with click and rich from the extra `gstalk[cli]`.

Results go to standard output; progress, questions and errors to standard error. Exit codes: 0 done, 1 refused or
failed, 2 wrong usage, 3 no connection. Each room holds commands of one kind and no name of another room's; `_output`
and `_servers` are what they share.
"""

from __future__ import annotations

import sys

try:
    import click
    import rich  # noqa: F401  # what is missing is said here, not in the middle of a command
except ImportError as missing:
    raise SystemExit(f"gstalk: the command line needs {missing.name}: pip install 'gstalk[cli]'") from None

import gstalk
from gstalk.cli._output import complain
from gstalk.cli._servers import Servers
from gstalk.cli.demo import demo
from gstalk.cli.serve import serve

__all__ = ["cli", "main"]


def main() -> None:
    """Run the command line; errors end in one sentence. What a command returns, if an int, is the exit code."""
    try:
        code = cli.main(prog_name="gstalk", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        sys.exit(1)
    except gstalk.GstalkError as error:
        complain(str(error))
        sys.exit(3 if isinstance(error, gstalk.DisconnectedError) else 1)
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--uri", "uris", multiple=True, envvar="BEANSTALKD_URI", help="The server; also $BEANSTALKD_URI.")
@click.version_option(gstalk.__version__)
@click.pass_context
def cli(context: click.Context, uris: tuple[str, ...]) -> None:
    """Work with beanstalkd."""
    context.obj = Servers(uris)


for command in (demo, serve):
    cli.add_command(command)
