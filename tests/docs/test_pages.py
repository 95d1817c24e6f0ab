"""The documentation's pages are true: their snippets run, and the protocol table is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gstalk
from gstalk.protocol import commands
from gstalk.protocol.commands import Command
from gstalk.protocol.replies import BODIED, REFUSALS
from gstalk.protocol.request import PENDING, Request
from gstalk.protocol.stream import Stream
from gstalk.testing import Beanstalkd

DOCS = Path(__file__).parent.parent.parent / "docs"
WITH_SNIPPETS = [
    "index",
    "tutorial",
    "cancellation",
    "events",
    "telemetry",
    "threads",
]  # other pages have tests of their own

# A reply line of each word that has more than the word.
LINES = {
    "INSERTED": b"INSERTED 7",
    "RESERVED": b"RESERVED 7 0",
    "FOUND": b"FOUND 7 0",
    "OK": b"OK 0",
    "USING": b"USING mail",
    "WATCHING": b"WATCHING 1",
}


def table() -> dict[str, tuple[list[str], list[str], set[str]]]:
    """From the page: each command's methods, replies and errors."""
    rows = re.findall(
        r"^\| `?([a-z-]+)`? \| (.*?) ?\| (.*?) ?\| (.*?) ?\|$", (DOCS / "protocol.md").read_text("utf-8"), re.M
    )
    names = [[re.findall(r"`(.+?)`", cell) for cell in cells] for _, *cells in rows]
    found = {row[0]: (each[0], each[1], set(each[2])) for row, each in zip(rows, names, strict=True)}
    found.pop("command", None)
    return found


def every_command() -> dict[str, Command]:
    return {each.name: each for each in vars(commands).values() if isinstance(each, Command)}


def error_of(command: Command, word: str) -> str | None:
    """What a reply of this word becomes: an error's name, or `None` for an answer."""
    stream = Stream("server")
    request = Request(command, "server", {"kick-job": 7, "release": 7}.get(command.name))
    stream.requests.append(request)
    line = LINES.get(word, word.encode())
    if (command.name, word) in (("kick", "KICKED"), ("put", "BURIED")):
        line += b" 7"
    stream.receive(line + b"\r\n" + (b"\r\n" if word.encode() in BODIED else b""))
    assert request.error is not None or request.result is not PENDING
    return type(request.error).__name__ if request.error is not None else None


def test_protocol_table_has_every_command_and_its_replies():
    rows = table()
    documented = {name: replies for name, (_, replies, _) in rows.items()}
    assert documented == {
        **{name: [word.decode() for word in command.expected] for name, command in every_command().items()},
        "any": [word.decode() for word in REFUSALS],
    }


@pytest.mark.parametrize("name", [*every_command(), "any"])
def test_protocol_table_has_each_commands_errors(name):
    _, replies, errors = table()[name]
    command = commands.USE if name == "any" else every_command()[name]
    found = {word: error_of(command, word) for word in replies}
    if name.startswith(("stats", "list-tubes")):
        found.pop("OK")  # an empty body is none that they may have
    assert {error for error in found.values() if error is not None} == errors
    assert all(hasattr(gstalk, error) for error in errors)


def test_protocol_table_has_every_method_that_sends_a_command():
    named = {name for methods, _, _ in table().values() for name in methods}
    assert {name for name in named if "." not in name} == {
        name for name, each in vars(gstalk.Conn).items() if callable(each) and not name.startswith("_")
    } - {"close"}
    for name in named:
        owner, _, method = name.rpartition(".")
        assert hasattr(getattr(gstalk, owner or "Conn"), method)
    assert {name for name in vars(gstalk.Job) if f"``{name}" in str(getattr(gstalk.Job, name).__doc__)} <= {
        name.removeprefix("Job.") for name in named
    }


@pytest.mark.real
@pytest.mark.parametrize("page", WITH_SNIPPETS)
@pytest.mark.filterwarnings("ignore:unclosed connection:ResourceWarning")
def test_snippets_of_a_page_run(page):
    """In order, in one namespace; "```python notest" is left out."""
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert snippets
    names: dict[str, object] = {"__name__": page}
    with Beanstalkd() as server:
        for snippet in snippets:
            exec(compile(snippet.replace("localhost:11300", server.uri), f"{page}.md", "exec"), names)
