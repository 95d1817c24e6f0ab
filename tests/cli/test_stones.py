"""What a person meets in the first minutes: options behind the command, durations, hints, help, and a shell's TAB."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import click
import pytest
from gevent import subprocess

import gstalk
from gstalk.cli import cli
from gstalk.cli._durations import DELAY
from gstalk.testing import Server
from tests.cli.running import UNUSED, buried, run, states
from tests.cli.terminal import Terminal

GSTALK = f"'{sys.executable}' -m gstalk"


# -- --uri ---------------------------------------------------------------------------------------------------------


def test_uri_behind_the_command():
    with Server() as server:
        assert run("put", "mail", "x", "--uri", server.uri) == (0, "1\n", "")
        assert run("peek", f"--uri={server.uri}", "1") == (0, "x", "")


def test_uri_behind_the_command_counts_more_than_the_environment(monkeypatch):
    monkeypatch.setenv("BEANSTALKD_URI", UNUSED)
    with Server() as server:
        assert run("put", "mail", "x", "--uri", server.uri) == (0, "1\n", "")


def test_uri_before_and_behind_are_two_servers():
    with Server() as one, Server() as two:
        code, out, err = run("tubes", "--uri", two.uri, "--json", uri=one.uri)
        assert (code, out.count("\n"), err) == (0, 2, "")
        assert one.uri in out
        assert two.uri in out


def test_uri_behind_every_command_but_serve():
    """`serve` speaks to none."""
    for name, command in cli.commands.items():
        code, out, _ = run(name, "--help")
        assert code == 0
        assert (re.search(r"^ *--uri URI ", out, re.MULTILINE) is not None) == (name != "serve"), name
        assert command.name == name


def test_uri_behind_that_is_wrong_is_one_sentence():
    said = (
        "gstalk: invalid server URI 'redis://x': scheme must be beanstalk, beanstalks, tls or unix; see 'gstalk {}'\n"
    )
    assert run("tubes", "--uri", "redis://x") == (2, "", said.format("tubes --help"))


# -- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [40, 80])
def test_help_has_every_commands_first_sentence(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = " ".join(run("--help").out.split())
    assert "..." not in out.replace("[ARGS]...", "")
    for command in cli.commands.values():
        first = " ".join(str(command.help).partition("\n\n")[0].split())
        assert first in out


# -- durations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("7", 7), (".5", 0.5), ("1.5", 1.5), ("1.5h", 5400), ("90s", 90), ("5m", 300), ("1h", 3600),
     ("2d", 172800), ("1h30m", 5400), ("1d02h", 93600), (" 5m", 300)],
)  # fmt: skip
def test_duration_is_seconds_or_has_units(text, seconds):
    assert DELAY.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "m", "5x", "1m1h", "1h1h", "-5m", "nan", "inf", "1e400", "5 m x", "1_0", "٣m"])
def test_duration_refuses_the_rest(text):
    with pytest.raises(click.BadParameter, match="is no duration: seconds, or such as 90s, 5m, 1h30m, 2d"):
        DELAY.convert(text, None, None)


def test_duration_too_long_for_the_server_is_refused():
    code, out, err = run("put", "mail", "x", "--delay", "99999d")
    assert (code, out) == (2, "")
    assert err == (
        "gstalk: invalid value for '--delay': 8639913600.0 is not in the range 0<=x<=4294967295; "
        "see 'gstalk put --help'\n"
    )


def test_put_and_pause_take_durations():
    with Server() as server, gstalk.dial(server.uri) as conn:
        assert run("put", "mail", "x", "--delay", "1h", "--ttr", "5m", uri=server.uri) == (0, "1\n", "")
        stats = conn.stats_job(1)
        assert (stats.delay, stats.ttr) == (3600, 300)
        assert run("pause", "mail", "2d", uri=server.uri).code == 0
        assert conn.stats_tube("mail").pause == 172800


def test_put_ttr_of_0_is_refused_with_the_range_that_the_help_shows():
    assert "0<x<=4294967295" in run("put", "--help").out
    expected = "gstalk: invalid value for '--ttr': 0.0 is not in the range 0<x<=4294967295; see 'gstalk put --help'\n"
    assert run("put", "mail", "x", "--ttr", "0") == (2, "", expected)


# -- what is said --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["put", "mail"], "gstalk: reading the body from standard input; Ctrl-D ends it"),
        (["put", "mail", "--file", "-"], "gstalk: reading the body from standard input; Ctrl-D ends it"),
        (["put", "mail", "--lines"], "gstalk: reading one job a line from standard input; Ctrl-D ends it"),
        (["load"], "gstalk: reading lines of JSON from standard input; Ctrl-D ends it"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_reading_a_terminal_is_said(arguments, hint):
    with Server() as server, Terminal([sys.executable, "-m", "gstalk", "--uri", server.uri, *arguments]) as seen:
        seen.wait_for(hint)
        seen.type("\x04")
        assert seen.finish() == 0


@pytest.mark.parametrize("arguments", [["put", "mail"], ["put", "mail", "--lines"], ["load"]])
def test_reading_a_pipe_is_not_said(arguments):
    with Server() as server:
        assert "reading" not in run(*arguments, stdin=b'{"tube":"mail","body":"x"}\n', uri=server.uri).err


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--json"]])
@pytest.mark.parametrize("command", ["kick", "delete"])
def test_no_server_no_jobs_are_counted(command, options):
    code, out, err = run(command, *options, uri=UNUSED)
    assert (code, out, err.count("\n")) == (3, "", 1)


def test_one_server_of_two_is_counted():
    with Server() as server, gstalk.dial(server.uri) as conn:
        assert run("kick", "--uri", server.uri, uri=UNUSED)[:2] == (3, "0 jobs kicked\n")
        buried(conn, "mail", b"x")
        assert run("kick", "--uri", server.uri, uri=UNUSED)[:2] == (3, "1 job kicked\n")
        assert states(conn, "mail") == {"ready": 1}


# -- completion ----------------------------------------------------------------------------------------------------


def test_bash_completes_behind_a_port():
    """bash breaks words at colons; what it hands over must be put together again."""
    if shutil.which("bash") is None:
        pytest.skip("no bash on this machine")
    with Server() as server, gstalk.dial(server.uri) as conn:
        conn.put("mailings", b"x")
        place = server.uri.removeprefix("beanstalk://")
        assert ":" in place
        with Terminal(
            ["bash", "--norc", "--noprofile", "-i"], columns=120, env={"PS1": "> ", "INPUTRC": "/dev/null"}
        ) as seen:
            seen.type(
                f'gstalk() {{ {GSTALK} "$@"; }}; eval "$(_GSTALK_COMPLETE=bash_source {GSTALK})"; echo re\'\'ady\n'
            )
            seen.wait_for("\nready")
            for line in (
                f"gstalk --uri {place} peek --tube mai",
                f"gstalk peek --uri={place} --tube=mai",
                f"gstalk --uri beanstalk://{place} purge mai",
                f"echo x | gstalk --uri {place} put mai",
            ):
                seen.type("clear\n")
                seen.type(f"{line}\t")
                seen.wait_for(line.removesuffix("mai") + "mailings")
                seen.type("\x15")
            seen.type("exit\n")


def test_worker_completes_tubes(monkeypatch):
    with Server() as server, gstalk.dial(server.uri) as conn:
        conn.put("mailings", b"x")
        monkeypatch.setenv("_GSTALK_COMPLETE", "zsh_complete")
        monkeypatch.setenv("COMP_WORDS", f"gstalk work app:handle --uri {server.uri} --tube mai")
        monkeypatch.setenv("COMP_CWORD", "6")
        assert "mailings" in run().out


# -- what is needed ------------------------------------------------------------------------------------------------

WITHOUT = "import sys; sys.modules.update(dict.fromkeys({!r})); "
COMMAND = "sys.argv[0] = 'gstalk'; from gstalk.cli import main; main()"


def without(modules: list[str], program: str, *args: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """Run a program where some modules can't be imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules) + program, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_rich_is_needed_only_where_it_shows_something(tmp_path):
    (tmp_path / "tasks.py").write_text("def handle(job):\n    print(job.body)\n    job.delete()\n")
    with Server() as server:
        uri = f"--uri={server.uri}"
        assert without(["rich"], COMMAND, uri, "put", "mail", "x") == (0, "1\n", "")
        assert without(["rich"], COMMAND, uri, "tubes")[0] == 0
        code, out, _ = without(["rich"], COMMAND, uri, "work", "tasks:handle", "--tube=mail", "--burst", cwd=tmp_path)
        assert (code, out) == (0, "b'x'\n")
        said = "gstalk: top needs rich: pip install 'gstalk[cli]'\n"
        with Terminal([sys.executable, "-c", WITHOUT.format(["rich"]) + COMMAND, uri, "top"]) as seen:
            assert seen.finish() == 1
            assert seen.picture.text == said.strip()


def test_rich_missing_no_bar_is_shown():
    with Server() as server, gstalk.dial(server.uri) as conn:
        conn.put_many("mail", [b"x"] * 5)
        command = [
            sys.executable,
            "-c",
            WITHOUT.format(["rich"]) + COMMAND,
            f"--uri={server.uri}",
            "purge",
            "mail",
            "--yes",
        ]
        with Terminal(command) as seen:
            assert seen.finish() == 0
            assert seen.picture.text == "5 jobs deleted"


def test_click_missing_is_said():
    said = "gstalk: the command line needs click: pip install 'gstalk[cli]'\n"
    assert without(["click"], COMMAND, "tubes") == (1, "", said)


def test_otel_without_its_extra_says_which():
    code, out, err = without(["opentelemetry"], "import gstalk.otel")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "ImportError: gstalk.otel needs opentelemetry-api, which isn't installed: pip install 'gstalk[otel]'"
    )
