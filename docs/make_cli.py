"""Makes docs/cli.md anew: runs the commands of its transcripts, and writes down what they say.

Run: python docs/make_cli.py

A block of the kind `console` is a transcript: each line after a `$` is run by bash, against an embedded server whose
clock stands still but for half a second before each command. A comment before a block, `<!-- terminal [...] -->`, has
its command run on a terminal of 80 by 24: what is in the list is typed, or, behind a question mark, waited for; nothing
at all stands for the command's end.
The table between `<!-- options -->` and `<!-- end -->` is made of what the commands say about themselves.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import click
from gevent import subprocess

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from gstalk.cli import cli  # noqa: E402  # the package may be beside us, not installed
from gstalk.testing import Server  # noqa: E402
from tests.cli.terminal import Terminal  # noqa: E402
from tests.servers import wait_until  # noqa: E402

PAGE = ROOT / "docs" / "cli.md"
BLOCK = re.compile(r"(?:<!-- terminal (?P<steps>.*?) -->\n)?```console\n(?P<text>.*?)```\n", re.DOTALL)
OPTIONS = re.compile(r"(<!-- options -->\n).*?(<!-- end -->)", re.DOTALL)
GSTALK = f'gstalk() {{ {shlex.quote(sys.executable)} -m gstalk "$@"; }}'


class Stage:
    """Where the commands run: a server, and a directory for their files."""

    def __init__(self, server: Server, directory: Path) -> None:
        self._server = server
        self._directory = directory
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._environment = {
            **os.environ,
            "BEANSTALKD_URI": server.uri,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def play(self, found: re.Match[str]) -> str:
        """Make a block anew."""
        commands = [line[2:] for line in found["text"].splitlines() if line.startswith("$ ")]
        steps = found["steps"]
        comment = f"<!-- terminal {steps} -->\n" if steps else ""
        said = [self._on_terminal(each, json.loads(steps)) if steps else self._run(each) for each in commands]
        lines = [f"$ {command}\n{text}" for command, text in zip(commands, said, strict=True)]
        return f"{comment}```console\n{''.join(lines)}```\n"

    def _begin(self) -> None:
        wait_until(lambda: not self._server.engine.clients)
        self._server.advance(0.5)

    def _run(self, command: str) -> str:
        self._begin()
        done = subprocess.run(
            ["bash", "-c", f"{GSTALK}; {command}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._directory,
            timeout=60,
        )
        return self._plain(done.stdout.decode())

    def _on_terminal(self, command: str, steps: list[str]) -> str:
        self._begin()
        with Terminal(["bash", "-c", f"{GSTALK}; {command}"], env=self._environment, cwd=self._directory) as terminal:
            for step in steps:
                if step.startswith("?"):
                    terminal.wait_for(step[1:])
                elif step:
                    terminal.type(step)
                else:
                    terminal.finish()
            text = terminal.picture.text
            if terminal.process.poll() is None:
                terminal.type("\x03")
                terminal.finish()
        return self._plain(f"{text}\n")

    def _plain(self, text: str) -> str:
        """What a reader would see, who has the server where it usually is."""
        text = text.replace(self._server.uri, "beanstalk://localhost:11300")
        return re.sub(r"\b\d:\d\d:\d\d\b", "0:00:01", text)


def options() -> str:
    """A table of all commands and options."""
    lines = ["| command | option | what it does |", "|---|---|---|"]
    for name, command in cli.commands.items():
        arguments = [_shown(each) for each in command.params if isinstance(each, click.Argument)]
        lines.append(f"| **`{' '.join([name, *arguments])}`** | | {str(command.help).partition(chr(10))[0]} |")
        for each in command.params:
            if isinstance(each, click.Option) and not each.hidden and each.name != "uri":  # all have that
                lines.append(f"| | `{', '.join(each.opts)}` | {each.help} |")
    return "".join(f"{line}\n" for line in lines)


def _shown(argument: click.Argument) -> str:
    name = argument.human_readable_name
    return name if argument.required or name.startswith("[") else f"[{name}]"


def made(text: str, directory: Path) -> str:
    """Make the page anew from what it is."""
    text = OPTIONS.sub(lambda found: f"{found[1]}{options()}{found[2]}", text)
    with Server() as server:
        server.freeze()
        return BLOCK.sub(Stage(server, directory).play, text)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        PAGE.write_text(made(PAGE.read_text(encoding="utf-8"), Path(place)), encoding="utf-8")
